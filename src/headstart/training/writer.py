"""Writing in the background: one thread, in the order in which it was asked to."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Do one thing after the other in a thread of its own.

    What one of them raises is raised where the next one is asked for, or where somebody waits; what had been asked for
    after it is not done.

    Example:
        >>> writer, done = Writer(), []
        >>> for number in range(3):
        ...     writer.submit(lambda number=number: done.append(number))
        >>> writer.wait()
        >>> done
        [0, 1, 2]
        >>> writer.close()
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="headstart-writer")
        self._running: Future[None] | None = None

    def submit(self, act: Callable[[], object]) -> None:
        """Ask for something to be done; what was asked for before may still be going on."""
        before = self._running
        if before is not None and before.done():
            self.wait()

        def act_after() -> None:
            if before is None or before.exception() is None:
                act()
            else:
                before.result()

        self._running = self._thread.submit(act_after)

    def wait(self) -> None:
        """Wait until everything has been done."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait, and let the thread end."""
        self._thread.shutdown(wait=True)
