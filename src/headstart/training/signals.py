"""Ctrl-C and SIGTERM while a fit runs: the step is finished first."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from headstart.training.run import Run

_DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""Who handles the signals of a process that has not said otherwise; handlers of the user's own are left alone."""


@contextmanager
def listening(run: Run) -> Iterator[None]:
    """Inside, let the first Ctrl-C or SIGTERM wait for the end of the step, and the second one end the fit at once.

    Only the main thread hears signals; a fit in another one changes nothing. Afterwards the handlers are as they were.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = {number: handler for number, handler in _DEFAULTS.items() if signal.getsignal(number) == handler}
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal calls it
        if os.getpid() != owner:  # a process of a loader, forked from this one: this one decides
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if run.signal is not None:
            raise run.departure(number)
        run.signal = number
        # Whoever is printing now may not be printed over by a handler.
        os.write(2, b"\nfinishing the step; once more leaves at once\n")

    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
