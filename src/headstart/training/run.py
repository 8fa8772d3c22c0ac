"""`Run`: all that is known while a network is trained, evaluated or asked; and how a Learner looks from in there."""

import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from headstart.data.image_data import ImageData
from headstart.errors import ConfigError
from headstart.model.backbone import Backbone, Layers
from headstart.training.batch import Batch
from headstart.training.history import History
from headstart.training.metrics import Direction, Logs
from headstart.training.schedules import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["running", "completed", "stopped", "interrupted", "failed"]
_RATE_HOOKS = ("on_epoch_begin", "on_epoch_end", "on_step_begin")


class StopTraining(Exception):  # noqa: N818 - a request, not an error
    """Raised by a callback to end a fit at once: only `on_train_end` is still called.

    It leaves the batch and the epoch as they are and skips the callbacks whose turn would have come, those that save
    included. Raised in `on_epoch_end`, it comes after the epoch: the history keeps that epoch, a ModelCheckpoint does
    not see it. `run.stop(reason)` is the polite way: it finishes the batch, validates and ends the epoch for all.

    Args:
        reason: told to the user.

    Example:
        >>> raise StopTraining("the disk is almost full")
        Traceback (most recent call last):
        headstart.training.run.StopTraining: the disk is almost full
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)


class Terminated(SystemExit):
    """SIGTERM has ended a fit; the process exits with 143, as the shell expects of one that it ended."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class LearnerLike(Protocol):
    """What callbacks may ask of the Learner they work for: all but `fit` and `load`, which have no place in a fit.

    The Learner explains each of these. `Any` stands for types that live further up in the house: `callbacks` are
    Callbacks, and `predict` gives Predictions.

    Attributes:
        stop_training: whether the fit has been asked to stop; True asks it to.
    """

    stop_training: bool

    @property
    def model(self) -> nn.Module:
        """The network."""
        ...

    @property
    def data(self) -> ImageData:
        """The pictures, bound to the preprocessing of the weights."""
        ...

    @property
    def layers(self) -> Layers:
        """The stages of the backbone in order and, last, the head."""
        ...

    @property
    def history(self) -> History:
        """All fits so far, one after the other."""
        ...

    def summary(self) -> None:
        """Print what trains."""
        ...

    def freeze(self) -> None:
        """Freeze the whole backbone, from the next step on."""
        ...

    def unfreeze(self, from_layer: str | int | None = None) -> None:
        """Train a stage, all after it and the head, from the next step on."""
        ...

    def evaluate(
        self, data: str | Path | ImageData | Iterable[Any] | None = None, *, callbacks: Sequence[Any] | Any = ()
    ) -> dict[str, float]:
        """Give loss and metrics on a part of some data."""
        ...

    def predict(
        self, images: str | Path | Image.Image | Tensor | Sequence[Any], *, callbacks: Sequence[Any] | Any = ()
    ) -> Any:
        """Say what pictures show."""
        ...

    def show_predictions(self, pictures: int = 12, *, part: str = "val") -> "Figure":
        """Draw pictures with what they show and what the network says."""
        ...

    def save(self, path: str | Path) -> Path:
        """Write a file that `Learner.load` reads."""
        ...

    def load_weights(self, path: str | Path) -> None:
        """Load the weights of the same network."""
        ...


def _keep_nothing() -> None:
    """Stand for the states of a run that nobody keeps."""


def no_names(batch: int) -> list[str]:  # noqa: ARG001 - as one that knows some
    """Stand for the names of pictures that come from a loader of the user's own."""
    return []


def _at_once(act: Callable[[], object]) -> None:
    """Stand for the thread that writes, where there is none."""
    act()


@dataclass
class Run:
    """The state of one fit, evaluation or prediction.

    Callbacks read anything; they assign `batch` in `on_batch_ready`, `loss` in `on_loss_ready`, and `lr` in
    `on_epoch_begin`, `on_epoch_end` and `on_step_begin`. `batch`, `outputs` and `loss` exist from the first batch to
    the end of the fit.

    Args:
        backbone: the network with its head and stages.
        params: what was asked for: `epochs`, `steps` (batches in an epoch), `lr`, `head_lr_mult`, ...
        directions: the log keys that there will be, and which way is better: the run's own, of which
            `learning_rate` is the last, then those that callbacks add.
        optimizer: None when nothing is trained.
        history: the epochs so far.
        fit: which of the Learner's fits this is, counting from 1; 0 when nothing is trained.
        epochs: epochs to train.
        batches: batches in an epoch.
        accumulate: batches that share one step.
        resume: whether the fit goes on where an earlier process left it, if one has.

    Attributes:
        batch: the batch, on the device.
        outputs: what the network said of it, before softmax, `[batch, classes]`.
        loss: its mean loss, a scalar.
        logs: the logs as they stand.
        epoch: epochs finished.
        batches_done: batches of the epoch in progress that have been trained.
        step: optimizer steps taken.
        resumed: whether the fit goes on where an earlier process left it.
        progress: how far the fit is: a share in [0, 1] that also knows its step and epoch.
        lr: the base rate; each group of parameters has it times its `lr_scale`.
        status: how the fit ended: `"completed"`, `"stopped"`, `"interrupted"` or `"failed"`; `"running"` until then.
        stop_reason: why it was asked to stop; None if it was not.
        save_state: writes the state of the run into its folder, in the background; between two steps only, see
            `between_steps`.
        pictures: names the pictures of a batch of the epoch in progress, where anybody knows them.
        write: does something in the background, after what has been asked for before.
        remarks: lines that callbacks append for the user to read when the fit has ended.

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
    resume: bool = False

    batch: Batch = field(init=False, repr=False)
    outputs: Tensor = field(init=False, repr=False)
    loss: Tensor = field(init=False, repr=False)
    logs: Logs = field(default_factory=Logs, init=False)
    epoch: int = field(default=0, init=False)
    batches_done: int = field(default=0, init=False)
    resumed: bool = field(default=False, init=False)
    step: int = field(default=0, init=False)
    status: Status = field(default="running", init=False)
    stop_reason: str | None = field(default=None, init=False)
    remarks: list[str] = field(default_factory=list, init=False)
    save_state: Callable[[], None] = field(default_factory=lambda: _keep_nothing, init=False, repr=False)
    pictures: Callable[[int], list[str]] = field(default_factory=lambda: no_names, init=False, repr=False)
    write: Callable[[Callable[[], object]], None] = field(default_factory=lambda: _at_once, init=False, repr=False)
    active: bool = field(default=False, init=False)
    hook: str = field(default="", init=False)
    unfinished_hook: str = field(default="", init=False)  # the one that an exception came out of
    speaker: object = field(default=None, init=False)
    _lr: float = field(default=0.0, init=False)
    _rate_writer: object = field(default=None, init=False)
    signal: int | None = field(default=None, init=False)
    refrozen: bool = field(default=False, init=False)  # inside of the epoch in progress something else was frozen
    _deferred: list[Callable[[], None]] = field(default_factory=list, init=False)
    _asked: list[Callable[[], None]] = field(default_factory=list, init=False)

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
    def has_epochs(self) -> bool:
        """Whether there is an epoch to train, or one in progress to end."""
        return self.batches_done > 0 or (self.epoch < self.epochs and self.stop_reason is None)

    @property
    def has_trained(self) -> bool:
        """Whether the epoch in progress has no batch left to train, as when it was taken up again to be validated."""
        is_cut = self.stop_reason is not None and self.batches_done > 0
        return self.batches_done == self.batches or is_cut

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

    def state_dict(self) -> dict[str, Any]:
        """Give where the fit stands; its rate is in the optimizer's groups as well."""
        return {
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "step": self.step,
            "lr": self._lr,
            "stop_reason": self.stop_reason,
            "remarks": list(self.remarks),
            "refrozen": self.refrozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state_dict` was."""
        self.epoch, self.batches_done, self.step = state["epoch"], state["batches_done"], state["step"]
        self._lr, self.stop_reason, self.remarks = state["lr"], state["stop_reason"], list(state["remarks"])
        self.refrozen = state.get("refrozen", False)
        self.resumed = True

    def between_steps(self, act: Callable[[], None]) -> None:
        """Ask for something to be done when all hooks of this batch or epoch are over and no step is open.

        That is where a fit can be taken up again, so the state of a run is saved there.
        """
        if act not in self._asked:
            self._asked.append(act)

    def reach_border(self) -> None:
        """Make the changes that were kept, then do what was asked for between two steps, or leave."""
        self.apply_deferred()
        while self._asked:
            self._asked.pop(0)()
        self.leave_if_told()

    def leave_if_told(self) -> None:
        """Save the state and end the fit if a signal has come; no step may be open.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
            Terminated: it was SIGTERM.
        """
        if self.signal is not None:
            self.save_state()
            raise self.departure(self.signal)

    def departure(self, number: int) -> BaseException:
        """Give the exception that ends the fit for a signal."""
        return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()

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
