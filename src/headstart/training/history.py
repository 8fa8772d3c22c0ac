"""What happened in a fit, epoch by epoch: numbers, kept as plain floats.

Who computes them, and what is done about them while a fit runs, is not this room's business.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

from headstart import drawing
from headstart.errors import ConfigError, listing, nearest
from headstart.files import as_path, write_csv
from headstart.training.metrics import Logs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["min", "max"]
"""Whether a small or a large value is a good one."""

MARKED: Mapping[str, Mode] = MappingProxyType({"val_loss": "min", "val_accuracy": "max"})
"""The curves whose best epoch a plot marks unless it is told others."""

SHOWN_EPOCHS = 10
"""How many epochs are printed, the last ones."""


class History:
    """Keep what each epoch of a fit logged.

    `epoch` counts from 0, as everything a program reads does; what is printed and drawn for people counts from 1.

    Args:
        params: facts about the fit, such as its number of epochs; anything JSON can hold.

    Attributes:
        history: for each key a value an epoch, keys in the order in which they first appeared; nan where an epoch did
            not log the key.
        epoch: the epochs that ended, in order.
        params: the facts about the fit.
        borders: the epochs with which another fit begins, when several were joined.

    Example:
        >>> history = History()
        >>> history.add(0, {"loss": 0.75, "val_loss": 0.5})
        >>> history.add(1, {"loss": 0.25, "val_loss": 0.625})
        >>> history
        2 epochs
        epoch    loss  val_loss
        -----------------------
            1  0.7500    0.5000
            2  0.2500    0.6250
        >>> history.best("val_loss", "min")
        (0, 0.5)
    """

    def __init__(self, params: Mapping[str, object] | None = None) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []
        self.params: dict[str, object] = dict(params or {})
        self.borders: list[int] = []

    @classmethod
    def join(cls, histories: Sequence["History"]) -> Self:
        """Put several fits one after the other, their epochs numbered through.

        Args:
            histories: the fits in order; one without an epoch leaves no trace.

        Returns:
            A new History that knows where its fits meet; `params["fits"]` holds the facts about each.

        Example:
            >>> first, second = History(), History()
            >>> first.add(0, {"loss": 0.75})
            >>> second.add(0, {"loss": 0.5})
            >>> joined = History.join([first, second])
            >>> joined.epoch, joined.history, joined.borders
            ([0, 1], {'loss': [0.75, 0.5]}, [1])
        """
        fits = [history for history in histories if len(history)]
        joined = cls({"fits": [dict(fit.params) for fit in fits]})
        for fit in fits:
            start = len(joined)
            joined.borders += [start] if start else []
            joined.borders += [start + fit.epoch.index(border) for border in fit.borders]
            for place in range(len(fit)):
                joined.add(start + place, {key: values[place] for key, values in fit.history.items()})
        return joined

    def add(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Add what an epoch logged, as floats: a tensor is read now, not later.

        Args:
            epoch: the epoch that ended, counted from 0.
            logs: a number for each key.

        Raises:
            ConfigError: a value is not one number; reduce it first, for example with `.mean()`.
        """
        values = dict(Logs(logs))
        for key in values:
            self.history.setdefault(key, [math.nan] * len(self))
        for key, column in self.history.items():
            column.append(values.get(key, math.nan))
        self.epoch.append(epoch)

    def __len__(self) -> int:
        return len(self.epoch)

    def best(self, monitor: str, mode: Mode) -> tuple[int, float]:
        """Find the epoch with the best value of one key, the first of equals. Nan is never best.

        Args:
            monitor: the key, such as "val_loss".
            mode: "min" when small values are good, "max" when large ones are.

        Returns:
            The epoch, counted from 0, and its value.

        Raises:
            ConfigError: the key was never logged (the message lists those that were), has no number, or mode is
                another word.
        """
        if monitor not in self.history:
            raise ConfigError(
                f"monitor={monitor!r}",
                f"a key that was logged: {listing(self.history) or 'none yet'}",
                f"{nearest(monitor, self.history)}Pass one of them as monitor.",
            )
        if (place := self._best_place(monitor, mode)) is None:
            raise ConfigError(
                f"monitor={monitor!r}, which is nan in all {len(self)} epochs",
                "one epoch at least with a number",
                "Train anew with a lower lr, or monitor another key.",
            )
        return self.epoch[place], self.history[monitor][place]

    def _best_place(self, key: str, mode: Mode) -> int | None:
        """Find the first best value of a key, or None where there is no number."""
        if mode not in ("min", "max"):
            raise ConfigError(f"mode={mode!r}", "'min' or 'max'", "Pass 'min' for a loss and 'max' for an accuracy.")
        values = self.history.get(key, [])
        places = [place for place, value in enumerate(values) if not math.isnan(value)]
        choose = min if mode == "min" else max
        return choose(places, key=values.__getitem__, default=None)

    def plot(self, best: Mapping[str, Mode] = MARKED) -> "Figure":
        """Draw the learning curves, a line where fits meet, and a ring around the best epoch of some keys.

        Args:
            best: the keys whose best epoch is marked, and whether small ("min") or large ("max") values are good;
                those that were not logged are passed over.

        Returns:
            A figure that a notebook shows; keep it with `.savefig("curves.png")`.

        Raises:
            ConfigError: no epoch has ended yet; fit first.
        """
        places = {key: self._best_place(key, mode) for key, mode in best.items()}
        epochs = {key: self.epoch[place] for key, place in places.items() if place is not None}
        return drawing.curves(self.history, self.epoch, epochs, self.borders)

    def to_csv(self, path: str | Path) -> Path:
        """Write a table with a row for each epoch, counted from 0, and a column for each key.

        Args:
            path: the file; what it held before is replaced in one move.

        Returns:
            The path, so that it can be passed on.

        Raises:
            CheckpointError: the file cannot be written; choose another folder.
        """
        target = as_path(path)
        write_csv(target, ["epoch", *self.history], zip(self.epoch, *self.history.values(), strict=True))
        return target

    def state_dict(self) -> dict[str, Any]:
        """Give everything as plain lists and dicts that strict JSON can hold: nan is None, infinity a word."""
        return {
            "history": {key: [_encoded(value) for value in values] for key, values in self.history.items()},
            "epoch": list(self.epoch),
            "params": dict(self.params),
            "borders": list(self.borders),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict` has written down."""
        self.history = {key: [_decoded(value) for value in values] for key, values in state["history"].items()}
        self.epoch = list(state["epoch"])
        self.params = dict(state["params"])
        self.borders = list(state["borders"])

    def __repr__(self) -> str:
        fits = f" in {len(self.borders) + 1} fits" if self.borders else ""
        start = max(0, len(self) - SHOWN_EPOCHS)
        title = (
            f"{len(self)} epoch{'' if len(self) == 1 else 's'}{fits}{f', the last {SHOWN_EPOCHS}:' if start else ''}"
        )
        if not self.epoch:
            return title
        rows = list(zip((epoch + 1 for epoch in self.epoch), *self.history.values(), strict=True))
        return f"{title}\n{drawing.table(['epoch', *self.history], rows[start:])}"


def _encoded(value: float) -> float | str | None:
    """Write a float so that strict JSON takes it."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def _decoded(value: float | str | None) -> float:
    """Read back what `_encoded` wrote."""
    return math.nan if value is None else float(value)
