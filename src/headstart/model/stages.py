"""Stages: a backbone cut into named pieces, in order, every parameter in exactly one of them.

The rule needs nothing but the module tree, so it holds for timm, torchvision and networks of the user's own: take the
network's children, open those that hold most of it, fold what has only norms or loose tokens into a neighbour.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from headstart.errors import BackboneError, ConfigError, is_number, nearest

_BIG_SHARE = 0.5  # a unit with more of the parameters than this is opened, whatever it is
_BOX_SHARE = 0.04  # a container (Sequential, ModuleList, ModuleDict) is opened from this share on
_BOXES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# What makes noise in training, by the name of its class: many networks bring a DropPath of their own.
_NOISE = re.compile("Dropout|DropPath|DropBlock|StochasticDepth")
_DROPPING = (nn.MultiheadAttention, nn.RNNBase)  # with a dropout inside that is no module


@dataclass
class Stage:
    """A named piece of a backbone.

    Args:
        name: path of the module that it is called after.
        parameters: its parameters, each in no other stage.
        quiet: its modules that must not act as in training while it is frozen: norms with running statistics, dropout
            and its kin, spectral norms.
    """

    name: str
    parameters: list[nn.Parameter]
    quiet: list[nn.Module] = field(default_factory=list)

    @property
    def trainable(self) -> bool:
        """Whether any of its parameters trains."""
        return any(parameter.requires_grad for parameter in self.parameters)


@dataclass
class _Unit:
    path: str
    module: nn.Module
    parameters: list[nn.Parameter]


def find_stages(network: nn.Module, head: Iterable[nn.Parameter]) -> list[Stage]:
    """Cut the backbone of a network into stages.

    Args:
        network: left as it is.
        head: the parameters of the head, which belong to no stage.

    Returns:
        The stages in the order of the network; together they hold every parameter that is not the head's.

    Example:
        >>> import timm
        >>> network = timm.create_model("resnet18")
        >>> [stage.name for stage in find_stages(network, network.fc.parameters())]
        ['conv1', 'layer1', 'layer2', 'layer3', 'layer4']
    """
    taken = {id(parameter) for parameter in head}
    total = sum(parameter.numel() for parameter in network.parameters() if id(parameter) not in taken)
    if total == 0:
        return []
    units = _units("", network, taken)
    while (big := next((unit for unit in units if _opens(unit, units, total)), None)) is not None:
        place = units.index(big)
        inner = {id(parameter) for unit in units if unit is not big for parameter in unit.parameters}
        units[place : place + 1] = _units(big.path, big.module, taken | inner)
    stages, paths = _fold(units)
    _assign_quiet(network, stages, paths, taken)
    return stages


def _units(path: str, module: nn.Module, taken: set[int]) -> list[_Unit]:
    """Split a module into its own loose parameters (a unit with the module's own path) and its children."""
    seen = set(taken)
    units = []
    loose = _new(module.parameters(recurse=False), seen)
    if loose:
        units.append(_Unit(path, nn.Module(), loose))
    for name, child in module.named_children():
        parameters = _new(child.parameters(), seen)
        if parameters:
            units.append(_Unit(f"{path}.{name}" if path else name, child, parameters))
    return units


def _new(parameters: Iterable[nn.Parameter], seen: set[int]) -> list[nn.Parameter]:
    found = []
    for parameter in parameters:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found.append(parameter)
    return found


def _opens(unit: _Unit, units: Sequence[_Unit], total: int) -> bool:
    if not any(True for _ in unit.module.children()) or _is_numbered(unit, units):
        return False
    share = sum(parameter.numel() for parameter in unit.parameters) / total
    return share > _BIG_SHARE or (isinstance(unit.module, _BOXES) and share >= _BOX_SHARE)


def _is_numbered(unit: _Unit, units: Sequence[_Unit]) -> bool:
    """Say whether a sibling has the same name with another number, as in layer1, layer2 or blocks.0, blocks.1."""
    match = re.fullmatch(r"(.*?)\d+", unit.path)
    return match is not None and any(
        other is not unit and re.fullmatch(re.escape(match[1]) + r"\d+", other.path) for other in units
    )


def _fold(units: Sequence[_Unit]) -> tuple[list[Stage], dict[str, int]]:
    """Fold norm-only units into the stage before, loose parameters into the one after; map unit paths to stages."""
    stages: list[Stage] = []
    paths: dict[str, int] = {}
    waiting: list[nn.Parameter] = []
    for unit in units:
        is_loose = not any(True for _ in unit.module.children()) and type(unit.module) is nn.Module
        if is_loose:
            waiting += unit.parameters
        elif stages and all(parameter.ndim <= 1 for parameter in unit.parameters):
            stages[-1].parameters += unit.parameters
            paths[unit.path] = len(stages) - 1
        else:
            stages.append(Stage(unit.path, waiting + unit.parameters))
            paths[unit.path] = len(stages) - 1
            waiting = []
    if waiting and stages:
        stages[-1].parameters += waiting
    elif waiting:
        stages.append(Stage(units[-1].path, waiting))
    return stages, paths


def _assign_quiet(network: nn.Module, stages: Sequence[Stage], paths: dict[str, int], head: set[int]) -> None:
    """Give each stage the norms and dropouts that lie in it or between it and the next one.

    What comes after the last parameter of the backbone belongs to the head and is given to no stage.
    """
    modules = list(network.named_modules())
    owned = [any(id(parameter) not in head for parameter in module.parameters(recurse=False)) for _, module in modules]
    last = max((place for place, owns in enumerate(owned) if owns), default=-1)
    shared = {path for path in paths if _holds(network.get_submodule(path), head)}  # such as head.norm beside head.fc
    current = 0
    for place, (path, module) in enumerate(modules):
        unit = _unit_of(path, paths)
        current = current if unit is None else paths[unit]
        inside = place <= last or (unit is not None and unit not in shared)
        if _acts(module) and inside and not _holds(module, head):
            stages[current].quiet.append(module)


def _acts(module: nn.Module) -> bool:
    """Say whether a module does in training what it does not do in evaluation: follow statistics, or make noise."""
    if getattr(module, "running_mean", None) is not None or isinstance(module, _SpectralNorm):
        return True
    return bool(_NOISE.search(type(module).__name__)) or (
        isinstance(module, _DROPPING) and is_number(module.dropout) and module.dropout > 0
    )


def _holds(module: nn.Module, parameters: set[int]) -> bool:
    return any(id(parameter) in parameters for parameter in module.parameters())


def _unit_of(path: str, paths: dict[str, int]) -> str | None:
    """Give the path of the unit that holds the module at `path`."""
    while path:
        if path in paths:
            return path
        path = path.rpartition(".")[0]
    return None


def locate(from_layer: str | int | None, network: nn.Module, stages: Sequence[Stage]) -> int:
    """Find the first stage that trains when training starts at `from_layer`.

    Args:
        from_layer: name of a stage, path of any module, index of a stage (negative from the last one), or None for all.
        network: the network that the stages were cut from.
        stages: its stages, in order.

    Returns:
        An index in [0, len(stages)]; len(stages) means that only the head trains.

    Raises:
        BackboneError: no such layer; the nearest names are given.
        ConfigError: it is neither a name nor an index.
    """
    if from_layer is None:
        return 0
    names = [stage.name for stage in stages]
    if isinstance(from_layer, int) and not isinstance(from_layer, bool):
        if not -len(stages) <= from_layer < len(stages):
            raise BackboneError(
                f"from_layer={from_layer}",
                f"an index in [{-len(stages)}, {len(stages) - 1}], one for each stage",
                "`print(learner.layers)` lists the stages.",
            )
        return from_layer % len(stages)
    if not isinstance(from_layer, str):
        raise ConfigError(
            f"from_layer={from_layer!r}",
            "the name of a stage, the path of a module, an index, or None",
            "`print(learner.layers)` lists the stages.",
        )
    modules = [name for name, _ in network.named_modules()]
    if from_layer in names:
        return names.index(from_layer)
    if not from_layer or from_layer not in modules:
        raise BackboneError(
            f"from_layer={from_layer!r}",
            f"a stage ({', '.join(names)}) or the path of a module",
            f"{nearest(from_layer, [*names, *filter(None, modules)])}`print(learner.layers)` lists the stages.",
        )
    return _first_stage_from(from_layer, network, stages)


def _first_stage_from(path: str, network: nn.Module, stages: Sequence[Stage]) -> int:
    """Give the stage of the first parameter that is registered at or after the module at `path`."""
    owner = {id(parameter): place for place, stage in enumerate(stages) for parameter in stage.parameters}
    reached = False
    for name, module in network.named_modules():
        reached = reached or name == path
        if reached:
            for parameter in module.parameters(recurse=False):
                return owner.get(id(parameter), len(stages))
    return len(stages)
