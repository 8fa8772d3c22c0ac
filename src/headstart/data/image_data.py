"""`ImageData`: where pictures come from and how they become batches.

It never changes. A Learner binds it to the preprocessing of its weights and gets another ImageData; the first may
serve a second model.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from headstart.data.augment import Augment, Pipeline, View, eval_view, train_view
from headstart.data.cache import Cache, CacheLike, Memo, Memos, as_cache
from headstart.data.classes import ClassNames, class_names, common_classes
from headstart.data.decode import demand_readable, refuse_unreadable
from headstart.data.folders import scan_known_classes, scan_parts, tell_passed_over
from headstart.data.loading import Batches, SourceBatches, gather, worker_count
from headstart.data.own_loader import LoaderBatches, OwnLoader, Part, loader_length
from headstart.data.preprocessing import Preprocessing
from headstart.data.settings import MOST_SKIPPED, OnError, Workers, demand, settings
from headstart.data.sources import DatasetSource, FolderSource, Source
from headstart.data.splits import stratified
from headstart.data.unlabelled import PictureList
from headstart.drawing import contact_sheet
from headstart.errors import ConfigError, DataError, listing, nearest
from headstart.files import as_path
from headstart.randomness import preserved

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Pictures with labels, split into train, val and test, and how they become batches.

    Made by `from_folder`, `from_datasets` or `from_loaders`, and never changed afterwards. The constructor is not for
    calling: it checks nothing, and its arguments may change.

    Example:
        >>> data = ImageData.from_folder("flowers", image_size=64, batch_size=16)
        >>> data.classes
        ('daisy', 'rose', 'tulip')
    """

    classes: tuple[str, ...]
    train: Part | None = None
    val: Part | None = None
    test: Part | None = None
    batch_size: int = 32
    image_size: int | None = None
    augment: Augment = "default"
    eval_transform: Pipeline | None = None
    workers: Workers = "auto"
    cache: Cache | None = None
    on_error: OnError = "raise"
    preprocessing: Preprocessing | None = None
    _preprocessing_stays: bool = False
    _checked: set[str] = field(default_factory=set)
    memos: Memos = field(default_factory=Memos)

    @classmethod
    def from_folder(
        cls,
        root: str | Path,
        *,
        val_fraction: float = 0.2,
        seed: int = 0,
        batch_size: int = 32,
        image_size: int | None = None,
        augment: Augment = "default",
        eval_transform: Pipeline | None = None,
        workers: Workers = "auto",
        cache: CacheLike = "auto",
        on_error: OnError = "raise",
    ) -> Self:
        """Take pictures from a folder with one sub-folder per class.

        What is passed over is printed: files of formats that are not read, and folders beside `train/` that are no
        part.

        Args:
            root: holds `train/` with `val/`, `valid/`, `validation/` or `test/` beside it (each with one folder per
                class; `test/` serves as val when there is no other, which is printed), or the folders of the classes
                themselves.
            val_fraction: share of each class that is kept for val, in (0, 1), when there is no folder for it.
            seed: decides only which pictures the split takes.
            batch_size: pictures in a batch, 1 or more.
            image_size: height and width of the network's input, in pixels; None takes what the weights expect.
            augment: how training pictures are varied: a preset (`"default"`, `"light"`, `"strong"`), augmentations by
                name (`["crop", "flip", "color"]`), a pipeline of your own (a torchvision `Compose`, any function of a
                PIL picture), or None. A pipeline that ends in a float tensor is final; PIL and uint8 results are
                resized if they do not have the network's size, and normalised for the weights.
            eval_transform: a pipeline of your own for evaluation and prediction; None does what the weights expect.
            workers: processes that prepare batches; `"auto"` uses spare cores on Linux, as far as shared memory holds
                what they prepare, and none where they would only take time from the network. Never changes a number.
            cache: where pictures are kept from epoch to epoch once they are decoded: `"ram"`, `"disk"` (the next run
                finds them there), None, or a `Cache` with a folder or a budget of its own; `"auto"` is memory where all
                of them fit into a quarter of what is free. Never changes a number. What a pipeline of your own makes is
                not kept: it may draw.
            on_error: what to do about pictures that cannot be read. `"raise"` lists them all before the first batch,
                and names one that breaks later. `"skip"` leaves them out of evaluation, takes the next readable picture
                in their place in training, and tells which at the end; more than 20 % of a part are refused. `predict`
                always raises.

        Raises:
            DataError: the folder is missing, has fewer than two classes, an empty class, or a class only in val; or
                its parts could be meant in more than one way.
            ConfigError: an argument is out of range, or an augmentation is unknown.

        Example:
            >>> ImageData.from_folder("flowers")
            ImageData: 3 classes (daisy, rose, tulip), 72 train, 27 val pictures
        """
        own: dict[str, object] = {"root": root, "val_fraction": val_fraction, "seed": seed}
        common = settings(batch_size, image_size, augment, eval_transform, workers, on_error, **own)
        parts = scan_parts(as_path(root))
        train, val = parts.train, parts.val
        others = [path for part in parts[:3] if part is not None for path in part.passed_over]
        tell_passed_over(dict.fromkeys(others), parts.beside)
        if val is None:
            kept, held_back = stratified(train.labels, float(val_fraction), int(seed))
            train, val = train.part(kept), train.part(held_back)
        if len(val) == 0:
            raise DataError(
                f"{root} with too few pictures to keep any for val",
                "at least one class with two pictures or more",
                "Add pictures, or put some into a folder val/ beside train/.",
            )
        return cls(train.classes, train, val, parts.test, cache=as_cache(cache), **common)

    @classmethod
    def from_datasets(
        cls,
        train: Any,
        val: Any = None,
        *,
        test: Any = None,
        classes: ClassNames | None = None,
        batch_size: int = 32,
        image_size: int | None = None,
        augment: Augment = "default",
        eval_transform: Pipeline | None = None,
        workers: Workers = "auto",
        on_error: OnError = "raise",
    ) -> Self:
        """Take pictures from map-style datasets of (picture, label), torchvision's included.

        Pictures may be PIL pictures, which are turned as their EXIF note says, uint8 arrays
        `[height, width, channels]`, uint8 tensors `[channels, height, width]`, or float tensors of the same shape,
        which are final: the dataset's own transform has finished them. Labels are whole numbers in [0, classes).

        Args:
            train: the dataset to train on.
            val: the dataset to validate on, if any.
            test: the dataset for `learner.evaluate("test")`, if any.
            classes: names in the order of the labels, a dict from names to labels, or how many there are; None asks
                `train.classes`.
            batch_size: as in `from_folder`, like everything that follows.
            image_size: height and width of the network's input, in pixels.
            augment: how training pictures are varied.
            eval_transform: a pipeline of your own for evaluation and prediction.
            workers: processes that prepare batches.
            on_error: as in `from_folder`; what a dataset raises as an OSError, as Pillow does, counts as a picture that
                cannot be read.

        Raises:
            DataError: a dataset is empty or no map-style dataset, or datasets know different classes. Labels in
                `dataset.targets` are checked before training, others with their batch.
            ConfigError: an argument is out of range, or nothing tells the classes.

        Example:
            >>> import torchvision
            >>> pictures = torchvision.datasets.FakeData(20, num_classes=3)
            >>> ImageData.from_datasets(pictures, classes=["a", "b", "c"])
            ImageData: 3 classes (a, b, c), 20 train pictures
        """
        common = settings(batch_size, image_size, augment, eval_transform, workers, on_error)
        others = {"val": val, "test": test}
        datasets = {"train": train} | {name: dataset for name, dataset in others.items() if dataset is not None}
        sources = {name: DatasetSource(dataset, ()) for name, dataset in datasets.items()}
        names = class_names(common_classes(datasets) if classes is None else classes)
        parts: dict[str, Any] = {name: replace(source, classes=names) for name, source in sources.items()}
        if empty := [name for name, source in sources.items() if len(source) == 0]:
            raise DataError(
                f"a {empty[0]} dataset of type {type(datasets[empty[0]]).__name__} without a picture",
                "at least one picture",
                f"Look at how the dataset is made, or leave {empty[0]}= out.",
            )
        return cls(names, **parts, **common)

    @classmethod
    def from_loaders(
        cls,
        train: Iterable[Any],
        val: Iterable[Any] | None = None,
        *,
        test: Iterable[Any] | None = None,
        classes: ClassNames,
        preprocessing: Preprocessing | None = None,
    ) -> Self:
        """Take batches from loaders of your own, which are left untouched.

        Each batch is `(images, targets)`: images `[batch, channels, height, width]`, float (final) or uint8 (resized
        and normalised for the weights); targets class ids `[batch]`, or probabilities `[batch, classes]`, whose rows
        sum to 1.

        Args:
            train: yields the batches of an epoch; needs a `len()`.
            val: likewise, if there is a val part.
            test: likewise, for `learner.evaluate("test")`.
            classes: as in `from_datasets`.
            preprocessing: what `predict` does to pictures; None does what the weights expect.

        Raises:
            DataError: a loader has no length or no batch. Batches are checked as they come.

        Example:
            >>> import torch
            >>> batches = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))]
            >>> ImageData.from_loaders(batches, classes=["cat", "dog"])
            ImageData: 2 classes (cat, dog), 1 train batch
        """
        demand("Leave it out to do what the weights expect.", preprocessing=preprocessing)
        others = {"val": val, "test": test}
        loaders = {"train": train} | {name: loader for name, loader in others.items() if loader is not None}
        for name, loader in loaders.items():
            loader_length(loader, name)
        parts: dict[str, Any] = {name: OwnLoader(loader) for name, loader in loaders.items()}
        stays = preprocessing is not None
        return cls(class_names(classes), **parts, preprocessing=preprocessing, _preprocessing_stays=stays)

    def bind(self, preprocessing: Preprocessing) -> Self:
        """Give the same data, prepared for a network; a preprocessing of its own stays."""
        return self if self._preprocessing_stays else replace(self, preprocessing=preprocessing)

    @property
    def steps(self) -> int:
        """How many batches an epoch of training has."""
        part = self.part("train")
        return len(part) if isinstance(part, OwnLoader) else math.ceil(len(part) / self.batch_size)

    @property
    def fitted(self) -> tuple[str, ...]:
        """The names of the parts that a fit looks at: train and val, as far as there are."""
        return tuple(name for name in ("train", "val") if getattr(self, name) is not None)

    def part(self, name: str) -> Part:
        """Give the train, val or test part.

        Raises:
            ConfigError: there is no such part; the ones there are are named.
        """
        parts = {"train": self.train, "val": self.val, "test": self.test}
        found = parts.get(name)
        if found is None:
            there = [key for key, part in parts.items() if part is not None]
            if not there:
                raise ConfigError(
                    f"the part {name!r} of data without pictures, which a loaded Learner has",
                    "data with pictures in it, such as ImageData.from_folder makes",
                    "Bring it along: Learner.load(file, data); or name a folder: learner.evaluate('folder').",
                )
            add = "Name one of these, or pass a folder or an ImageData."
            if name in parts:
                add = f"Add the part to the data (a folder {name}/, or {name}=...), or name another."
            raise ConfigError(
                f"the part {name!r} of data that has {' and '.join(there)}",
                f"one of {', '.join(there)}",
                f"{nearest(name, there)}{add}",
            )
        return found

    def find(self, what: "str | Path | ImageData | Iterable[Any] | None") -> "tuple[Part, str, ImageData]":
        """Find what `evaluate` is to look at: the part, what it is called, and the data it belongs to.

        Args:
            what: the name of a part (None is `"val"`), a folder with one sub-folder per class, other data, or a loader.

        Raises:
            ConfigError: the data has no such part.
            DataError: pictures cannot be read, or classes are not these.
        """
        if what is None or _names_a_part(what):
            name = str(what or "val")
            part = self.part(name)
            self.check(name)
            return part, name, self
        if isinstance(what, str | Path):
            part = scan_known_classes(as_path(what), self.classes)
            demand_readable(part.paths, self._most_skipped)
            tell_passed_over(part.passed_over)
            return part, str(what), self
        if isinstance(what, ImageData):
            if what.classes != self.classes:
                raise DataError(
                    f"data with the classes {listing(what.classes)}",
                    f"the Learner's: {listing(self.classes)}",
                    "Evaluate on data with the same classes in the same order, or pass a folder: names decide there.",
                )
            bound = what if self.preprocessing is None else what.bind(self.preprocessing)
            name = "train" if what.val is None else "val"
            return bound.find(name)
        return OwnLoader(what), "given", self

    def check(self, *names: str) -> None:
        """Look at these parts before the first batch; at each only once.

        Every file must look readable by its header and end, and every label that a dataset tells in advance be a class
        number.

        Raises:
            DataError: some files cannot be read, and all of them are listed; or a label is no class number.
        """
        parts = [self.part(name) for name in names if name not in self._checked]
        files = [part.paths for part in parts if isinstance(part, FolderSource)]
        if self.on_error == "raise":
            files = [tuple(path for paths in files for path in paths)]  # to list all of them at once
        for paths in files:
            demand_readable(paths, self._most_skipped)
        for part in parts:
            if isinstance(part, DatasetSource):
                part.demand_labels()
        self._checked.update(names)

    def prepare(self, remembered: Collection[str] = ("train", "val")) -> None:
        """Look at the train and val pictures before the first batch of a fit.

        Args:
            remembered: the parts whose pixels are to be kept for its epochs, as far as `cache` allows.

        Raises:
            DataError: pictures cannot be read, and all of them are listed; or a label is no class number.
            ConfigError: the cache's budget does not hold one picture.
        """
        views = {"train": self.train_view, "val": self.eval_view}
        found = {name: self._keep(name, views[name]) if name in remembered else None for name in self.fitted}
        self.check(*(name for name, bad in found.items() if bad is None))
        kept = {name: bad for name, bad in found.items() if bad is not None}
        if self.on_error == "raise":  # to list all of them at once
            count = sum(len(self.part(name)) for name in kept)
            refuse_unreadable([each for bad in kept.values() for each in bad], count)
        for name, bad in kept.items():
            refuse_unreadable(bad, len(self.part(name)), self._most_skipped)
        self._checked.update(kept)

    def _keep(self, name: str, view: View) -> list[tuple[Path, str]] | None:
        """Decode a part once, if it is to be kept; give the files that cannot be read."""
        part = self.part(name)
        if self.cache is None or not (isinstance(part, FolderSource) and view.has_frame):
            return None
        return self.memos.fill(name, part, view, self.cache)

    def train_batches(self, seed: int, *, shuffled: bool = True, for_gpu: bool = False) -> Batches:
        """Give the varied batches that training sees, shuffled or in the order of the pictures, derived from `seed`."""
        part = self.part("train")
        if isinstance(part, OwnLoader):
            return self.own_batches(part, "train")
        return self._batches(part, "train", self.train_view, seed=seed, shuffled=shuffled, for_gpu=for_gpu)

    def eval_batches(self, part: Part, name: str, *, for_gpu: bool = False) -> Batches:
        """Give the batches that evaluation sees: in order, by the book."""
        if isinstance(part, OwnLoader):
            return self.own_batches(part, name)
        return self._batches(part, name, self.eval_view, seed=None, shuffled=False, for_gpu=for_gpu)

    def _batches(
        self, part: Source, name: str, view: View, *, seed: int | None, shuffled: bool, for_gpu: bool
    ) -> Batches:
        source, rest = self.memos.remembered(name, part, view)
        return SourceBatches(
            source,
            rest,
            self.batch_size,
            seed=seed,
            shuffled=shuffled,
            # A CPU that trains has nothing to spare for others who would only take pixels from memory.
            workers=0 if self._is_at_hand(source) and not for_gpu else self.worker_count(source),
            least_side=view.least_side,
            pin_memory=for_gpu,
            skips=self.skips,
        )

    def _is_at_hand(self, source: Source) -> bool:
        return self.workers == "auto" and isinstance(source, Memo) and source.is_in_memory

    def own_batches(self, part: OwnLoader, name: str) -> Batches:
        """Give the batches of a loader of the user's."""
        return LoaderBatches(part.loader, len(self.classes), self.eval_view, name)

    def unlabelled_batches(self, pictures: PictureList, *, for_gpu: bool = False) -> Batches:
        """Give the batches of pictures to predict, in their order."""
        workers = self.worker_count(pictures) if len(pictures) > self.batch_size else 0
        return SourceBatches(pictures, self.eval_view, self.batch_size, workers=workers, pin_memory=for_gpu)

    def examples(self, part: str, count: int) -> tuple[Tensor, list[int]]:
        """Take pictures evenly from a part, as evaluation sees them.

        Returns:
            Images `[count or fewer, channels, height, width]`, uint8 or float, and their labels.
        """
        demand("For example learner.show_predictions(12).", pictures=count)
        count, chosen = int(count), self.part(part)
        self.check(part)
        with preserved():
            if isinstance(chosen, OwnLoader):
                images, targets = next(iter(self.own_batches(chosen, part).epoch(0, 0)))
                return images[:count], _labels(targets[:count])
            places = torch.linspace(0, len(chosen) - 1, min(count, len(chosen))).long().tolist()
            images, targets = gather(chosen, self.eval_view, places, skips=self.skips)
        return images, _labels(targets)

    def worker_count(self, source: Source | PictureList, workers: Workers | None = None) -> int:
        """Decide how many processes prepare the batches of a source, with the `workers` of this data or others."""
        pixels = self.batch_size * 3 * math.prod(self._preprocessing.image_size)
        ours = isinstance(source, FolderSource | Memo)
        own = callable(self.augment) or self.eval_transform is not None or not ours
        asked = self.workers if workers is None else workers
        return worker_count(asked, pixels * (4 if own else 1))  # what is the user's own may give floats

    @property
    def skips(self) -> bool:
        """Whether pictures that cannot be read are passed over."""
        return self.on_error == "skip"

    @property
    def _most_skipped(self) -> float:
        """The share of unreadable pictures that a part may hold."""
        return MOST_SKIPPED if self.skips else 0.0

    @property
    def train_view(self) -> View:
        """From a picture to what training sees."""
        return self.eval_view if self.augment is None else train_view(self._preprocessing, self.augment)

    @property
    def varies(self) -> bool:
        """Whether training sees a picture in another way each time, as far as one can know."""
        view = self.train_view
        return not view.has_frame or view.steps is not None

    @property
    def eval_view(self) -> View:
        """From a picture to what evaluation and prediction see."""
        return eval_view(self._preprocessing, self.eval_transform)

    @property
    def _preprocessing(self) -> Preprocessing:
        """The preprocessing bound to, or a usual one for data that no Learner has bound yet."""
        if self.preprocessing is not None:
            return self.preprocessing
        return Preprocessing() if self.image_size is None else Preprocessing().at_size(self.image_size)

    def show_batch(self, pictures: int = 12, *, part: str = "train") -> "Figure":
        """Draw pictures as the network gets them, with their class names.

        Args:
            pictures: how many at the most.
            part: `"train"` shows them shuffled and varied; `"val"` and `"test"` by the book, evenly from the whole
                part.

        Returns:
            A Matplotlib figure; a notebook shows it, `figure.savefig("batch.png")` keeps it.

        Example:
            >>> figure = ImageData.from_folder("flowers", image_size=64).show_batch()
        """
        demand("For example data.show_batch(12).", pictures=pictures)
        if part == "train":
            quiet = replace(self, workers=0, batch_size=int(pictures))
            with preserved():
                images, targets = next(iter(quiet.train_batches(seed=0).epoch(1, 0)))
            images, labels = images[:pictures], _labels(targets[:pictures])
        else:
            images, labels = self.examples(part, pictures)
        return contact_sheet(self._preprocessing.visible(images), [self.classes[label] for label in labels])

    def __repr__(self) -> str:
        shown = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        parts = {name: part for name in ("train", "val", "test") if (part := getattr(self, name)) is not None}
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        one = [len(part) for part in parts.values()][-1:] == [1]
        if any(isinstance(part, OwnLoader) for part in parts.values()):
            unit = "batch" if one else "batches"
        else:
            unit = "picture" if one else "pictures"
        return f"ImageData: {len(self.classes)} classes ({shown}), {counts or 'no'} {unit}"


def _names_a_part(what: object) -> bool:
    """Say whether this is a part's name, or means to be: no folder is called so."""
    parts = ("train", "val", "test")
    if not isinstance(what, str) or what in parts:
        return isinstance(what, str)
    return bool(nearest(what, parts)) and Path(what).name == what and not as_path(what).exists()


def _labels(targets: Tensor) -> list[int]:
    """Give class numbers, of probabilities those of the likeliest classes."""
    labels: list[int] = (targets.argmax(1) if targets.is_floating_point() else targets).tolist()
    return labels
