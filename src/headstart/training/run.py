"""`Run`: all that is known while a network is trained, evaluated or asked; and how a Learner looks from in there."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from headstart.errors import ConfigError
from headstart.model.backbone import Backbone
from headstart.training.batch import Batch
from headstart.training.history import History
from headstart.training.metrics import Direction, Logs
from headstart.training.schedules import Progress

Status = Literal["running", "completed", "stopped", "interrupted", "failed"]
_RATE_HOOKS = ("on_epoch_begin", "on_epoch_end", "on_step_begin")


class StopTraining(Exception):  # noqa: N818 - a request, not an error
    """Raised by a callback to end a fit at once, without finishing the epoch.

    `run.stop(reason)` is the polite way: it finishes the batch, validates and ends the epoch.

    Args:
        reason: told to the user.

    Example:
        >>> raise StopTraining("the disk is almost full")
        Traceback (most recent call last):
        headstart.training.run.StopTraining: the disk is almost full
    """


class LearnerLike(Protocol):
    """What callbacks may ask of the Learner they work for."""

    stop_training: bool

    @property
    def model(self) -> nn.Module:
        """The network."""
        ...

    def save(self, path: str | Path) -> Path:
        """Write a file that `Learner.load` reads."""
        ...

    def evaluate(self, data: Any = None) -> dict[str, float]:
        """Give loss and metrics on a part of the data."""
        ...


@dataclass
class Run:
    """The state of one fit, evaluation or prediction.

    Callbacks read anything; they assign `batch` in `on_batch_ready`, `loss` in `on_loss_ready`, and `lr` in
    `on_epoch_begin`, `on_epoch_end` and `on_step_begin`. `batch`, `outputs` and `loss` exist from the first batch on.

    Args:
        backbone: the network with its head and stages.
        params: what was asked for: `epochs`, `steps` (batches in an epoch), `lr`, `head_lr_mult`, ...
        directions: the log keys that there will be, and which way is better.
        optimizer: None when nothing is trained.
        history: the epochs so far.
        fit: which of the Learner's fits this is, counting from 1; 0 when nothing is trained.
        epochs: epochs to train.
        batches: batches in an epoch.
        accumulate: batches that share one step.

    Example:
        >>> from headstart import Callback
        >>> class HalveAtOnce(Callback):
        ...     def on_epoch_begin(self, epoch, logs):
        ...         if self.run.progress >= 0.5:
        ...             self.run.stop("half is enough")
    """

    backbone: Backbone
    params: Mapping[str, Any] = field(default_factory=dict)
    directions: Mapping[str, Direction] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    history: History = field(default_factory=History)
    fit: int = 0
    epochs: int = 0
    batches: int = 0
    accumulate: int = 1

    batch: Batch = field(init=False, repr=False)
    outputs: Tensor = field(init=False, repr=False)
    loss: Tensor = field(init=False, repr=False)
    logs: Logs = field(default_factory=Logs, init=False)
    epoch: int = field(default=0, init=False)
    step: int = field(default=0, init=False)
    status: Status = field(default="running", init=False)
    stop_reason: str | None = field(default=None, init=False)
    active: bool = field(default=False, init=False)
    resumed: bool = field(default=False, init=False)
    hook: str = field(default="", init=False)
    speaker: object = field(default=None, init=False)
    _lr: float = field(default=0.0, init=False)
    _rate_writer: object = field(default=None, init=False)
    _deferred: list[Callable[[], None]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._lr = float(self.params.get("lr", 0.0))

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return self.backbone.network

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole fit."""
        return self.epochs * -(-self.batches // self.accumulate)

    @property
    def progress(self) -> Progress:
        """How far the fit is: a share in [0, 1] that also knows its step and epoch."""
        return Progress(self.step, self.steps, self.epoch)

    @property
    def lr(self) -> float:
        """The base rate: the backbone's; each group has it times its `lr_scale`."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        groups = self._claim_rates().param_groups
        self._lr = _demand_rate(lr)
        for group in groups:
            group["lr"] = self._lr * group["lr_scale"]

    def set_rates(self, rates: Sequence[float]) -> None:
        """Give each group its own rate, in their order, as a scheduler of torch's computes them."""
        groups = self._claim_rates().param_groups
        if len(rates) != len(groups):
            raise ConfigError(
                f"{len(rates)} rates for an optimizer with {len(groups)} groups",
                "one rate for each group, in their order",
                "`self.run.optimizer.param_groups` lists them; run.lr = x sets all by their lr_scale.",
            )
        for group, rate in zip(groups, map(_demand_rate, rates), strict=True):
            group["lr"] = rate
        self._lr = groups[0]["lr"] / groups[0]["lr_scale"]

    def _claim_rates(self) -> Optimizer:
        """Make sure that the rate is set where it may be, and by one callback only."""
        if self.optimizer is None or self.hook not in _RATE_HOOKS:
            raise ConfigError(
                f"run.lr set in {self.hook or 'no hook'}",
                f"a callback that sets it in one of {', '.join(_RATE_HOOKS)} of a fit",
                "Move the assignment there; in between, the optimizer is at work.",
            )
        if self._rate_writer not in (None, self.speaker):
            raise ConfigError(
                f"run.lr set by {type(self._rate_writer).__name__} and by {type(self.speaker).__name__}",
                "one callback that sets the rate",
                "Remove one of the two, or combine them into one schedule.",
            )
        self._rate_writer = self.speaker
        return self.optimizer

    def stop(self, reason: str) -> None:
        """Ask for the end of training: the batch is finished, the epoch validated and ended. Cannot be taken back."""
        if self.stop_reason is None:
            self.stop_reason = reason

    def defer(self, change: Callable[[], None]) -> None:
        """Keep a change (of what is frozen) for the beginning of the next step."""
        self._deferred.append(change)

    def apply_deferred(self) -> None:
        """Make the changes that were kept."""
        while self._deferred:
            self._deferred.pop(0)()


def _demand_rate(lr: object) -> float:
    """Give a rate as a float, if it is one."""
    try:
        rate = float(lr)  # type: ignore[arg-type]  # what cannot be read is told below
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise ConfigError(f"run.lr = {lr!r}", "a rate, 0 or more", "Look at how the callback that sets it computes it.")
    return rate
