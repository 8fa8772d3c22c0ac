"""A network that has been opened, and what every way of opening one shares: its classifier, a new head, a rehearsal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import GoogLeNet, Inception3

from headstart.data.preprocessing import Preprocessing
from headstart.errors import BackboneError
from headstart.model.head import Factory, Head, demand_module, initialise, replace_head
from headstart.model.weights import AUXILIARY


@dataclass
class Opened:
    """A network ready to be fine-tuned.

    Args:
        network: in training mode, on the CPU.
        head: paths of the modules that make up the head.
        preprocessing: what the weights expect of a picture.
        architecture: plain values from which `rebuild` makes the same network again; empty for the user's own.
        description: one line for the user: what was opened, with which weights.
    """

    network: nn.Module
    head: tuple[str, ...]
    preprocessing: Preprocessing
    architecture: dict[str, Any] = field(default_factory=dict)
    description: str = ""

    @property
    def name(self) -> str:
        """The network's name, as messages use it."""
        return self.description.partition(" (")[0]


def timm_head(network: nn.Module, name: str) -> tuple[str, ...]:
    """Find all of a timm network's classifier: what `get_classifier` gives and what its configuration names."""
    named = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    paths = {named} if isinstance(named, str) else set(named)
    get_classifier: Callable[[], Any] | None = getattr(network, "get_classifier", None)
    if get_classifier is not None:
        given = get_classifier()
        members = {id(module) for module in (given if isinstance(given, tuple | list | nn.ModuleList) else (given,))}
        paths |= {path for path, module in network.named_modules() if id(module) in members}
    modules = dict(network.named_modules())
    holding = {path for path in paths if path in modules and any(True for _ in modules[path].parameters())}
    outermost = [
        path for path in modules if path in holding and not any(path.startswith(f"{other}.") for other in holding)
    ]
    if not outermost:
        raise BackboneError(
            f"{name}, an encoder without a classifier",
            "a network whose last layer gives one number for each class",
            "Choose another network, or wrap this one in a module of your own that ends in a Linear layer.",
        )
    return tuple(outermost)


def drop_auxiliary(network: nn.Module) -> None:
    """Take the side branches off GoogLeNet and Inception: in training they would answer beside the network itself."""
    if isinstance(network, GoogLeNet | Inception3):
        network.aux_logits = False
        for name in AUXILIARY:
            if hasattr(network, name):
                setattr(network, name, None)


def renew(network: nn.Module, paths: tuple[str, ...], classes: int) -> None:
    """Give every layer of the head that makes classes new values (timm keeps the old ones when the counts agree)."""
    for path in paths:
        for module in network.get_submodule(path).modules():
            if getattr(module, "out_features", getattr(module, "out_channels", None)) == classes:
                initialise(module, "default")


def put_head(
    network: nn.Module, paths: tuple[str, ...], head: Head | nn.Module | Factory, classes: int
) -> tuple[str, ...]:
    """Put a head in place of the one at `paths`; the head's own `at` wins. Other classifiers stay and become new."""
    if isinstance(head, Head) and head.at is not None:
        demand_module(network, head.at)
        others = tuple(path for path in paths if path != head.at) if head.at in paths else ()
        renew(network, others, classes)
        replace_head(network, head.at, head, classes)
        return (head.at, *others)
    if len(paths) > 1:
        raise BackboneError(
            f"head={head!r} for a network with {len(paths)} classifiers ({', '.join(paths)})",
            "head=None, which renews all of them",
            "Leave head= out, or name the one to replace: Head(at='...').",
        )
    replace_head(network, paths[0], head, classes)
    return paths


def rehearse(opened: Opened, classes: int, image_size: int | None, head: Head | nn.Module | Factory | None) -> None:
    """Where a size or a head was asked for, run the network once to see whether it works with it."""
    size_todo = "Leave image_size out, or take a multiple of 32 near the size the weights were trained with."
    head_todo = "Let the head take the features as they come, or name another place for it: Head(at='path.to.module')."
    asked = [("image_size", image_size, size_todo), ("head", head, head_todo)]
    given = [(f"{name}={value!r}", todo) for name, value, todo in asked if value is not None]
    if not given:
        return
    arrived, todo = f"{', '.join(words for words, _ in given)} for {opened.name}", " ".join(todo for _, todo in given)
    height, width = opened.preprocessing.image_size
    try:
        outputs = trial(opened.network, (height, width))
    except Exception as error:  # whatever a network makes of what it was not built for
        needed = "a size that this network takes, and a head that takes its features"
        raise BackboneError(f"{arrived}, which fails at {height} x {width} pixels: {error}", needed, todo) from error
    if tuple(outputs.shape) != (1, classes):
        shape = list(outputs.shape)
        raise BackboneError(
            f"{arrived}, which gives {shape} for one picture", f"{[1, classes]}: a number a class", todo
        )


def trial(network: nn.Module, size: tuple[int, int]) -> Any:
    """Give what a network says of one black picture, in evaluation, and leave all its modules in the mode they had."""
    modes = [(module, module.training) for module in network.modules()]
    place = next(network.parameters(), torch.zeros(0)).device
    network.eval()
    try:
        with torch.no_grad():
            return network(torch.zeros(1, 3, *size, device=place))
    finally:
        for module, training in modes:
            module.training = training


def weights_words(pretrained: bool | Path, tag: str) -> str:
    """Say in two or three words where the weights are from."""
    if isinstance(pretrained, Path):
        return f"weights from {pretrained.name}"
    return f"weights {tag}" if pretrained else "random weights"
