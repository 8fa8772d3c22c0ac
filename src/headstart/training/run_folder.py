"""Where the states of a run lie: the last two of them, and how it ended."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from headstart.errors import CheckpointError, listing
from headstart.files import files_in, locked
from headstart.model.weights import DamagedError
from headstart.training.checkpoint import read_weights, write_weights
from headstart.training.packing import unpack

LOCK = "lock"
_FINISHED = "finished.safetensors"
_STATE = re.compile(r"state-\d{6,}\.safetensors")
_KEPT_FILES = re.compile(rf"({_STATE.pattern})|{re.escape(_FINISHED)}")
_MODEL = re.compile(r"(best|last|epoch)[-\d]*\.safetensors")
_UNFINISHED_WRITE = re.compile(r"\..+\.safetensors\.[0-9a-f]{8}")
_KEPT = 2  # so that a damaged one costs a few minutes and not the run


class Held(NamedTuple):
    """What a run left behind.

    Attributes:
        path: the file.
        state: what the run stood at.
        facts: what the run was asked for, and where it ran.
        finished: whether it had come to its end.
    """

    path: Path
    state: dict[str, Any]
    facts: dict[str, Any]
    finished: bool


class RunFolder:
    """Keep the states of one fit in its folder.

    A file is written beside its target, flushed and renamed, and carries a digest of its content: it is there whole or
    not at all. The older state stays until the newer one is whole.

    Args:
        path: the folder; it is made when there is something to keep.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damaged: list[Path] = []

    def keep(self, words: Any, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a state; of those before it only the last one stays.

        Args:
            words: the state, as `pack` took it apart.
            tensors: those of the state, by name.
            facts: what the run was asked for, and where it runs.

        Raises:
            CheckpointError: the folder cannot be written to or the disk is full; what was there is untouched.
        """
        numbers = self._numbers()
        self._write(f"state-{max(numbers, default=0) + 1:06d}.safetensors", words, tensors, facts)
        for number in sorted(numbers)[: -(_KEPT - 1)]:
            self._file(number).unlink()

    def finish(self, words: Any, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write what a run came to. Of its states only the last one stays, to go on from with more epochs."""
        self._write(_FINISHED, words, tensors, facts)
        for number in sorted(self._numbers())[:-1]:
            self._file(number).unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out inside; the lock of a process that died is gone with it.

        Raises:
            CheckpointError: another fit, of this process or another one, is at work there.
        """
        with locked(self.path / LOCK) as owner:
            if owner is not None:
                raise CheckpointError(
                    f"{self.path}, in which process {owner} is training",
                    "a folder that no other fit writes to",
                    "Wait until it has ended, or name another directory.",
                )
            yield

    def newest(self, *, finished: bool = True) -> Held | None:
        """Read what a run left behind, or None when there is nothing.

        Args:
            finished: whether its end counts; False looks for the last state before it.

        Raises:
            CheckpointError: all files are damaged, or come from a later version of headstart.
        """
        paths = [self._file(number) for number in sorted(self._numbers(), reverse=True)]
        if finished and (self.path / _FINISHED).exists():
            paths.insert(0, self.path / _FINISHED)
        damaged = self._damaged = []
        for path in paths:
            try:
                tensors, description = read_weights(path)
            except DamagedError:
                damaged.append(path)
                continue
            if not {"state", "facts"} <= description.keys():  # whole, and of another kind
                damaged.append(path)
                continue
            if damaged:
                names = listing(bad.name for bad in damaged)
                warnings.warn(f"{names} in {self.path}: damaged; going on from {path.name}", stacklevel=2)
            return Held(path, unpack(description["state"], tensors), description["facts"], path.name == _FINISHED)
        if damaged:
            there = sorted(path.name for path in files_in(self.path, _MODEL))
            models = f"The weights in {listing(there)} may be whole: learner.load_weights(file). " if there else ""
            are = "is" if len(damaged) == 1 else "are"
            raise CheckpointError(
                f"{self.path}, in which {listing(bad.name for bad in damaged)} {are} damaged",
                "a folder with one state that is whole",
                f"{models}Train anew: give ModelCheckpoint another directory, or overwrite=True and fit resume=False.",
            )
        return None

    @property
    def has_states(self) -> bool:
        """Whether there is anything to go on from."""
        return bool(files_in(self.path, _KEPT_FILES))

    def clear(self) -> None:
        """Remove the states of an earlier run, and how it ended."""
        for file in files_in(self.path, _KEPT_FILES):
            file.unlink()

    def sweep(self) -> None:
        """Remove what writes left behind that were cut short, and the damaged files that `newest` has passed over."""
        for file in [*files_in(self.path, _UNFINISHED_WRITE), *self._damaged]:
            file.unlink(missing_ok=True)

    def _write(self, name: str, words: Any, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        write_weights(self.path / name, tensors, {"state": words, "facts": facts})

    def _numbers(self) -> list[int]:
        return [int(file.stem.removeprefix("state-")) for file in files_in(self.path, _STATE)]

    def _file(self, number: int) -> Path:
        return self.path / f"state-{number:06d}.safetensors"
