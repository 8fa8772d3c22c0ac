"""How the rate changes while training goes on."""

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from headstart.errors import ConfigError, Demands, is_count, is_number
from headstart.training.callback import Callback, Order
from headstart.training.metrics import Logs
from headstart.training.monitor import Monitor
from headstart.training.run import Run
from headstart.training.schedules import Progress, Schedule, constant, cosine, linear, one_cycle, step_decay

_MAKERS: dict[object, str] = {
    constant: "constant()",
    linear: "linear()",
    cosine: "cosine()",
    one_cycle: "one_cycle()",
    step_decay: "step_decay(every_epochs=7)",
}
"""What makes a schedule and is none, and how it is called."""

SchedulerFactory = Callable[[Optimizer], LRScheduler]
"""From an optimizer to a scheduler of torch's, such as `lambda optimizer: StepLR(optimizer, 7)`."""


class LRSchedule(Callback):
    """Let the rate follow a schedule.

    Args:
        schedule: a function of progress (`cosine(warmup=0.1)`, or any function from a share in [0, 1] to a factor on
            the base rate), or a factory of one of torch's schedulers, of which only the rates are taken (a OneCycleLR
            leaves the momentum as it is).
        every: `"step"` or `"epoch"`: how often a scheduler of torch's moves. Functions of progress move with each step.

    Raises:
        ConfigError: a function such as `cosine` without its brackets; or, when a fit begins, what is neither, a
            OneCycleLR that was made for another number of steps, or a scheduler that gives all groups the same rate
            where `head_lr_mult` or `layer_lr_decay` ask for different ones.

    Example:
        >>> from headstart import cosine
        >>> callbacks = [LRSchedule(cosine(warmup=0.1))]
        >>> callbacks = [LRSchedule(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=7))]
    """

    order: ClassVar[Order] = Order.TRAIN
    sets_lr = True

    def __init__(self, schedule: Schedule | SchedulerFactory, *, every: Literal["step", "epoch"] = "epoch") -> None:
        demands = Demands("For example LRSchedule(cosine(warmup=0.1)).")
        demands.check("schedule", schedule, callable(schedule), "a schedule, or a function of an optimizer")
        demands.check("every", every, every in ("step", "epoch"), "'step' or 'epoch'")
        demands.settle()
        if (call := next((call for maker, call in _MAKERS.items() if maker is schedule), None)) is not None:
            raise ConfigError(
                f"schedule={call.partition('(')[0]}, which makes a schedule when it is called",
                "a schedule, or a function of an optimizer",
                f"Call it: LRSchedule({call}).",
            )
        self.schedule: Callable[[Any], Any] = schedule
        self.every = every
        self._scheduler: LRScheduler | None = None

    def check(self, run: Run) -> None:
        """Refuse what is no schedule, and a scheduler of torch's that does not suit the fit."""
        if not _is_pure(self.schedule):
            scheduler = _shadow(self.schedule, run)
            wanted = run.steps if self.every == "step" else run.epochs
            total = getattr(scheduler, "total_steps", wanted)
            if total != wanted:
                raise ConfigError(
                    f"a {type(scheduler).__name__} made for {total} steps, moved {wanted} times (every {self.every})",
                    f"one made for {run.steps} steps with every='step', or for {run.epochs} with every='epoch'",
                    "Change its total_steps, or pass every= to LRSchedule. headstart.one_cycle() needs neither.",
                )
            _demand_own_rates(scheduler, run, wanted)

    def on_train_begin(self, logs: Logs) -> None:
        """Build a scheduler of torch's anew for this fit."""
        self._scheduler = None if _is_pure(self.schedule) else _shadow(self.schedule, self.run)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Set the rates that the scheduler has for this epoch."""
        if self._scheduler is not None:
            self.run.set_rates(self._rates)

    def on_step_begin(self) -> None:
        """Set the rate of this step."""
        if self._scheduler is None:
            self.run.lr = self.params["lr"] * float(self.schedule(self.run.progress))
        elif self.every == "step":
            self.run.set_rates(self._rates)
            _move(self._scheduler)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Let a scheduler that counts epochs move."""
        if self.every == "epoch" and self._scheduler is not None:
            _move(self._scheduler)

    @property
    def _rates(self) -> list[float]:
        """The rates that a scheduler of torch's has come to, one for each group."""
        return [] if self._scheduler is None else _rates_of(self._scheduler)

    def state_dict(self) -> dict[str, Any]:
        """Give the state of a scheduler of torch's, and the rates that it has come to."""
        return {"scheduler": None if self._scheduler is None else self._scheduler.state_dict(), "rates": self._rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a scheduler of torch's up again."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
            for group, rate in zip(self._scheduler.optimizer.param_groups, state["rates"], strict=True):
                group["lr"] = rate


def _is_pure(schedule: Callable[[Any], Any]) -> bool:
    """Say whether a schedule turns progress into a number; a factory chokes on anything but an optimizer."""
    try:
        return is_number(schedule(Progress(step=0, steps=1, epoch=0)))
    except (TypeError, AttributeError):
        return False


def _rates_of(scheduler: LRScheduler) -> list[float]:
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def _move(scheduler: LRScheduler) -> None:
    # The last move of a OneCycleLR would be one past its end; a ChainedScheduler knows neither place nor end.
    place, end = getattr(scheduler, "last_epoch", 0), getattr(scheduler, "total_steps", math.inf)
    if place + 1 < end:
        scheduler.optimizer.step()
        scheduler.step()


def _demand_own_rates(scheduler: LRScheduler, run: Run, moves: int) -> None:
    """Refuse a scheduler that never gives groups different rates, though the fit asks for them.

    It is moved through the fit until two groups differ, which nearly always is at once; rates of 0 say nothing.
    """
    if run.optimizer is None or len({group["lr_scale"] for group in run.optimizer.param_groups}) == 1:
        return
    met: set[float] = set()
    for _ in range(moves):
        rates = set(_rates_of(scheduler))
        if len(rates) > 1:
            return
        met |= rates
        _move(scheduler)
    if met != {0.0}:
        asked = ", ".join(f"{name}={run.params.get(name)}" for name in ("head_lr_mult", "layer_lr_decay"))
        raise ConfigError(
            f"a {type(scheduler).__name__} that gives all groups the same rate, with {asked}",
            "a rate of its own for each group, as these ask for",
            'Make it with max_lr=[group["lr"] for group in optimizer.param_groups], '
            "or leave head_lr_mult and layer_lr_decay out.",
        )


def _shadow(factory: Callable[[Any], Any], run: Run) -> LRScheduler:
    """Make a scheduler over an optimizer of its own with the same groups and rates: it cannot touch the real one."""
    if run.optimizer is None:
        raise ConfigError("LRSchedule where nothing is trained", "a fit", "Pass it to fit and not to evaluate.")
    groups: list[dict[str, Any]] = [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": group["lr"]} for group in run.optimizer.param_groups
    ]
    failure: Exception | None = None
    try:
        made = factory(torch.optim.SGD(groups, lr=1.0, momentum=0.9))
        arrived = f"makes {type(made).__name__} of an optimizer"
    except (TypeError, AttributeError) as error:
        made, failure, arrived = None, error, f"takes neither progress nor an optimizer: {error}"
    if not isinstance(made, LRScheduler) or isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ConfigError(
            f"a schedule that {arrived}",
            "a function of progress that gives a number, or of an optimizer that gives a torch scheduler",
            "For example LRSchedule(cosine()); (epoch, lr) is for LearningRateScheduler, plateaus for "
            "headstart.ReduceLROnPlateau.",
        ) from failure
    return made


class LearningRateScheduler(Callback):
    """Ask a function for each epoch's rate, as in Keras.

    Args:
        schedule: from (epoch, rate) to the next rate, or from the epoch alone; epochs count from 0. A function that
            can take both is given both.

    Raises:
        ConfigError: what it is given is no function or takes other arguments; or, in a fit, it gives no rate.

    Example:
        >>> callbacks = [LearningRateScheduler(lambda epoch, lr: lr if epoch < 10 else lr * 0.9)]
    """

    order: ClassVar[Order] = Order.TRAIN
    sets_lr = True

    def __init__(self, schedule: Callable[..., float]) -> None:
        demands = Demands("For example LearningRateScheduler(lambda epoch, lr: lr * 0.9).")
        demands.check("schedule", schedule, callable(schedule), "a function of (epoch, lr)")
        demands.settle()
        self.schedule = schedule
        self._takes_rate = _takes_rate(schedule)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Set the rate of this epoch."""
        lr = self.schedule(epoch, self.run.lr) if self._takes_rate else self.schedule(epoch)
        if not is_number(lr) or lr < 0:
            raise ConfigError(
                f"LearningRateScheduler's function giving {lr!r} for epoch {epoch}",
                "a rate, 0 or more",
                "Return a float for every epoch.",
            )
        self.run.lr = float(lr)


def _takes_rate(schedule: Callable[..., float]) -> bool:
    """Say whether a function takes (epoch, lr), or else the epoch alone."""
    needed = "a function of (epoch, lr), or of the epoch alone"
    try:
        signature = inspect.signature(schedule)
    except (TypeError, ValueError) as error:  # as of many functions written in C
        name = getattr(schedule, "__name__", "schedule")
        todo = f"Wrap it: LearningRateScheduler(lambda epoch, lr: {name}(epoch, lr))."
        raise ConfigError(f"schedule={schedule!r}, which does not tell its arguments", needed, todo) from error
    takes_rate = _takes(signature, 0, 0.1)
    if not takes_rate and not _takes(signature, 0):
        todo = "For example LearningRateScheduler(lambda epoch, lr: lr * 0.9)."
        raise ConfigError(f"schedule={schedule!r}, a function of {signature}", needed, todo)
    return takes_rate


def _takes(signature: inspect.Signature, *arguments: float) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


class ReduceLROnPlateau(Callback):
    """Lower the rate when a monitored value has not improved for some epochs.

    Args:
        monitor: the log key to watch.
        factor: what the rate is multiplied by, in (0, 1).
        patience: epochs without an improvement after which the rate falls, 0 or more.
        mode: `"min"`, `"max"`, or `"auto"`, which asks the metric.
        min_delta: how much better counts as an improvement, 0 or more.
        cooldown: epochs to wait after a fall before counting again, 0 or more.
        min_lr: the rate never falls below this, 0 or more.

    Raises:
        ConfigError: an argument is out of range; or, when a fit begins, the key will not exist.

    Example:
        >>> ReduceLROnPlateau(factor=0.5, patience=2).factor
        0.5
    """

    order: ClassVar[Order] = Order.WATCH
    sets_lr = True

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        demands = Demands("For example ReduceLROnPlateau(monitor='val_loss', factor=0.1, patience=5).")
        demands.check("factor", factor, is_number(factor) and 0 < factor < 1, "a factor in (0, 1)")
        demands.check("patience", patience, is_count(patience, 0), "a whole number of epochs, 0 or more")
        demands.check("min_delta", min_delta, is_number(min_delta) and min_delta >= 0, "0 or more")
        demands.check("cooldown", cooldown, is_count(cooldown, 0), "a whole number of epochs, 0 or more")
        demands.check("min_lr", min_lr, is_number(min_lr) and min_lr >= 0, "a rate, 0 or more")
        demands.settle()
        self._monitor = Monitor(monitor, mode, min_delta)
        self.factor = factor
        self.patience = patience
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.waited = 0
        self.cooling = 0

    def check(self, run: Run) -> None:
        """Refuse a key that the fit will not have."""
        self._monitor.check(run, "ReduceLROnPlateau")

    def on_train_begin(self, logs: Logs) -> None:
        """Start counting."""
        self._monitor.begin(self.run)
        self.waited = self.cooling = 0

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Lower the rate of the next epochs when it is time."""
        better = self._monitor.improves(self._monitor.read(logs))
        if self.cooling > 0:
            self.cooling -= 1
            self.waited = 0
        elif better:
            self.waited = 0
        else:
            self.waited += 1
            if self.waited >= self.patience and self.run.lr > self.min_lr:
                self.run.lr = max(self.run.lr * self.factor, self.min_lr)
                self.waited, self.cooling = 0, self.cooldown

    def state_dict(self) -> dict[str, Any]:
        """Give the counters."""
        return {"best": self._monitor.best, "waited": self.waited, "cooling": self.cooling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters up again."""
        self._monitor.best = state["best"]
        self.waited, self.cooling = state["waited"], state["cooling"]
