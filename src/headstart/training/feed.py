"""What a fit is fed with: batches of pictures, or of what the frozen beginning of its network makes of them."""

import torch
from torch import Tensor

from headstart.data.cache import Cache
from headstart.data.image_data import ImageData
from headstart.data.loading import Batches, SourceBatches
from headstart.data.sources import FolderSource
from headstart.errors import ConfigError
from headstart.model.backbone import Backbone
from headstart.model.cut import NoCutError
from headstart.randomness import preserved, seed_step
from headstart.training.batch import Preparer
from headstart.training.features import CacheFeatures, Entrance, FeatureBatches
from headstart.training.precision import Precision
from headstart.training.run import Run
from headstart.training.shelf import Shelf
from headstart.training.words import words_for

_MOST = 2_000_000_000
"""Bytes that features which nobody asked for may take; fixed, or the bits would depend on how much memory is free."""

_WORTH = 40
"""Pictures that the frozen stages must be spared, unasked: looking for a way into the network takes about 25."""

_TRIED = 5
"""Pictures that a way into the network is tried on, in two batches of different sizes."""


class Feed:
    """The batches of a fit, and what of them is kept between its epochs.

    Args:
        backbone: the network, and what of it is frozen.
        data: bound to its preprocessing.
        prepare: from a pair to a batch on the device.
        device: where the network is.
        precision: the arithmetic of the forward pass.
        seed: of order and augmentation.
        asked: how many views of a training picture are kept as features; 0 keeps none, "auto" what changes no number.
        run: the fit.

    Raises:
        ConfigError: views were asked for, and nothing is frozen, or the pictures are not from files.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: ImageData,
        prepare: Preparer,
        device: torch.device,
        precision: Precision,
        seed: int,
        asked: CacheFeatures,
        run: Run,
    ) -> None:
        self._data = data
        self._prepare = prepare
        self._on_gpu = device.type == "cuda"
        self._seed = seed
        self._epochs = run.epochs
        self._asked = asked
        on_disk = data.cache if data.cache is not None and data.cache.where == "disk" else None
        height, width = backbone.preprocessing.image_size
        most = (_MOST, 3 * height * width) if asked == "auto" else (None, None)
        self._entrance = Entrance(
            backbone,
            device,
            precision.autocast,
            lambda number: seed_step(number, device),
            self._tried,
            prepare,
            run.leave_if_told,
            lambda: run.refrozen,
            lambda taken: (Cache() if on_disk or data.cache is None else data.cache).room(taken + data.memos.size),
            *most,
        )
        self._shelf = Shelf(on_disk, backbone, device, precision, lambda: data.memos.size)
        if asked not in ("auto", 0):
            self._demand_sense(backbone)
            self._tell_what_is_seen()

    def _demand_sense(self, backbone: Backbone) -> None:
        asked = f"cache_features={self._asked}"
        if not backbone.is_frozen_at_first:
            raise ConfigError(
                f"{asked}, where the whole network trains",
                "frozen stages at its beginning, whose features stay as they are",
                "Call learner.freeze() or learner.unfreeze(from_layer) first, or leave cache_features out.",
            )
        if len(self._data.part("train")) < _TRIED:
            raise ConfigError(
                f"{asked}, for {len(self._data.part('train'))} pictures",
                f"{_TRIED} or more, on which it is tried whether features will do",
                "Leave cache_features out: so few pictures take no time.",
            )
        if not self._keeps("train"):
            raise ConfigError(
                f"{asked}, for pictures that may be others each time",
                "pictures from files: ImageData.from_folder, with augmentations by name",
                "Leave cache_features out; or let ImageData do what your dataset or pipeline does.",
            )

    def _tell_what_is_seen(self) -> None:
        """Say which variety of the pictures is given up for time."""
        seen = "each training picture once, without augmentation"
        if self._views > 1:
            seen = f"{self._views} augmented views of each training picture, which take turns in {self._epochs} epochs"
        if self._data.varies and self._views < self._epochs:
            print(f"cache_features={self._asked}: the frozen stages see {seen}")  # noqa: T201 - it is a trade

    def _keeps(self, name: str) -> bool:
        """Say whether features of a part may be kept."""
        part = getattr(self._data, name)
        if self._asked == 0 or not isinstance(part, FolderSource) or len(part) < _TRIED:
            return False
        if self._asked == "auto" and len(part) * (self._epochs - 1) < _WORTH:
            return False
        if name == "val" or self._asked == 1:
            return self._data.eval_view.has_frame
        return not self._data.varies if self._asked == "auto" else not callable(self._data.augment)

    def prepare(self) -> None:
        """Look at the pictures, and keep the pixels of those that are needed more than once.

        Raises:
            DataError: pictures cannot be read, and all of them are listed.
            ConfigError: the cache's budget does not hold one picture.
        """
        more_than_once = {"train", "val"}
        if self._entrance.backbone.is_frozen_at_first and (self._keeps("train") or self._keeps("val")):
            self._data.check(*self._data.fitted)
            with preserved():
                cut = self._entrance.find()
            is_once = self._keeps("train") and self._views == 1 and not self._data.skips
            if is_once and cut is not None:
                size = 4 * cut.numbers * len(self._data.part("train"))  # bytes, at the most
                if self._entrance.place_for(size) is not None:
                    more_than_once.remove("train")
        self._data.prepare(more_than_once)

    @property
    def _views(self) -> int:
        return int(self._asked) if self._asked != "auto" and self._data.varies else 1

    def batches(self) -> tuple[Batches, Batches | None]:
        """Give the batches to train and to validate on, if any."""
        data, on_gpu = self._data, self._on_gpu
        train = data.train_batches(self._seed, for_gpu=on_gpu)
        val = None if data.val is None else data.eval_batches(data.val, "val", for_gpu=on_gpu)
        if self._keeps("train"):
            if self._views > 1:
                in_order = data.train_batches(self._seed, shuffled=False, for_gpu=on_gpu)
            else:
                in_order = data.eval_batches(data.part("train"), "train", for_gpu=on_gpu)
            train = self._of_features(train, in_order, "train", self._views)
        if val is not None and self._keeps("val"):
            val = self._of_features(val, val, "val", 1)
        return train, val

    def _of_features(self, live: Batches, in_order: Batches, name: str, views: int) -> Batches:
        part = self._data.part(name)
        if isinstance(live, SourceBatches) and isinstance(in_order, SourceBatches) and isinstance(part, FolderSource):
            draws = views > 1
            seen: list[object] = [repr(self._data.eval_view)]
            if draws:
                seen = [repr(self._data.train_view.frame), words_for(self._data.augment), self._seed]
            words = [*seen, self._data.batch_size]
            return FeatureBatches(
                live, in_order, views, part, self._entrance, self._shelf, words, draws=draws, evaluates=name == "val"
            )
        return live

    def _tried(self) -> list[Tensor]:
        images, targets = self._data.examples("train", _TRIED)
        if len(images) < _TRIED:
            raise NoCutError("too few pictures can be read to try it on")
        return [*torch.split(self._prepare((images, torch.tensor(targets))).images, _TRIED // 2 + 1)]
