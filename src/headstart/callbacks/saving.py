"""What is kept on the disk while training goes on."""

import math
import re
from pathlib import Path
from typing import Any, ClassVar

from headstart.errors import CheckpointError, ConfigError, Demands, is_count
from headstart.files import as_path, demand_writable
from headstart.training.callback import Callback, Order
from headstart.training.metrics import Logs
from headstart.training.monitor import Monitor
from headstart.training.run import Run

BEST, LAST = "best.safetensors", "last.safetensors"
_WRITTEN = re.compile(r"(best(-([2-9]|[1-9]\d+))?|last|epoch-(\d{3}|[1-9]\d{3,}))\.safetensors")


class ModelCheckpoint(Callback):
    """Save the best and the last model of each fit; `Learner.load` opens them.

    The n-th fit of a Learner writes into `directory/fit-n/`, so one directory serves all phases of a training:
    `best.safetensors` after every epoch in which the monitored value improved, `last.safetensors` after every
    `every_epochs` epochs and after the last one. A file is whole or not there, whatever happens.

    Args:
        directory: where the folders of the fits go.
        monitor: the log key that decides which model is best; None is `"val_loss"`, or keeps only the last model when
            there is no val part.
        mode: `"min"`, `"max"`, or `"auto"`, which asks the metric.
        save_best_only: False also keeps each epoch's model: `epoch-003.safetensors` is the third.
        keep: how many of the best models are kept, 1 or more; those before the best are `best-2.safetensors`, ...
        every_epochs: epochs between two saves of the last model, 1 or more.
        overwrite: whether a folder that holds another run may be written to. The files of that run are removed when
            the fit begins, those of other names are left alone.

    Raises:
        ConfigError: an argument is out of range; or, when a fit begins, the key will not exist, there can be no such
            folder, or another callback writes to the same directory.
        CheckpointError: when a fit begins, its folder holds another run; or the disk is full.

    Example:
        >>> checkpoint = ModelCheckpoint("runs/flowers", monitor="val_accuracy")
        >>> checkpoint.directory.name
        'flowers'
    """

    order: ClassVar[Order] = Order.SAVE

    def __init__(
        self,
        directory: str | Path,
        monitor: str | None = None,
        mode: str = "auto",
        *,
        save_best_only: bool = True,
        keep: int = 1,
        every_epochs: int = 1,
        overwrite: bool = False,
    ) -> None:
        demands = Demands("For example ModelCheckpoint('runs/flowers', monitor='val_accuracy').")
        demands.check("directory", directory, isinstance(directory, str | Path), "the path of a folder")
        demands.check("keep", keep, is_count(keep), "a whole number of models, 1 or more")
        demands.check("every_epochs", every_epochs, is_count(every_epochs), "a whole number of epochs, 1 or more")
        demands.settle()
        self.directory = self.writes_to = as_path(directory)
        self.monitor = monitor
        self.save_best_only = save_best_only
        self.keep = keep
        self.every_epochs = every_epochs
        self.overwrite = overwrite
        self._mode = mode
        self._monitor: Monitor | None = Monitor("val_loss" if monitor is None else monitor, mode)
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder of the fit that is going on, or of the last one.

        Raises:
            ConfigError: there has been no fit yet.
        """
        if self._folder is None:
            raise ConfigError(
                "the folder of a ModelCheckpoint that has been in no fit",
                "a fit, whose number is in the folder's name",
                "Pass it to fit(..., callbacks=[checkpoint]) first; its directory is checkpoint.directory.",
            )
        return self._folder

    @property
    def best(self) -> float:
        """The best value so far; NaN before the first."""
        return math.nan if self._monitor is None else self._monitor.best

    def _folder_of(self, run: Run) -> Path:
        return self.directory / f"fit-{run.fit}"

    def _monitor_of(self, run: Run) -> Monitor | None:
        """Make the monitor for a fit; there is none where nothing is asked for and there is no val part."""
        if self.monitor is None and "val_loss" not in run.directions:
            return None
        return Monitor("val_loss" if self.monitor is None else self.monitor, self._mode)

    def check(self, run: Run) -> None:
        """Refuse a key that the fit will not have, and a folder that holds another run."""
        if (monitor := self._monitor_of(run)) is not None:
            monitor.check(run, "ModelCheckpoint")
        folder = self._folder_of(run)
        demand_writable(folder, "ModelCheckpoint")
        if folder.is_dir() and any(folder.iterdir()) and not self.overwrite:
            raise CheckpointError(
                f"{folder}, which holds another run",
                "an empty or a new folder",
                "Name another directory, or pass overwrite=True to ModelCheckpoint to replace what is there.",
            )

    def on_train_begin(self, logs: Logs) -> None:
        """Start comparing; remove what an overwritten run left."""
        self._folder = self._folder_of(self.run)
        self._monitor = self._monitor_of(self.run)
        if self._monitor is not None:
            self._monitor.begin(self.run)
        for old in list(self.folder.iterdir()) if self.folder.is_dir() else ():
            if _WRITTEN.fullmatch(old.name) and old.is_file():
                old.unlink()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save what is due."""
        is_last = epoch + 1 == self.run.epochs or self.run.stop_reason is not None
        if self._monitor is not None and self._monitor.improves(self._monitor.read(logs)):
            self._make_room()
            self.learner.save(self.folder / BEST)
        if is_last or (epoch + 1) % self.every_epochs == 0:
            self.learner.save(self.folder / LAST)
        if not self.save_best_only:
            self.learner.save(self.folder / f"epoch-{epoch + 1:03d}.safetensors")

    def _make_room(self) -> None:
        """Let each of the best models so far step back by one place; the last of them goes."""
        names = [BEST, *(f"best-{place}.safetensors" for place in range(2, self.keep + 1))]
        for older, newer in zip(reversed(names), list(reversed(names))[1:], strict=False):
            if (self.folder / newer).exists():
                (self.folder / newer).replace(self.folder / older)

    def state_dict(self) -> dict[str, Any]:
        """Give the best value."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the best value up again."""
        if self._monitor is not None:
            self._monitor.best = state["best"]
