"""What is kept on the disk while training goes on."""

import math
import re
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from headstart.errors import CheckpointError, ConfigError, Demands, is_count, is_number, listing
from headstart.files import as_path, demand_writable, files_in
from headstart.training.callback import Callback, Order
from headstart.training.checkpoint import digest_in
from headstart.training.metrics import Logs
from headstart.training.monitor import Monitor
from headstart.training.run import Run
from headstart.training.run_folder import LOCK, RunFolder

BEST, LAST = "best.safetensors", "last.safetensors"
_NEW = ".best-new.safetensors"
_UNNAMED = re.compile(r"\.best-(new|[0-9a-f]{64})\.safetensors")
_BEST = re.compile(r"best(-([2-9]|[1-9]\d+))?\.safetensors")
_BEGUN = ".begun"  # lies there from the beginning of a fit until its first state: models beside it are of that fit
_WRITTEN = re.compile(rf"({_UNNAMED.pattern})|({_BEST.pattern})|(last|epoch-(\d{{3}}|[1-9]\d{{3,}}))\.safetensors")


class ModelCheckpoint(Callback):
    """Save the best and the last model of each fit; `Learner.load` opens them.

    The n-th fit of a Learner writes into `directory/fit-n/`, so one directory serves all phases of a training:
    `best.safetensors` after every epoch in which the monitored value improved (it gets its name in the background, when
    a state of the run is written that knows of it), `last.safetensors` after every `every_epochs` epochs and after the
    last one. Beside them lie the last two states of the run, from which
    `fit(..., resume=True)` goes on, and in the end what it came to. A file is whole or not there, whatever happens.

    Args:
        directory: where the folders of the fits go.
        monitor: the log key that decides which model is best; None is `"val_loss"`, or keeps only the last model when
            there is no val part.
        mode: `"min"`, `"max"`, or `"auto"`, which asks the metric.
        save_best_only: False also keeps each epoch's model: `epoch-003.safetensors` is the third.
        keep: how many of the best models are kept, 1 or more; those before the best are `best-2.safetensors`, ...
        every_epochs: epochs between two saves of the last model and of the run's state, 1 or more.
        every_seconds: seconds after which the state of the run is saved inside an epoch too, above 0; None saves it at
            the ends of epochs. A loader of your own can be gone on with at the ends of epochs only.
        overwrite: whether a folder that holds another run may be written to. The files of that run are removed when
            the fit begins, unless it is resumed; those of other names are left alone.

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
    incidental: ClassVar[Collection[str]] = ("directory", "every_epochs", "every_seconds", "overwrite")

    def __init__(
        self,
        directory: str | Path,
        monitor: str | None = None,
        mode: str = "auto",
        *,
        save_best_only: bool = True,
        keep: int = 1,
        every_epochs: int = 1,
        every_seconds: float | None = None,
        overwrite: bool = False,
    ) -> None:
        demands = Demands("For example ModelCheckpoint('runs/flowers', monitor='val_accuracy').")
        demands.check("directory", directory, isinstance(directory, str | Path), "the path of a folder")
        demands.check("keep", keep, is_count(keep), "a whole number of models, 1 or more")
        demands.check("every_epochs", every_epochs, is_count(every_epochs), "a whole number of epochs, 1 or more")
        seconds = every_seconds is None or (is_number(every_seconds) and every_seconds > 0)
        demands.check("every_seconds", every_seconds, seconds, "seconds, above 0, or None")
        demands.settle()
        self.directory = self.writes_to = as_path(directory)
        self.monitor = monitor
        self.save_best_only = save_best_only
        self.keep = keep
        self.every_epochs = every_epochs
        self.every_seconds = every_seconds
        self.overwrite = overwrite
        self._mode = mode
        self._monitor: Monitor | None = Monitor("val_loss" if monitor is None else monitor, mode)
        self._folder: Path | None = None
        self._best_files: list[str] = []  # their digests, the best first
        self._saved_at = 0.0

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
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if there - {LOCK, _BEGUN} and not (self.overwrite or run.resume):
            go_on = "Go on with it: fit(..., resume=True). Or: " if RunFolder(folder).has_states else ""
            raise CheckpointError(
                f"{folder}, which holds another run",
                "an empty or a new folder",
                f"{go_on}Name another directory, or pass overwrite=True to ModelCheckpoint to replace what is there.",
            )

    def states_folder(self, run: Run) -> Path:
        """Keep the states of a fit beside its models."""
        return self._folder_of(run)

    def on_train_begin(self, logs: Logs) -> None:
        """Start comparing; remove what an overwritten run left, or one that died before its first state.

        Raises:
            CheckpointError: the fit does not go on with a run, and there are models of another one.
        """
        self._folder = self._folder_of(self.run)
        self._monitor = self._monitor_of(self.run)
        if self._monitor is not None:
            self._monitor.begin(self.run)
        self._best_files = []
        self._saved_at = time.monotonic()
        if not self.run.resumed:
            self._begin_anew()

    def _begin_anew(self) -> None:
        models, mark = files_in(self.folder, _WRITTEN), self.folder / _BEGUN
        if models and not (self.overwrite or mark.exists()):
            raise CheckpointError(
                f"{self.folder}, which holds models ({listing(path.name for path in models)}) of a run without a state",
                "an empty or a new folder, or one with a state to go on from",
                "Name another directory, or pass overwrite=True to ModelCheckpoint to replace what is there.",
            )
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        for old in models:
            old.unlink()

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Save a state when it is time."""
        if self.every_seconds is not None and time.monotonic() - self._saved_at >= self.every_seconds:
            self.run.between_steps(self._save_state)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save what is due."""
        is_last = epoch + 1 == self.run.epochs or self.run.stop_reason is not None
        is_best = self._monitor is not None and self._monitor.improves(self._monitor.read(logs))
        is_due = is_last or (epoch + 1) % self.every_epochs == 0
        if is_best:
            new = digest_in(file := self.learner.save(self.folder / _NEW))
            file.replace(self._hidden(new))
            self._best_files = list(dict.fromkeys([new, *self._best_files]))[: self.keep]
        if is_due:
            self.learner.save(self.folder / LAST)
        if not self.save_best_only:
            self.learner.save(self.folder / f"epoch-{epoch + 1:03d}.safetensors")
        if is_due or is_best:
            self.run.between_steps(self._save_state)

    def on_train_end(self, logs: Logs) -> None:
        """Let the best models have their names, also where a fit was stopped at once."""
        if self._folder is not None and not files_in(self.folder, _WRITTEN):
            (self.folder / _BEGUN).unlink(missing_ok=True)
        if self.run.status in ("completed", "stopped"):
            self.run.write(partial(self._name_best, self._best_files))

    def _save_state(self) -> None:
        self.run.save_state()
        self.run.write(partial(self._name_best, self._best_files))
        self._saved_at = time.monotonic()

    def _hidden(self, digest: str) -> Path:
        return self.folder / f".best-{digest}.safetensors"

    def _name_best(self, kept: Sequence[str]) -> None:
        """Let the best models, which the state knows by their digests, have their names; remove those before them.

        A new one gets its name only when a state knows of it: a run that is gone on with finds the files that it had.
        """
        (self.folder / _BEGUN).unlink(missing_ok=True)
        names = dict(
            zip(kept, [BEST, *(f"best-{place}.safetensors" for place in range(2, self.keep + 1))], strict=False)
        )
        for file in files_in(self.folder, _BEST):
            digest = digest_in(file)
            if digest not in names:
                file.unlink()
            elif names[digest] != file.name:
                file.replace(self._hidden(digest))
        for digest, name in names.items():
            if self._hidden(digest).exists():
                self._hidden(digest).replace(self.folder / name)

    def state_dict(self) -> dict[str, Any]:
        """Give the best value, and the digests of the best models."""
        return {"best": self.best, "files": list(self._best_files)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the best value up again, and the files as they were."""
        self._folder = self._folder_of(self.run)
        self._best_files = list(state["files"])
        if self._monitor is not None:
            self._monitor.best = state["best"]
        self._name_best(self._best_files)
        for file in files_in(self.folder, _UNNAMED):  # of a future that did not come
            file.unlink()
