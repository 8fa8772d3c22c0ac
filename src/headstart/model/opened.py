"""A network that has been opened, and what every way of opening one shares: its classifier, a new head, a rehearsal."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3

from headstart.data.preprocessing import Preprocessing
from headstart.errors import BackboneError, ConfigError
from headstart.model.head import Factory, Head, demand_module, replace_head
from headstart.model.reuse import Reuse, Rows, Source, begin_as_known, demand_count, plan_reuse
from headstart.model.weights import AUXILIARY, classes_in, is_within

THIS_FILE = "this-file.safetensors"
"""What a recipe calls the file that it stands in."""


class Wish(NamedTuple):
    """What is asked of a network.

    Args:
        classes: outputs of the head.
        names: of the classes, in order; needed where the head reuses some.
        pretrained: True for the library's weights, False for random ones, or a file.
        head: what replaces the classifier.
        image_size: height and width of the input, in pixels.
    """

    classes: int
    names: tuple[str, ...]
    pretrained: bool | Path
    head: Head | nn.Module | Factory | None
    image_size: int | None

    @property
    def reusing(self) -> Head | None:
        """The head, where it takes over what the old one knows."""
        return self.head if isinstance(self.head, Head) and self.head.reuse is not None else None

    def replaced(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """Give the paths of what the head replaces: the layers that give classes, and its own place."""
        at = self.head.at if isinstance(self.head, Head) else None
        return layers if at is None else (*layers, at)

    @property
    def is_plain(self) -> bool:
        """Whether the network keeps its own form of classifier."""
        return self.head is None or (isinstance(self.head, Head) and self.head.is_plain)


@dataclass
class Opened:
    """A network ready to be fine-tuned.

    Args:
        network: in training mode, on the CPU.
        head: paths of the modules that make up the head.
        preprocessing: what the weights expect of a picture.
        architecture: plain values from which `rebuild` makes the same network again; empty for the user's own.
        description: one line for the user: what was opened, with which weights.
        reuse: which classes begin as the weights know them, where that was asked for.
        recipe: lines of code that make the same network without headstart and load a saved file into it.
    """

    network: nn.Module
    head: tuple[str, ...]
    preprocessing: Preprocessing
    architecture: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    reuse: Reuse | None = None
    recipe: str = ""

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


def plan(wish: Wish, count: int, known: Callable[[], Source | None]) -> Reuse | None:
    """Find out which classes begin as the weights know them, where that is asked for.

    Args:
        wish: with a head that may reuse the old one.
        count: how many classes the library's weights have, or the network's own head.
        known: gives their names.

    Raises:
        ConfigError: there are no weights, nobody knows their classes, or a name is not the data's.
        BackboneError: the weights have no classes, other ones than those that were named, or not one that is.
    """
    if wish.reusing is None:
        return None
    if wish.pretrained is False or not wish.names:
        raise ConfigError(
            f"head={wish.head!r} with " + ("random weights" if wish.names else "a count of classes"),
            "weights that have learned something to reuse, and the names of your classes",
            "Pass pretrained=True, or the path of a file; or leave reuse= out.",
        )
    if wish.pretrained is True and count == 0:
        raise BackboneError(
            f"head={wish.head!r} for weights without a classifier",
            "weights that were trained to tell classes apart",
            "Leave reuse= out, or choose another tag.",
        )
    own = classes_in(wish.pretrained) if isinstance(wish.pretrained, Path) else None
    reuse = plan_reuse(
        wish.reusing,
        wish.names,
        known() if own is None else Source(tuple((name,) for name in own), str(wish.pretrained)),
    )
    if wish.pretrained is True:
        demand_count(count, reuse)
    return reuse


def recipe(library: str, call: str, network: nn.Module, placed: Iterable[str]) -> str:
    """Write the code that makes a network without headstart and loads a saved file into it.

    Args:
        library: what to import.
        call: the expression that makes the network with the library's own head.
        network: as it is now.
        placed: paths of what a Head has put there.
    """
    modules = [(path, network.get_submodule(path)) for path in placed]
    return "\n".join(
        (
            f"import {library}",
            "from safetensors.torch import load_model",
            *(["from torch import nn"] if modules else []),
            f"network = {call}",
            *(f'network.set_submodule("{path}", {_code(module)})' for path, module in modules),
            f'load_model(network, "{THIS_FILE}")',
            "network.eval()",
        )
    )


def _code(module: nn.Module) -> str:
    """Write a head, which is a layer or a Sequential of layers, as code."""
    if isinstance(module, nn.Sequential):
        return f"nn.Sequential({', '.join(map(_code, module))})"
    return f"nn.{module!r}"


def drop_auxiliary(network: nn.Module) -> None:
    """Take the side branches off GoogLeNet and Inception: in training they would answer beside the network itself."""
    if isinstance(network, GoogLeNet | Inception3):
        network.aux_logits = False
        for name in AUXILIARY:
            if hasattr(network, name):
                setattr(network, name, None)


def put_head(
    network: nn.Module,
    paths: tuple[str, ...],
    layers: tuple[str, ...],
    head: Head | nn.Module | Factory,
    classes: int,
) -> tuple[str, ...]:
    """Put a head in place of the layers that give classes, or where the head itself says.

    Args:
        network: is changed.
        paths: of the modules that make up its present head.
        layers: of the layers in them that give classes.
        head: what comes in place of each of them.
        classes: outputs of the new head.

    Returns:
        The paths of the modules that make up the head now.

    Raises:
        BackboneError: the head does not fit, or there are several places for one finished module.
    """
    if isinstance(head, Head) and head.at is not None:
        return _put_head_at(network, paths, layers, head, head.at, classes)
    if len(layers) > 1 and isinstance(head, nn.Module):
        raise BackboneError(
            f"head={head!r} for a network with {len(layers)} classifiers ({', '.join(layers)})",
            "a Head, or a function (features, classes) -> module, which makes one for each",
            "Leave head= out, or pass such a function.",
        )
    for path in layers:
        replace_head(network, path, head, classes)
    return paths


def _put_head_at(
    network: nn.Module, paths: tuple[str, ...], layers: tuple[str, ...], head: Head, at: str, classes: int
) -> tuple[str, ...]:
    """Replace one module; classifiers beside it stay and become new."""
    demand_module(network, at)
    is_part = any(at.startswith(f"{path}.") for path in paths)
    beside = [path for path in paths if not is_within(path, at)]
    replace_head(network, at, head, classes)
    if not is_part and len(beside) == len(paths):
        return (at,)  # what seemed to be the head belongs to the backbone
    for path in layers:
        if not is_within(path, at):
            replace_head(network, path, Head(init=head.init), classes)
    return paths if is_part else (at, *beside)


def finish_head(
    network: nn.Module,
    paths: tuple[str, ...],
    layers: tuple[str, ...],
    wish: Wish,
    reuse: Reuse | None,
    given: Mapping[str, Tensor] | None = None,
) -> tuple[str, ...]:
    """Give a network the head that was asked for, begun with what the old one knew if that was asked for too.

    Args:
        network: is changed.
        paths: of the modules that make up its present head.
        layers: of the layers in them that give classes.
        wish: with the head.
        reuse: which class begins as which.
        given: what a file holds for those layers; None when the network itself does.

    Returns:
        The paths of the modules that make up the head now.

    Raises:
        BackboneError: the head does not fit, or there is nothing to reuse.
    """
    head = Head() if wish.head is None else wish.head
    state = network.state_dict() if given is None else given
    places = {path: wish.replaced((path,))[-1] for path in layers}
    old = {
        path: rows for path in layers if (rows := _rows_in(state, path) or _rows_in(state, places[path])) is not None
    }
    paths = put_head(network, paths, layers, head, wish.classes)
    if isinstance(getattr(network, "num_classes", None), int):
        network.num_classes = wish.classes  # type: ignore[assignment]
    if reuse is None or not isinstance(head, Head):
        return paths
    targets = {path: places[path] if is_within(path, places[path]) else path for path in old}
    if not any(is_within(target, path) for target in targets.values() for path in paths):
        raise BackboneError(
            f"head={head!r}, and weights that have no single layer of classes for its place",
            "weights whose classifier has the form of the library's own, without hidden layers",
            "Leave reuse= out, take other weights, or check at= if there is one.",
        )
    for path, rows in old.items():
        new = network.get_submodule(targets[path])
        last = [module for module in new.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        begin_as_known(last, rows, reuse, alike=head.init == "default")
    return paths


def _rows_in(state: Mapping[str, Tensor], path: str) -> Rows | None:
    """Find what a layer, or the only one of a head that stood in its place, has learned of its classes."""
    names = [name for name, value in state.items() if name.endswith(".weight") and value.ndim > 1]
    inside = [name for name in names if is_within(name, path)]
    if len(inside) != 1:
        return None
    return Rows(state[inside[0]], state.get(inside[0].removesuffix("weight") + "bias"))


def rehearse(opened: Opened, wish: Wish) -> None:
    """Where a size or a head was asked for, run the network once to see whether it works with it."""
    size_todo = "Leave image_size out for the size that the weights expect, or try a multiple of 32 near it."
    head_todo = "Let the head take the features as they come, or name another place for it: Head(at='path.to.module')."
    asked = [("image_size", wish.image_size, size_todo), ("head", wish.head, head_todo)]
    given = [(f"{name}={value!r}", todo) for name, value, todo in asked if value is not None]
    if wish.image_size is None and wish.is_plain:
        return
    arrived, todo = f"{', '.join(words for words, _ in given)} for {opened.name}", " ".join(todo for _, todo in given)
    height, width = opened.preprocessing.image_size
    try:
        outputs = trial(opened.network, (height, width))
    except Exception as error:  # whatever a network makes of what it was not built for
        needed = "a size that this network takes, and a head that takes its features"
        raise BackboneError(f"{arrived}, which fails at {height} x {width} pixels: {error}", needed, todo) from error
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != (1, wish.classes):
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise BackboneError(
            f"{arrived}, which gives {shape} for one picture", f"{[1, wish.classes]}: a number a class", todo
        )


def trial(network: nn.Module, size: tuple[int, int]) -> Any:
    """Give what a network says of one black picture, in evaluation, and leave all its modules in the mode they had."""
    with torch.no_grad():
        return answer_to_black(network, size)


def answer_to_black(network: nn.Module, size: tuple[int, int]) -> Any:
    """Do as `trial` does, with gradients where these are on."""
    modes = [(module, module.training) for module in network.modules()]
    place = next(network.parameters(), torch.zeros(0)).device
    network.eval()
    try:
        return network(torch.zeros(1, 3, *size, device=place))
    finally:
        for module, training in modes:
            module.training = training


def weights_words(pretrained: bool | Path, tag: str) -> str:
    """Say in two or three words where the weights are from."""
    if isinstance(pretrained, Path):
        return f"weights from {pretrained.name}"
    return f"weights {tag}" if pretrained else "random weights"
