"""From one picture to the view of it that a batch holds: varied for training, by the book for evaluation.

A view is a uint8 tensor of the network's size, or a float tensor that the user's own pipeline has finished. It is made
in two parts: a frame, which is the same every time, so that it can be remembered (`cache.py`), and steps that draw.
Seeding is the caller's business (`loading.py`): everything here draws from the generators as they are.
"""

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor
from torchvision.transforms import v2

from headstart.data.preprocessing import Picture, Preprocessing, as_picture, described, to_picture, to_pixels
from headstart.errors import ConfigError, DataError, nearest

Pipeline = Callable[[Any], Any]
"""Any callable from a PIL picture to a PIL picture, a tensor or a uint8 array, such as a torchvision `Compose`."""
Augment = str | Sequence[str] | Pipeline | None
"""What `ImageData(augment=...)` takes: a preset, an augmentation, several of them, a pipeline, or nothing."""
Frame = Callable[[Picture], Any]
"""From one picture to its pixels, uint8 `[3, height, width]`, the same every time; what is final stays as it is."""

_STEPS: dict[str, Callable[[Preprocessing], Pipeline]] = {
    "crop": lambda p: RandomCrop(p.image_size, p.mode),
    "flip": lambda p: random_flip,  # noqa: ARG005
    "vflip": lambda p: v2.RandomVerticalFlip(),  # noqa: ARG005
    "rotate": lambda p: v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR, fill=_mean_colour(p)),
    "color": lambda p: v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),  # noqa: ARG005
    "randaugment": lambda p: v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR, fill=_mean_colour(p)),
    "trivialaugment": lambda p: v2.TrivialAugmentWide(fill=_mean_colour(p)),
    "erase": lambda p: v2.RandomErasing(p=0.25, value=_mean_colour(p)),
}
PRESETS: dict[str, tuple[str, ...]] = {
    "default": ("crop", "flip"),
    "light": ("flip",),
    "strong": ("crop", "flip", "trivialaugment", "erase"),
}
"""Named collections of augmentations."""

_PRESIZE = 256 / 224
"""Room that is left around the network's input when a training picture is shrunk before it is varied."""


def named_steps(augment: str | Sequence[str]) -> list[str]:
    """Spell out presets and check every name.

    Raises:
        ConfigError: a name is neither an augmentation nor a preset (the nearest ones are listed), or there is none.

    Example:
        >>> named_steps("default"), named_steps(["flip", "color"])
        (['crop', 'flip'], ['flip', 'color'])
    """
    steps: list[str] = []
    if not isinstance(augment, Sequence) or not augment:
        raise _unknown(augment)
    for name in [augment] if isinstance(augment, str) else augment:
        if not isinstance(name, str) or (name not in PRESETS and name not in _STEPS):
            raise _unknown(name)
        steps.extend(PRESETS.get(name, (name,)))
    return list(dict.fromkeys(steps))


def _unknown(augment: object) -> ConfigError:
    known = [*PRESETS, *_STEPS]
    return ConfigError(
        f"augment={augment!r}",
        f"one of {', '.join(known)}, several of them in a list, a pipeline, or None",
        f"{nearest(str(augment), known)}A torchvision Compose or any function of a picture works as well.",
    )


def check_augment(augment: Augment) -> None:
    """Raise a ConfigError unless `augment` is something that `train_view` can be made of."""
    if augment is not None and not callable(augment):
        named_steps(augment)


@dataclass(frozen=True)
class View:
    """What a batch holds of a picture: `[channels, height, width]`, uint8 of the network's size, or float and final.

    Args:
        frame: the part that is the same every time.
        steps: what is done to the framed picture, and may draw; None for nothing.
        least_side: the shorter side, in pixels, below which a picture must not be decoded; None decodes it in full.
    """

    frame: Frame
    steps: Pipeline | None = None
    least_side: int | None = None

    def __call__(self, picture: Picture) -> Tensor:
        """Give the view of one picture."""
        framed = self.frame(picture)
        view: Tensor = framed if self.steps is None else self.steps(framed)
        return view

    @property
    def has_frame(self) -> bool:
        """Whether anything is done that is the same every time."""
        return self.frame is not _untouched

    def of_framed(self) -> "View":
        """Give what is left to be done to pictures that are framed already."""
        return View(_untouched, self.steps)


def eval_view(preprocessing: Preprocessing, pipeline: Pipeline | None = None) -> View:
    """Make the view that evaluation sees: the weights' own resize and crop, or the user's pipeline."""
    if pipeline is not None:
        return View(_untouched, _Finished(pipeline, preprocessing))
    return View(Framed(preprocessing))


def train_view(preprocessing: Preprocessing, augment: Augment) -> View:
    """Make the view that training sees; without augmentation it is evaluation's."""
    if augment is None or callable(augment):
        return eval_view(preprocessing, augment)
    names = named_steps(augment)
    steps = _Varied(v2.Compose([_STEPS[name](preprocessing) for name in names]))
    if "crop" not in names:
        return View(Framed(preprocessing), steps)
    return View(Presized(preprocessing), steps, least_side(preprocessing))


def least_side(preprocessing: Preprocessing) -> int:
    """Give the shorter side, in pixels, that a training picture keeps before it is framed and varied.

    Never less than what evaluation's own frame is cut from, so that nothing is shrunk first and enlarged then.
    """
    return max(math.ceil(max(preprocessing.image_size) * _PRESIZE), *preprocessing.resize)


# The parts of views are classes and not closures because loader workers on some systems are sent them by pickle.


@dataclass(frozen=True)
class Framed:
    """Resize and crop a picture as the weights expect."""

    preprocessing: Preprocessing

    def __call__(self, picture: Picture) -> Tensor:
        """Give the pixels of one picture."""
        return picture if _is_final(picture) else to_pixels(self._geometry(to_picture(picture)))

    @functools.cached_property
    def _geometry(self) -> Pipeline:
        return self.preprocessing.geometry()


@dataclass(frozen=True)
class Presized:
    """Shrink a picture so that its shorter side is `least_side`; leave a smaller one alone."""

    preprocessing: Preprocessing

    def __call__(self, picture: Picture) -> Tensor:
        """Give the pixels of one picture."""
        if _is_final(picture):
            return picture
        pixels = to_pixels(to_picture(picture))
        sides, least = pixels.shape[1:], least_side(self.preprocessing)
        share = least / min(sides)
        if share >= 1:
            return pixels
        # torch takes a third of Pillow's time; only evaluation must do as the weights' library does.
        size = [max(least, round(side * share)) for side in sides]
        smaller: Tensor = v2.functional.resize(pixels, size, self.preprocessing.mode)
        return smaller


@dataclass(frozen=True)
class RandomCrop:
    """Cut out a random part of a picture and give it another size, as torchvision's `RandomResizedCrop` does.

    The same parts are as likely (Szegedy et al., "Going Deeper with Convolutions", 2015); it takes a third of the time,
    since numbers are drawn outside of tensors, and resizing is faster where pixels lie close together.

    Args:
        size: height and width of the result, in pixels.
        mode: of interpolation.
        area: the least and the largest share of the picture's area.
        ratio: the least and the largest width for a height of 1.
    """

    size: tuple[int, int]
    mode: v2.InterpolationMode
    area: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Give a part of `pixels`, uint8 `[3, height, width]`."""
        top, left, height, width = self.draw(*pixels.shape[1:])
        part = pixels[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().permute(2, 0, 1)
        resized: Tensor = v2.functional.resize(part, self.size, self.mode)
        return resized

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw a part of a picture: its top, its left, its height and its width, in pixels."""
        for _ in range(10):
            area = height * width * random.uniform(*self.area)  # noqa: S311 - no secret
            ratio = math.exp(random.uniform(*map(math.log, self.ratio)))  # noqa: S311
            high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < high <= height and 0 < wide <= width:
                return random.randint(0, height - high), random.randint(0, width - wide), high, wide  # noqa: S311
        least, most = self.ratio  # none fits into a picture this long: take the largest one from its middle
        high, wide = min(height, round(width / least)), min(width, round(height * most))
        return (height - high) // 2, (width - wide) // 2, high, wide


def random_flip(pixels: Tensor) -> Tensor:
    """Swap left and right, every other time."""
    return pixels.flip(-1) if random.random() < 0.5 else pixels  # noqa: S311 - no secret


def _untouched(picture: Picture) -> Picture:
    return picture


@dataclass
class _Varied:
    steps: Pipeline

    def __call__(self, pixels: Tensor) -> Tensor:
        varied: Tensor = pixels if _is_final(pixels) else self.steps(pixels)
        return varied


@dataclass
class _Finished:
    pipeline: Pipeline
    preprocessing: Preprocessing

    def __call__(self, picture: Picture) -> Tensor:
        if _is_final(picture):
            return picture
        made = self.pipeline(picture)
        result = as_picture(made)
        if result is None:
            raise DataError(
                f"a pipeline that makes {described(made)} of a picture",
                "a float tensor [channels, height, width], which is final, or a PIL picture, a uint8 tensor, or a "
                "uint8 array [height, width, channels]",
                "End the pipeline with ToTensor() (and Normalize), or with nothing after the PIL steps.",
            )
        if _is_final(result):
            return result
        result = to_picture(result)
        fits = result.size[::-1] == self.preprocessing.image_size
        return to_pixels(result if fits else self.preprocessing.geometry()(result))


def _is_final(picture: Any) -> TypeGuard[Tensor]:
    return isinstance(picture, Tensor) and picture.is_floating_point()


def _mean_colour(preprocessing: Preprocessing) -> list[int]:
    return [round(255 * value) for value in preprocessing.mean]
