"""Where labelled pictures come from: files of known classes, or a dataset of the user's own.

A source opens one picture at a time. It knows nothing of sizes, augmentation, batches or order. Which files there are
is the business of `folders`.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from headstart.data.decode import open_picture, to_rgb, upright
from headstart.data.preprocessing import Picture, as_picture, described
from headstart.errors import DataError, listing
from headstart.randomness import preserved


class Source(Protocol):
    """Pictures with class numbers, opened one by one when their turn comes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, least_side: int | None = None) -> tuple[Picture, int]:
        """Open a picture and tell its class; files may be decoded smaller, down to a shorter side of `least_side`."""
        ...

    def path(self, index: int) -> Path | None:
        """Tell where a picture lies, if it lies anywhere."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """Picture files and their classes.

    Args:
        paths: where the pictures lie.
        labels: the class number of each.
        classes: the names of the classes.
        passed_over: files found among the pictures that are none.

    Example:
        >>> source = FolderSource((Path("a.jpg"), Path("b.jpg"), Path("c.jpg")), (0, 1, 1), ("ants", "bees"))
        >>> source.part([0, 2]).labels
        (0, 1)
    """

    paths: tuple[Path, ...] = field(repr=False)
    labels: tuple[int, ...] = field(repr=False)
    classes: tuple[str, ...]
    passed_over: tuple[Path, ...] = field(default=(), repr=False, compare=False)

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
        DataError: the dataset gives its samples only one after the other, or is something else; the way to go is told.

    Example:
        >>> source = DatasetSource([(Image.new("L", (8, 8)), 1)], classes=("ants", "bees"))
        >>> source.sample(0)[0].mode, source.sample(0)[1]
        ('RGB', 1)
    """

    dataset: Any = field(repr=False)
    classes: tuple[str, ...]
    indices: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if todo := _other_way(self.dataset):
            raise DataError(
                f"a dataset of type {type(self.dataset).__name__}",
                "a map-style dataset: dataset[number] is a pair (picture, label), and len(dataset) their number",
                todo,
            )

    def __len__(self) -> int:
        return len(self.dataset) if self.indices is None else len(self.indices)

    def sample(
        self,
        index: int,
        least_side: int | None = None,  # noqa: ARG002 - only files can be decoded smaller
    ) -> tuple[Picture, int]:
        """Get a picture and its class from the dataset, and check both.

        Raises:
            DataError: the sample is no pair, its picture no picture, or its label no class number; the message names
                the sample by its number in the dataset.
        """
        place = index if self.indices is None else self.indices[index]
        sample = self.dataset[place]
        if not (isinstance(sample, tuple | list) and len(sample) == 2):
            raise DataError(
                f"sample {place} of the dataset: {described(sample)}",
                "a pair (picture, label)",
                "Let __getitem__ return exactly these two, for example (sample['image'], sample['label']).",
            )
        return _upright_picture(sample[0], place), _as_label(sample[1], place, self.classes)

    def demand_labels(self) -> None:
        """Look for a label that is no class number where labels can be had without pictures: in `dataset.targets`.

        The sample itself has the last word, since a dataset may give other labels than its targets.

        Raises:
            DataError: there is one; it is named with the number of its sample.
        """
        known = _targets(self.dataset)
        if known is None:
            return
        places = range(len(known)) if self.indices is None else self.indices
        doubtful = next((place for place in places if _number(known[place], self.classes) is None), None)
        if doubtful is not None:
            with preserved():
                DatasetSource(self.dataset, self.classes, (doubtful,)).sample(0)

    def path(self, index: int) -> Path | None:  # noqa: ARG002 - as for every source
        """Tell that nobody knows where the picture lies."""
        return None

    def part(self, indices: Sequence[int]) -> "DatasetSource":
        """Take some of the samples, in the order of `indices`; the classes stay."""
        places = indices if self.indices is None else [self.indices[index] for index in indices]
        return DatasetSource(self.dataset, self.classes, tuple(places))


def _upright_picture(value: object, place: int) -> Picture:
    """Give a dataset's picture as an upright RGB picture or a tensor, or say what is wrong with it."""
    picture = as_picture(value)
    if picture is None:
        raise DataError(
            f"the picture of sample {place} of the dataset: {described(value)}",
            "a PIL picture, a tensor [channels, height, width], uint8 or float, or a uint8 array "
            "[height, width, channels]",
            "Return one of these; permute(2, 0, 1) puts a tensor's channels first.",
        )
    if isinstance(picture, Image.Image):
        return to_rgb(upright(picture), f"the picture of sample {place}")
    return picture


def _as_label(value: object, place: int, classes: tuple[str, ...]) -> int:
    """Give a dataset's label as an int, or say what is wrong with it."""
    number = _number(value, classes)
    if number is None:
        raise DataError(
            f"the label of sample {place} of the dataset: {_plain(value)!r}",
            f"a class number, a whole number in [0, {len(classes)}), for the classes {listing(classes)}",
            "Number the classes from 0, or pass the classes that the labels stand for.",
        )
    return number


def _number(label: object, classes: tuple[str, ...]) -> int | None:
    """Give a label as an int, or None when it is no class number."""
    number = _plain(label)
    right = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(classes)
    return number if right else None


def _plain(value: Any) -> Any:
    """Give what an array or a tensor without axes holds."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _targets(dataset: Any) -> Sequence[Any] | None:
    """Give the labels that a dataset tells without opening a picture, also through torch's own wrappers, if it does."""
    if isinstance(dataset, Subset):
        known = _targets(dataset.dataset)
        return None if known is None else [known[place] for place in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_targets(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    targets = None
    with suppress(Exception):  # it may be a property of the user's; a sample has the last word anyway
        targets = dataset.targets
    if isinstance(targets, Tensor | np.ndarray):
        targets = targets.tolist()
    return targets if isinstance(targets, list | tuple) and len(targets) == len(dataset) else None


def _other_way(dataset: object) -> str:
    """Say what to do with what is no map-style dataset, or nothing when it may be one."""
    if isinstance(dataset, DataLoader):
        return "Pass it to ImageData.from_loaders."
    if isinstance(dataset, str | Path):
        return "Pass a folder of pictures to ImageData.from_folder."
    pieces = dataset[:2] if isinstance(dataset, tuple | list) else [dataset]
    if any(isinstance(piece, Tensor | np.ndarray) for piece in pieces):
        return "Pass list(zip(pictures, labels)), or a TensorDataset of tensors."
    if isinstance(dataset, IterableDataset):
        return "Give it a __len__, wrap it in a DataLoader and pass that to ImageData.from_loaders."
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return (
            "Give it __len__ and __getitem__; what can only be gone through goes to ImageData.from_loaders, in batches."
        )
    return ""
