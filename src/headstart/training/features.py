"""What the frozen beginning of a network makes of each picture, found once and used in every epoch.

A memo, like the cache of pixels: where it cannot help, or a picture or the network has changed since, batches of
pictures come as if there were none.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from headstart.data.cache import Cache
from headstart.data.loading import Batches, Pair, SourceBatches
from headstart.data.sources import FolderSource
from headstart.data.store import Stamp, stamp
from headstart.model.backbone import Backbone, bits_of, has_hooks, settings_kept, settings_of
from headstart.model.cut import Arithmetic, Cut, NoCutError, find_cut
from headstart.training.batch import Batch, Preparer
from headstart.training.portions import is_out_of_memory
from headstart.training.shelf import Shelf

_SMALL = 1_000_000
"""Numbers of a head, up to which several threads would wait for each other longer than they work."""

CacheFeatures = int | Literal["auto"]
"""What `fit(cache_features=...)` takes: False is 0."""


@dataclass(eq=False)
class Entrance:
    """The way into a network behind what is frozen, for as long as that stays as it is.

    Args:
        backbone: the network, and what of it is frozen.
        device: where it is.
        arithmetic: in which it is asked.
        seed: of all that it may draw from.
        pictures: gives a few batches of pictures to try it on, of different sizes.
        prepare: from a pair to a batch on the device.
        heed: leaves the fit, if that was asked for.
        changed_inside: says whether something else was frozen inside of the epoch in progress.
        room: from the bytes of memory that features have to those that they may take; what is more goes into a file.
        most_bytes: that features of a part may take in all; None is any.
        most_numbers: that may be kept of a picture; None is any.
    """

    backbone: Backbone
    device: torch.device
    arithmetic: Arithmetic
    seed: Callable[[int], None]
    pictures: Callable[[], Sequence[Tensor]]
    prepare: Preparer
    heed: Callable[[], None]
    changed_inside: Callable[[], bool]
    room: Callable[[int], int]
    most_bytes: int | None = None
    most_numbers: int | None = None
    _seen: tuple[int, list[object], bool] | None = field(default=None, init=False)
    _restless: set[tuple[nn.Module, str]] = field(default_factory=set, init=False)  # settings that a forward changes
    _cut: Cut | None = field(default=None, init=False)
    kept: "weakref.WeakSet[_Kept]" = field(default_factory=weakref.WeakSet, init=False)  # by all who enter here

    @property
    def has_moved(self) -> bool:
        """Whether something else is frozen than when it was last looked at."""
        return self._seen is None or self._seen[0] != self.backbone.changes

    @property
    def is_small_behind(self) -> bool:
        """Whether nothing but a small head trains."""
        stages = any(stage.trainable for stage in self.backbone.stages)
        return not stages and sum(parameter.numel() for parameter in self.backbone.head) <= _SMALL

    def find(self) -> Cut | None:
        """Give the way in, or None; look for it anew when something else is frozen, or has changed though frozen."""
        if self._state() != self._seen:
            self._cut = self._look() if self.backbone.is_frozen_at_first else None
            self._seen = self._state()
        return self._cut

    def _state(self) -> tuple[int, list[object], bool]:
        """Give what is another one once something that is frozen, or stays as it is, has changed."""
        cut, told = self._cut, list[object](self.backbone.frozen_bits)
        if cut is not None:
            told.append(bits_of(*cut.still))
            told += [
                {name: value for name, value in settings_of(module).items() if (module, name) not in self._restless}
                for module in cut.deciding
            ]
        return self.backbone.changes, told, has_hooks(self.backbone.network)

    def place_for(self, size: int) -> Literal["memory", "file"] | None:
        """Say where there is room for so many bytes of features of a part, if anywhere."""
        if self.most_bytes is not None and size > self.most_bytes:
            return None
        if size <= self.room(sum(kept.rows.nbytes for kept in self.kept if kept.is_in_memory)):
            return "memory"
        return "file" if size <= _room_in_file() else None

    def _look(self) -> Cut | None:
        try:
            with self.backbone.in_training(), settings_kept(self.backbone.network) as self._restless:
                cut = find_cut(self.backbone, self.pictures(), self.arithmetic, self.seed)
        except NoCutError as reason:
            print(f"pictures go through the frozen stages in every epoch: {reason}")  # noqa: T201
            return None
        return cut if self.most_numbers is None or cut.numbers <= self.most_numbers else None


@dataclass(frozen=True, eq=False)
class _Kept:
    """Features of all pictures of a part: a row for each."""

    rows: Tensor
    targets: Tensor
    shape: torch.Size
    has_channels_last: bool
    is_in_memory: bool
    stamps: list[Stamp]

    def put(self, place: int, features: Tensor, targets: Tensor) -> int:
        """Write those of some pictures from a place on, and give the place behind them."""
        end = place + len(targets)
        lines = features.permute(0, 2, 3, 1) if self.has_channels_last else features
        self.rows[place:end] = lines.reshape(len(targets), -1)
        self.targets[place:end] = targets
        return end

    def goes_on_as(self, found: Mapping[str, Tensor], place: int) -> bool:
        """Take over what an earlier run has left, if it begins with the same bits as what is here up to a place."""
        rows = found.get("rows", self.rows[:0])
        same = rows.shape == self.rows.shape and rows.dtype == self.rows.dtype
        if not (same and torch.equal(rows[:place], self.rows[:place])):
            return False
        self.rows.copy_(rows)
        self.targets.copy_(found["targets"])
        return True

    def take(self, places: Sequence[int]) -> Tensor:
        """Give those of some pictures, in the memory format that they came in."""
        rows = self.rows[torch.tensor(places)]
        if not self.has_channels_last:
            return rows.view(-1, *self.shape)
        channels, height, width = self.shape
        return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)


class FeatureBatches:
    """Batches of features, as long as a network can be entered behind what is frozen; else batches of pictures.

    Args:
        live: the batches of pictures.
        in_order: the same pictures in the order of their source; its epochs are the views of them that are kept.
        views: how many there are; epoch n trains on view n modulo this.
        part: the pictures.
        entrance: the way in.
        shelf: where features are found that an earlier run has left.
        words: what `in_order` depends on beside the pictures, in plain values.
        draws: whether it draws, by the numbers of fit and view.
        evaluates: whether the network is in evaluation when these come.
    """

    def __init__(
        self,
        live: SourceBatches,
        in_order: SourceBatches,
        views: int,
        part: FolderSource,
        entrance: Entrance,
        shelf: Shelf,
        words: Sequence[object],
        *,
        draws: bool,
        evaluates: bool,
    ) -> None:
        self.live = live
        self._shelf = shelf
        self._words = words
        self._draws = draws
        self._evaluates = evaluates
        self.in_order = in_order
        self._views = views
        self._part = part
        self._entrance = entrance
        self._cut: Cut | None = None
        self._kept: dict[int, _Kept] = {}
        self._lacking: set[int] = set()  # the views that could not be kept

    def __len__(self) -> int:
        return len(self.live)

    def pictures(self, fit: int, epoch: int, batch: int) -> list[str]:
        """Name the pictures of a batch, in its order."""
        return self.live.pictures(fit, epoch, batch)

    def epoch(self, fit: int, epoch: int, start: int = 0) -> Iterator[Pair | Batch]:
        """Go through the batches of an epoch from batch `start` on, of pictures from where something is unfrozen on."""
        cut, done = self._entrance.find(), start
        if cut is not self._cut:
            self._cut, self._kept, self._lacking = cut, {}, set()
        if cut is not None and self._evaluates and not cut.evaluates:
            cut = None
        if start > 0 and self._entrance.changed_inside():
            cut = None  # as the epoch went on when it was first begun
        kept = None if cut is None else self._features(cut, fit, epoch % self._views)
        if cut is not None and kept is not None:
            with _one_thread() if self._entrance.is_small_behind else nullcontext():
                for places in self.live.places(fit, epoch, start):
                    if self._entrance.has_moved:
                        break
                    features, targets = kept.take(places), kept.targets[places]
                    yield Batch(features.to(self._entrance.device), targets.to(self._entrance.device), cut)
                    done += 1
        if done < len(self):
            yield from self.live.epoch(fit, epoch, done)

    def _features(self, cut: Cut, fit: int, view: int) -> _Kept | None:
        """Give what is kept of a view of all pictures as they are now; find it first if need be."""
        if view in self._lacking:
            return None
        stamps = [stamp(path) for path in self._part.paths]
        if view not in self._kept or self._kept[view].stamps != stamps:
            self._kept.pop(view, None)  # first, to have its room
            found = self._found(cut, fit, view, stamps)
            if found is None:
                # Where one view could be kept it is room that others lack; else none can be.
                self._lacking.update([view] if self._kept else range(self._views))
            else:
                self._kept[view] = found
            if len(self._kept) + len(self._lacking) == self._views:
                self.in_order.rest()  # all is found that can be
        return self._kept.get(view)

    def _found(self, cut: Cut, fit: int, view: int, stamps: list[Stamp]) -> _Kept | None:
        """Have what is kept of a view of all pictures: from the shelf, or by asking the network."""
        entrance, kept, place = self._entrance, None, 0
        words = [*self._words, *([fit, view] if self._draws else [])]
        path = self._shelf.path(cut, words, self._part, stamps)
        for pair in self.in_order.epoch(fit, view):
            entrance.heed()
            if self.in_order.has_passed_over:
                break
            try:
                with entrance.arithmetic():
                    features = cut.features(entrance.prepare(pair).images)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    return None  # pictures go through the whole network in portions
                raise
            begins, kept = kept is None, kept or self._make_room(features, stamps)
            if kept is None:
                return None
            place = kept.put(place, features, pair[1])
            if begins and kept.goes_on_as(self._shelf.find(path), place):
                return kept
        if self.in_order.has_passed_over:  # where others take their place, somebody may ask for their names
            self._tell("some pictures are passed over: all")
            return None
        if kept is not None and kept.is_in_memory:
            self._shelf.keep(path, {"rows": kept.rows, "targets": kept.targets})
        return kept

    def _make_room(self, features: Tensor, stamps: list[Stamp]) -> _Kept | None:
        count, size = len(stamps), len(stamps) * features[0].nbytes
        place, rows = self._entrance.place_for(size), None
        if place == "memory":
            rows = torch.empty(count, features[0].numel(), dtype=features.dtype)
        elif place == "file":
            rows = _in_file(count, features)
        if rows is None:
            self._tell(f"no {'more ' if self._kept else ''}room for {size / 1e6:,.0f} MB: {count}")
            return None
        has_channels_last = features.ndim == 4 and not features.is_contiguous()
        targets = torch.empty(count, dtype=torch.int64)
        kept = _Kept(rows, targets, features.shape[1:], has_channels_last, place == "memory", stamps)
        self._entrance.kept.add(kept)
        return kept

    def _tell(self, why: str) -> None:
        """Say once that pictures take the long way."""
        if not self._lacking:
            print(f"{why} pictures go through the frozen stages in {'some epochs' if self._kept else 'every epoch'}")  # noqa: T201


def sources_of(*parts: Batches | None) -> list[Batches | None]:
    """Give the batches of pictures that some batches are made from, each once: themselves, where they are such."""
    found: list[Batches | None] = []
    for part in parts:
        found += [part.live, part.in_order] if isinstance(part, FeatureBatches) else [part]
    return list(dict.fromkeys(found))


def _in_file(count: int, features: Tensor) -> Tensor | None:
    """Make room for features of so many pictures in a file that is gone with this process, if the disk has it."""
    width, size = features[0].numel(), count * features[0].nbytes
    try:
        with tempfile.NamedTemporaryFile(dir=_folder()) as file:
            if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would end the process
                os.posix_fallocate(file.fileno(), 0, size)
            storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=size)
    except (OSError, RuntimeError):  # torch's word for a file that cannot be mapped
        return None
    return torch.empty(0, dtype=features.dtype).set_(storage).view(count, width)  # type: ignore[arg-type]


def _folder() -> Path:
    """Give the folder for such files: elsewhere than in /var/tmp what is temporary may lie in memory."""
    large = Path("/var/tmp")  # noqa: S108 - files have names of their own
    return large if "TMPDIR" not in os.environ and os.access(large, os.W_OK) else Path(tempfile.gettempdir())


def _room_in_file() -> int:
    try:
        return Cache("disk", _folder()).room()
    except OSError:  # no folder can be written to
        return 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Work in one thread inside: several would wait for each other longer than such small steps take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
