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
        through: None, or the part of the network that `images` go through: then they are what its frozen beginning has
            made of the pictures, `[batch, ...]`.
    """

    images: Tensor
    targets: Tensor
    through: Callable[[Tensor], Any] | None = None

    def __len__(self) -> int:
        return self.images.shape[0]  # len(tensor) takes ten times as long


Preparer = Callable[[Pair | Batch], Batch]
"""From what a loader yields to a batch on the device; what is a batch already stays as it is."""


def preparer(
    device: torch.device,
    normalise: Callable[[Tensor], Tensor],
    *,
    memory_format: torch.memory_format,
    channels: int | None = None,
) -> Preparer:
    """Build the way of a pair from a loader to a batch on the device, without waiting for the device.

    Args:
        device: where batches go.
        normalise: from uint8 pictures to floats, on the device.
        memory_format: how they lie in memory there.
        channels: what the network takes, None where nobody knows; other pictures are refused with a DataError.
    """

    def prepare(pair: Pair | Batch) -> Batch:
        if isinstance(pair, Batch):
            return pair
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


def answer(network: Callable[[Tensor], Any], images: Tensor, classes: int) -> Tensor:
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


def choose_memory_format(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Choose how a network and its pictures should lie in memory on a device: channels last or contiguous.

    timm's and torchvision's lie channels last when most of their parameters are in 2-D convolutions, which run faster
    so. Another one is taken as it came: it may `view` its feature maps in a way that only works in one of the two. On a
    CPU no network lies channels last that torch could not train so.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    weights = [convolution.weight for convolution in convolutions]
    if device.type == "cpu" and any(writes_past_its_gradient(convolution) for convolution in convolutions):
        channels_last = False
    elif type(network).__module__.partition(".")[0] in ("timm", "torchvision"):
        parameters = sum(parameter.numel() for parameter in network.parameters())
        channels_last = sum(weight.numel() for weight in weights) * 2 > parameters
    else:
        turned = [weight for weight in weights if not weight.is_contiguous()]
        channels_last = any(weight.is_contiguous(memory_format=torch.channels_last) for weight in turned)
    return torch.channels_last if channels_last else torch.contiguous_format


def writes_past_its_gradient(convolution: nn.Conv2d) -> bool:
    """Say whether on a CPU the backward pass of a convolution that lies channels last writes where it may not.

    oneDNN's 1 x 1 convolutions with a stride reckon with at least as many input channels as fit into a vector: 16 with
    AVX-512, 8 with AVX2 (oneDNN issue 6035). The stems of RepVGG, MobileOne and FastViT have fewer.
    """
    strided = max(convolution.stride) > 1 and max(convolution.kernel_size) == 1
    return strided and convolution.groups == 1 and convolution.in_channels < 16
