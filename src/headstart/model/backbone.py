"""A network with its head and its stages, and what of it is frozen."""

import math
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from headstart.drawing import table
from headstart.errors import ConfigError, listing
from headstart.model.opened import Opened
from headstart.model.stages import Stage, find_stages, locate
from headstart.model.weights import forget_cached
from headstart.randomness import preserved

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_FEW = 1024  # words that are looked at as they are: sums of them would take longer
_OF_TORCH = frozenset(vars(nn.Module()))  # its mode, and dicts of parameters, hooks and the like
_LOOKING = threading.Lock()  # so that of several threads only one lets a network forget


@dataclass(frozen=True)
class Layer:
    """One row of `learner.layers`: a stage, or the head.

    Args:
        name: path of the module it is called after.
        parameters: how many numbers it holds.
        trainable: whether any of them trains.
        lr_scale: the factor on the base rate, as the last `fit` set it; 1 before.
    """

    name: str
    parameters: int
    trainable: bool
    lr_scale: float


class Layers(tuple[Layer, ...]):
    """The stages of a network in order, the head last; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        last = len(self) - 1
        # Each rounded by itself: side by side with a head's 10, a table's decimals would round 0.0625.
        scales = [f"{row.lr_scale:.4g}" for row in self]
        width = max(map(len, (*scales, "lr scale")))
        rows = [
            (
                "" if place == last else place,
                f"{row.name} (head)" if place == last else row.name,
                row.parameters,
                "yes" if row.trainable else "frozen",
                scales[place].rjust(width),
            )
            for place, row in enumerate(self)
        ]
        return table(("index", "stage", "parameters", "trains", "lr scale".rjust(width)), rows)

    __str__ = __repr__


class Backbone:
    """Know a network's head and stages, and freeze them.

    A frozen stage stays bit-identical: its parameters get no gradient, its norms keep their statistics, its dropout
    rests.

    Args:
        opened: the network and where its head is.
    """

    def __init__(self, opened: Opened) -> None:
        self.network = opened.network
        self.preprocessing = opened.preprocessing
        self.architecture = opened.architecture
        self.recipe = opened.recipe
        self.head_paths = opened.head
        modules = [self.network.get_submodule(path) for path in opened.head]
        self.head = list({id(p): p for module in modules for p in module.parameters()}.values())
        self.stages: list[Stage] = find_stages(self.network, self.head)
        self.lr_scales: list[float] = [1.0] * (len(self.stages) + 1)
        self._norms = [module for module in self.network.modules() if getattr(module, "running_mean", None) is not None]
        self._mixers = [module for module in self.network.modules() if _is_of_batches(module)]
        self._resting: list[nn.Module] = []
        self.moving: list[Tensor] = []
        self._versions: list[int] = []
        self.changes = 0  # of what is frozen
        self.refresh()

    def locate(self, from_layer: str | int | None) -> int:
        """Find the first stage that trains when training starts at `from_layer`; see `stages.locate`."""
        return locate(from_layer, self.network, self.stages)

    def train_from(self, boundary: int) -> list[nn.Parameter]:
        """Freeze the stages before `boundary`; train the others and the head.

        Returns:
            The parameters that were frozen and train now.
        """
        thawed = []
        for place, parameters in enumerate([*(stage.parameters for stage in self.stages), self.head]):
            for parameter in parameters:
                trains = place >= boundary and (parameter.is_floating_point() or parameter.is_complex())
                if trains and not parameter.requires_grad:
                    thawed.append(parameter)
                parameter.requires_grad_(trains)
                if not trains:
                    parameter.grad = None
        self.changes += 1
        self.refresh()
        return thawed

    @property
    def statistics(self) -> list[Tensor]:
        """The running statistics of all norms, with their counters, as they are."""
        return [buffer for norm in self._norms for buffer in norm.buffers(recurse=False)]

    @property
    def mixes_pictures(self) -> bool:
        """Whether what the network says of a picture depends on the others of its batch, as with norms in training."""
        return any(map(self.mixes, self._mixers))

    @staticmethod
    def mixes(module: nn.Module) -> bool:
        """Say whether a module looks at its batch as a whole, in the mode that it is in."""
        return _is_of_batches(module) and (module.training or module.running_var is None)

    @property
    def frozen(self) -> list[str]:
        """The names of the parameters that do not train."""
        return [name for name, parameter in self.network.named_parameters() if not parameter.requires_grad]

    @property
    def is_frozen_at_first(self) -> bool:
        """Whether the first stage is frozen."""
        return any(not stage.trainable for stage in self.stages[:1])

    @property
    def frozen_tensors(self) -> dict[str, Tensor]:
        """The parameters that do not train, and the buffers that training does not move, by their names."""
        moving = {id(buffer) for buffer in self.moving}
        held = {name: p.detach() for name, p in self.network.named_parameters() if not p.requires_grad}
        return held | {name: buffer for name, buffer in self.network.named_buffers() if id(buffer) not in moving}

    @property
    def frozen_bits(self) -> list[int]:
        """What can tell that something frozen is not what it was: modules, and bits of parameters and of buffers."""
        return [*map(id, self.network.modules()), bits_of(*self.frozen_tensors.values())]

    def freeze_only(self, names: Collection[str]) -> None:
        """Freeze just these parameters; the others train."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in names)
            if name in names:
                parameter.grad = None
        self.changes += 1
        self.refresh()

    def take_stock(self) -> None:
        """Let go of parameters that are gone from the network since it was opened.

        Raises:
            ConfigError: there are new ones, of which nobody knows the stage.
        """
        parts = [*(stage.parameters for stage in self.stages), self.head]
        known = {id(parameter) for part in parts for parameter in part}
        there = {id(parameter): name for name, parameter in self.network.named_parameters()}
        if new := [name for key, name in there.items() if key not in known]:
            raise ConfigError(
                f"a network that was changed by hand: new parameters {listing(new, 3)}",
                "the network as the Learner opened it",
                "Make a new Learner of it: Learner(learner.model, data). A new head is asked for with head=.",
            )
        for part in parts:
            part[:] = [parameter for parameter in part if id(parameter) in there]

    def refresh(self) -> None:
        """Note which modules rest, and which buffers may move; called when parameters were frozen or unfrozen."""
        self._resting = [module for stage in self.stages if not stage.trainable for module in stage.quiet]
        at_work = set(self.network.modules()).difference(self._resting)
        self.moving = [buffer for module in at_work for buffer in module.buffers(recurse=False)]

    def train(self) -> None:
        """Put the network into training mode, all but what rests."""
        self.network.train()
        self.refresh()
        self.keep_resting()

    def keep_resting(self) -> None:
        """Put what rests back into evaluation mode, in case somebody called `network.train()`."""
        for module in self._resting:
            if module.training:
                module.eval()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the network into evaluation mode inside, and every module back as it was afterwards.

        Where all are in it already, and no weight has moved, nothing is touched: several threads may ask at once.
        """
        modes = [(module, module.training) for module in self.network.modules()]
        with _LOOKING:
            versions = [parameter._version for parameter in self.network.parameters()]  # noqa: SLF001 - counts changes
            if versions != self._versions:
                forget_cached(self.network)
                self._versions = versions
        if any(training for _, training in modes):
            self.network.eval()
        try:
            yield
        finally:
            for module, training in modes:
                if module.training is not training:
                    module.training = training

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Put the network into training mode inside, all but what rests, and every module back afterwards."""
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.train()
        self.keep_resting()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    @contextmanager
    def norms_resting(self) -> Iterator[None]:
        """Let all norms use their running statistics inside: one picture alone has none of its own."""
        active = [norm for norm in self._norms if norm.training]
        for norm in active:
            norm.eval()
        try:
            yield
        finally:
            for norm in active:
                norm.train()

    @property
    def layers(self) -> Layers:
        """The stages in order and the head, as rows."""
        rows = [(stage.name, stage.parameters) for stage in self.stages]
        rows.append((" + ".join(self.head_paths), self.head))
        return Layers(
            Layer(name, sum(p.numel() for p in parameters), any(p.requires_grad for p in parameters), scale)
            for (name, parameters), scale in zip(rows, self.lr_scales, strict=True)
        )


def _is_of_batches(module: nn.Module) -> bool:
    """Say whether a module normalises by what a batch has in common, as BatchNorm does in training."""
    return isinstance(module, _BatchNorm) or (hasattr(module, "running_var") and not isinstance(module, _InstanceNorm))


def objection(backbone: Backbone, sides: Sequence[int]) -> Exception | None:
    """Ask a network about an empty picture of this height and width, and give what it raises, if anything."""
    like = next(backbone.network.parameters())
    picture = torch.zeros(1, len(backbone.preprocessing.mean), *sides, dtype=like.dtype, device=like.device)
    try:
        with backbone.evaluating(), preserved(), torch.no_grad():
            backbone.network(picture)
    except Exception as error:
        return error
    return None


def has_hooks(network: nn.Module) -> bool:
    """Say whether somebody looks at what goes through a module, or at the gradients that come back."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # nothing else tells
    return any(getattr(module, kind) for module in network.modules() for kind in kinds)


def settings_of(module: nn.Module) -> dict[str, object]:
    """Give the plain values, and the functions, that a module has as its own, as what can be compared."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    plain = {name: repr(value) for name, value in own.items() if _is_plain(value)}
    return plain | {name: value for name, value in own.items() if callable(value)}


@contextmanager
def settings_kept(network: nn.Module) -> Iterator[set[tuple[nn.Module, str]]]:
    """Put back what modules have as their own and a forward changes inside; the names of such settings are given."""
    before = {module: (vars(module).copy(), settings_of(module)) for module in network.modules()}
    changed: set[tuple[nn.Module, str]] = set()
    try:
        yield changed
    finally:
        for module, (own, settings) in before.items():
            now, there = settings_of(module), vars(module)
            changed |= {(module, key) for key in now.keys() | settings.keys() if now.get(key) != settings.get(key)}
            for name in [name for name in there if name not in _OF_TORCH and name not in own]:
                del there[name]
            there.update({name: value for name, value in own.items() if name not in _OF_TORCH})


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def bits_of(*tensors: Tensor) -> int:
    """Give a digest of the bits of tensors, as whole numbers of eight bytes as far as that is possible.

    Of many there are only sums: they are laid out as a square, and its rows and columns are summed up, so that numbers
    that have only moved are noticed, too. All sums are fetched at once: from a GPU each would be waited for.
    """
    if not tensors:
        return 0
    sums = [part.to(tensors[0].device) for tensor in tensors for part in _sums(tensor)]
    return hash(torch.cat(sums).cpu().numpy().tobytes())


def _sums(tensor: Tensor) -> tuple[Tensor, ...]:
    """Give the sums of rows and columns of a square of words, and the rest of them; few words are given as they are."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)  # as it lies in memory
    tensor = tensor.permute(order).contiguous().flatten()
    begins = tensor.storage_offset() * tensor.element_size()
    # torch sums up eight bytes much faster than four
    size = tensor.element_size() if (tensor.nbytes | begins) % 8 else 8
    words = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    if len(words) <= _FEW:
        return (words.long(),)
    side = math.isqrt(len(words))
    square = words[: side * side].view(side, side)
    return square.sum(1, dtype=torch.int64), square.sum(0, dtype=torch.int64), words[side * side :].long()
