"""Pictures that come without labels: what `predict` is given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from headstart.data.decode import demand_readable, open_picture, to_rgb, upright
from headstart.data.folders import find_pictures, tell_passed_over
from headstart.data.preprocessing import Picture, described, is_shaped
from headstart.errors import DataError
from headstart.files import as_path


@dataclass(frozen=True)
class PictureList:
    """Pictures in the order they were given, opened one by one when their turn comes.

    Args:
        pictures: paths, PIL pictures, or tensors `[channels, height, width]`.
    """

    pictures: tuple[Path | Picture, ...]

    @classmethod
    def of(cls, images: Any) -> Self:
        """Spell out what may be given: one picture, a folder, a batch, or a list of them.

        Files in a folder that are no pictures are passed over, and a line says so.

        Raises:
            DataError: it is none of these, there is no picture, or some cannot be read (all of them are listed).
        """
        others: list[Path] = []
        pictures = tuple(_spelt_out(images, others))
        if not pictures:
            raise DataError(
                f"no picture in {str(images)!r}" if isinstance(images, str | Path) else "no picture",
                "at least one picture",
                "Pass the path of a picture or of a folder with pictures in it.",
            )
        demand_readable([picture for picture in pictures if isinstance(picture, Path)])
        tell_passed_over(dict.fromkeys(others))
        return cls(pictures)

    @property
    def classes(self) -> tuple[str, ...]:
        """None are known."""
        return ()

    @property
    def paths(self) -> tuple[Path | None, ...]:
        """Where each picture lies, if it lies anywhere."""
        return tuple(map(self.path, range(len(self))))

    def __len__(self) -> int:
        return len(self.pictures)

    def sample(self, index: int, least_side: int | None = None) -> tuple[Picture, int]:
        """Open a picture; its label says nothing."""
        picture = self.pictures[index]
        if isinstance(picture, Path):
            return open_picture(picture, least_side), 0
        return (to_rgb(upright(picture)) if isinstance(picture, Image.Image) else picture), 0

    def path(self, index: int) -> Path | None:
        """Give where a picture lies, if it lies anywhere."""
        picture = self.pictures[index]
        return picture if isinstance(picture, Path) else None


def _spelt_out(images: Any, others: list[Path]) -> Sequence[Path | Picture]:
    """Give single pictures; files in folders that are none go to `others`."""
    if isinstance(images, str | Path):
        path = as_path(images)
        if not path.is_dir():
            return [path]
        found, rest = find_pictures(path)
        others += rest
        return found
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, Tensor):
        return _from_tensor(images)
    if isinstance(images, Sequence) and not isinstance(images, bytes):
        return [picture for image in images for picture in _spelt_out(image, others)]
    if isinstance(images, Iterator):
        raise _refuse(type(images).__name__, "Pass a list, for example list(Path('new').rglob('*.jpg')).")
    raise _refuse(type(images).__name__)


def _from_tensor(images: Tensor) -> Sequence[Tensor]:
    pictures = list(images.cpu()) if images.ndim == 4 else [images.cpu()]
    if not all(map(is_shaped, pictures)) or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise _refuse(described(images))
    return pictures


def _refuse(
    arrived: str,
    todo: str = "For an array, pass torch.from_numpy(array).permute(2, 0, 1) or PIL.Image.fromarray(array).",
) -> DataError:
    return DataError(
        f"{arrived} to predict",
        "a path, a folder, a PIL picture, a tensor [channels, height, width] or [batch, channels, height, width], "
        "float, or uint8 with 1, 3 or 4 channels; or a list of these",
        todo,
    )
