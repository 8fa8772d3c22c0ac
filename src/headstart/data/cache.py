"""Pictures that are decoded once: later epochs begin with their pixels, as they were framed before anything is drawn.

A memo: it changes no number. What it does not hold, or not as the file is now, is decoded as if there were none.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import PIL.features
import torch
from torch import Tensor
from tqdm import tqdm

from headstart.data.augment import View
from headstart.data.decode import UnreadableError
from headstart.data.sources import FolderSource, Source
from headstart.data.store import OutOfRoomError, Stamp, Store, keep_in_memory, open_store, stamp, write_store
from headstart.errors import CheckpointError, ConfigError, Demands, is_count, nearest
from headstart.files import as_path, files_in, free_space, write_atomically
from headstart.machine import cores, free_memory
from headstart.version import VERSION

Where = Literal["auto", "ram", "disk"]

_SHARE_OF_MEMORY = 0.25
_SHARE_OF_DISK = 0.9
_PROBED = 16
"""Pictures that tell how many bytes all of them will take."""

_AT_ONCE = 256
"""Pictures that may be decoded ahead of the one that is kept next."""

_AT_WORK = 8
"""Pictures that are decoded at a time, at the most: large ones take a hundred megabytes each."""

_PATIENCE = 2.0
"""Seconds of decoding after which a terminal shows how far it is."""

_OURS = re.compile(r"(\.)?[0-9a-f]{32}\.(?:pixels|features)(?(1)\.[0-9a-f]+)")
_UNFINISHED = re.compile(rf"{_OURS.pattern}|\.tmp[0-9A-Za-z]{{6}}")
"""Also what safetensors calls a file that it has not finished, as other programs do: looked for where we are alone."""

_UNUSED_SECONDS = 30 * 24 * 3600
"""After so long without use a file is removed when another one is written."""


@dataclass(frozen=True)
class Cache:
    """Where the pixels of pictures are kept from epoch to epoch, and how many; on the disk also what is made of them.

    Nothing but time and room depends on it: the same numbers come out with it and without it.

    Args:
        where: `"ram"`; `"disk"`, where the next run finds them again, and with them the features of frozen stages;
            `"auto"` is memory if all of a part fits into `budget`, else nothing.
        folder: for `"disk"`; None is `headstart` in `$XDG_CACHE_HOME`, or else in `~/.cache`. What is in it may be
            deleted at any time.
        budget: the bytes that all parts may take together, and for `"disk"` all that is in the folder, where what was
            used last stays, as far as it fits; None is a quarter of the memory that is free, or nine tenths of the
            disk's free space.

    Raises:
        ConfigError: an argument is out of range, or there is a folder for what stays in memory. A fit raises it where
            the budget does not hold one picture.

    Example:
        >>> Cache("disk", folder="/scratch/pixels", budget=20_000_000_000).where
        'disk'
    """

    where: Where = "auto"
    folder: str | Path | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        demands = Demands("For example cache='disk', or Cache('disk', folder='/scratch', budget=20_000_000_000).")
        demands.check("where", self.where, self.where in get_args(Where), f"one of {', '.join(get_args(Where))}")
        path = self.folder is None or (isinstance(self.folder, str | os.PathLike) and str(self.folder) != "")
        demands.check("folder", self.folder, path, "the path of a folder, or None")
        fits = self.folder is None or self.where == "disk"
        demands.check("where", self.where, fits, "'disk', since a folder is given")
        counted = self.budget is None or is_count(self.budget)
        demands.check("budget", self.budget, counted, "a whole number of bytes, 1 or more, or None")
        demands.settle()

    @property
    def place(self) -> Path:
        """The folder."""
        if self.folder is not None:
            return as_path(self.folder)
        return as_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "headstart"

    def room(self, taken: int = 0) -> int:
        """Give the bytes that may be taken now, when others have taken some of the budget."""
        if self.budget is not None:
            return self.budget - taken
        if self.where == "disk":
            return int(free_space(self.place) * _SHARE_OF_DISK)
        return int(free_memory() * _SHARE_OF_MEMORY)

    def sweep(self, size: int, target: Path) -> None:
        """Make the folder ready for a file of so many bytes, which takes the place of what has its name.

        What nobody has used for long goes, and what a process that was killed has left; with a budget what fits into
        it stays, from what was used last on.
        """
        left = None if self.budget is None else self.budget - size
        ours = _OURS if self.folder is not None else _UNFINISHED
        others = [file for file in files_in(self.place, ours) if file != target]
        for used, taken, file in sorted(map(_about, others), reverse=True):
            is_too_much = left is not None and taken > left and not file.name.startswith(".")  # those are being written
            if is_too_much or time.time() - used > _UNUSED_SECONDS:
                with contextlib.suppress(OSError):  # another process was faster
                    file.unlink()
            elif left is not None:
                left -= taken


CacheLike = Cache | Where | None
"""What `ImageData(cache=...)` takes."""


def as_cache(cache: Any) -> Cache | None:
    """Give a Cache for what stands for one.

    Raises:
        ConfigError: it is something else.
    """
    if cache is None or isinstance(cache, Cache):
        return cache
    meant = nearest(cache, get_args(Where)) if isinstance(cache, str) else ""
    demands = Demands(f"{meant}For example cache='disk', or a Cache with a folder or a budget of its own.")
    demands.check("cache", cache, cache in get_args(Where), f"one of {', '.join(get_args(Where))}, a Cache, or None")
    demands.settle()
    return Cache(cache)


class Memo:
    """A source whose pictures are framed, and kept so once `fill` has been called.

    Args:
        source: the pictures.
        view: its frame is what is done to them before they are kept.
        cache: where.
    """

    def __init__(self, source: FolderSource, view: View, cache: Cache) -> None:
        self.source = source
        self.view = view
        self.cache = cache
        self.store: Store | None = None
        self.has_told = False
        self._failed: Sequence[Stamp] | None = None  # the files that were decoded for nothing

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def path(self, index: int) -> Path | None:
        """Tell where a picture lies."""
        return self.source.path(index)

    def sample(self, index: int, least_side: int | None = None) -> tuple[Tensor, int]:  # noqa: ARG002 - the view knows
        """Give a framed picture, uint8 `[3, height, width]`, and its class."""
        label = self.source.labels[index]
        if self.store is None:
            return self._framed(index), label
        now = stamp(self.source.paths[index])
        pixels = self.store.read(index, now)
        if pixels is None:
            pixels = self._framed(index)
            self.store.mend(index, now, pixels)
        return pixels, label

    @property
    def size(self) -> int:
        """The bytes that are kept."""
        return 0 if self.store is None else self.store.size

    @property
    def is_in_memory(self) -> bool:
        """Whether the pixels are in this process."""
        return self.store is not None and self.store.path is None

    def fill(self, taken: int = 0) -> list[tuple[Path, str]] | None:
        """Decode what is not kept yet, or not as its file is now.

        Args:
            taken: bytes of the budget that others have.

        Returns:
            The files that cannot be read, each with the reason; or None when nothing is kept, which is told.

        Raises:
            ConfigError: not even one picture fits into the budget.
        """
        stamps = [stamp(path) for path in self.source.paths]
        if self.store is None or not self.store.knows(stamps):
            self.store = None  # first, to have its room
            self.store = self._kept(stamps, taken) if stamps != self._failed else None
        if self.store is None:
            return None
        missing = [number for number, now in enumerate(stamps) if not self.store.holds(number, now)]
        return [(self.source.paths[number], reason) for number in missing if (reason := self._complaint(number))]

    def _kept(self, stamps: Sequence[Stamp], taken: int) -> Store | None:
        """Find the pixels, or make and keep them; or say why not, and give None."""
        key = self._key()
        path = self.cache.place / f"{key.hex()[:32]}.pixels" if self.cache.where == "disk" else None
        found = open_store(path, key)
        if path is not None and found is not None and found.knows(stamps):
            with contextlib.suppress(OSError):  # it may be somebody else's
                os.utime(path)
            return found
        expected = self._expected_bytes()
        try:
            room = self.cache.room(taken)
            if path is not None and expected <= room:
                self.cache.sweep(expected, path)
        except OSError as error:  # a folder that one may not look into
            self._tell(f"the cache's folder cannot be used: {error}")
            return None
        why = f"the pixels of {len(self)} pictures, about {expected / 1e6:,.0f} MB, may take {room / 1e6:,.0f} MB"
        try:
            if expected <= room and path is None:
                return keep_in_memory(self._pictures(stamps, None), room)
            if expected <= room and path is not None:
                write_atomically(path, lambda file: write_store(file, self._pictures(stamps, found), room, key))
                if (store := open_store(path, key)) is not None:
                    return store
                gone = "was gone as soon as it was written; another run may need the room of its budget"
                why = f"{path} {'cannot be read' if path.exists() else gone}"
        except CheckpointError as error:
            why, self._failed = error.arrived, stamps
        except OutOfRoomError:
            why, self._failed = f"the pixels of {len(self)} pictures take more than {room / 1e6:,.0f} MB", stamps
        self._tell(why, "" if path is not None else "; cache='disk' keeps them there")
        return None

    def _tell(self, why: str, todo: str = "") -> None:
        """Say once why nothing is kept."""
        if not self.has_told:
            print(f"{why}: pictures are decoded in every epoch{todo}")  # noqa: T201 - it must not fail unseen
        self.has_told = True

    def _pictures(self, stamps: Sequence[Stamp], old: Store | None) -> Iterator[tuple[Tensor | None, Stamp]]:
        """Give all pictures in their order, decoded side by side, or taken from where they were kept before."""

        def make(number: int) -> Tensor | None:
            pixels = None if old is None else old.read(number, stamps[number])
            try:
                return self._framed(number) if pixels is None else pixels
            except UnreadableError:
                return None

        numbers = tqdm(range(len(self)), "decoding pictures once", delay=_PATIENCE, leave=False, disable=None)
        with ThreadPoolExecutor(min(cores(), _AT_WORK)) as pool, numbers:
            for start in range(0, len(self), _AT_ONCE):
                some = range(start, min(start + _AT_ONCE, len(self)))
                for number, pixels in zip(some, pool.map(make, some), strict=True):
                    yield pixels, stamps[number]
                    numbers.update()

    def _expected_bytes(self) -> int:
        """Say how many bytes all pictures will take, going by some of them."""
        count = min(_PROBED, len(self))
        some = [number * len(self) // count for number in range(count)]
        sizes = []
        for number in some:
            with contextlib.suppress(UnreadableError):
                sizes.append(self._framed(number).numel())
        expected = sum(sizes) * len(self) // max(1, len(sizes))
        if sizes and self.cache.budget is not None and self.cache.budget < min(sizes):
            raise ConfigError(
                f"a cache budget of {self.cache.budget} bytes, for pictures of {min(sizes)} bytes each",
                f"room for a picture at the least, and about {expected} bytes for all {len(self)}",
                "Give Cache a larger budget, or none of its own; cache=None keeps nothing.",
            )
        return expected

    def _complaint(self, number: int) -> str:
        try:
            self._framed(number)
        except UnreadableError as error:
            return error.reason
        return ""  # it has become readable meanwhile

    def _key(self) -> bytes:
        """Give 32 bytes that change with whatever the pixels depend on, but for what is in the files."""
        made_by = [repr(self.view.frame), self.view.least_side, *makers_of_pixels()]
        paths = [str(path.absolute()) for path in self.source.paths]
        return hashlib.sha256(repr((made_by, paths)).encode(errors="surrogateescape")).digest()

    def _framed(self, index: int) -> Tensor:
        pixels: Tensor = self.view.frame(self.source.sample(index, self.view.least_side)[0])
        return pixels


class Memos:
    """What is kept of the parts of some data, by their names."""

    def __init__(self) -> None:
        self._memos: dict[str, Memo] = {}

    @property
    def size(self) -> int:
        """The bytes that are kept."""
        return sum(memo.size for memo in self._memos.values())

    def fill(self, name: str, part: FolderSource, view: View, cache: Cache) -> list[tuple[Path, str]] | None:
        """Decode a part once, and give what `Memo.fill` gives."""
        if name not in self._memos or self._memos[name].view.frame != view.frame:
            self._memos.pop(name, None)  # first, to have its room
            self._memos[name] = Memo(part, view, cache)
        if any(memo.has_told for memo in self._memos.values()):
            self._memos[name].has_told = True  # one line is enough
        return self._memos[name].fill(self.size - self._memos[name].size)

    def remembered(self, name: str, part: Source, view: View) -> tuple[Source, View]:
        """Give a part, and what is to be done to its pictures, or less of it where they are kept framed."""
        memo = self._memos.get(name)
        if memo is None or memo.store is None or memo.source is not part or memo.view.frame != view.frame:
            return part, view
        return memo, view.of_framed()

    def __getitem__(self, name: str) -> Memo:
        return self._memos[name]

    def __len__(self) -> int:
        return len(self._memos)


def makers_of_pixels() -> list[str]:
    """Name all that decides about pixels beside picture and view: libraries, and what the processor can do."""
    versions = map(version, ("pillow", "torch", "torchvision", "timm"))
    kernels = torch.backends.cpu.get_cpu_capability()  # torchvision's resize has one of its own for AVX2
    return [VERSION, *versions, str(PIL.features.version("jpg")), kernels]


def _about(file: Path) -> tuple[float, int, Path]:
    """Tell when a file was last used and how large it is."""
    try:
        about = file.stat()
    except OSError:
        return 0.0, 0, file
    return about.st_mtime, about.st_size, file
