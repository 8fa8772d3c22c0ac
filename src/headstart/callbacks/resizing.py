"""Pictures that grow while training goes on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from headstart.errors import ConfigError, Demands, is_count, is_number
from headstart.model.backbone import objection
from headstart.training.callback import Callback, Order
from headstart.training.run import Run


class ProgressiveResize(Callback):
    """Train on small pictures first: time falls with the area of the pictures.

    Sizes grow from `start` to `end` in steps of `step` pixels. Each of those below `end` gets the same share of the
    first `until` of the epochs, the rest, one epoch at the least, is trained at `end`. Validation always sees whole
    pictures. Batches are shrunk where the network is, so pictures of any origin will do, and what is kept of them
    stays; batches of a loader of your own that are smaller stay as they are. Where no epoch is left for smaller
    pictures a line says so. After Howard, "Now anyone can train Imagenet in 18 minutes", 2018.

    Args:
        start: pixels of the shorter side in the first epoch, 8 or more.
        end: pixels of the shorter side in the last epoch; None is the size that the data gives.
        until: share of the epochs in which pictures are smaller than that, between 0 and 1.
        step: pixels from one size to the next, 1 or more; many networks need multiples of 32.

    Raises:
        ConfigError: an argument is out of range; or, when a fit begins, `start` is not below the size that the network
            is given, the network cannot take one of the sizes, as transformers with a fixed number of patches, or
            `cache_features` asks for features, which are found at one size.

    Example:
        >>> callbacks = [ProgressiveResize(128)]  # of 8 epochs two each with 128, 160, 192 and 224 pixels
        >>> callbacks = [ProgressiveResize(128, until=0.5, step=96)]  # half of them with 128, half with 224
    """

    order: ClassVar[Order] = Order.DATA

    def __init__(self, start: int = 128, end: int | None = None, *, until: float = 0.75, step: int = 32) -> None:
        demands = Demands("For example ProgressiveResize(128, 224).")
        demands.check("start", start, is_count(start, 8), "a whole number of pixels, 8 or more")
        larger = end is None or (is_count(end) and (not is_count(start, 8) or end > start))
        demands.check("end", end, larger, "a whole number of pixels, more than start, or None")
        demands.check("until", until, is_number(until) and 0 < until < 1, "a share of the epochs, between 0 and 1")
        demands.check("step", step, is_count(step), "a whole number of pixels, 1 or more")
        demands.settle()
        self.start, self.end, self.until, self.step = start, end, until, step

    def check(self, run: Run) -> None:
        """Refuse a network that cannot take the sizes, and features, which are found at one size."""
        if run.params.get("cache_features", "auto") not in ("auto", 0):
            raise ConfigError(
                f"ProgressiveResize with cache_features={run.params['cache_features']}",
                "one of the two: features are found once, at one size",
                "Leave cache_features out, or the callback.",
            )
        if run.params.get("batch_size") is None:
            return  # batches of the user's own loader come as they come
        height, width = run.backbone.preprocessing.image_size
        whole = min(height, width)
        if self.start >= whole:
            raise ConfigError(
                f"ProgressiveResize({self.start}), for pictures of {height} x {width} pixels",
                "a start that is smaller than they are",
                f"For example ProgressiveResize({whole // 2}), or pass the data a larger image_size.",
            )
        sides = sorted({self._side(epoch, run.epochs, whole) for epoch in range(run.epochs)})
        if sides == [whole]:
            print(f"ProgressiveResize has nothing to do: until={self.until} leaves none of epochs={run.epochs} to it")  # noqa: T201
        for side in sides:
            shape = _shape((height, width), side)
            if (error := objection(run.backbone, shape)) is not None:
                size = f"{shape[0]} x {shape[1]} pixels"
                raise ConfigError(
                    f"ProgressiveResize for a network that cannot take pictures of {size}: {error}",
                    "a network that takes pictures of any size, as most convolutional ones do",
                    "Leave the callback out, or take another network. Some want multiples of 32: try another start.",
                ) from error

    def on_batch_ready(self) -> None:
        """Shrink the batch to the size of the epoch."""
        run = self.run
        sides = run.batch.images.shape[-2:]
        side = self._side(run.epoch, run.epochs, min(sides))
        if side < min(sides):
            run.batch = replace(run.batch, images=_shrunk(run.batch.images, _shape(sides, side)))

    def _side(self, epoch: int, epochs: int, whole: int) -> int:
        sides = [*range(self.start, min(whole, self.end or whole), self.step), min(whole, self.end or whole)]
        return side_of_epoch(epoch, epochs, sides, self.until)


def side_of_epoch(epoch: int, epochs: int, sides: Sequence[int], until: float) -> int:
    """Tell which side pictures have in an epoch.

    Args:
        epoch: counting from 0.
        epochs: of the whole fit.
        sides: in pixels; the last one is the whole side.
        until: share of the epochs in which the others take turns, each as long as the others.

    Example:
        >>> [side_of_epoch(epoch, 8, [128, 160, 192, 224], until=0.75) for epoch in range(8)]
        [128, 128, 160, 160, 192, 192, 224, 224]
    """
    growing = int(until * epochs + 1e-9)  # 0.29 of 100 epochs are 29
    return sides[epoch * (len(sides) - 1) // growing] if epoch < growing else sides[-1]


def _shape(sides: tuple[int, ...], shorter: int) -> list[int]:
    """Give height and width of pictures of `sides`, shrunk so that their shorter side is another."""
    return [round(side * shorter / min(sides)) for side in sides]


def _shrunk(images: Tensor, shape: list[int]) -> Tensor:
    # Down to a half each pixel has its share in the result all the same, in an eighth of the time.
    antialias = images.shape[-2] > 2 * shape[0]
    return functional.interpolate(images, size=shape, mode="bilinear", antialias=antialias)
