"""Bytes to pictures: whatever Pillow can open becomes an upright RGB picture, or an error that names the file.

torchvision's own decoder is not used: a PNG whose header lies about its size makes it crash the whole process.
Finding files is the business of `sources`, making tensors that of `preprocessing`.
"""

import contextlib
import errno
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from headstart.errors import DataError, listing

_TAIL_BYTES = 1 << 16
"""How much of a file's end is searched for its end mark; cameras append notes and padding behind it."""

_TIFF_PIECES = ((273, 279), (324, 325))
"""Tags that tell where the strips, or tiles, of a TIFF begin, and how long they are."""

_PATHS_PER_TASK = 64


class UnreadableError(DataError):
    """A picture cannot be had: it is missing, broken, or none."""

    reason = ""
    """Why, in a few words."""


def open_picture(path: Path, least_side: int | None = None) -> Image.Image:
    """Decode a file to an upright RGB picture.

    An animation gives its first frame. A picture is turned as its EXIF note says; what is otherwise done to the
    colours is told at `to_rgb`.

    Args:
        path: a file of any format that Pillow knows; its suffix need not be the right one.
        least_side: a JPEG may be decoded at a half, a quarter or an eighth of its size, several times as fast, as long
            as its shorter side keeps this many pixels. None decodes every pixel.

    Raises:
        UnreadableError: the file is missing, broken, no picture, or so large that it may be a decompression bomb.
            Replace or delete it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.jpg"
        >>> Image.new("L", (400, 300), 99).save(path)
        >>> open_picture(path).size, open_picture(path, least_side=128).size
        ((400, 300), (200, 150))
    """
    with _failure_named(repr(str(path))):
        return _decode(path, least_side)


def to_rgb(picture: Image.Image, name: str = "a picture") -> Image.Image:
    """Give a picture that is already in memory three channels of 8 bits; one that has them is returned itself.

    Transparency is dropped, as timm and torchvision do. Deeper pictures are scaled, where Pillow alone would turn
    nearly all of them white: 16 bits lose their lower 8; 32-bit whole numbers and floats are divided by 256 until they
    fit; floats that stay below 2 are taken for shares of 1, and what is above 1 is white.

    Args:
        picture: of any mode; EXIF notes are not looked at, the pixels are taken as they lie.
        name: what an error calls it.

    Raises:
        UnreadableError: the pixels cannot be had (Pillow reads a file only when they are asked for). Replace the
            picture.

    Example:
        >>> to_rgb(Image.new("I;16", (1, 1), 0x7FFF)).getpixel((0, 0))
        (127, 127, 127)
    """
    with _failure_named(name):
        return _converted(picture)


def upright(picture: Image.Image) -> Image.Image:
    """Turn a picture in memory as its EXIF note says, so that it is what `open_picture` makes of its file.

    The picture is left as it is; one that needs no turning is returned itself.

    Example:
        >>> upright(Image.new("RGB", (4, 3))).size
        (4, 3)
    """
    with contextlib.suppress(Exception):  # a garbled EXIF note is no reason to refuse a good picture
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            turned = ImageOps.exif_transpose(picture)
            turned.format = picture.format  # which `to_rgb` wants to know
            return turned
    return picture


def unreadable(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Find the files that will not become pictures, from their headers and ends, in a fraction of the decoding time.

    Damage in the middle of a file is not seen. A file whose end looks wrong, or does not tell, is decoded before it is
    accused.

    Args:
        paths: files that should be pictures.

    Returns:
        The unreadable ones in the order they came in, each with the reason in a few words.

    Example:
        >>> unreadable([Path("missing.jpg")])[0][1]
        'No such file or directory'
    """
    tasks = [paths[start : start + _PATHS_PER_TASK] for start in range(0, len(paths), _PATHS_PER_TASK)]
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda task: [(path, _complaint(path)) for path in task], tasks)
        return [(path, reason) for answer in answers for path, reason in answer if reason]


def demand_readable(paths: Sequence[Path], share: float = 0.0) -> None:
    """Raise one error that names every file that `unreadable` finds, or return when there is none.

    Args:
        paths: files that should be pictures.
        share: how many of them may be unreadable, in [0, 1].

    Raises:
        DataError: more files are missing or no whole pictures. Check their paths, replace or delete them.
    """
    refuse_unreadable(unreadable(paths), len(paths), share)


def refuse_unreadable(found: Sequence[tuple[Path, str]], of: int, share: float = 0.0) -> None:
    """Raise one error that names every file of those found unreadable, each with the reason, if they are too many.

    Args:
        found: the unreadable ones.
        of: how many files there are.
        share: how many of them may be unreadable, in [0, 1].

    Raises:
        DataError: more are.
    """
    if len(found) > share * of:
        named = listing((f"{str(path)!r} ({reason})" for path, reason in found), most=20)
        bad = [path for path, _ in found if path.exists()]
        copies = "Replace these files by good copies; or delete them, and make the ImageData anew"
        copies += "." if share else "; or pass over a few: on_error='skip'."
        if bad and len(bad) < len(found):
            copies = "Check the paths of the missing files; replace the others by good copies."
        needed = "whole picture files, of a format that Pillow knows and of a sane size"
        raise DataError(
            f"{len(found)} of {of} pictures cannot be read: {named}",
            f"{needed}; {at_most(share)}" if share else needed,
            copies if bad else "Check the path.",
        )


def at_most(share: float) -> str:
    """Say how many unreadable pictures are passed over where that was asked for.

    Example:
        >>> at_most(0.2)
        "on_error='skip' passes over 20% at the most"
    """
    return f"on_error='skip' passes over {share:.0%} at the most"


@contextlib.contextmanager
def _failure_named(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an UnreadableError about `name`."""
    try:
        yield
    except Exception as error:  # its parsers let through whatever they stumble over: struct.error, IndexError, ...
        if is_want(error):
            raise
        refusal = UnreadableError(
            f"{name} cannot be read: {_reason(error)}",
            "a whole picture, of a format that Pillow knows and of a sane size",
            "Look at it in a picture viewer; put a good copy in its place, or let on_error='skip' pass it over.",
        )
        refusal.reason = _reason(error)
        raise refusal from error


def is_want(error: Exception) -> bool:
    """Say whether a picture could not be had for want of memory or of free file handles, which is not its fault."""
    wants = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in wants)


def _reason(error: Exception) -> str:
    """Say in a few words why a picture could not be had."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or cut off in its header"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


@contextlib.contextmanager
def _pillow_hushed() -> Iterator[None]:
    """Keep Pillow's warnings to itself; what matters in them becomes an error or is mended here.

    Not `warnings.catch_warnings`: threads cannot share it, and each use of it makes Python repeat all the warnings,
    of anybody, that are shown only once.
    """
    filters: list[object] = warnings.filters  # type: ignore[assignment]  # a list, typed as something read-only
    rule = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    filters.insert(0, rule)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # somebody else has put other filters in place meanwhile
            filters.remove(rule)


def _decode(path: Path, least_side: int | None = None) -> Image.Image:
    """Do the work of `open_picture`, raising what Pillow raises."""
    with _pillow_hushed(), Image.open(path) as picture:
        _refuse_bomb(picture)
        if least_side is not None:
            picture.draft(None, (least_side, least_side))
        picture.load()
        with contextlib.suppress(Exception):  # a garbled EXIF note is no reason to refuse a good picture
            ImageOps.exif_transpose(picture, in_place=True)
        return _converted(picture)


def _refuse_bomb(picture: Image.Image) -> None:
    """Raise where Pillow only warns: at a size that no camera makes and that would fill the memory."""
    width, height = picture.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{width} x {height} pixels could be a decompression bomb "
            f"(PIL.Image.MAX_IMAGE_PIXELS is {Image.MAX_IMAGE_PIXELS})"
        )


def _converted(picture: Image.Image) -> Image.Image:
    """Do the work of `to_rgb`, raising what Pillow raises."""
    if picture.mode == "RGB":
        picture.load()
        return picture
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    elif picture.mode == "La":  # Pillow knows only one way out of this mode
        picture = picture.convert("LA")
    elif "transparency" in picture.info:  # the same colours as without this detour, and no warning
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale a grey picture of 16 or 32 bits, whole numbers or floats, to one of 8."""
    values = np.nan_to_num(np.asarray(picture), posinf=0.0, neginf=0.0).clip(0, None)
    # Files of these formats have 16 bits at the most, even where Pillow (always or in older releases) makes 32 of them.
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        values = values // 256
    elif picture.mode == "F" and values.max() < 2:  # rounding, or sharpening, may have gone a little beyond 1
        values = (values.clip(0, 1) * 255).round()
    while values.max() > 255:
        values = values // 256
    return Image.fromarray(values.astype(np.uint8))


def _complaint(path: Path) -> str:
    """Say why a file will not become a picture, or nothing when it looks as if it will."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            return "not a file"
        if about.st_size == 0:
            return "empty, 0 bytes"
        with path.open("rb") as file, _pillow_hushed(), Image.open(file) as picture:
            _refuse_bomb(picture)
            whole = _looks_whole(picture, file, about.st_size)
        if not whole:
            _decode(path)
    except Exception as error:  # as in `_failure_named`
        if is_want(error):
            raise
        return _reason(error)
    return ""


def _looks_whole(picture: Image.Image, file: IO[bytes], size: int) -> bool:
    """Judge by a file's end whether all of it is there; of formats that do not tell nothing is believed.

    Args:
        picture: opened from the file, not yet read.
        file: stands behind the header, as Pillow has left it, so that the end of a preview inside it does not count.
        size: of the file, in bytes.
    """
    kind = picture.format
    file.seek(max(file.tell(), size - _TAIL_BYTES))
    tail = file.read()
    if kind in ("JPEG", "MPO"):
        return b"\xff\xd9" in tail
    if kind == "PNG":
        return b"IEND" in tail
    if kind == "GIF":
        return tail.rstrip(b"\0").endswith(b";")
    if kind == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= size
    if isinstance(picture, TiffImageFile):
        ends = [
            start + length
            for starts, lengths in _TIFF_PIECES
            for start, length in zip(picture.tag_v2.get(starts, ()), picture.tag_v2.get(lengths, ()), strict=False)
        ]
        return bool(ends) and max(ends) <= size
    return False  # for BMP and PPM, decoding is little more than reading
