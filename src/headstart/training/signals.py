"""Ctrl-C and SIGTERM while a fit runs: the step is finished first."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from headstart.data.loading import Pair
from headstart.errors import DataError
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
    taken: dict[int, Any] = {n: handler for n, handler in _DEFAULTS.items() if signal.getsignal(n) == handler}
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
        if hasattr(signal, "SIGCHLD"):
            # The signal may have gone to a loader's processes too; torch would tell so in the middle of the step.
            taken.setdefault(signal.SIGCHLD, signal.getsignal(signal.SIGCHLD))
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Whoever is printing now may not be printed over by a handler.
        with suppress(OSError):  # nobody may be listening: the same Ctrl-C has ended a `| tee log`
            os.write(2, b"\nfinishing the step; once more leaves at once\n")

    for number in list(taken):
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
    if run.signal is not None:  # it came when no step was left, or a callback ended the fit first
        raise run.departure(run.signal)


def heeding(run: Run, pairs: Iterable[Pair], group: Sequence[int] = ()) -> Iterator[Pair]:
    """Go through the batches of a loader, whose processes may have heard the signal too and be gone.

    Args:
        run: knows whether a signal has come.
        pairs: the batches.
        group: those that share a step which is still open; the state is saved only where there is none.
    """
    try:
        yield from pairs
    except (RuntimeError, DataError) as error:
        if run.signal is None:
            raise
        if not group:
            run.leave_if_told()
        raise run.departure(run.signal) from error
