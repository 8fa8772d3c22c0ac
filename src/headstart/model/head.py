"""Heads: found in a network, built anew, put in place.

The head is what turns features into classes: timm's classifier (together with what its configuration names, since some
networks have several), elsewhere the last Linear or Conv2d layer. Everything else of a network is its backbone.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from torch import nn

from headstart.errors import BackboneError, ConfigError, Demands, is_count, is_number, listing, nearest

Factory = Callable[[int, int], nn.Module]
"""From (features, classes) to a head."""
Init = Literal["default", "zero", "small", "xavier"]
_INITS = ("default", "zero", "small", "xavier")
_Layer = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Head:
    """Describe a head: layers of width `hidden` with ReLU between them, dropout, and the layer that gives the classes.

    Without `hidden`, `dropout` and `at` the network keeps its own form of classifier, and only the layers that give the
    classes are new. Where a network has several classifiers, each of them gets this head.

    Args:
        hidden: widths of the layers before the last one; empty is the last one alone.
        dropout: share of the features that the last layer does not see in training, in [0, 1).
        init: of the last layer, whose bias starts at zero, or at one where a ReLU follows, as in SqueezeNet.
            `"default"` and `"zero"` begin with equal probabilities, whatever the features, as ViT does for fine-tuning
            (Dosovitskiy et al., 2021, section 3.2), but for what `reuse` says; `"small"` draws weights of 0.01;
            `"xavier"` follows Glorot and Bengio (2010).
        reuse: what the new head takes over of the old one: `"auto"` starts each class that the weights know by the same
            name as they have learned it, a mapping such as `{"hotdog": "hotdog, hot dog, red hot"}` names a class of
            the weights for some of yours, None takes nothing. The other classes all begin alike, at the same scale,
            or as another `init` than `"default"` says.
        at: path of the module that the head replaces, when it is not the last linear layer.
        source_classes: names of the weights' classes in their order, or a text file with a name on each line; needed
            for `reuse` where the library does not know them, as for weights of your own.

    Raises:
        ConfigError: a width is below 1, dropout is 1 or more, the init is unknown, `reuse` is neither "auto" nor a
            mapping, or is asked for a head with hidden layers, which the weights know nothing of, or there are
            `source_classes` without it.

    Example:
        >>> Head(hidden=(256, 120), dropout=0.2).build(512, 2)
        Sequential(
          (0): Linear(in_features=512, out_features=256, bias=True)
          (1): ReLU(inplace=True)
          (2): Linear(in_features=256, out_features=120, bias=True)
          (3): ReLU(inplace=True)
          (4): Dropout(p=0.2, inplace=False)
          (5): Linear(in_features=120, out_features=2, bias=True)
        )
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    init: Init = "default"
    reuse: Literal["auto"] | Mapping[str, str] | None = None
    at: str | None = None
    source_classes: Sequence[str] | str | Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        demands = Demands("For example Head(hidden=(256,), dropout=0.2), or Head(reuse='auto').")
        widths = isinstance(self.hidden, Sequence) and all(map(is_count, self.hidden))
        demands.check("hidden", self.hidden, widths, "a tuple of widths, each 1 or more")
        demands.check("dropout", self.dropout, is_number(self.dropout) and 0 <= self.dropout < 1, "a share in [0, 1)")
        demands.check("init", self.init, self.init in _INITS, f"one of {', '.join(_INITS)}")
        self._check_reuse(demands)
        demands.settle()
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def _check_reuse(self, demands: Demands) -> None:
        reuse, names = self.reuse, self.source_classes
        pairs = isinstance(reuse, Mapping) and all(isinstance(name, str) for pair in reuse.items() for name in pair)
        asked = reuse in (None, "auto") or (pairs and len(reuse) > 0)
        demands.check("reuse", reuse, asked, "'auto', a mapping from your names to the weights', or None")
        listed = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
        told = names is None or listed or isinstance(names, Path)
        shown = listing(names, 3) if isinstance(names, Sequence) and not isinstance(names, str) else names
        demands.check("source_classes", shown, told, "a list of names, or the path of a text file")
        demands.check("source_classes", shown, names is None or reuse is not None, "None without reuse")
        demands.check(
            "hidden", self.hidden, not (self.hidden and reuse), "() with reuse: the old head has other layers"
        )

    def __repr__(self) -> str:
        """Show what is not as usual, and of long lists the beginning."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.repr}
        usual = {field.name: field.default for field in fields(self)}
        told = [f"{name}={value!r}" for name, value in values.items() if value != usual[name]]
        if isinstance(self.source_classes, Sequence) and not isinstance(self.source_classes, str):
            told.append(f"source_classes=[{listing(map(repr, self.source_classes), 3)}]")
        elif self.source_classes is not None:
            told.append(f"source_classes={str(self.source_classes)!r}")
        return f"Head({', '.join(told)})"

    @property
    def is_plain(self) -> bool:
        """Whether the network keeps its own form of classifier, and only the layers that give classes are new."""
        return not self.hidden and not self.dropout and self.at is None

    def build(self, features: int, classes: int, *, convolutional: bool = False) -> nn.Module:
        """Make the head for a backbone that gives `features`; of 1 x 1 convolutions where it gives feature maps."""

        def layer(width: int, out: int) -> nn.Module:
            return nn.Conv2d(width, out, kernel_size=1) if convolutional else nn.Linear(width, out)

        widths = (features, *self.hidden)
        steps: list[nn.Module] = []
        for width, out in zip(widths, self.hidden, strict=False):
            steps += [layer(width, out), nn.ReLU(inplace=True)]
        if self.dropout:
            steps.append(nn.Dropout2d(self.dropout) if convolutional else nn.Dropout(self.dropout))
        steps.append(layer(widths[-1], classes))
        initialise(steps[-1], self.init)
        return steps[0] if len(steps) == 1 else nn.Sequential(*steps)


HeadLike = Head | nn.Module | Factory | tuple[int, ...] | int | None
"""What `Learner(head=...)` takes: a Head, hidden widths, a module, a factory (features, classes) -> module, or None."""


def as_head(head: HeadLike) -> Head | nn.Module | Factory | None:
    """Spell out the shorthands: 256 and (256, 120) are the widths of hidden layers.

    Raises:
        ConfigError: it is none of the things a head can be.
    """
    if head is None or isinstance(head, Head | nn.Module):
        return head
    if isinstance(head, tuple | list):
        return Head(hidden=tuple(head))
    if isinstance(head, int) and not isinstance(head, bool):
        return Head(hidden=(head,))
    if callable(head) and not _is_head_class(head) and _takes_two(head):
        return head
    raise ConfigError(
        f"head={head!r}",
        "a Head, hidden widths (256 or (256, 120)), a module, a function (features, classes) -> module, or None",
        "For example head=Head(), or head=Head(hidden=(256,), dropout=0.2).",
    )


def _takes_two(function: Callable[..., object]) -> bool:
    """Say whether a function can be called with features and classes, as far as Python knows."""
    try:
        inspect.signature(function).bind(1, 1)
    except TypeError:
        return False
    except ValueError:  # of some functions that are not written in Python nobody knows
        return True
    return True


def _is_head_class(head: object) -> bool:
    return isinstance(head, type) and issubclass(head, Head)


def initialise(layer: nn.Module, init: Init = "default") -> None:
    """Give a layer that makes classes new values."""
    if not isinstance(layer, _Layer):
        return
    if init == "small":
        nn.init.normal_(layer.weight, std=0.01)
    elif init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def last_layer(network: nn.Module) -> tuple[str, ...]:
    """Give the path of the last Linear or Conv2d layer, or nothing where there is none."""
    return tuple(name for name, module in network.named_modules() if isinstance(module, _Layer))[-1:]


def class_layers(network: nn.Module, paths: Sequence[str], classes: int) -> tuple[str, ...]:
    """Give the paths of the layers inside the modules at `paths` that give as many numbers as there are classes."""
    inside = [
        ".".join(filter(None, (path, name)))
        for path in paths
        for name, module in network.get_submodule(path).named_modules()
        if isinstance(module, _Layer)
    ]
    return tuple(path for path in inside if width(network, path) == classes)


def width(network: nn.Module, path: str) -> int | None:
    """Give the number of outputs of the module at `path`, or of its last layer; None when neither says."""
    module = network.get_submodule(path)
    layers = [module, *(inner for inner in module.modules() if isinstance(inner, _Layer))]
    told = [getattr(layer, "out_features", getattr(layer, "out_channels", None)) for layer in layers]
    return told[0] or told[-1]


def replace_head(network: nn.Module, path: str, head: Head | nn.Module | Factory, classes: int) -> None:
    """Put a new head where the old one is.

    Args:
        network: is changed.
        path: of the module that is replaced.
        head: a description, a finished module, or a function that makes one.
        classes: outputs of the new head.

    Raises:
        BackboneError: the old head does not tell how many features it gets, or the new one does not give `classes`.
        ConfigError: a function made something else than a module.
    """
    old = network.get_submodule(path)
    if isinstance(head, Head) and not (head.hidden or head.dropout) and isinstance(old, _Layer):
        new = _alike(old, classes)
        initialise(new, head.init)
    else:
        new = head if isinstance(head, nn.Module) else _built(head, old, path, classes)
    demand_width(new, classes)
    if new is head:
        demand_features(new, old, path)
    if isinstance(head, Head) and _is_rectified(network, path):
        last = [layer for layer in new.modules() if isinstance(layer, _Layer)][-1]
        if last.bias is not None:
            nn.init.ones_(last.bias)  # at zero a ReLU has no gradient, and the head would never learn
    if (there := next(old.parameters(), None)) is not None:
        new.to(there.device)
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, new)


def _is_rectified(network: nn.Module, path: str) -> bool:
    """Say whether a ReLU follows a module in its Sequential."""
    parent, _, name = path.rpartition(".")
    siblings = dict(network.get_submodule(parent).named_children())
    following = list(siblings.values())[list(siblings).index(name) + 1 :]
    return isinstance(network.get_submodule(parent), nn.Sequential) and isinstance(next(iter(following), None), nn.ReLU)


def _alike(old: nn.Linear | nn.Conv2d, classes: int) -> nn.Module:
    """Make a layer of the same form for another number of classes."""
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, classes, bias)
    return nn.Conv2d(old.in_channels, classes, old.kernel_size, old.stride, old.padding, old.dilation, bias=bias)  # type: ignore[arg-type]


def _built(head: Head | Factory, old: nn.Module, path: str, classes: int) -> nn.Module:
    """Make a head that gets what the module at `path` got."""
    inner = [old, *(module for module in old.modules() if isinstance(module, _Layer))]
    told = [getattr(module, "in_features", getattr(module, "in_channels", None)) for module in inner]
    features = next((count for count in told if count is not None), None)
    if features is None:
        raise BackboneError(
            f"{path!r}, a {type(old).__name__} that does not say how many features it gets",
            "a Linear or Conv2d layer, or a module that begins with one",
            "Pass a finished module instead: head=nn.Sequential(...).",
        )
    if isinstance(head, Head):
        return head.build(features, classes, convolutional=isinstance(old, nn.Conv2d))
    new = head(features, classes)
    if not isinstance(new, nn.Module):
        raise ConfigError(
            f"a head factory that gives {type(new).__name__}",
            "a function of (features, classes) that returns a module",
            "For example head=lambda features, classes: nn.Linear(features, classes).",
        )
    return new


def demand_width(head: nn.Module, classes: int) -> None:
    """Refuse a head whose last layer gives another number of classes."""
    if (outputs := width(head, "")) not in (classes, None):
        raise BackboneError(
            f"a head that gives {outputs} numbers",
            f"one number for each of the {classes} classes",
            f"Let its last layer have {classes} outputs, or pass a function: head=lambda features, classes: ...",
        )


def demand_features(head: nn.Module, old: nn.Module, path: str) -> None:
    """Refuse a layer, or a Sequential, as a head that begins with another number of features than there are."""
    first = head[0] if isinstance(head, nn.Sequential) and len(head) else head
    if not isinstance(first, _Layer) or not isinstance(old, _Layer):
        return
    kind = "feature maps with {} channels" if isinstance(old, nn.Conv2d) else "{} features"
    gets, takes = (layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features for layer in (old, first))
    is_lazy = takes == 0
    if not is_lazy and (takes != gets or (isinstance(old, nn.Conv2d) and isinstance(first, nn.Linear))):
        raise BackboneError(
            f"a head that begins with {first!r}",
            f"one that takes what {path!r} takes, {kind.format(gets)}",
            "Let a function make it for what there is: head=lambda features, classes: ...",
        )


def demand_module(network: nn.Module, path: str) -> None:
    """Raise a BackboneError unless `path` names a module inside the network."""
    names = [name for name, _ in network.named_modules() if name]
    if path not in names:
        raise BackboneError(
            f"the module path {path!r}",
            f"the path of a module of {type(network).__name__}",
            f"{nearest(path, names)}`[name for name, _ in network.named_modules()]` lists them all.",
        )
