"""Open a network of the user's own: it keeps its weights, and its head when that already answers for the classes."""

from pathlib import Path

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from headstart.data.preprocessing import Preprocessing
from headstart.errors import BackboneError, HeadstartError
from headstart.model.head import Factory, Head, class_layers, demand_module, last_layer, width
from headstart.model.names import imagenet_classes
from headstart.model.opened import (
    Opened,
    Wish,
    answer_to_black,
    drop_auxiliary,
    finish_head,
    plan,
    rehearse,
    timm_head,
    trial,
)
from headstart.model.reuse import Source
from headstart.model.weights import load_backbone


def open_own(network: nn.Module, wish: Wish) -> Opened:
    """Take a network as it is, unless its head has to change.

    Args:
        network: is changed where a head, or a file of weights, is given.
        wish: what is asked of it. Its `pretrained` may be a file to load into it, without the old head where a new one
            is given; else it keeps its values. No head keeps the old one. No image size is 224, or what its
            `pretrained_cfg` says.

    Raises:
        BackboneError: its head gives another number of classes, or cannot be found; or the weights do not fit.
        CheckpointError: the file of weights cannot be read.
        ConfigError: a head that reuses classes which nobody has named.
    """
    drop_auxiliary(network)
    config = getattr(network, "pretrained_cfg", None)
    if config:
        resolved = resolve_model_data_config(network, {"img_size": wish.image_size} if wish.image_size else None)
        preprocessing = Preprocessing.from_timm(resolved)
        words = "preprocessing as its pretrained_cfg says"
    else:
        preprocessing = Preprocessing().at_size(wish.image_size) if wish.image_size else Preprocessing()
        words = f"{preprocessing.image_size[0]} pixels, ImageNet's mean and std"
    paths = _head_of(network, wish.classes, wish.head, preprocessing.image_size)
    layers = _layers_of(network, paths)
    runs = wish.head is not None and _runs(network, preprocessing.image_size)
    count = width(network, layers[0]) or 0
    reuse = plan(wish._replace(pretrained=wish.pretrained or True), count, lambda: _known(network, count))
    given = None
    if isinstance(wish.pretrained, Path):
        left_out = () if wish.head is None else wish.replaced(layers)
        given = load_backbone(network, left_out, wish.pretrained, f"your {type(network).__name__}")
        words = f"weights from {wish.pretrained.name}, {words}"
    before = {path: network.get_submodule(path) for path in wish.replaced(layers)}
    try:
        if wish.head is not None:
            paths = finish_head(network, paths, layers, wish, reuse, given)
        opened = Opened(network, paths, preprocessing, {}, f"your {type(network).__name__} ({words})", reuse)
        if runs or (config and wish.image_size is not None):  # of any other network nobody knows what it takes
            rehearse(opened, wish)
        if runs and isinstance(wish.head, Head):
            _wake(network, paths, preprocessing.image_size)
    except HeadstartError:
        for path, module in reversed(before.items()):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, module)
        raise
    return opened


def _runs(network: nn.Module, size: tuple[int, int]) -> bool:
    """Say whether a network takes pictures of a size, before anything in it is changed."""
    try:
        trial(network, size)
    except Exception:  # it takes others, or is not meant to be run like this
        return False
    return True


def _wake(network: nn.Module, paths: tuple[str, ...], size: tuple[int, int]) -> None:
    """Begin a head's bias at one where at zero it would get no gradient, as in front of a ReLU in a `forward`."""
    modules = [module for path in paths for module in network.get_submodule(path).modules()]
    layers = [module for module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    bias = layers[-1].bias if layers else None
    if bias is None:
        return
    with torch.enable_grad():
        outputs = answer_to_black(network, size)
        (gradient,) = torch.autograd.grad(outputs[:, 0].sum(), bias, allow_unused=True)
    if gradient is not None and not gradient.any():
        nn.init.ones_(bias)


def _layers_of(network: nn.Module, paths: tuple[str, ...]) -> tuple[str, ...]:
    """Find the layers that give classes: in timm's composite heads they lie inside, elsewhere the last one does."""
    count = getattr(network, "num_classes", None)
    if isinstance(count, int) and (inside := class_layers(network, paths, count)):
        return inside
    return tuple(".".join((path, *filter(None, last_layer(network.get_submodule(path))))) for path in paths)


def _known(network: nn.Module, count: int) -> Source | None:
    """Give the names of the classes of a network from timm that still has its weights' own head."""
    config = getattr(network, "pretrained_cfg", None) or {}
    return imagenet_classes(count) if count == config.get("num_classes") else None


def _head_of(
    network: nn.Module, classes: int, head: Head | nn.Module | Factory | None, size: tuple[int, int]
) -> tuple[str, ...]:
    """Find the head: where the user says, where timm says, else the last layer or the one that is seen to answer."""
    if isinstance(head, Head) and head.at is not None:
        demand_module(network, head.at)
        return (head.at,)
    known_to_timm = getattr(network, "pretrained_cfg", None) and hasattr(network, "get_classifier")
    paths = timm_head(network, type(network).__name__) if known_to_timm else last_layer(network)
    outputs = [width(network, path) for path in paths]
    fits = bool(paths) and all(count in (classes, None) for count in outputs)
    if head is not None and not known_to_timm:
        seen = _answering(network, None, size)
        return (seen,) if seen else _demand_paths(network, paths)
    if head is None and not known_to_timm and not (fits and _is_alone(network, classes)):
        seen = _answering(network, classes, size)
        paths, fits = ((seen,), True) if seen else (paths, fits)
    _demand_paths(network, paths)
    if head is None and not fits:
        raise BackboneError(
            f"a {type(network).__name__} whose last layer {paths[0]!r} gives {outputs[0]} numbers, "
            f"for {classes} classes",
            "one number for each class, or word on what its head shall become",
            "Pass head=Head() to put a new linear layer where the network answers, head=Head(at='path.to.module') to "
            "put it elsewhere, or check the data's classes.",
        )
    return paths


def _demand_paths(network: nn.Module, paths: tuple[str, ...]) -> tuple[str, ...]:
    if not paths:
        raise BackboneError(
            f"a {type(network).__name__} without a Linear or Conv2d layer",
            "a network that ends in a layer which gives one number for each class",
            "Name the module that the head replaces: head=Head(at='path.to.module').",
        )
    return paths


def _is_alone(network: nn.Module, classes: int) -> bool:
    """Say whether no more than one layer could answer for the classes, so that nothing has to be tried."""
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return sum(width(layer, "") == classes for layer in layers) <= 1


def _answering(network: nn.Module, classes: int | None, size: tuple[int, int]) -> str | None:
    """Run a network once; give the last layer to act in it if it answers for the classes, None if it does not.

    Args:
        network: left as it is.
        classes: how many numbers the answer has; None is as many as it gives.
        size: height and width of the picture that it is asked about.
    """
    acted: list[tuple[str, int | None]] = []

    def watch(path: str) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, __: object, made: object) -> None:
            acted.append((path, made.shape[1] if isinstance(made, Tensor) and made.ndim > 1 else None))

        return network.get_submodule(path).register_forward_hook(note)

    holding = [path for path, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))]
    handles = [watch(path) for path in holding if path]
    try:
        outputs = trial(network, size)
    except Exception:  # it takes other pictures than these, and nobody knows which
        return None
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] != (classes or outputs.shape[1]):
        return None
    fitting = [path for path, count in reversed(acted) if count == outputs.shape[1]]
    layers = [path for path in fitting if isinstance(network.get_submodule(path), nn.Linear | nn.Conv2d)]
    return next(iter((*layers, *fitting, *(path for path, _ in reversed(acted)))), None)
