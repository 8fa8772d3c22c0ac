"""From one picture to the view of it that a batch holds: varied for training, by the book for evaluation.

A view is a uint8 tensor of the network's size, or a float tensor that the user's own pipeline has finished.
Seeding is the caller's business (`loading.py`): everything here draws from the generators as they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from headstart.data.preprocessing import Picture, Preprocessing, as_picture, described, to_picture, to_pixels
from headstart.errors import ConfigError, DataError, nearest

Pipeline = Callable[[Any], Any]
"""Any callable from a PIL picture to a PIL picture, a tensor or a uint8 array, such as a torchvision `Compose`."""
Augment = str | Sequence[str] | Pipeline | None
"""What `ImageData(augment=...)` takes: a preset, an augmentation, several of them, a pipeline, or nothing."""
View = Callable[[Picture], Tensor]
"""From one picture to `[channels, height, width]`: uint8 of the network's size, or float, which is final."""

_STEPS: dict[str, Callable[[Preprocessing], Pipeline]] = {
    "crop": lambda p: v2.RandomResizedCrop(p.image_size, scale=(0.35, 1.0), interpolation=p.mode, antialias=True),
    "flip": lambda p: v2.RandomHorizontalFlip(),  # noqa: ARG005
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


def eval_view(preprocessing: Preprocessing, pipeline: Pipeline | None = None) -> View:
    """Make the view that evaluation sees: the weights' own resize and crop, or the user's pipeline."""
    if pipeline is not None:
        return _PipelineView(pipeline, preprocessing)
    return _PlainView(preprocessing.geometry())


def train_view(preprocessing: Preprocessing, augment: Augment) -> View:
    """Make the view that training sees; without augmentation it is evaluation's."""
    if augment is None:
        return eval_view(preprocessing)
    if callable(augment):
        return _PipelineView(augment, preprocessing)
    names = named_steps(augment)
    steps = v2.Compose([_STEPS[name](preprocessing) for name in names])
    frame = _Presize(preprocessing) if "crop" in names else preprocessing.geometry()
    return _VariedView(frame, steps)


def least_side(preprocessing: Preprocessing) -> int:
    """Give the shorter side, in pixels, that a training picture keeps before it is framed and varied.

    Never less than what evaluation's own frame is cut from, so that nothing is shrunk first and enlarged then.
    """
    return max(math.ceil(max(preprocessing.image_size) * _PRESIZE), *preprocessing.resize)


# Views are classes and not closures because loader workers on some systems are sent them by pickle.


@dataclass
class _PlainView:
    frame: Pipeline

    def __call__(self, picture: Picture) -> Tensor:
        return picture if _is_final(picture) else to_pixels(self.frame(to_picture(picture)))


@dataclass
class _VariedView:
    frame: Pipeline
    steps: Pipeline

    def __call__(self, picture: Picture) -> Tensor:
        if _is_final(picture):
            return picture
        result: Tensor = self.steps(to_pixels(self.frame(to_picture(picture))))
        return result


@dataclass
class _PipelineView:
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


@dataclass
class _Presize:
    """Shrink a picture so that its shorter side is `least_side`; leave a smaller one alone."""

    preprocessing: Preprocessing

    def __call__(self, picture: Image.Image) -> Image.Image:
        least = least_side(self.preprocessing)
        share = least / min(picture.size)
        if share >= 1:
            return picture
        width, height = (max(least, round(side * share)) for side in picture.size)
        smaller: Image.Image = v2.functional.resize(picture, [height, width], self.preprocessing.mode)
        return smaller


def _is_final(picture: Any) -> TypeGuard[Tensor]:
    return isinstance(picture, Tensor) and picture.is_floating_point()


def _mean_colour(preprocessing: Preprocessing) -> list[int]:
    return [round(255 * value) for value in preprocessing.mean]
