"""Where labelled pictures come from: folders with one sub-folder per class, or a dataset of the user's own.

A source opens one picture at a time. It knows nothing of sizes, augmentation, batches or order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from headstart.data.decode import open_picture, to_rgb
from headstart.errors import DataError, listing, nearest

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Suffixes that make a file a picture, in small or capital letters; the same as torchvision's."""

_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")
_PART_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
_ENDINGS = listing(EXTENSIONS)
_LAYOUT = "a folder with one sub-folder of pictures for each class, such as ants/1.jpg and bees/2.jpg"


class Source(Protocol):
    """Pictures with class numbers, opened one by one when their turn comes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, least_side: int | None = None) -> tuple[Image.Image | Tensor, int]:
        """Open a picture and tell its class; files may be decoded smaller, down to a shorter side of `least_side`."""
        ...

    def path(self, index: int) -> Path | None:
        """Tell where a picture lies, if it lies anywhere."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """Picture files and their classes.

    Example:
        >>> source = FolderSource((Path("a.jpg"), Path("b.jpg"), Path("c.jpg")), (0, 1, 1), ("ants", "bees"))
        >>> source.part([0, 2]).labels
        (0, 1)
    """

    paths: tuple[Path, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def sample(self, index: int, least_side: int | None = None) -> tuple[Image.Image, int]:
        """Decode a picture, see `open_picture`, and tell its class."""
        return open_picture(self.paths[index], least_side), self.labels[index]

    def path(self, index: int) -> Path | None:
        """Tell where a picture lies."""
        return self.paths[index]

    def part(self, indices: Sequence[int]) -> "FolderSource":
        """Take some of the pictures, in the order of `indices`; the classes stay."""
        return FolderSource(
            tuple(self.paths[index] for index in indices), tuple(self.labels[index] for index in indices), self.classes
        )


@dataclass(frozen=True)
class DatasetSource:
    """A map-style dataset of the user's own, checked sample by sample.

    Args:
        dataset: has `__len__`, and `__getitem__` that gives pairs (picture, label). A picture is a PIL picture, a
            tensor `[channels, height, width]`, uint8 or float, or a uint8 NumPy array `[height, width, channels]`.
        classes: the names of the classes; labels are whole numbers in [0, len(classes)).
        indices: which samples of the dataset are meant, in which order; None means all.

    Raises:
        DataError: the dataset gives its samples only one after the other. Wrap it in a DataLoader and use
            `ImageData.from_loaders`.

    Example:
        >>> source = DatasetSource([(Image.new("L", (8, 8)), 1)], classes=("ants", "bees"))
        >>> source.sample(0)[0].mode, source.sample(0)[1]
        ('RGB', 1)
    """

    dataset: Any = field(repr=False)
    classes: tuple[str, ...]
    indices: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        mapped = hasattr(self.dataset, "__len__") and hasattr(self.dataset, "__getitem__")
        if not mapped or isinstance(self.dataset, IterableDataset):
            raise DataError(
                f"a dataset of type {type(self.dataset).__name__}, without __len__ and __getitem__",
                "a map-style dataset, whose samples can be had by their number",
                "Wrap it in a DataLoader and pass that to ImageData.from_loaders.",
            )

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    def sample(
        self,
        index: int,
        least_side: int | None = None,  # noqa: ARG002 - only files can be decoded smaller
    ) -> tuple[Image.Image | Tensor, int]:
        """Get a picture and its class from the dataset, and check both.

        Raises:
            DataError: the sample is no pair, its picture no picture, or its label no class number; the message names
                the sample by its number in the dataset.
        """
        place = index if self.indices is None else self.indices[index]
        sample = self.dataset[place]
        if not (isinstance(sample, tuple | list) and len(sample) == 2):
            raise DataError(
                f"sample {place} of the dataset: {_described(sample)}",
                "a pair (picture, label)",
                "Let __getitem__ return exactly these two, for example (sample['image'], sample['label']).",
            )
        return _as_picture(sample[0], place), _as_label(sample[1], place, self.classes)

    def path(self, index: int) -> Path | None:  # noqa: ARG002 - as for every source
        """Tell that nobody knows where the picture lies."""
        return None

    def part(self, indices: Sequence[int]) -> "DatasetSource":
        """Take some of the samples, in the order of `indices`; the classes stay."""
        places = indices if self.indices is None else [self.indices[index] for index in indices]
        return DatasetSource(self.dataset, self.classes, tuple(places))


def _as_picture(value: object, place: int) -> Image.Image | Tensor:
    """Give a dataset's picture as an RGB picture or a tensor, or say what is wrong with it."""
    if isinstance(value, Image.Image):
        return to_rgb(value, f"the picture of sample {place}")
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and 0 not in value.shape:
        pixels = value[:, :, 0] if value.ndim == 3 and value.shape[2] == 1 else value
        if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
            return to_rgb(Image.fromarray(pixels))
    if isinstance(value, Tensor) and value.ndim == 3:
        whole = value.dtype == torch.uint8 and value.shape[0] in (1, 3, 4)
        if whole or value.is_floating_point():
            return value
    raise DataError(
        f"the picture of sample {place} of the dataset: {_described(value)}",
        "a PIL picture, a tensor [channels, height, width], uint8 or float, or a uint8 array [height, width, channels]",
        "Return one of these; permute(2, 0, 1) puts a tensor's channels first.",
    )


def _as_label(value: object, place: int, classes: tuple[str, ...]) -> int:
    """Give a dataset's label as an int, or say what is wrong with it."""
    number = value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value
    if isinstance(number, int | np.integer) and not isinstance(number, bool) and 0 <= number < len(classes):
        return int(number)
    raise DataError(
        f"the label of sample {place} of the dataset: {value!r}",
        f"a class number, a whole number in [0, {len(classes)}), for the classes {listing(classes)}",
        "Number the classes from 0, or pass the classes that the labels stand for.",
    )


def _described(value: object) -> str:
    """Tell the type of a value, and what else is known about an array."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of {value.dtype} with shape {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list | dict) else type(value).__name__


def find_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Find the pictures below a folder, however deep.

    Hidden files and folders are passed over. Links are followed wherever they lead, except back up; a picture that can
    be reached on several ways counts once. A link to nothing is a picture here, so that opening it tells.

    Returns:
        The files with a picture's suffix, and all others; both sorted.

    Raises:
        DataError: the folder, or one below it, cannot be read. Check its permissions.
    """
    pictures: list[Path] = []
    others: list[Path] = []
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = _real(here)
        if real in seen:
            continue
        seen.add(real)
        folders, files = _contents(here)
        waiting.extend(folders)
        for path, target in files.items():
            if path.suffix.lower() not in EXTENSIONS:
                others.append(path)
            elif target not in seen:
                seen.add(target)
                pictures.append(path)
    return sorted(pictures), sorted(others)


def _real(path: Path) -> Path:
    """Follow all links; unlike `Path.resolve`, also one that leads to itself (which stays as it is)."""
    return Path(os.path.realpath(path))


def _contents(folder: Path) -> tuple[list[Path], dict[Path, Path]]:
    """List what is visible in a folder: its sub-folders, and its files with the real files they stand for."""
    folders: list[Path] = []
    files: dict[Path, Path] = {}
    real = _real(folder)
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name.lower() in _CLUTTER:
                    continue
                path = Path(entry.path)
                target = _real(path) if entry.is_symlink() else real / entry.name
                if not (path.is_dir() if entry.is_symlink() else entry.is_dir()):
                    files[path] = target
                elif not real.is_relative_to(target):  # else it leads back up, round and round
                    folders.append(path)
    except OSError as error:
        raise DataError(
            f"the folder {str(folder)!r}: {error.strerror}",
            "a folder that can be read",
            "Check its permissions, or take it out of the pictures.",
        ) from error
    return folders, files


class Parts(NamedTuple):
    """What a folder holds: pictures to train on and, where there are any, to validate and to test on."""

    train: FolderSource
    val: FolderSource | None
    test: FolderSource | None


def scan_parts(root: Path) -> Parts:
    """Find the train, val and test pictures in a folder.

    Args:
        root: holds `train/` and perhaps `val/`, `valid/` or `validation/`, and `test/`, each with one sub-folder per
            class; or, without `train/`, the folders of the classes themselves, which then are all train.

    Returns:
        The parts, labelled by train's classes. Without a val folder, test is also val. A test folder without classes
        has no labels to compare with and does not count.

    Raises:
        DataError: see `scan_classes`.
    """
    _demand_folder(root)
    folders = {folder.name.lower(): folder for folder in _contents(root)[0]}
    if "train" not in folders:
        if folders and folders.keys() <= set(_PART_NAMES):
            raise DataError(
                f"{str(root)!r} with {listing(map(repr, folders))} and no 'train'",
                "a folder train/ with one sub-folder of pictures per class; val/ and test/ may stand beside it",
                "Name the folder of the training pictures 'train'.",
            )
        return Parts(scan_classes(root), None, None)
    train = scan_classes(folders["train"])
    val = next((folders[name] for name in ("val", "valid", "validation") if name in folders), None)
    test = folders.get("test")
    tested = scan_known_classes(test, train.classes) if test is not None and _contents(test)[0] else None
    return Parts(train, tested if val is None else scan_known_classes(val, train.classes), tested)


def scan_classes(root: Path) -> FolderSource:
    """Take each sub-folder as a class, sorted by name, and find its pictures.

    Raises:
        DataError: the folder is missing or a file, has fewer than two classes, or a class without a picture.
    """
    _demand_folder(root)
    folders, files = _contents(root)
    if len(folders) < 2:
        raise _too_few(root, folders, sum(path.suffix.lower() in EXTENSIONS for path in files))
    source = _labelled(folders, tuple(folder.name for folder in folders))
    filled = set(source.labels)
    if empty := [name for label, name in enumerate(source.classes) if label not in filled]:
        raise DataError(
            f"no picture in {listing(map(repr, empty))} of {str(root)!r}",
            f"at least one picture in each class folder, ending in {_ENDINGS}",
            "Add pictures, or delete the folders that are no classes.",
        )
    return source


def scan_known_classes(root: Path, classes: tuple[str, ...]) -> FolderSource:
    """Find the pictures of classes that are known from training; any of them may be missing or empty here.

    Args:
        root: holds one sub-folder per class.
        classes: names in the order of their numbers.

    Raises:
        DataError: the folder is missing or a file, holds a class that is not known, or no picture at all.
    """
    _demand_folder(root)
    folders, _ = _contents(root)
    if strangers := [folder.name for folder in folders if folder.name not in classes]:
        raise DataError(
            f"{str(root)!r} with {listing(map(repr, strangers))}, no class of the training pictures",
            f"only folders of these classes: {listing(classes)}",
            f"{nearest(strangers[0], classes)}Rename or delete the folders, or train on such pictures too.",
        )
    source = _labelled(folders, classes)
    if not source.paths:
        raise DataError(
            f"no picture in any class folder of {str(root)!r}",
            f"{_LAYOUT}, ending in {_ENDINGS}",
            "Sort pictures into folders named as the classes, or delete the folder.",
        )
    return source


def _labelled(folders: Sequence[Path], classes: tuple[str, ...]) -> FolderSource:
    """Join the pictures of folders that are named as their classes."""
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        pictures, _ = find_pictures(folder)
        paths += pictures
        labels += [classes.index(folder.name)] * len(pictures)
    return FolderSource(tuple(paths), tuple(labels), classes)


def _demand_folder(root: Path) -> None:
    """Raise unless `root` is a folder; name the one that was probably meant."""
    place = root.absolute()
    if place.is_dir():
        return
    missing = next((part for part in [*reversed(place.parents), place] if not part.exists()), place)
    beside = [folder.name for folder in _contents(missing.parent)[0]] if missing.parent.is_dir() else []
    raise DataError(
        f"{str(place)!r}, which {'is a file' if place.exists() else 'does not exist'}",
        _LAYOUT,
        f"{nearest(missing.name, beside)}Check the path, or unpack the archive first.",
    )


def _too_few(root: Path, folders: Sequence[Path], pictures: int) -> DataError:
    """Say that the sub-folders cannot be classes, and what may have been meant."""
    inside = f"only the folder {folders[0].name!r}" if folders else "no folder"
    deeper = f"If the classes are further down, pass {str(folders[0])!r}. " if folders else ""
    return DataError(
        f"{str(root)!r} with {inside} and {pictures} pictures in it",
        f"two classes or more: {_LAYOUT}",
        f"{deeper}Sort the pictures into folders; if a table tells the labels, use ImageData.from_datasets.",
    )
