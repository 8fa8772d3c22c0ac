"""Whether training waits for its pictures, and what would help: measured in the fit itself and on some of its pictures.

What is the user's own, a dataset or a pipeline, is not called to be measured: it might draw, and change a number.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from headstart.data.augment import View, named_steps, train_view
from headstart.data.image_data import ImageData
from headstart.data.loading import Pace
from headstart.data.preprocessing import Preprocessing
from headstart.data.sources import FolderSource, Source
from headstart.errors import DataError
from headstart.randomness import preserved

Takes = Callable[[int], bool]

WAITED = 1 / 3
"""Share of a fit's time from which on waiting for pictures is worth a line."""

_GAIN = 1.2
"""How many times as fast a change must make training to be named."""

_NEARLY = 0.9
"""What a change must bring of the most that any brings, to be named before those that change more."""

_PICTURES = 8
"""Pictures to measure on."""

_SMALLER = 3 / 4
"""The share of a picture's side that is tried."""

_KEEP = "cache='disk'"

_COMMON = "default"
"""The augmentation that costlier ones are compared with."""


@dataclass(frozen=True)
class _Parts:
    """Seconds that a picture takes: to be read, decoded and framed, and to be varied then."""

    opening: float
    varying: float

    @property
    def both(self) -> float:
        """Seconds that it takes in all."""
        return self.opening + self.varying


def diagnose(data: ImageData, pace: Pace, processes: int, cores: tuple[int, int], epochs: int, takes: Takes) -> str:
    """Say how long training waits for its pictures, and which change would help most; nothing where it hardly waits.

    Args:
        data: whose train part is trained on.
        pace: how the fit's time was spent so far.
        processes: how many prepare its batches; 0 is training's own.
        cores: of the processor, in all and those that training keeps busy.
        epochs: that are still to come after this one.
        takes: says whether the network takes pictures of so many pixels a side.
    """
    if pace.share_waited < WAITED:
        return ""
    now = pace.per_picture
    preparing = _preparing(pace, processes)
    told = f"training waits for its pictures {pace.share_waited:.0%} of the time: preparing one takes "
    told += f"{1000 * preparing:.1f} ms" + (f", in {processes} processes" if processes > 1 else "")
    ways = _ways(data, pace, processes, cores, takes)
    if epochs < 1:
        ways.pop(_KEEP, None)  # what this epoch has to decode it has to decode
    gains = {change: now / seconds for change, seconds in ways.items()}
    most = max(gains.values(), default=0.0)
    if most < _GAIN:
        return f"{told}. No setting would help much: a lighter pipeline would, smaller files, or more cores"
    change, gain = next((change, gain) for change, gain in gains.items() if gain >= _NEARLY * most)
    trains = "the next epochs" if change == _KEEP else "training"
    price = "" if change == _KEEP or change.startswith("workers") else ", and learn from other pictures"
    return f"{told}. With {change} {trains} would be about {gain:.1f} times as fast{price}"


def _preparing(pace: Pace, processes: int) -> float:
    """Give the seconds that preparing a picture takes."""
    # Processes that cannot keep up determine the pace all together; without any, one waits for each picture.
    return pace.per_picture * (processes or pace.share_waited)


def _ways(data: ImageData, pace: Pace, processes: int, cores: tuple[int, int], takes: Takes) -> dict[str, float]:
    """Give what could be changed, with the seconds that a picture would take, prepared and trained on.

    What changes no number comes first.
    """
    part: Any = data.part("train")
    source, view = data.memos.remembered("train", part, data.train_view)
    parts = _measured(source, view) if isinstance(part, FolderSource) and data.train_view.has_frame else None
    now = pace.per_picture
    waited, work = now * pace.share_waited, now * (1 - pace.share_waited)

    def with_less(ratio: float) -> float:
        """Give the seconds of a picture whose preparing takes this much of what it takes now."""
        return max(work, now * ratio) if processes else work + waited * ratio

    ways: dict[str, float] = {}
    if parts is not None and source is part and (data.cache is None or data.cache.where != "disk"):
        ways[_KEEP] = with_less(parts.varying / parts.both)
    preparing, (there, busy) = _preparing(pace, processes), cores
    count = data.worker_count(source, "auto")  # leaves a core to training, which hardly needs it where it waits long
    for more in (count, there) if count == there - 1 else (count,):
        if processes < more <= there:
            ways[f"workers={more}"] = max(work, preparing / more, (preparing + busy * work) / there)
    if parts is not None:
        for change, other in _lighter(data, takes).items():
            lighter = _measured(source, other if source is part else other.of_framed())
            ways[change] = with_less(lighter.both / parts.both if lighter else 1)
    return ways


def _lighter(data: ImageData, takes: Takes) -> dict[str, View]:
    """Give views that may take less: with the usual augmentation, and of smaller pictures."""
    preprocessing, augment = data.preprocessing or Preprocessing(), data.augment
    views = {}
    if isinstance(augment, str | Sequence) and set(named_steps(augment)) - set(named_steps(_COMMON)):
        views[f"augment={_COMMON!r}"] = train_view(preprocessing, _COMMON)
    height, width = preprocessing.image_size
    smaller = int(height * _SMALLER) // 32 * 32
    if height == width and smaller > 0 and takes(smaller):
        views[f"image_size={smaller}"] = train_view(preprocessing.at_size(smaller), augment)
    return views


def _measured(source: Source, view: View) -> _Parts | None:
    """Measure on some pictures what they take; None where none of them can be read."""
    count = min(_PICTURES, len(source))
    opening = varying = 0.0
    with preserved():
        for place in [number * len(source) // count for number in range(count)]:
            # One that cannot be read is the fit's business, and so is want of files or memory (RuntimeError: torch's).
            with suppress(DataError, OSError, MemoryError, RuntimeError):
                began = time.perf_counter()
                framed = view.frame(source.sample(place, view.least_side)[0])
                opened = time.perf_counter()
                if view.steps is not None:
                    view.steps(framed)
                opening += opened - began
                varying += time.perf_counter() - opened
    parts = _Parts(opening, varying)
    return parts if parts.both > 0 else None
