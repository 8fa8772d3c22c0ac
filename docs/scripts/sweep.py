"""Open every architecture of timm and torchvision, and look whether all that headstart says of a network holds for it.

On torch's meta device: all modules, all shapes and all of a forward pass, but no values, and so neither downloads nor
memory for them. `backbones.py` makes a page of what comes out, `tests/model/test_every_network.py` demands that it is
as it should be.
"""

import functools
import itertools
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import timm
import torch
import torchvision
from torch import nn
from torchvision.models.regnet import BlockParams

from headstart.data.preprocessing import Preprocessing
from headstart.errors import BackboneError
from headstart.model import zoo
from headstart.model.backbone import Backbone
from headstart.model.head import Head
from headstart.model.opened import Opened, is_within, put_head

CLASSES = 7
PROCESSES = 2


class Row(NamedTuple):
    """What was found out about one architecture.

    Args:
        name: as `Learner` takes it.
        library: `"timm"` or `"torchvision"`.
        family: the library's module that it is written in.
        refusal: why it is not opened, or None.
        problems: what is not as it should be.
        head: paths of the modules that make up the head.
        kinds: the classes of these modules.
        layers: the classes of the layers that give classes, with their modules, as the library makes them.
        stages: names, in order.
        turned: a stage, and one behind it that begins to run before it; empty where there is none.
        parameters: how many numbers the stages hold.
        preprocessing: what the usual weights expect of a picture.
        fixed: whether timm's configuration says that the network takes pictures of one size alone.
    """

    name: str
    library: str
    family: str
    refusal: str | None = None
    problems: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()
    parameters: int = 0
    preprocessing: Preprocessing | None = None
    fixed: bool = False


# All of them


def names() -> list[str]:
    """Give every architecture, as the libraries themselves list them."""
    return [*timm.list_models(), *(f"torchvision/{name}" for name in torchvision_names())]


def torchvision_names() -> list[str]:
    """Give torchvision's networks for classification."""
    return torchvision.models.list_models(module=torchvision.models)


@functools.cache
def families() -> dict[str, tuple[str, str]]:
    """Give for every architecture its library and its family."""
    found = {name: ("timm", module) for module in timm.list_modules() for name in timm.list_models(module=module)}
    for name in torchvision_names():
        module = torchvision.models.get_model_builder(name).__module__
        found[f"torchvision/{name}"] = ("torchvision", module.rpartition(".")[2])
    return found


def sweep(names: Sequence[str]) -> Iterator[Row]:
    """Examine architectures in a few processes, and give their rows in the order of the names."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(examine, names)


# One of them


class Seen(NamedTuple):
    """A network while it is looked at.

    Args:
        opened: what `open_network` gave.
        backbone: made of it.
        old: by path, the layers that give classes as the library made them.
        began: places of the stages in the order in which they began to run.
    """

    opened: Opened
    backbone: Backbone
    old: dict[str, nn.Module]
    began: list[int]


def examine(name: str) -> Row:
    """Open an architecture and check all that should hold for it; whatever goes wrong becomes part of its row."""
    row = Row(name, *families()[name])
    with torch.device("meta"), regnets_reckoned():
        try:
            with old_layers_noted() as old:
                opened = zoo.open_network(name, CLASSES, pretrained=False)
            seen = Seen(opened, Backbone(opened), old, [])
        except BackboneError as error:
            return row._replace(refusal=error.arrived)
        except Exception as error:
            return row._replace(problems=(repr(error),))
        row = described(row, seen)
        note_beginnings(seen)
        found = tuple(problem for check in CHECKS for problem in problems(check, seen))
        return row._replace(problems=found, turned=turned(row.stages, seen.began))


@contextmanager
def regnets_reckoned() -> Iterator[None]:
    """Let torchvision's RegNets work out their widths, which they do with tensors, where tensors have values."""
    real = BlockParams.from_init_params

    def reckoned(*arguments: Any, **options: Any) -> BlockParams:
        with torch.device("cpu"):
            return real(*arguments, **options)

    with patch.object(BlockParams, "from_init_params", reckoned):
        yield


@contextmanager
def old_layers_noted() -> Iterator[dict[str, nn.Module]]:
    """Note the layers that give classes before headstart puts new ones in their places."""
    real = zoo.finish_head
    noted: dict[str, nn.Module] = {}

    def finish_head(network: nn.Module, paths: tuple[str, ...], layers: tuple[str, ...], *rest: Any) -> tuple[str, ...]:
        noted.update((path, network.get_submodule(path)) for path in layers)
        return real(network, paths, layers, *rest)

    with patch.object(zoo, "finish_head", finish_head):
        yield noted


def described(row: Row, seen: Seen) -> Row:
    """Fill in what a network shows without running."""
    network, stages = seen.opened.network, seen.backbone.stages
    return row._replace(
        head=seen.opened.head,
        kinds=tuple(type(network.get_submodule(path)).__name__ for path in seen.opened.head),
        layers=tuple(f"{type(layer).__module__}.{type(layer).__name__}" for layer in seen.old.values()),
        stages=tuple(stage.name for stage in stages),
        parameters=sum(parameter.numel() for stage in stages for parameter in stage.parameters),
        preprocessing=seen.opened.preprocessing,
        fixed=bool(getattr(network, "pretrained_cfg", {}).get("fixed_input_size")),
    )


def note_beginnings(seen: Seen) -> None:
    """Let each stage note when it begins to run: when a module that holds some of its parameters is called."""
    owner = {id(p): place for place, stage in enumerate(seen.backbone.stages) for p in stage.parameters}

    def note(place: int) -> None:
        if place not in seen.began:
            seen.began.append(place)

    for module in seen.opened.network.modules():
        for place in {owner[id(p)] for p in module.parameters(recurse=False) if id(p) in owner}:
            module.register_forward_pre_hook(lambda *_, place=place: note(place))


def turned(stages: Sequence[str], began: Sequence[int]) -> tuple[str, ...]:
    """Give two stages of which the one behind began first, the two that stand farthest apart; nothing without such."""
    pairs = [(second, first) for first, second in itertools.combinations(began, 2) if second < first]
    farthest = max(pairs, key=lambda pair: pair[1] - pair[0], default=())
    return tuple(stages[place] for place in farthest)


# What should hold; the page shows the docstrings


def problems(check: Callable[[Seen], Iterator[str]], seen: Seen) -> list[str]:
    """Give what a check finds, each with the name of the check; one that fails has found something too."""
    try:
        found = list(check(seen))
    except Exception as error:
        found = [repr(error)]
    return [f"{check.__name__}: {problem}" for problem in found]


def every_parameter_has_one_place(seen: Seen) -> Iterator[str]:
    """Every parameter is in exactly one stage, or in the head; no stage is empty, and neither is the head."""
    parts = [*(stage.parameters for stage in seen.backbone.stages), seen.backbone.head]
    places = Counter(id(parameter) for part in parts for parameter in part)
    there = {id(parameter): path for path, parameter in seen.opened.network.named_parameters()}
    yield from (f"{path} is in {places[key]} places" for key, path in there.items() if places[key] != 1)
    if places.keys() - there.keys():
        yield f"{len(places.keys() - there.keys())} parameters that the network does not have"
    if len(parts) < 2 or not all(parts):
        yield f"{len(parts) - 1} stages with {[len(part) for part in parts]} parameters, the head's last"


def every_stage_is_named_after_a_module(seen: Seen) -> Iterator[str]:
    """Every stage has a name of its own, which is the path of a module."""
    stages = [stage.name for stage in seen.backbone.stages]
    modules = {path for path, _ in seen.opened.network.named_modules() if path}
    yield from (f"no module {name!r}" for name in stages if name not in modules)
    yield from (f"{count} stages {name!r}" for name, count in Counter(stages).items() if count > 1)


def every_stage_is_found(seen: Seen) -> Iterator[str]:
    """Training can start at every stage: by its name, by its index and by its index from the end."""
    count = len(seen.backbone.stages)
    for place, stage in enumerate(seen.backbone.stages):
        for way in (stage.name, place, place - count):
            if (found := seen.backbone.locate(way)) != place:
                yield f"{way!r} leads to stage {found} instead of {place}"


def the_network_gives_classes_in_training(seen: Seen) -> Iterator[str]:
    """In training the network gives one number for each class, for pictures of the size that its weights expect."""
    yield from misfits(seen.opened.network.train(), seen)


def the_head_alone_trains_where_all_stages_rest(seen: Seen) -> Iterator[str]:
    """With all stages frozen only the head's parameters train, and no norm outside the head follows statistics."""
    backbone = seen.backbone
    backbone.train_from(len(backbone.stages))
    backbone.train()
    heads = {id(parameter) for parameter in backbone.head}
    for path, parameter in seen.opened.network.named_parameters():
        if parameter.requires_grad is not (id(parameter) in heads):
            yield f"{path} trains: {parameter.requires_grad}"
    for path, module in seen.opened.network.named_modules():
        is_following = getattr(module, "running_mean", None) is not None and module.training
        if is_following and not any(is_within(path, head) for head in seen.opened.head):
            yield f"{path} follows statistics"


def everything_trains_again(seen: Seen) -> Iterator[str]:
    """Unfrozen again, every parameter trains."""
    seen.backbone.train_from(0)
    yield from (f"{path} is frozen" for path, p in seen.opened.network.named_parameters() if not p.requires_grad)


def the_classifier_keeps_its_form(seen: Seen) -> Iterator[str]:
    """The new layers that give the classes are plain `Linear` or `Conv2d` layers of the same form as the old ones."""
    if not seen.old:
        yield "no layer gives the classes"
    for path, old in seen.old.items():
        new = seen.opened.network.get_submodule(path)
        if type(new) not in (nn.Linear, nn.Conv2d) or new.extra_repr() != old.extra_repr():
            yield f"{path} was {old!r} and is {new!r}"


def another_head_fits(seen: Seen) -> Iterator[str]:
    """With `Head(hidden=..., dropout=...)` instead it gives one number for each class too, in evaluation."""
    put_head(seen.opened.network, seen.opened.head, tuple(seen.old), Head(hidden=(8,), dropout=0.1), CLASSES)
    yield from misfits(seen.opened.network.eval(), seen)


def misfits(network: nn.Module, seen: Seen) -> Iterator[str]:
    """Say what a network gives for two pictures if that is not one number for each class."""
    with torch.no_grad():
        given = network(torch.zeros(2, 3, *seen.opened.preprocessing.image_size))
    if not isinstance(given, torch.Tensor) or given.shape != (2, CLASSES):
        yield f"gives {list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__}"


# In this order: the last one changes the network.
CHECKS: tuple[Callable[[Seen], Iterator[str]], ...] = (
    every_parameter_has_one_place,
    every_stage_is_named_after_a_module,
    every_stage_is_found,
    the_network_gives_classes_in_training,
    the_head_alone_trains_where_all_stages_rest,
    everything_trains_again,
    the_classifier_keeps_its_form,
    another_head_fits,
)
