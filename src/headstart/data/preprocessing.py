"""What weights expect of a picture: its size and crop, and the numbers its pixels are turned into.

The geometry is done by the libraries' own transforms on an 8-bit picture, the arithmetic by `normaliser` on a whole
batch; together they give the tensor that timm's or torchvision's own evaluation transform gives, bit for bit.
Which preprocessing belongs to which weights is known in `model/zoo.py`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
from torchvision.transforms import functional as pixels

from headstart.data.decode import to_rgb
from headstart.errors import DataError

Picture = Image.Image | Tensor
"""One picture: a PIL picture, or a tensor `[channels, height, width]`, uint8, or float, which is final."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what a network was trained to see.

    Args:
        image_size: height and width of the network's input, in pixels.
        resize: height and width that the crop is taken from, in pixels.
        crop: `"center"` keeps the ratio, fits the shorter side to `resize` and cuts out the middle; `"squash"` gives up
            the ratio; `"border"` fits the longer side and fills up with the mean colour.
        interpolation: `"bilinear"`, `"bicubic"`, ... as timm and torchvision name them.
        mean: of red, green and blue, in [0, 1].
        std: of red, green and blue, in (0, 1].

    Example:
        >>> Preprocessing().image_size, Preprocessing().at_size(96).resize
        ((224, 224), (109, 109))
    """

    image_size: tuple[int, int] = (224, 224)
    resize: tuple[int, int] = (256, 256)
    crop: Literal["center", "squash", "border"] = "center"
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    @classmethod
    def from_timm(cls, config: dict[str, Any]) -> Self:
        """Read what `timm.data.resolve_model_data_config` gives."""
        size, share = config["input_size"][1:], config["crop_pct"]
        return cls(
            image_size=tuple(size),
            resize=(math.floor(size[0] / share), math.floor(size[1] / share)),
            crop=config["crop_mode"],
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    @classmethod
    def from_torchvision(cls, preset: Any) -> Self:
        """Read what `weights.transforms()` gives for a classification network."""
        return cls(
            image_size=(preset.crop_size[0],) * 2,
            resize=(preset.resize_size[0],) * 2,
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain values."""
        return asdict(self)

    def at_size(self, image_size: int | tuple[int, int]) -> Self:
        """Give the same preprocessing at another input size, the resize scaled alike."""
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        old_height, old_width = self.image_size
        scaled = (math.floor(self.resize[0] * height / old_height), math.floor(self.resize[1] * width / old_width))
        return replace(self, image_size=(height, width), resize=scaled)

    @property
    def mode(self) -> InterpolationMode:
        """The interpolation in torchvision's words."""
        return InterpolationMode(self.interpolation)

    def geometry(self) -> Callable[[Image.Image], Image.Image]:
        """Build the library's own resize and crop, from an RGB picture to one of `image_size`."""
        if self.crop == "squash":
            steps: list[Any] = [Resize(self.resize, self.mode), CenterCrop(self.image_size)]
        elif self.crop == "border":
            fill = [round(255 * value) for value in self.mean]
            steps = [
                ResizeKeepRatio(self.resize, interpolation=self.interpolation, longest=1.0),
                CenterCropOrPad(self.image_size, fill=fill),
            ]
        elif self.resize[0] == self.resize[1]:
            steps = [Resize(self.resize[0], self.mode), CenterCrop(self.image_size)]
        else:
            steps = [ResizeKeepRatio(self.resize, interpolation=self.interpolation), CenterCrop(self.image_size)]
        geometry: Callable[[Image.Image], Image.Image] = Compose(steps)
        return geometry

    def normaliser(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Build the arithmetic of the preprocessing, its constants already on `device`.

        Returns:
            A function of images `[batch, channels, height, width]`: uint8 in [0, 255] become float32,
            `(images / 255 - mean) / std`; float images are final and come back as they are.
        """
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=device).view(-1, 1, 1)

        # A plain 255 would not do: CUDA multiplies by the reciprocal of a number, which changes last bits.
        full = torch.tensor(255.0, device=device)

        @functools.cache
        def in_rows(width: int) -> tuple[Tensor, Tensor]:
            return mean.flatten().repeat(width), std.flatten().repeat(width)

        def normalise(images: Tensor) -> Tensor:
            if images.dtype != torch.uint8:
                return images
            lines = images.permute(0, 2, 3, 1)
            if lines.shape[3] != len(self.mean) or not lines.is_contiguous():
                return images.float().div_(full).sub_(mean).div_(std)
            # Line by line: a CPU takes three times as long for three numbers at a time, those of a pixel.
            means, stds = in_rows(lines.shape[2])
            flat = lines.reshape(-1, means.shape[0]).float().div_(full).sub_(means).div_(stds)
            return flat.view(lines.shape).permute(0, 3, 1, 2)

        return normalise

    def visible(self, images: Tensor) -> Tensor:
        """Turn a batch back into colours that can be looked at, whatever stage it is in.

        Returns:
            Red, green and blue in [0, 1], `[batch, 3, height, width]`; greys are alike in all three.

        Raises:
            DataError: the images have neither one channel nor three. Draw three of them yourself.
        """
        if images.shape[1] not in (1, 3):
            raise DataError(
                f"images {list(images.shape)} to look at",
                "images [batch, channels, height, width] with one channel or three",
                "Draw three of their channels yourself, for example with Matplotlib's imshow.",
            )
        if images.dtype == torch.uint8:
            colours = images.float().cpu() / 255
        else:
            mean, std = torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)
            colours = (images.float().cpu() * std + mean).clamp(0, 1)
        return colours.expand(-1, 3, -1, -1)


def to_picture(picture: Picture) -> Image.Image:
    """Make an RGB PIL picture of an 8-bit tensor or of a PIL picture of another mode.

    Raises:
        DataError: the tensor is not shaped like a picture. `permute(2, 0, 1)` puts channels first.
    """
    if not isinstance(picture, Tensor):
        return to_rgb(picture)
    if not is_shaped(picture):
        raise DataError(
            f"a picture that is {described(picture)}",
            "a uint8 tensor [channels, height, width] with 1, 3 or 4 channels",
            "permute(2, 0, 1) puts a tensor's channels first; take one picture at a time, and three of its channels.",
        )
    return to_rgb(pixels.to_pil_image(picture))


def as_picture(value: object) -> Picture | None:
    """Give what a dataset or a pipeline made as a picture, a uint8 array as a PIL one; None for what is no picture.

    Example:
        >>> as_picture(np.zeros((4, 6, 3), np.uint8)).size, as_picture(np.zeros((4, 6, 3)))
        ((6, 4), None)
    """
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.size:
        pixels = value[:, :, 0] if value.ndim == 3 and value.shape[2] == 1 else value
        if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4)):
            return Image.fromarray(pixels)
    if isinstance(value, Tensor):
        return value if is_shaped(value) and (value.is_floating_point() or value.dtype == torch.uint8) else None
    return value if isinstance(value, Image.Image) else None


def described(value: object) -> str:
    """Tell the type of a value, and the shape of a tensor or an array, for a message.

    Example:
        >>> described(torch.zeros(3, 4)), described((1, 2)), described(None)
        ('a float32 tensor [3, 4]', 'tuple of 2', 'NoneType')
    """
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return f"a {str(value.dtype).removeprefix('torch.')} {kind} {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list | dict) else type(value).__name__


def is_shaped(picture: Tensor) -> bool:
    """Say whether a tensor has the shape of a picture: channels (uint8: 1, 3 or 4) first, then height and width."""
    return picture.ndim == 3 and are_shaped(picture)


def are_shaped(pictures: Tensor) -> bool:
    """Say whether the last three axes of a tensor have the shape of a picture.

    Floats may have any number of channels, unless these seem to come last: 3 or 4 of them behind a height and a width,
    or one behind a square.
    """
    channels, height, width = pictures.shape[-3:]
    if channels * height * width == 0:
        return False
    if pictures.dtype == torch.uint8:
        return channels in (1, 3, 4)
    return min(channels, height) <= 4 or not (width in (3, 4) or (width == 1 and channels == height))


def to_pixels(picture: Image.Image) -> Tensor:
    """Give a picture's pixels, uint8 `[3, height, width]`, channels last in memory."""
    tensor: Tensor = pixels.pil_to_tensor(picture)
    return tensor
