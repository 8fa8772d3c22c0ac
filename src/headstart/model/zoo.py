"""Open a network by name, with the weights and the preprocessing that belong to it.

The only room that knows what timm and torchvision offer. A bare name is timm's, `torchvision/...` is torchvision's (35
names exist in both, with different weights); a tag after the dot picks the weights: `resnet18.a1_in1k`,
`torchvision/mobilenet_v2.IMAGENET1K_V2`. What comes out is an `Opened`: network, head, preprocessing, and the plain
values from which the same architecture can be built again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.data import resolve_model_data_config
from timm.models import get_deprecated_models
from torch import nn

from headstart.data.preprocessing import Preprocessing
from headstart.errors import BackboneError, CheckpointError, HeadstartError, listing, nearest
from headstart.files import as_path
from headstart.model.head import Factory, Head, class_layers, demand_features, demand_width, last_layer, width
from headstart.model.names import imagenet_classes, torchvision_classes
from headstart.model.opened import (
    Opened,
    Wish,
    drop_auxiliary,
    finish_head,
    plan,
    recipe,
    rehearse,
    timm_head,
    weights_words,
)
from headstart.model.own import open_own
from headstart.model.weights import fetch, load_backbone, telling_failures, timm_source


def open_network(
    model: str | nn.Module,
    classes: int | Sequence[str],
    *,
    pretrained: bool | str | Path = True,
    head: Head | nn.Module | Factory | None = None,
    image_size: int | None = None,
) -> Opened:
    """Open a network and give it a new head.

    Args:
        model: a timm name, a torchvision name, or a network of the user's own.
        classes: outputs of the head; or the names of the classes, which a head that reuses some has to know.
        pretrained: True downloads the weights that the name stands for, False starts from random ones, a path loads a
            file of the original architecture. The user's own network keeps its values unless a file is given.
        head: what replaces the classifier; None is the same form of classifier with new values (the user's own network
            keeps its head).
        image_size: height and width of the input, in pixels, if not what the weights expect.

    Raises:
        BackboneError: an unknown name, weights that cannot be had or do not fit, an image size the network cannot take.
        CheckpointError: the file of weights cannot be read.
        ConfigError: a head that reuses classes of weights which nobody has named.
    """
    if not isinstance(pretrained, bool):
        pretrained = as_path(pretrained)
    if isinstance(pretrained, Path) and not pretrained.is_file():
        raise BackboneError(
            f"pretrained={str(pretrained)!r}, which is no file",
            "True, False, or the path of a file of weights (.pth, .safetensors)",
            "Check the path. pretrained=True downloads the library's weights.",
        )
    names = () if isinstance(classes, int) else tuple(classes)
    wish = Wish(classes if isinstance(classes, int) else len(names), names, pretrained, head, image_size)
    if isinstance(head, nn.Module):
        demand_width(head, wish.classes)
    if isinstance(model, nn.Module):
        return open_own(model, wish)
    library, name, tag = parse_name(model)
    opener = _open_timm if library == "timm" else _open_torchvision
    foreseen = pretrained is True and _works_without_values(opener, name, tag, wish)
    opened = opener(name, tag, wish)
    if not foreseen:
        rehearse(opened, wish)
    return opened


def _works_without_values(opener: Callable[[str, str, Wish], Opened], name: str, tag: str, wish: Wish) -> bool:
    """Try a wish on a network without values, so that what cannot work is told before anything is downloaded.

    Only code of the libraries runs here: a module of the user's is compared with the place where it shall stand.

    Returns:
        Whether it works; False where nobody can tell, for some code needs values.
    """
    own = None if wish.head is None or isinstance(wish.head, Head) else wish.head
    plain = replace(wish.head, reuse=None, source_classes=None) if isinstance(wish.head, Head) else None
    tried = wish._replace(pretrained=False, head=plain)
    try:
        with torch.device("meta"):
            opened = opener(name, tag, tried)
    except HeadstartError as error:
        if error.__cause__ is None:
            raise
        return False
    except Exception:  # code that builds a network may look at values
        return False
    if isinstance(own, nn.Module):
        for path in class_layers(opened.network, opened.head, wish.classes):
            demand_features(own, opened.network.get_submodule(path), path)
    try:
        with torch.device("meta"):
            rehearse(opened, tried)
    except BackboneError as error:
        if isinstance(error.__cause__, NotImplementedError) or "meta" in str(error.__cause__):
            return False
        raise
    return own is None


def parse_name(model: str) -> tuple[str, str, str]:
    """Split a name into (library, architecture, tag); the tag may be empty.

    Raises:
        BackboneError: neither library has it; the nearest names are given.

    Example:
        >>> parse_name("resnet18.a1_in1k"), parse_name("torchvision/vgg16"), parse_name("mobilenet_v3_small")
        (('timm', 'resnet18', 'a1_in1k'), ('torchvision', 'vgg16', ''), ('torchvision', 'mobilenet_v3_small', ''))
    """
    prefix, _, rest = model.rpartition("/")
    if prefix in ("", "timm"):
        rest = get_deprecated_models().get(rest) or rest  # names that tutorials still use
    name, _, tag = rest.partition(".")
    if prefix in ("", "timm") and timm.is_model(name):
        return "timm", name, _timm_tag(name, tag)
    if prefix in ("", "torchvision") and name in _torchvision_names():
        return "torchvision", name, _torchvision_tag(name, tag)
    bare = _torchvision_names()
    meant = nearest(name, [*timm.list_models(), *bare])
    if prefix == "torchvision":
        meant = nearest(model, [f"torchvision/{known}" for known in bare])
    raise BackboneError(
        f"the model {model!r}",
        "a name that timm or torchvision knows, or a network of your own",
        f"{meant}`timm.list_models('*resnet*')` and `torchvision.models.list_models()` list them.",
    )


def _timm_tag(name: str, tag: str) -> str:
    tags = [known.partition(".")[2] for known in timm.list_models(f"{name}.*", pretrained=True)]
    _demand_tag(name, tag, tags)
    return tag


def _torchvision_tag(name: str, tag: str) -> str:
    _demand_tag(f"torchvision/{name}", tag, list(torchvision.models.get_model_weights(name).__members__))
    return tag


def _demand_tag(name: str, tag: str, tags: list[str]) -> None:
    if tag and tag not in tags:
        raise BackboneError(
            f"the tag {tag!r} of {name}",
            f"one of its tags: {listing(tags) or 'it has none'}",
            f"{nearest(tag, tags)}The name without a tag takes the usual weights.",
        )


def _torchvision_names() -> list[str]:
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def _recipe(library: str, call: str, network: nn.Module, layers: tuple[str, ...], wish: Wish) -> str:
    """Write how the library alone makes the network again; nothing where the head is code of the user's."""
    if wish.is_plain:
        return recipe(library, call, network, ())
    if not isinstance(wish.head, Head):
        return ""
    return recipe(library, call, network, layers if wish.head.at is None else (wish.head.at,))


def _description(library: str, name: str, wish: Wish) -> dict[str, Any]:
    """Give the plain values from which `rebuild` makes the network again."""
    head: dict[str, Any] | str | None = None if wish.is_plain else "own"
    if isinstance(wish.head, Head) and not wish.is_plain:
        head = {"hidden": list(wish.head.hidden), "dropout": wish.head.dropout, "at": wish.head.at}
    return {
        "library": library,
        "name": name,
        "classes": wish.classes,
        "head": head,
        "image_size": wish.image_size,
    }


# timm


def _open_timm(name: str, tag: str, wish: Wish) -> Opened:
    full = f"{name}.{tag}" if tag else name
    config = timm.get_pretrained_cfg(full)
    _demand_size(full, config, wish.image_size)
    known = getattr(config, "num_classes", 0)
    reuse = plan(wish, known, lambda: imagenet_classes(known))
    source = timm_source(full, config) if wish.pretrained is True else {}
    # The old head comes along where the new one takes over some of it.
    count = config.num_classes if reuse and wish.pretrained is True else wish.classes
    with telling_failures(full):
        network = timm.create_model(full, pretrained=wish.pretrained is True, num_classes=count, **source)
    paths = timm_head(network, full)
    layers = _timm_layers(network, paths, full, count)
    given = None
    if isinstance(wish.pretrained, Path):
        given = load_backbone(network, wish.replaced(layers), wish.pretrained, f"timm {name}")
    paths = finish_head(network, paths, layers, wish, reuse, given)
    size = {"img_size": wish.image_size} if wish.image_size else None
    used = network.pretrained_cfg.get("tag") or "no tag"
    return Opened(
        network,
        paths,
        Preprocessing.from_timm(resolve_model_data_config(network, size)),
        _description("timm", full, wish),
        f"timm {name} ({weights_words(wish.pretrained, used)})",
        reuse,
        _recipe("timm", f'timm.create_model("{full}", num_classes={wish.classes})', network, layers, wish),
    )


def _demand_size(full: str, config: Any, image_size: int | None) -> None:
    """Refuse another size for a network that has only one."""
    if config is None or image_size is None or not config.fixed_input_size:
        return
    if tuple(config.input_size[1:]) != (image_size, image_size):
        raise BackboneError(
            f"image_size={image_size} for {full}",
            f"image_size={config.input_size[1]}: this network takes no other",
            "Leave image_size out, or choose a network that takes any size, such as a ResNet or a ConvNeXt.",
        )


def _timm_layers(network: nn.Module, paths: tuple[str, ...], full: str, count: int) -> tuple[str, ...]:
    """Find the layers of a head that give classes, and leave out those that only happen to be as wide."""
    layers = class_layers(network, paths, count)
    if len(layers) > len(paths):
        with torch.device("meta"):
            wider = timm.create_model(full, num_classes=count + 1)
        layers = tuple(path for path in layers if width(wider, path) == count + 1)
    return layers


# torchvision


def _open_torchvision(name: str, tag: str, wish: Wish) -> Opened:
    weights = torchvision.models.get_model_weights(name)[tag or "DEFAULT"]
    if weights.meta["categories"] is None:
        raise BackboneError(
            f"torchvision/{name}.{weights.name}, whose classifier was never trained",
            "weights of a whole network",
            "Leave the tag out: the name alone takes the usual weights.",
        )
    reuse = plan(wish, len(weights.meta["categories"]), lambda: torchvision_classes(weights))
    path = fetch(weights.url, f"torchvision/{name}") if wish.pretrained is True else wish.pretrained
    arguments = _implied(name, weights, fresh=path is False)
    network = torchvision.models.get_model(name, weights=None, num_classes=wish.classes, **arguments)
    drop_auxiliary(network)
    layers = last_layer(network)
    given = None
    if isinstance(path, Path):
        given = load_backbone(network, wish.replaced(layers), path, f"torchvision {name}")
    paths = finish_head(network, layers, layers, wish, reuse, given)
    preprocessing = Preprocessing.from_torchvision(weights.transforms())
    return Opened(
        network,
        paths,
        preprocessing.at_size(wish.image_size) if wish.image_size else preprocessing,
        _description("torchvision", f"{name}.{weights.name}", wish),
        f"torchvision {name} ({weights_words(wish.pretrained, weights.name)})",
        reuse,
        _recipe("torchvision", _torchvision_call(name, weights, wish.classes), network, layers, wish),
    )


def _implied(name: str, weights: Any, *, fresh: bool) -> dict[str, Any]:
    """Give the constructor arguments that torchvision derives from weights, for building without them.

    Args:
        name: of the architecture.
        weights: torchvision's enum member.
        fresh: whether the first values matter; where they will be replaced, the slow ways to choose them are left out.
    """
    arguments: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        arguments = {"transform_input": True, "aux_logits": False, "init_weights": fresh}
    if name.startswith("vgg"):
        arguments = {"init_weights": fresh}
    if name.startswith("vit_"):
        arguments = {"image_size": weights.meta["min_size"][0]}
    return arguments


def _torchvision_call(name: str, weights: Any, classes: int) -> str:
    """Write the call that makes a network as its weights need it."""
    arguments = {"num_classes": classes, **_implied(name, weights, fresh=False)}
    return f'torchvision.models.get_model("{name}", {", ".join(f"{key}={value}" for key, value in arguments.items())})'


# built again


def rebuild(architecture: dict[str, Any]) -> Opened:
    """Build the network that `Opened.architecture` describes, with random weights.

    Raises:
        CheckpointError: the network or its head was the user's own and cannot be built from a description.
    """
    head = architecture.get("head")
    if not architecture or head == "own":
        raise CheckpointError(
            "a file whose network " + ("has a head" if architecture else "is") + " of the user's own making",
            "the code that made it",
            "Make a Learner of the same network or head, then call learner.load_weights(file).",
        )
    return open_network(
        f"{architecture['library']}/{architecture['name']}",
        architecture["classes"],
        pretrained=False,
        head=None if head is None else Head(**{**head, "hidden": tuple(head["hidden"])}),
        image_size=architecture["image_size"],
    )
