"""How a fit is kept, so that another process can go on with it: what is written when, and what is taken up again."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from headstart.errors import ConfigError
from headstart.files import demand_space
from headstart.training import snapshot
from headstart.training.callback import Callback, Order
from headstart.training.fingerprint import demand_same_run
from headstart.training.loop import Loop
from headstart.training.metrics import Logs
from headstart.training.optimizer import size_of_moments
from headstart.training.packing import pack
from headstart.training.run import Run
from headstart.training.run_folder import Held, RunFolder
from headstart.training.writer import Writer


class Keeping(Callback):
    """Keep the states of one fit, and go on where an earlier process left it.

    Its turn comes last: when the others have been told that the fit begins, they remember what they knew; when they
    have been told that it ends, what it came to is written.

    Args:
        folder: where the states lie.
        facts: what the fit was asked for, and where it runs.
        callbacks: the user's, whose states are kept along.
        whole_epochs: whether states inside an epoch would be of no use, as with a loader that cannot begin there.
    """

    order: ClassVar[Order] = Order.SAVE

    def __init__(
        self, folder: RunFolder, facts: dict[str, Any], callbacks: Sequence[Callback], *, whole_epochs: bool
    ) -> None:
        self.folder = folder
        self.facts = facts
        self.callbacks = _named(callbacks)
        self.whole_epochs = whole_epochs
        self._held: Held | None = None
        self._loop: Loop | None = None
        self._saved_at = ""
        self._kept_at: tuple[Any, ...] = ()
        self._writer = Writer()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep other processes out of the folder inside, and end the writing afterwards.

        Raises:
            CheckpointError: another process is at work there.
        """
        with self.folder.locked():
            try:
                yield
            finally:
                self._writer.close()

    def find(self, run: Run) -> bool:
        """Look for what an earlier process left, if the fit should go on; nothing is changed yet.

        Returns:
            Whether it had come to its end: then there is nothing left to train.

        Raises:
            CheckpointError: an earlier process was asked for something else, or left no file that is whole.
        """
        held = self.folder.newest() if run.resume else None
        if held is not None and held.finished and self.facts["asked"]["epochs"] > held.facts["asked"]["epochs"]:
            held = self.folder.newest(finished=False) or held
        if held is not None:
            demand_same_run(self.facts, held.facts, held.path)
        self._held = held
        return held is not None and held.finished

    def begin(self, loop: Loop) -> None:
        """Let the fit stand where it was left.

        Raises:
            CheckpointError: the disk is too full for a state, or what was left does not fit; nothing has been changed.
        """
        self._loop, held = loop, self._held
        tensors = snapshot.tensors_of(loop.run.network).values()
        size = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor)) + size_of_moments(loop.optimizer)
        if held is None:
            demand_space(self.folder.path, 3 * size, "three states of the run, two kept and one being written")
        elif not held.finished:
            demand_space(self.folder.path, size, "a state of the run")
        if held is not None:
            snapshot.put_back(loop, held.state)
            self.folder.sweep()
            print(_told(held, loop.run))  # noqa: T201 - that less is trained than asked for must not go unseen
        loop.run.save_state = self._save
        loop.run.write = self._writer.submit

    def load_callbacks(self) -> None:
        """Let the callbacks remember what they knew."""
        for name, state in self._held.state["callbacks"].items() if self._held else ():
            if name in self.callbacks:
                self.callbacks[name].load_state_dict(state)
        self._held = None  # as large as the network and its moments

    def on_train_begin(self, logs: Logs) -> None:  # noqa: ARG002
        """Let the callbacks remember, now that all have begun anew; or make room for the states of a new run."""
        resumed = self._held is not None
        self.load_callbacks()
        pack(self._state(), "state")  # refuses now, and not after an epoch, what no file can hold
        if not resumed:
            self.folder.clear()
            self.folder.sweep()

    def on_train_end(self, logs: Logs) -> None:  # noqa: ARG002
        """Write what the fit came to, or say how to go on."""
        self._writer.wait()
        if self.run.status in ("completed", "stopped"):
            self.folder.finish(*pack(self._state(), "state"), self.facts)
        elif self._saved_at:
            first = "when its cause is gone, " if self.run.status == "failed" else ""
            words = f"{self.run.status}; {first}the same script goes on at {self._saved_at} with fit(..., resume=True)"
            print(f"{words}: the state is in {self.folder.path}")  # noqa: T201 - who stopped it wants to know

    def _save(self) -> None:
        """Copy the state, and let it be written while training goes on; once where several callbacks ask for it."""
        run = self.run
        place = (run.epoch, run.batches_done, run.stop_reason)
        if place == self._kept_at or (self.whole_epochs and run.batches_done and not run.has_trained):
            return
        self._kept_at = place
        self._writer.wait()  # so that there is never more than one copy
        words, tensors = pack(self._state(), "state")
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._writer.submit(partial(self._keep, words, copies, _place(run)))

    def _keep(self, words: Any, tensors: dict[str, Tensor], place: str) -> None:
        self.folder.keep(words, tensors, self.facts)
        self._saved_at = place

    def _state(self) -> dict[str, Any]:
        if self._loop is None:
            raise RuntimeError("The state of a fit that has not begun.")
        states = {name: callback.state_dict() for name, callback in self.callbacks.items()}
        return {**snapshot.take(self._loop), "callbacks": states}


def find_folder(callbacks: Sequence[Callback], run: Run) -> RunFolder | None:
    """Find where the states of a fit are kept, if anywhere.

    Raises:
        ConfigError: an earlier fit should be gone on with, and nobody keeps its states.
    """
    folders = (callback.states_folder(run) for callback in callbacks)
    path = next((folder for folder in folders if folder is not None), None)
    if path is None and run.resume:
        raise ConfigError(
            "resume=True without a ModelCheckpoint",
            "a ModelCheckpoint among the callbacks: its directory holds what is gone on with",
            "For example fit(..., callbacks=[ModelCheckpoint('runs/flowers')], resume=True).",
        )
    return None if path is None else RunFolder(path)


def _named(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Name callbacks after their classes; of those of one class, the second and later ones by their places too."""
    seen: Counter[str] = Counter()
    named = {}
    for callback in callbacks:
        name = type(callback).__name__
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name} {seen[name]}"] = callback
    return named


def _told(held: Held, run: Run) -> str:
    why = "" if run.stop_reason is None else f" ({run.stop_reason})"
    if held.finished:
        epochs = f"{len(run.history)} epoch{'s' * (len(run.history) != 1)}"
        return (
            f"fit {run.fit} came to its end before, after {epochs}{why}: {held.path} is loaded. To train anew, name "
            "another directory, or pass ModelCheckpoint(overwrite=True) and resume=False"
        )
    if not run.has_epochs:
        return f"fit {run.fit} had trained its last epoch{why} ({held.path})"
    planned = held.facts["asked"]["epochs"]
    more = f"; {planned} epochs were planned, a schedule is laid out over {run.epochs} now" * (planned != run.epochs)
    return f"fit {run.fit} goes on at {_place(run)} ({held.path}){more}"


def _place(run: Run) -> str:
    """Name where a fit stands between two steps."""
    epoch = f"epoch {run.epoch + 1} of {run.epochs}"
    if not run.has_epochs:
        return "its end"
    if run.has_trained:
        return f"the validation of {epoch}"
    return f"batch {run.batches_done + 1} of {run.batches} of {epoch}" if run.batches_done else epoch
