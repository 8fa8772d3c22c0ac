"""Open a network by name, with the weights and the preprocessing that belong to it.

The only room that knows what timm and torchvision offer. A bare name is timm's, `torchvision/...` is torchvision's (35
names exist in both, with different weights); a tag after the dot picks the weights: `resnet18.a1_in1k`,
`torchvision/mobilenet_v2.IMAGENET1K_V2`. What comes out is an `Opened`: network, head, preprocessing, and the plain
values from which the same architecture can be built again.
"""

from pathlib import Path
from typing import Any

import timm
import torchvision
from timm.data import resolve_model_data_config
from timm.models import get_deprecated_models
from torch import nn

from headstart.data.preprocessing import Preprocessing
from headstart.errors import BackboneError, CheckpointError, listing, nearest
from headstart.files import as_path
from headstart.model.head import Factory, Head, last_layer
from headstart.model.opened import Opened, drop_auxiliary, put_head, rehearse, renew, timm_head, weights_words
from headstart.model.own import open_own
from headstart.model.weights import fetch, load_backbone, telling_failures, timm_source


def open_network(
    model: str | nn.Module,
    classes: int,
    *,
    pretrained: bool | str | Path = True,
    head: Head | nn.Module | Factory | None = None,
    image_size: int | None = None,
) -> Opened:
    """Open a network and give it a new head.

    Args:
        model: a timm name, a torchvision name, or a network of the user's own.
        classes: outputs of the head.
        pretrained: True downloads the weights that the name stands for, False starts from random ones, a path loads a
            file of the original architecture. The user's own network keeps its values unless a file is given.
        head: what replaces the classifier; None is one new linear layer (the user's own network keeps its head).
        image_size: height and width of the input, in pixels, if not what the weights expect.

    Raises:
        BackboneError: an unknown name, weights that cannot be had or do not fit, an image size the network cannot take.
        CheckpointError: the file of weights cannot be read.
    """
    if not isinstance(pretrained, bool):
        pretrained = as_path(pretrained)
    if isinstance(pretrained, Path) and not pretrained.is_file():
        raise BackboneError(
            f"pretrained={str(pretrained)!r}, which is no file",
            "True, False, or the path of a file of weights (.pth, .safetensors)",
            "Check the path. pretrained=True downloads the library's weights.",
        )
    if isinstance(model, nn.Module):
        return open_own(model, classes, pretrained if isinstance(pretrained, Path) else None, head, image_size)
    library, name, tag = parse_name(model)
    opener = _open_timm if library == "timm" else _open_torchvision
    opened = opener(name, tag, classes, pretrained, head, image_size)
    rehearse(opened, classes, image_size, head)
    return opened


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


# timm


def _open_timm(
    name: str,
    tag: str,
    classes: int,
    pretrained: bool | Path,
    head: Head | nn.Module | Factory | None,
    image_size: int | None,
) -> Opened:
    full = f"{name}.{tag}" if tag else name
    config = timm.get_pretrained_cfg(full)
    wanted = image_size is not None and config is not None and tuple(config.input_size[1:]) != (image_size,) * 2
    if config is not None and wanted and config.fixed_input_size:
        raise BackboneError(
            f"image_size={image_size} for {full}",
            f"image_size={config.input_size[1]}: this network takes no other",
            "Leave image_size out, or choose a network that takes any size, such as a ResNet or a ConvNeXt.",
        )
    options: dict[str, Any] = {"num_classes": classes}
    if pretrained is True:
        options |= timm_source(full, config)
    with telling_failures(full):
        network = timm.create_model(full, pretrained=pretrained is True, **options)
    paths = timm_head(network, full)
    data_config = resolve_model_data_config(network, {"img_size": image_size} if image_size else None)
    if head is not None:
        paths = put_head(network, paths, head, classes)
    else:
        renew(network, paths, classes)
    if isinstance(pretrained, Path):
        load_backbone(network, paths, pretrained, f"timm {name}")
    used = network.pretrained_cfg.get("tag") or "no tag"
    return Opened(
        network,
        paths,
        Preprocessing.from_timm(data_config),
        {"library": "timm", "name": full, "classes": classes, "head": _head_values(head), "image_size": image_size},
        f"timm {name} ({weights_words(pretrained, used)})",
    )


# torchvision


def _open_torchvision(
    name: str,
    tag: str,
    classes: int,
    pretrained: bool | Path,
    head: Head | nn.Module | Factory | None,
    image_size: int | None,
) -> Opened:
    weights = torchvision.models.get_model_weights(name)[tag or "DEFAULT"]
    if weights.meta["categories"] is None:
        raise BackboneError(
            f"torchvision/{name}.{weights.name}, whose classifier was never trained",
            "weights of a whole network",
            "Leave the tag out: the name alone takes the usual weights.",
        )
    path = fetch(weights.url, f"torchvision/{name}") if pretrained is True else pretrained
    network = torchvision.models.get_model(name, weights=None, **_implied(name, weights, fresh=path is False))
    drop_auxiliary(network)
    paths = put_head(network, last_layer(network), Head() if head is None else head, classes)
    if isinstance(path, Path):
        load_backbone(network, paths, path, f"torchvision {name}")
    preprocessing = Preprocessing.from_torchvision(weights.transforms())
    return Opened(
        network,
        paths,
        preprocessing.at_size(image_size) if image_size else preprocessing,
        {
            "library": "torchvision",
            "name": f"{name}.{weights.name}",
            "classes": classes,
            "head": _head_values(head),
            "image_size": image_size,
        },
        f"torchvision {name} ({weights_words(pretrained, weights.name)})",
    )


def _implied(name: str, weights: Any, *, fresh: bool) -> dict[str, Any]:
    """Give the constructor arguments that torchvision derives from weights, for building without them.

    Args:
        name: of the architecture.
        weights: torchvision's enum member.
        fresh: whether the first values matter; where they will be replaced, the slow ways to choose them are left out.
    """
    arguments: dict[str, Any] = {"num_classes": len(weights.meta["categories"])}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"transform_input": True, "aux_logits": False, "init_weights": fresh}
    if name.startswith("vgg"):
        arguments["init_weights"] = fresh
    if name.startswith("vit_"):
        arguments["image_size"] = weights.meta["min_size"][0]
    return arguments


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


def _head_values(head: Head | nn.Module | Factory | None) -> dict[str, Any] | str | None:
    if isinstance(head, Head):
        return {"hidden": list(head.hidden), "dropout": head.dropout, "init": head.init, "at": head.at}
    return None if head is None else "own"
