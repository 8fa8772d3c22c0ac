"""When to stop."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headstart.errors import Demands, is_count, is_number, listing
from headstart.model.weights import load_state
from headstart.training.callback import Callback, Order
from headstart.training.metrics import Logs
from headstart.training.monitor import Monitor
from headstart.training.run import Run


class EarlyStopping(Callback):
    """Stop when a monitored value has not improved for some epochs, and bring back the best weights.

    Args:
        monitor: the log key to watch.
        min_delta: how much better counts as an improvement, 0 or more.
        patience: epochs without an improvement after which training stops, 0 or more.
        mode: `"min"`, `"max"`, or `"auto"`, which asks the metric.
        baseline: only values better than this count as improvements; None counts from the first epoch.
        restore_best_weights: whether the fit ends with the weights of its best epoch, also when it was not stopped.
        start_from_epoch: epochs to wait before watching, 0 or more.

    Raises:
        ConfigError: an argument is out of range; or, when a fit begins, the key will not exist.

    Example:
        >>> EarlyStopping(patience=2).patience
        2
    """

    order: ClassVar[Order] = Order.WATCH

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 3,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = True,
        start_from_epoch: int = 0,
    ) -> None:
        demands = Demands("For example EarlyStopping(monitor='val_loss', patience=3).")
        demands.check("min_delta", min_delta, is_number(min_delta) and min_delta >= 0, "0 or more")
        demands.check("patience", patience, is_count(patience, 0), "a whole number of epochs, 0 or more")
        demands.check("baseline", baseline, baseline is None or is_number(baseline), "a number or None")
        demands.check("start_from_epoch", start_from_epoch, is_count(start_from_epoch, 0), "a whole number, 0 or more")
        demands.settle()
        self._monitor = Monitor(monitor, mode, min_delta)
        self.patience = patience
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.waited = 0
        self.best_epoch: int | None = None
        self._best_weights: dict[str, Tensor] | None = None

    @property
    def best(self) -> float:
        """The best value so far; NaN before the first."""
        return self._monitor.best

    def check(self, run: Run) -> None:
        """Refuse a key that the fit will not have."""
        self._monitor.check(run, "EarlyStopping")

    def on_train_begin(self, logs: Logs) -> None:
        """Start counting."""
        self._monitor.begin(self.run, math.nan if self.baseline is None else self.baseline)
        self.waited, self.best_epoch, self._best_weights = 0, None, None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Keep the weights if they are the best so far, else count."""
        if epoch < self.start_from_epoch:
            return
        if self._monitor.improves(self._monitor.read(logs)):
            self.waited, self.best_epoch = 0, epoch
            if self.restore_best_weights:
                self._best_weights = {k: v.to("cpu", copy=True) for k, v in self.run.network.state_dict().items()}
            return
        self.waited += 1
        if self.waited >= self.patience:
            epochs = "1 epoch" if self.waited == 1 else f"{self.waited} epochs"
            self.run.stop(f"{self._monitor.key} has not improved for {epochs}")

    def on_train_end(self, logs: Logs) -> None:
        """Bring back the best weights, unless the fit was interrupted."""
        if self._best_weights is not None and self.run.status in ("completed", "stopped"):
            load_state(self.run.network, self._best_weights)
            if self.best_epoch is not None and self.best_epoch + 1 < len(self.run.history):
                self.run.remarks.append(
                    f"the weights of epoch {self.best_epoch + 1} are back ({self._monitor.key} {self.best:.4f})"
                )
        self._best_weights = None

    def state_dict(self) -> dict[str, Any]:
        """Give the counters and the best weights."""
        return {
            "best": self._monitor.best,
            "waited": self.waited,
            "best_epoch": self.best_epoch,
            "best_weights": self._best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters and the best weights up again."""
        self._monitor.best = state["best"]
        self.waited, self.best_epoch = state["waited"], state["best_epoch"]
        self._best_weights = state["best_weights"]


@dataclass(eq=False)
class _Step:
    """What one step was made of, until it is known whether it was finite."""

    finite: "_Arriving"
    batches: list[tuple[int, Tensor, Tensor]]
    statistics: list[Tensor]


class _Arriving:
    """Values on their way from a device, which nobody waits for before they are read."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> list[bool]:
        """Give the values; waits for the work that made them, and for none that was asked for later."""
        if self._event is not None:
            self._event.synchronize()
        found: list[bool] = self._values.tolist()
        return found


class TerminateOnNaN(Callback):
    """Stop when a loss or a gradient is not finite, with the pictures it came from; weights stay as they were before.

    A step whose loss or gradients hold nan or infinity is not taken, and the statistics of the norms go back to what
    they were before its batches. The epoch is then ended as after any other stop. Weights that finite steps have ruined
    before, as a rate that is far too high does, stay ruined: the best ones are in the file of a ModelCheckpoint.

    On a GPU nothing waits: a fused optimizer passes over the step there, and what happened is read one step later, so
    the step after it is still taken. An optimizer that is not fused has to wait.
    With fp16 a gradient that is too large is no reason to stop, since the scaled loss makes some of them so: those
    steps are passed over in any fit, and counted.

    Example:
        >>> callbacks = [TerminateOnNaN()]
    """

    order: ClassVar[Order] = Order.WATCH

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._losses: list[Tensor] = []
        self._open: list[tuple[int, Tensor, Tensor]] = []
        self._statistics: list[Tensor] = []
        self._waiting: list[_Step] = []

    def on_train_begin(self, logs: Logs) -> None:
        """Forget an earlier fit."""
        self._begin()

    def on_batch_ready(self) -> None:
        """Copy the statistics of the norms before the first batch of a step."""
        if not self._open:
            self._statistics = [buffer.clone() for buffer in self.run.backbone.statistics]

    def on_loss_ready(self) -> None:
        """Look at the loss, and at what was said of each picture."""
        self._losses.append(self.run.loss.detach().isfinite())
        given = self.run.batch.images.detach().sum((1, 2, 3)).isfinite()
        self._open.append((self.run.batches_done, given, self.run.outputs.detach().isfinite().all(1)))

    def on_step_begin(self) -> None:
        """Keep the step from being taken if it is not finite."""
        optimizer = self.run.optimizer
        if optimizer is None:
            return
        groups = optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        loss = torch.stack(self._losses).all()
        largest = nn.utils.get_total_norm(gradients, math.inf)  # of no gradients it is 0
        gradient = largest.isfinite().to(loss.device)
        finite = loss & gradient
        self._waiting.append(_Step(_Arriving(torch.stack([loss, gradient])), self._open, self._statistics))
        self._open, self._losses = [], []
        if all(group.get("fused") for group in groups):
            vars(optimizer)["found_inf"] = (~finite).float()  # what a GradScaler tells a fused optimizer, too
        elif not finite:
            for parameter in (p for group in groups for p in group["params"]):
                parameter.grad = None  # then an optimizer passes it over
        self._read(self._waiting[: None if self._is_known(finite) else -1])

    @staticmethod
    def _is_known(finite: Tensor) -> bool:
        """Say whether a value can be read without waiting for a device."""
        return finite.device.type == "cpu"

    def on_step_end(self) -> None:
        """Let the next step be taken."""
        vars(self.run.optimizer).pop("found_inf", None)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Read what has not been read yet."""
        self._read(self._waiting)

    def on_train_end(self, logs: Logs) -> None:
        """Let go of what has been kept."""
        self._begin()

    def _read(self, steps: list[_Step]) -> None:
        """Look at steps that have been taken or not; the first that was not ends the fit."""
        for step in list(steps):
            self._waiting.remove(step)
            loss, gradient = step.finite.read()
            is_overflow = loss and self.run.outputs.dtype == torch.float16
            if not (loss and gradient) and not is_overflow:
                for buffer, before in zip(self.run.backbone.statistics, step.statistics, strict=True):
                    buffer.copy_(before)
                self.run.stop(self._reason(step))
                self._waiting.clear()
                return

    def _reason(self, step: _Step) -> str:
        what = "a gradient" if step.finite.read()[0] else "the loss"
        numbers = [number + 1 for number, *_ in step.batches]
        batches = f"batch {numbers[0]}" if len(numbers) == 1 else f"batches {numbers[0]} to {numbers[-1]}"
        told = f"{what} of epoch {self.run.epoch + 1}, {batches}, is not finite"
        pictures = [
            (name, given, answered)
            for number, *finite in step.batches
            for name, given, answered in zip(self.run.pictures(number), *map(Tensor.tolist, finite), strict=False)
        ]
        broken = [name for name, given, _ in pictures if not given]
        suspected = [name for name, _, answered in pictures if not answered] or [name for name, *_ in pictures]
        if broken or not suspected:
            return f"{told}: {listing(broken)}" if broken else told
        return f"{told}: {listing(suspected)}; the pictures are finite, the rate may be too high"

    def state_dict(self) -> dict[str, Any]:
        """Give nothing: what has not been read yet is read first, and put right if it has to be."""
        self._read(self._waiting)
        return {}
