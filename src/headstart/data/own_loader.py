"""Batches from a loader of the user's own: checked as they come, and otherwise left as they are."""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.data.augment import View
from headstart.data.loading import Pair
from headstart.data.preprocessing import are_shaped
from headstart.data.sources import Source
from headstart.errors import DataError
from headstart.randomness import ORDER, derive


@dataclass(frozen=True)
class OwnLoader:
    """The user's own loader, as a part of the data."""

    loader: Iterable[Any]

    def __len__(self) -> int:
        return loader_length(self.loader, "own")


Part = Source | OwnLoader
"""One part of the data: train, val or test."""


class LoaderBatches:
    """Batches from the user's own loader, which is left as it is; every batch is checked as it comes.

    Args:
        loader: anything with a length that yields (images, targets).
        classes: the number of classes; labels must be below it.
        view: applied to each picture of a uint8 batch; float batches are final.
        name: what the loader is called in messages, such as `"train"`.
    """

    def __init__(self, loader: Iterable[Any], classes: int, view: View, name: str) -> None:
        self._loader = loader
        self._classes = classes
        self._view = view
        self._name = name

    def __len__(self) -> int:
        return loader_length(self._loader, self._name)

    def epoch(self, fit: int, epoch: int, start: int = 0) -> Iterator[Pair]:
        """Go through the loader once, telling its sampler the epoch if it wants to know (DistributedSampler).

        A later fit gets other numbers, since its order would be that of the first one again. Batches before `start`
        are fetched and passed over.
        """
        set_epoch = getattr(getattr(self._loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch if fit <= 1 else derive(ORDER, fit, epoch) % 2**31)
        number = -1
        for number, batch in enumerate(self._loader):
            if number < start:
                continue
            images, targets = check_batch(batch, self._classes, f"batch {number} of the {self._name} loader")
            if images.dtype == torch.uint8:
                images = torch.stack([self._view(picture) for picture in images.cpu()])
            yield images, targets
        if number < 0:
            raise DataError(
                f"the {self._name} loader, whose len() is {len(self)} and that yielded no batch",
                "an iterable that starts anew whenever it is gone through",
                "Pass a DataLoader or a list of batches, not an iterator that is used up after one epoch.",
            )


def loader_length(loader: object, name: str) -> int:
    """Give the number of batches of a loader.

    Raises:
        DataError: it has no length, or no batch.
    """
    try:
        length = len(loader) if isinstance(loader, Sized) else None
    except TypeError:
        length = None
    if not length:
        lack = "with no batch" if length == 0 else "without a length"
        raise DataError(
            f"the {name} loader, of type {type(loader).__name__}, {lack}",
            "an iterable that yields (images, targets) and whose len() is its number of batches, 1 or more",
            "Use a DataLoader over a map-style dataset, or give your dataset a __len__.",
        )
    return length


def demand_length(came: int, said: int, *, is_cut: bool) -> None:
    """Make sure that a train loader has yielded as many batches as its length says, or fewer where it was cut short.

    Raises:
        DataError: it has not.
    """
    if came > said or (came < said and not is_cut):
        raise DataError(
            f"a train loader whose len() is {said} and that yielded {'more' if came > said else came}",
            "a loader that yields as many batches as its len() says",
            "Correct the loader's length: schedules and the last step of an epoch count on it.",
        )


def check_batch(batch: object, classes: int, where: str) -> Pair:
    """Make sure that what a loader yielded can be trained on.

    Raises:
        DataError: it is no pair of tensors, the shapes do not fit, a label is out of range, or rows of probabilities
            do not add up to 1.
    """

    def refuse(arrived: str, todo: str = "or give ImageData the right classes=.") -> DataError:
        return DataError(
            f"{where}: {arrived}",
            "(images, targets): images [batch, channels, height, width], float, or uint8 with 1, 3 or 4 channels; "
            f"targets [batch], whole numbers in [0, {classes}), or probabilities [batch, {classes}], each row's sum 1",
            f"Change what the dataset or its collate_fn returns, {todo}",
        )

    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise refuse(type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, tuple | list) else ""))
    images, targets = batch
    if not isinstance(images, Tensor) or not isinstance(targets, Tensor):
        raise refuse(f"({type(images).__name__}, {type(targets).__name__})")
    if not _are_images(images):
        raise refuse(
            f"images {list(images.shape)} of {images.dtype}",
            "channels before height and width; images.permute(0, 3, 1, 2) puts last ones there.",
        )
    if targets.ndim == 0 or targets.shape[0] != images.shape[0] or images.shape[0] == 0:
        raise refuse(f"{images.shape[0]} images and targets {list(targets.shape)}")
    if reason := _misfit(targets, classes):
        raise refuse(reason, "or give ImageData the right classes=. Several classes in one picture are not supported.")
    return images, targets if targets.is_floating_point() else targets.long()


def _misfit(targets: Tensor, classes: int) -> str:
    """Say why targets are neither class numbers nor probabilities, or nothing when they are."""
    shape = (classes,) if targets.is_floating_point() else ()
    if targets.shape[1:] != shape or targets.dtype == torch.bool:
        return f"targets {list(targets.shape)} of {targets.dtype}"
    if targets.is_floating_point():
        return _no_probabilities(targets)
    labels = targets.tolist()  # for the few of a batch faster than asking the tensor
    least, most = min(labels), max(labels)
    return "" if least >= 0 and most < classes else f"label {least if least < 0 else most}"


def _no_probabilities(targets: Tensor) -> str:
    """Say which row of float targets is below 0 somewhere or does not sum to 1, or nothing when none is."""
    sums = targets.float().sum(1)
    tolerance = max(1e-3, torch.finfo(targets.dtype).eps)
    wrong = (targets < 0).any(1) | ~((sums - 1).abs() <= tolerance)
    if not wrong.any():
        return ""
    row = int(wrong.nonzero()[0])
    least = float(targets[row].min())
    return f"the target of image {row}, which " + (f"holds {least:.4g}" if least < 0 else f"sums to {sums[row]:.4g}")


def _are_images(images: Tensor) -> bool:
    return images.ndim == 4 and (images.is_floating_point() or images.dtype == torch.uint8) and are_shaped(images)
