"""When to stop."""

import math
from typing import Any, ClassVar

from torch import Tensor

from headstart.errors import Demands, is_count, is_number
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
