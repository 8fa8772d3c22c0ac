"""One batch, where the network can work on it, and what network and loss may make of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.data.loading import Pair
from headstart.errors import BackboneError, ConfigError, DataError


@dataclass
class Batch:
    """Pictures and what they show.

    Callbacks that change data make a new one in `on_batch_ready`; they never write into its tensors.

    Args:
        images: `[batch, channels, height, width]`, float, normalised, on the run's device.
        targets: class ids `[batch]`, int64, or probabilities `[batch, classes]`, float.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]  # len(tensor) takes ten times as long


def preparer(
    device: torch.device, normalise: Callable[[Tensor], Tensor], *, channels_last: bool, channels: int | None = None
) -> Callable[[Pair], Batch]:
    """Build the way of a pair from a loader to a batch on the device, without waiting for the device.

    Args:
        device: where batches go.
        normalise: from uint8 pictures to floats, on the device.
        channels_last: how they lie in memory there.
        channels: what the network takes, None where nobody knows; other pictures are refused with a DataError.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def prepare(pair: Pair) -> Batch:
        images, targets = pair
        if channels is not None and images.shape[1] != channels:
            raise DataError(
                f"images {list(images.shape)}, for a network that takes {channels} channels",
                f"images [batch, {channels}, height, width]",
                "Turn grey pictures into RGB in the dataset: Grayscale(3) of torchvision, or picture.convert('RGB').",
            )
        if images.dtype == torch.uint8:
            images = normalise(images.to(device, non_blocking=True))
        images = images.to(device, torch.float32, non_blocking=True, memory_format=memory_format)
        return Batch(images, targets.to(device, non_blocking=True))

    return prepare


def answer(network: nn.Module, images: Tensor, classes: int) -> Tensor:
    """Give a network's logits for a batch, one for each class and picture.

    Raises:
        BackboneError: it gives something else.
    """
    try:
        outputs = network(images)
    except RuntimeError as error:
        error.add_note(f"The network was given images {list(images.shape)}. image_size= of the data sets their size.")
        raise
    if isinstance(outputs, Tensor) and outputs.shape[1:] == (classes,):
        return outputs
    raise BackboneError(
        f"a network that gives {shape_or_type(outputs)}",
        f"one tensor of logits, [batch, {classes}]",
        "Wrap the network in a module whose forward returns its logits alone, or give it a head of this many classes.",
    )


def demand_mean(loss: Any) -> Tensor:
    """Give what a loss function made of a batch, if it is one number.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss if loss.ndim == 0 else loss.reshape(())
    raise ConfigError(
        f"a loss that gives {shape_or_type(loss)}",
        "the mean over the batch, a tensor of one number",
        "Let the loss reduce to the mean: reduction='mean', or .mean() at its end.",
    )


def shape_or_type(value: object) -> str:
    """Tell in a message what a function gave: the shape of a tensor, the type of anything else.

    Example:
        >>> shape_or_type(torch.zeros(4, 2)), shape_or_type(0.5)
        ('[4, 2]', 'float')
    """
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def likes_channels_last(network: nn.Module) -> bool:
    """Say whether a network and its pictures should lie in memory with channels last.

    timm's and torchvision's should when most of their parameters are in 2-D convolutions, which run faster so. Another
    one is taken as it came: it may `view` its feature maps in a way that only works in one of the two formats.
    """
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    if type(network).__module__.partition(".")[0] not in ("timm", "torchvision"):
        return any(not w.is_contiguous() and w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    return sum(w.numel() for w in weights) * 2 > sum(parameter.numel() for parameter in network.parameters())
