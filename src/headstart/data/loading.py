"""Batches: which pictures, in which order, with which seeds, fetched by how many processes.

Order and augmentation are derived from (seed, fit, epoch, picture), so the number of workers never matters.
`Batches` is all that the loop knows of data; those of a loader of the user's own are the business of `own_loader`.
"""

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from headstart.data.augment import Pipeline
from headstart.data.decode import UnreadableError, at_most, is_want
from headstart.data.preprocessing import described
from headstart.data.settings import MOST_SKIPPED
from headstart.data.sources import Source
from headstart.errors import DataError, listing
from headstart.machine import cores
from headstart.randomness import AUGMENTATION, ORDER, derive, generator, seed_sample

Pair = tuple[Tensor, Tensor]
"""Images `[batch, channels, height, width]`, uint8 or float, and targets: class ids `[batch]`, int64, or
probabilities `[batch, classes]`, float."""


SILENCE = 25.0
"""Seconds in which no process has begun a picture, after which they count as hanging."""

_LOOK = 5.0
"""Seconds after which one looks again whether they have, at the most."""


_SHARED = Path("/dev/shm")  # noqa: S108 - not a place for files of ours: torch lets processes share memory there

_LITTLE = 32_000_000
"""Free bytes of shared memory below which it is probably what a process lacks."""


class Batches(Protocol):
    """The batches of one part of the data, epoch after epoch."""

    def __len__(self) -> int:
        """Give the number of batches in an epoch."""
        ...

    def epoch(self, fit: int, epoch: int, start: int = 0) -> Iterable[Any]:
        """Go through the batches of an epoch from batch `start` on, as pairs or as what is made of them.

        The same fit and epoch give the same batches.
        """
        ...


@dataclass
class Pace:
    """How the time of a loader's batches was spent, but for the first of each epoch, which processes start for.

    Attributes:
        waited: seconds in which one waited for batches.
        worked: seconds in which one worked with them.
        pictures: how many were in them.
    """

    waited: float = 0.0
    worked: float = 0.0
    pictures: int = 0

    def add(self, waited: float, worked: float, pictures: int) -> None:
        """Count a batch."""
        self.waited += waited
        self.worked += worked
        self.pictures += pictures

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return self.waited + self.worked

    @property
    def per_picture(self) -> float:
        """Seconds that a picture took, prepared and worked with."""
        return self.seconds / self.pictures

    @property
    def share_waited(self) -> float:
        """The share of the time in which one waited."""
        return self.waited / self.seconds


class SourceBatches:
    """Batches from a source of pictures: shuffled and varied for training, in order and by the book otherwise.

    Args:
        source: the pictures and labels.
        view: from a picture to a tensor.
        batch_size: pictures in a batch; the last one of an epoch may hold fewer.
        seed: of order and augmentation; None keeps the source's order and seeds nothing.
        shuffled: whether a seed changes the order, too.
        workers: processes that prepare batches; 0 prepares them in this one.
        least_side: the shorter side, in pixels, below which a picture must not be decoded; None decodes it in full.
        pin_memory: whether batches are put where a GPU can fetch them without waiting.
        skips: whether pictures that cannot be read are passed over: in training the next one that can takes the place.
    """

    def __init__(
        self,
        source: Source,
        view: Pipeline,
        batch_size: int,
        *,
        seed: int | None = None,
        shuffled: bool = True,
        workers: int = 0,
        least_side: int | None = None,
        pin_memory: bool = False,
        skips: bool = False,
    ) -> None:
        self.pace = Pace()
        self.workers = workers
        self._skips = skips
        self._skipped: set[int] = set()
        self._order = _Order(len(source), batch_size, seed, shuffled=shuffled)
        self._source = source
        # What each process is at: its number, the picture, and how many it has begun.
        self._at: Tensor | None = None
        if workers > 0:
            self._at = torch.full((workers, 3), -1).share_memory_()  # type: ignore[no-untyped-call]
        views = Views(source, view, least_side, self._at)
        self._loader: DataLoader[Any] = DataLoader(
            Readable(views, len(source)) if skips else views,
            timeout=min(_LOOK, SILENCE) if workers > 0 else 0,
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=collate_readable if skips else collate,
            pin_memory=pin_memory,
            # The loader draws a seed for its workers on every pass; it must not draw it from the user's generator.
            generator=generator(0),
            persistent_workers=workers > 0,
            multiprocessing_context="fork" if workers > 0 and sys.platform == "linux" else None,
            worker_init_fn=_stand_apart,
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, fit: int, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Go through the batches of an epoch; those before `start` are not read."""
        self._order.position = (fit, epoch, start)
        batches, since = iter(self._loader), None
        while (batch := self._next(batches)) is not None:
            came = time.perf_counter()
            if self._skips:
                batch = self._kept(*batch)
            if batch is None:
                continue  # none of its pictures could be read
            if isinstance(batch, DataError):
                try:
                    raise batch
                finally:
                    del batch  # or error and frame would hold each other, and the workers with them
            yield batch
            left = time.perf_counter()
            if since is not None:
                self.pace.add(came - since, left - came, len(batch[1]))
            since = left

    def rest(self) -> None:
        """Let the processes go until there is an epoch again."""
        if self._at is not None:
            self._at.fill_(-1)
        self._loader._iterator = None  # noqa: SLF001 - torch has no public way to end those that persist

    def places(self, fit: int, epoch: int, start: int = 0) -> Iterator[list[int]]:
        """Tell which pictures each batch of an epoch holds, by their places in the source."""
        return ([index for index, _ in batch] for batch in self._order.batches(fit, epoch, start))

    def pictures(self, fit: int, epoch: int, batch: int) -> list[str]:
        """Name the pictures of a batch, in its order: paths, or numbers of samples."""
        indices = next(self.places(fit, epoch, batch))
        size = len(self._source)
        stand_ins = [next(n % size for n in range(i, i + size) if n % size not in self._skipped) for i in indices]
        return self._names(stand_ins)

    @property
    def has_passed_over(self) -> bool:
        """Whether some pictures could not be read."""
        return bool(self._skipped)

    def told(self) -> str:
        """Say which pictures have been passed over, or nothing."""
        names = listing(self._names(sorted(self._skipped)), most=20)
        return f"passed over {len(self._skipped)} of {len(self._source)} pictures: {names}" if self._skipped else ""

    def _names(self, indices: Iterable[int]) -> list[str]:
        return [str(self._source.path(index) or f"sample {index}") for index in indices]

    def _kept(self, batch: Pair | DataError | None, passed: Sequence[int]) -> Pair | DataError | None:
        """Give what is left of a batch, if not too many pictures have been passed over by now."""
        self._skipped.update(passed)
        if len(self._skipped) > MOST_SKIPPED * len(self._source):
            return DataError(
                f"{len(self._skipped)} of {len(self._source)} pictures that cannot be read: "
                f"{listing(self._names(sorted(self._skipped)), most=20)}",
                f"whole picture files; {at_most(MOST_SKIPPED)}",
                "Replace these files by good copies; or delete them, and make the ImageData anew.",
            )
        return batch

    def _next(self, batches: Iterator[Any]) -> Any:
        """Wait for a batch as long as some process begins a picture now and then; None is the end."""
        begun, since = None if self._at is None else self._at.clone(), time.monotonic()
        while True:
            try:
                return next(batches, None)
            except RuntimeError as error:
                if (lost := self.lost(error)) is not None:
                    raise lost from error
                if begun is None or self._at is None or not str(error).startswith("DataLoader timed out"):
                    raise
                if not torch.equal(begun, self._at):
                    begun, since = self._at.clone(), time.monotonic()
                elif time.monotonic() - since >= SILENCE:
                    raise self._lost(f"no new picture for {SILENCE:.0f} s", self._at) from error

    def lost(self, error: RuntimeError) -> DataError | None:
        """Turn torch's error about a process of this loader that died into one that names its picture."""
        found = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if found is None or self._at is None:
            return None
        pids = {int(pid) for pid in found[1].split(",")}
        at = self._at[[int(pid) in pids for pid in self._at[:, 0]]]
        return self._lost(str(error).splitlines()[0].rstrip(". "), at) if len(at) else None

    def _lost(self, what: str, at: Tensor) -> DataError:
        places = self._names(int(index) for _, index, _ in at if index >= 0)
        told = f"{what}, while {listing(places)} {'was' if len(places) == 1 else 'were'} prepared"
        todo = (
            "Look at these pictures and at what your pipeline does with them; workers=0 shows it in this process. A "
            "process may also be killed for want of memory: use fewer workers or smaller batches."
        )
        if (free := _shared_memory()) < _LITTLE:
            told += f"; {_SHARED}, where processes hand their batches over, has {free / 1e6:.1f} MB left"
            todo = "Use workers=0, or give the machine more shared memory: docker run --shm-size=8g."
        return DataError(told, "processes that go on preparing pictures", todo)


@contextmanager
def accounting(*parts: "Batches | None") -> Iterator[None]:
    """Tell which pictures were passed over inside, and name the one that a process was at when it died.

    torch tells of the death in the middle of anything.
    """
    try:
        yield
    except RuntimeError as error:
        found = (part.lost(error) for part in parts if isinstance(part, SourceBatches))
        if (told := next((lost for lost in found if lost is not None), None)) is not None:
            raise told from error
        raise
    finally:
        for part in parts:
            if isinstance(part, SourceBatches) and (told_skipped := part.told()):
                print(told_skipped)  # noqa: T201 - what was asked for must not go unseen


def worker_count(workers: int | Literal["auto"], batch_bytes: int = 0) -> int:
    """Decide how many processes prepare batches.

    `"auto"` leaves one core to training and takes up to 8 of the others, as far as shared memory holds what they
    prepare ahead, where processes start by forking (Linux); elsewhere a worker would run the user's script again, so
    there it is 0.

    Args:
        workers: how many, or `"auto"`.
        batch_bytes: size of a batch.
    """
    if workers != "auto":
        return workers
    if sys.platform != "linux":
        return 0
    count = min(8, cores() - 1)
    ahead = 3 * batch_bytes  # each prepares two batches ahead while a third one is looked at
    return min(count, _shared_memory() // ahead) if ahead else count


def _shared_memory() -> int:
    """Give the free bytes in which processes on Linux hand tensors over; a container may have 64 MB in all."""
    return shutil.disk_usage(_SHARED).free if _SHARED.exists() else sys.maxsize


class _Order:
    """The batches of an epoch as lists of (index, seed)."""

    def __init__(self, pictures: int, batch_size: int, seed: int | None, *, shuffled: bool = True) -> None:
        self._pictures = pictures
        self._batch_size = batch_size
        self._seed = seed
        self._shuffled = shuffled
        self.position: tuple[int, ...] = (0, 0)

    def __len__(self) -> int:
        return math.ceil(self._pictures / self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int | None]]]:
        return self.batches(*self.position)

    def batches(self, fit: int, epoch: int, start: int = 0) -> Iterator[list[tuple[int, int | None]]]:
        """Go through the batches of an epoch from batch `start` on."""
        seed = self._seed
        order: Sequence[int] = range(self._pictures)
        if seed is not None and self._shuffled:
            chance = generator(derive(ORDER, seed, fit, epoch))
            order = torch.randperm(self._pictures, generator=chance).tolist()
        for place in range(start * self._batch_size, self._pictures, self._batch_size):
            batch = order[place : place + self._batch_size]
            yield [(n, None if seed is None else derive(AUGMENTATION, seed, fit, epoch, n)) for n in batch]


def _stand_apart(worker: int) -> None:  # noqa: ARG001 - as a DataLoader calls it
    """Let a signal to the whole group, such as Ctrl-C, reach the process that trains alone: it ends the others.

    They end by themselves, too, when it is gone: torch's processes look after the one that started them.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


class Views(Dataset[Any]):
    """A source seen through a view, picture by picture, each with the seed of what is drawn for it or None.

    A picture that cannot be had comes back as its DataError, since processes lose exceptions; what the user's own code
    raises says at which picture it happened.
    """

    def __init__(self, source: Source, view: Pipeline, least_side: int | None = None, at: Tensor | None = None) -> None:
        self._source = source
        self._view = view
        self._least_side = least_side
        self._at = at

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[Tensor, int] | DataError:
        index, seed = key
        if self._at is not None and (worker := get_worker_info()) is not None:
            row = self._at[worker.id]
            row[0], row[1] = os.getpid(), index
            row[2] += 1
        try:
            if seed is not None:
                seed_sample(seed)
            picture, label = self._source.sample(index, self._least_side)
            return self._view(picture), label
        except Exception as error:
            error.add_note(f"while preparing {self._source.path(index) or f'sample {index}'}")
            if isinstance(error, DataError):
                return error
            raise


class Readable(Dataset[Any]):
    """Views of those pictures that can be read, with the numbers of those that were passed over.

    In training, where a picture has a seed, the next one that can be read takes the place of one that cannot, and the
    first comes after the last. In evaluation nothing takes it.

    Args:
        views: of all pictures.
        size: how many there are.
    """

    def __init__(self, views: Views, size: int) -> None:
        self._views = views
        self._size = size

    def __getitem__(self, key: tuple[int, int | None]) -> tuple[tuple[Tensor, int] | DataError | None, list[int]]:
        index, seed = key
        passed: list[int] = []
        for number in range(index, index + (1 if seed is None else self._size)):
            place = number % self._size
            try:
                sample = self._views[place, seed]
            except OSError as error:  # of a dataset that opens its pictures itself
                if is_want(error):
                    raise
                passed.append(place)
                continue
            if not isinstance(sample, UnreadableError):
                return sample, passed
            passed.append(place)
        return None, passed


def collate_readable(samples: Sequence[tuple[Any, list[int]]]) -> tuple[Pair | DataError | None, list[int]]:
    """Make a batch of what could be read, or of nothing None, and give the numbers of the pictures passed over."""
    kept = [sample for sample, _ in samples if sample is not None]
    return collate(kept) if kept else None, [index for _, passed in samples for index in passed]


def gather(source: Source, view: Pipeline, places: Sequence[int], *, skips: bool) -> Pair:
    """Make a batch of some pictures, as evaluation sees them.

    Raises:
        DataError: one of them cannot be read; or none, where such are to be passed over.
    """
    views = Views(source, view)
    samples: list[Any] = []
    if skips:
        readable = Readable(views, len(source))
        samples = [sample for place in places if (sample := readable[place, None][0]) is not None]
    batch = collate(samples or [views[place, None] for place in places])
    if isinstance(batch, DataError):
        raise batch
    return batch


def collate(samples: Sequence[tuple[Tensor, int] | DataError]) -> Pair | DataError:
    """Make a batch of pictures and labels, or give the first error among them, or that they do not fit together."""
    pairs = [sample for sample in samples if not isinstance(sample, DataError)]
    if len(pairs) < len(samples):
        return next(sample for sample in samples if isinstance(sample, DataError))
    kinds = {described(picture) for picture, _ in pairs}
    if len(kinds) > 1:
        return DataError(
            f"pictures that are {', '.join(sorted(kinds))} in one batch",
            "pictures of one size and type, since a batch is one tensor",
            "Let the pipeline end at one size, for example with Resize((224, 224)), or give ImageData PIL pictures.",
        )
    # Stacked as [batch, height, width, channels]: pixels stay channels last, which decoders give and networks like.
    images = torch.stack([picture.permute(1, 2, 0) for picture, _ in pairs]).permute(0, 3, 1, 2)
    return images, torch.tensor([label for _, label in pairs])
