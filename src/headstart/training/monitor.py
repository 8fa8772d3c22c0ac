"""`Monitor`: how a callback follows a log key, and which of two values is better."""

import math

from headstart.errors import ConfigError, nearest
from headstart.training.metrics import Logs
from headstart.training.run import Run


class Monitor:
    """Follow one log key and remember its best value.

    A callback asks it to `check` in its own `check`, and to `begin` in `on_train_begin`.

    Args:
        key: the log key, such as `"val_loss"`.
        mode: `"min"`, `"max"`, or `"auto"`, which asks the metric and never guesses from its name.
        min_delta: how much better counts as better, 0 or more.

    Raises:
        ConfigError: the key is no name, or the mode another word.
    """

    def __init__(self, key: str, mode: str = "auto", min_delta: float = 0.0) -> None:
        if not isinstance(key, str):
            raise ConfigError(
                f"monitor={key!r}", "the name of a log key", "For example monitor='val_loss' or monitor='val_accuracy'."
            )
        if mode not in ("auto", "min", "max"):
            raise ConfigError(
                f"mode={mode!r}", "'auto', 'min' or 'max'", "Leave mode= out: the metric knows its direction."
            )
        self.key = key
        self._wanted = mode
        self._min_delta = min_delta
        self.mode: str = mode
        self.best = math.nan

    def check(self, run: Run, who: str) -> None:
        """Make sure that the run will have the key and that its direction is known.

        Raises:
            ConfigError: it will not, or nobody knows which way is better.
        """
        if self.key not in run.directions:
            without_val = self.key.startswith("val_") and "val_loss" not in run.directions
            instead = self.key.removeprefix("val_")
            raise ConfigError(
                f"{who} with monitor={self.key!r}" + (" and data without a val part" if without_val else ""),
                f"one of the keys this fit will have: {', '.join(run.directions)}",
                "Give the data a val part, for example val= of ImageData.from_datasets or ImageData.from_loaders, "
                f"or pass monitor={instead if instead in run.directions else 'loss'!r}."
                if without_val
                else f"{nearest(self.key, run.directions)}A callback that adds a key declares it in its `adds`.",
            )
        if self._wanted == "auto" and run.directions[self.key] is None:
            raise ConfigError(
                f"{who} with monitor={self.key!r} and mode='auto'",
                "a key whose better direction is known",
                "Say which way is better: mode='min' or mode='max'.",
            )

    def begin(self, run: Run, best: float = math.nan) -> None:
        """Start to compare in the direction that this run knows: anew, or from a given value."""
        if self._wanted == "auto":
            self.mode = run.directions[self.key] or "auto"
        self.best = best

    def improves(self, value: float) -> bool:
        """Say whether a value is better than the best so far, and remember it if so. NaN never is."""
        if math.isnan(value):
            return False
        gain = self.best - value if self.mode == "min" else value - self.best
        better = math.isnan(self.best) or gain > self._min_delta
        if better:
            self.best = value
        return better

    def read(self, logs: Logs) -> float:
        """Read the key from an epoch's logs.

        Raises:
            ConfigError: a callback declared it and did not add it, or not in time.
        """
        if self.key not in logs:
            raise ConfigError(
                f"an epoch without {self.key!r}, which is monitored",
                "the key, added in on_epoch_end by the callback that declares it in its `adds`",
                "Add it for every epoch, in a callback with order = Order.USER or earlier.",
            )
        return logs[self.key]
