"""Where the pixels of many pictures are kept: in memory, or in a file that knows whether it is as it was written.

    pixels of the first picture | pixels of the second | ... | index | footer

The index has a row for each picture: where its pixels begin, their height and width, their CRC-32, and the size and the
time of the file they were made of. The footer holds the number of rows, their CRC-32 and the key: what all of it was
made of.

Which pictures are kept where, and what is done about one that is not to be had from here, is the business of `cache`.
"""

import contextlib
import os
import struct
import weakref
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Stamp = tuple[int, int]
"""Size of a file in bytes, and the time of its last change in nanoseconds."""

Index = npt.NDArray[np.int64]

_START, _HEIGHT, _WIDTH, _CRC, _SIZE, _TIME = range(6)
_FOOTER = struct.Struct("<16sQI32s")
_MARK = b"headstart pixels"
_BLOCK = 1 << 26
"""Bytes that memory is taken in: of single pictures there could be more than the pieces a system gives out."""


class OutOfRoomError(Exception):
    """The pixels take more bytes than they may."""


class _Bytes(Protocol):
    """Bytes by their places."""

    def append(self, pixels: Tensor) -> int:
        """Add the bytes of a tensor, and tell their place."""
        ...

    def read(self, place: int, length: int) -> Tensor | None:
        """Give bytes, uint8 `[length]`, or None when they cannot be had."""
        ...

    def mend(self, place: int, pixels: Tensor) -> None:
        """Write bytes once more that were found damaged, if that can be done."""
        ...


class _InMemory:
    """Bytes in this process, and in those that are forked from it, without a copy."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._end = _BLOCK

    def append(self, pixels: Tensor) -> int:
        if self._end + pixels.numel() > _BLOCK:
            self._blocks.append(torch.empty(max(_BLOCK, pixels.numel()), dtype=torch.uint8))
            self._end = 0
        start, self._end = self._end, self._end + pixels.numel()
        self._blocks[-1][start : self._end] = pixels
        return (len(self._blocks) - 1) * _BLOCK + start  # a block of more bytes holds one picture, at its beginning

    def read(self, place: int, length: int) -> Tensor | None:
        block, start = divmod(place, _BLOCK)
        return self._blocks[block][start : start + length]

    def mend(self, place: int, pixels: Tensor) -> None:
        """Leave them: nobody damages memory."""


class _InFile:
    """Bytes in a file, read and not mapped: who looks at a map of a file that was cut short is ended by the system."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def append(self, pixels: Tensor) -> int:
        place = self.file.tell()
        self.file.write(_bytes(pixels))
        return place

    def read(self, place: int, length: int) -> Tensor | None:
        pixels = torch.empty(length, dtype=torch.uint8)
        try:
            return pixels if _read_at(self.file, _bytes(pixels), place) == length else None
        except OSError:  # the disk is broken, or the file was removed by another machine
            return None

    def mend(self, place: int, pixels: Tensor) -> None:
        with contextlib.suppress(OSError), Path(self.file.name).open("r+b") as file:  # else it stays damaged
            about = os.fstat(file.fileno())
            # Behind the end of one that was cut short zeros would come to lie; and there may be another one by now.
            if os.path.samestat(about, os.fstat(self.file.fileno())) and about.st_size >= place + pixels.numel():
                file.seek(place)
                file.write(_bytes(pixels))


class Store:
    """The pixels of pictures by their numbers, as long as the files they were made of are as they were.

    Args:
        kept: the bytes.
        index: a row for each picture.
        path: the file they are in, if any: what is read from there for the first time is checked.
        key: of that file.
    """

    def __init__(self, kept: _Bytes, index: Index, path: Path | None = None, key: bytes = b"") -> None:
        self._kept = kept
        self._index = index
        self._checked = np.full(len(index), path is None)
        self.path = path
        self._key = key

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path, self._key)  # for processes that are not forked; what is in memory they lack

    @property
    def size(self) -> int:
        """The bytes of all pixels."""
        return int(3 * (self._index[:, _HEIGHT] * self._index[:, _WIDTH]).sum())

    def knows(self, stamps: Sequence[Stamp]) -> bool:
        """Say whether all was made of files as they are, those that could not be read included."""
        return bool((self._index[:, _SIZE:] == np.array(stamps, np.int64).reshape(-1, 2)).all())

    def holds(self, number: int, stamp: Stamp) -> bool:
        """Say whether there are pixels of a picture, made of the file as it is."""
        row = self._index[number]
        return bool(row[_HEIGHT] and row[_SIZE] == stamp[0] and row[_TIME] == stamp[1])

    def read(self, number: int, stamp: Stamp) -> Tensor | None:
        """Give the pixels of a picture, uint8 `[3, height, width]`, not to be written to, or None.

        Args:
            number: which picture.
            stamp: of its file as it is now.
        """
        if not self.holds(number, stamp):
            return None
        place, height, width, crc = self._index[number, :_SIZE].tolist()
        pixels = self._kept.read(place, 3 * height * width)
        if pixels is None or not (self._checked[number] or zlib.crc32(_bytes(pixels)) == crc):
            return None
        self._checked[number] = True
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def mend(self, number: int, stamp: Stamp, pixels: Tensor) -> None:
        """Write the pixels of a picture once more, which were found damaged, if they are what was written before."""
        flat = _flat(pixels)
        place, _, _, crc = self._index[number, :_SIZE].tolist()
        if self.holds(number, stamp) and zlib.crc32(_bytes(flat)) == crc:
            self._kept.mend(place, flat)


def stamp(path: Path) -> Stamp:
    """Tell the size and the time of a file, to know it by."""
    try:
        about = path.stat()
    except OSError:
        return -1, -1
    return about.st_size, about.st_mtime_ns


def keep_in_memory(pictures: Iterable[tuple[Tensor | None, Stamp]], most: int) -> Store:
    """Keep the pixels of pictures in memory.

    Args:
        pictures: pixels `[3, height, width]`, uint8, with the stamp of their file; None where there are none.
        most: bytes they may take.

    Raises:
        OutOfRoomError: they take more.
    """
    kept = _InMemory()
    return Store(kept, _append_all(kept, pictures, most))


def write_store(path: Path, pictures: Iterable[tuple[Tensor | None, Stamp]], most: int, key: bytes) -> None:
    """Write the pixels of pictures into a file; see `keep_in_memory`.

    Args:
        path: the file.
        pictures: what goes into it.
        most: bytes it may take.
        key: 32 bytes that say of what all of this was made.
    """
    with path.open("wb") as file:
        index = _append_all(_InFile(file), pictures, most)
        rows = index.tobytes()
        file.write(rows)
        file.write(_FOOTER.pack(_MARK, len(index), zlib.crc32(rows), key))


def open_store(path: Path | None, key: bytes) -> Store | None:
    """Open a file that `write_store` wrote with the same key; None where there is none that is whole."""
    if path is None:
        return None
    try:
        file = path.open("rb", buffering=0)
    except OSError:
        return None
    try:
        index = _read_index(file, key)
    except OSError:
        index = None
    if index is None:
        file.close()
        return None
    kept = _InFile(file)
    weakref.finalize(kept, file.close)
    return Store(kept, index, path, key)


def _read_index(file: BinaryIO, key: bytes) -> Index | None:
    """Read the rows of a file's index, if the file is whole and has this key."""
    begin = file.seek(0, os.SEEK_END) - _FOOTER.size
    footer = bytearray(_FOOTER.size)
    if begin < 0 or _read_at(file, memoryview(footer), begin) != len(footer):
        return None
    mark, count, crc, found = _FOOTER.unpack(footer)
    rows = bytearray(count * 6 * 8) if mark == _MARK and found == key and count * 6 * 8 <= begin else None
    if rows is None or _read_at(file, memoryview(rows), begin - len(rows)) != len(rows) or zlib.crc32(rows) != crc:
        return None
    return np.frombuffer(rows, np.int64).reshape(-1, 6)


def _append_all(kept: _Bytes, pictures: Iterable[tuple[Tensor | None, Stamp]], most: int) -> Index:
    index, taken = [], 0
    for pixels, (size, time) in pictures:
        if pixels is None:
            index.append((0, 0, 0, 0, size, time))
            continue
        taken += pixels.numel()
        if taken > most:
            raise OutOfRoomError
        flat = _flat(pixels)
        crc = zlib.crc32(_bytes(flat)) if isinstance(kept, _InFile) else 0  # nobody asks for that of memory
        index.append((kept.append(flat), *pixels.shape[1:], crc, size, time))
    return np.array(index, np.int64).reshape(-1, 6)


def _flat(pixels: Tensor) -> Tensor:
    return pixels.permute(1, 2, 0).reshape(-1)


def _bytes(pixels: Tensor) -> memoryview:
    array: Any = pixels.numpy()
    return memoryview(array)


def _read_at(file: BinaryIO, into: memoryview, place: int) -> int:
    """Read from a place of a file, and tell how many bytes there were."""
    if hasattr(os, "preadv"):  # one call, for processes that were forked share the place where they read on
        return os.preadv(file.fileno(), [into], place)
    file.seek(place)
    count: int = file.readinto(into)  # type: ignore[attr-defined]
    return count
