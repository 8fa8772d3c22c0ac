"""Schedules: pure functions from progress in [0, 1] to the factor that the base rate is multiplied by.

Being functions, they can be plotted and tested without training, and need no state to be resumed.
"""

import math
from collections.abc import Callable
from typing import Self

from headstart.errors import Demands, is_count, is_number

Schedule = Callable[["Progress"], float]
"""From how far a fit is to a factor on its base rate."""

_WARMUP_START = 1 / 25  # where a warm-up begins: not at 0, for the first steps should not be thrown away


class Progress(float):
    """How far a fit is, as a share in [0, 1], and the whole numbers it comes from.

    Attributes:
        step: optimizer steps taken.
        steps: optimizer steps of the whole fit.
        epoch: epochs finished.

    Example:
        >>> progress = Progress(step=30, steps=120, epoch=2)
        >>> float(progress), progress.epoch
        (0.25, 2)
    """

    step: int
    steps: int
    epoch: int

    def __new__(cls, step: int, steps: int, epoch: int) -> Self:
        """Make the share; a fit of no steps is at its beginning."""
        progress = super().__new__(cls, step / max(1, steps))
        progress.step, progress.steps, progress.epoch = step, steps, epoch
        return progress


def constant(warmup: float = 0.0) -> Schedule:
    """Keep the rate, after a warm-up.

    Args:
        warmup: share of the fit in which the rate rises linearly from 1/25, in [0, 1).

    Returns:
        A function of progress.

    Raises:
        ConfigError: `warmup` is out of range; 0.1 is usual.

    Example:
        >>> schedule = constant(warmup=0.5)
        >>> schedule(0.0), schedule(0.5), schedule(1.0)
        (0.04, 1.0, 1.0)
    """
    _demand(warmup=warmup)
    return _after_warmup(warmup, lambda share: 1.0)  # noqa: ARG005


def linear(end: float = 0.0, warmup: float = 0.0) -> Schedule:
    """Fall in a straight line from the base rate to `end` times it.

    Args:
        end: the factor at the end, 0 or more.
        warmup: share of the fit in which the rate rises first, in [0, 1).

    Returns:
        A function of progress.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> schedule = linear()
        >>> schedule(0.0), schedule(0.25), schedule(1.0)
        (1.0, 0.75, 0.0)
    """
    _demand(end=end, warmup=warmup)
    return _after_warmup(warmup, lambda share: 1.0 + (end - 1.0) * share)


def cosine(end: float = 0.0, warmup: float = 0.0) -> Schedule:
    """Fall along half a cosine from the base rate to `end` times it (SGDR, Loshchilov and Hutter, 2017).

    Args:
        end: the factor at the end, 0 or more.
        warmup: share of the fit in which the rate rises first, in [0, 1).

    Returns:
        A function of progress.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> schedule = cosine(warmup=0.2)
        >>> round(schedule(0.2), 3), round(schedule(0.6), 3), round(schedule(1.0), 3)
        (1.0, 0.5, 0.0)
    """
    _demand(end=end, warmup=warmup)
    return _after_warmup(warmup, lambda share: _half_cosine(1.0, end, share))


def one_cycle(warmup: float = 0.3, start: float = 1 / 25, end: float = 1e-5) -> Schedule:
    """Rise along half a cosine from `start` to the base rate, then fall to `end` times it (Smith and Topin, 2018).

    Args:
        warmup: share of the fit in which the rate rises, in [0, 1).
        start: the factor at the beginning, 0 or more.
        end: the factor at the end, 0 or more.

    Returns:
        A function of progress.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> schedule = one_cycle(warmup=0.25)
        >>> round(schedule(0.0), 3), round(schedule(0.25), 3), round(schedule(1.0), 3)
        (0.04, 1.0, 0.0)
    """
    _demand(warmup=warmup, start=start, end=end)

    def schedule(progress: float) -> float:
        if progress < warmup:
            return _half_cosine(start, 1.0, progress / warmup)
        return _half_cosine(1.0, end, (progress - warmup) / (1 - warmup))

    return schedule


def step_decay(every_epochs: int = 7, factor: float = 0.1) -> Schedule:
    """Multiply the rate by `factor` after every so many whole epochs.

    It counts epochs and never looks at a share, so no rounding can move a step by an epoch.

    Args:
        every_epochs: epochs between two changes, 1 or more.
        factor: what the rate is multiplied by each time, above 0.

    Returns:
        A function of progress that needs to know the epoch: a `Progress`, not a bare number.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> schedule = step_decay(every_epochs=7, factor=0.5)
        >>> schedule(Progress(step=0, steps=25, epoch=6)), schedule(Progress(step=0, steps=25, epoch=14))
        (1.0, 0.25)
    """
    demands = Demands("For example step_decay(every_epochs=7, factor=0.1).")
    demands.check("every_epochs", every_epochs, is_count(every_epochs), "a whole number of epochs, 1 or more")
    demands.check("factor", factor, is_number(factor) and factor > 0, "a number above 0")
    demands.settle()
    return lambda progress: float(factor ** (progress.epoch // every_epochs))


def _after_warmup(warmup: float, rest: Callable[[float], float]) -> Schedule:
    def schedule(progress: float) -> float:
        if progress < warmup:
            return _WARMUP_START + (1.0 - _WARMUP_START) * progress / warmup
        return rest((progress - warmup) / (1 - warmup))

    return schedule


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _demand(**arguments: float) -> None:
    demands = Demands("For example cosine(warmup=0.1).")
    for name, value in arguments.items():
        if name == "warmup":
            demands.check(name, value, is_number(value) and 0 <= value < 1, "a share of the fit in [0, 1)")
        else:
            demands.check(name, value, is_number(value) and value >= 0, "a factor, 0 or more")
    demands.settle()
