"""Where the frozen beginning of a network ends, and how the rest of it goes on from what is known there.

It works on any `forward` without reading it. One batch is watched on its way through the network, twice, with other
random numbers: the first module that trains, draws, or looks at its batch as a whole is where the beginning has ended.
Who has drawn is told by the states of the generators, since what came of it may be the same by chance. From then on the
modules before it are replaced, while the network is called, by stand-ins that give empty tensors of the right shape,
and what is given to the module at the cut is the tensor that is known. Whether that is right is tried on real pictures,
and believed only when the logits have the same bits.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from headstart.model.backbone import Backbone, bits_of, has_hooks
from headstart.randomness import standing

Arithmetic = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a network is asked, such as autocast."""


_HALVES = (torch.bfloat16, torch.float16)
_FINE, _TF32, _COARSE = 1e-4, 2e-3, 0.05
"""Share of the largest feature by which the others may differ where more pictures come along.

That is for fp32 on a CPU; for fp32 elsewhere, since GPUs may multiply it with eleven bits; and for networks that are
kept in half precision, with eight.
"""


class NoCutError(Exception):
    """A network cannot be entered behind its frozen beginning; the message says why."""


class _ReachedError(Exception):
    """All that was looked for has been seen."""


@dataclass(frozen=True)
class _Trace:
    """What is kept of a tensor: enough to see whether another one has the same bits."""

    shape: torch.Size
    needs_gradient: bool
    bits: int


@dataclass(eq=False)
class _Call:
    """A call of a module in a forward pass, without its tensors: all of them together would fill the memory."""

    module: nn.Module
    parents: list["_Call"]
    given: list[_Trace]
    is_plain: bool  # given one tensor, and nothing by name
    begun: int  # where the generators stood
    is_leaf: bool = True
    ended: int = 0
    result: Any = None  # as shapes
    answer: list[_Trace] = field(default_factory=list)
    is_last: bool = False  # gives what the network gives

    @property
    def needs_gradient(self) -> bool:
        return any(trace.needs_gradient for trace in self.given)


@dataclass(frozen=True)
class Cut:
    """The places in a network behind which it trains: one, or one for each of its heads.

    Args:
        network: the whole of it.
        places: the modules that the features are given to, by their names, in the order in which they are called.
        shapes: of the features for one picture, for each place.
        before: the modules that come before them, each with what it gave in its calls, as shapes.
        after: the modules at all places but the last one, likewise.
        is_last: whether what the module at the only place gives is what the network gives.
        images: the shape of those for which the shapes of `before` were noted.
        still: the buffers that going through the network in training leaves as they are.
        evaluates: whether it may be gone through in evaluation, too, where a network may do something else.
    """

    network: nn.Module
    places: dict[str, nn.Module]
    shapes: tuple[torch.Size, ...]
    before: Sequence[tuple[nn.Module, list[Any]]]
    after: Sequence[tuple[nn.Module, list[Any]]]
    is_last: bool
    images: torch.Size
    still: Sequence[Tensor] = ()
    evaluates: bool = False

    @property
    def numbers(self) -> int:
        """How many numbers the features of a picture are, at all places."""
        return sum(shape.numel() for shape in self.shapes)

    @cached_property
    def deciding(self) -> list[nn.Module]:
        """The modules whose settings may decide about the features: those before the places, and what holds either."""
        if len(self.places) > 1:  # what lies between them has its say about the features of the later ones
            behind = {inner for module in self.places.values() for inner in module.modules()}
            return [module for module in self.network.modules() if module not in behind]
        before = {inner for module, _ in self.before for inner in module.modules()}
        return [
            module
            for module in self.network.modules()
            if not before.isdisjoint(module.modules())
            or any(place is not module and place in module.modules() for place in self.places.values())
        ]

    def features(self, images: Tensor) -> Tensor:
        """Give what arrives at the places, `[pictures, ...]`, without gradients; what follows is not asked.

        For several places it is flat, one after the other.
        """
        arrived: list[Tensor] = []

        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:  # noqa: ARG001 - as torch calls it
            arrived.append(arguments[0])
            if len(arrived) == len(self.places):
                raise _ReachedError

        with ExitStack() as stack:
            for module in self.places.values():
                stack.callback(module.register_forward_pre_hook(note).remove)
            for module, results in self.after:
                stack.enter_context(_standing_in(module, results, self.images[0], images))
            with torch.no_grad(), suppress(_ReachedError):
                self.network(images)
        return arrived[0] if len(arrived) == 1 else torch.cat([each.flatten(1) for each in arrived], 1)

    def __call__(self, features: Tensor) -> Any:
        """Give what the network says of pictures whose features are known."""
        first, *others = self.places.values()
        if self.is_last:
            return first(features)
        parts = (features,) if not others else torch.split(features, [shape.numel() for shape in self.shapes], 1)
        with ExitStack() as stack:
            for module, results in self.before:
                stack.enter_context(_standing_in(module, results, self.images[0], features))
            for module, part, shape in zip(self.places.values(), parts, self.shapes, strict=True):
                stack.callback(
                    module.register_forward_pre_hook(
                        _giving(part.contiguous().view(-1, *shape) if others else part)
                    ).remove
                )
            return self.network(features.new_zeros(()).expand(features.shape[0], *self.images[1:]))


def find_cut(backbone: Backbone, batches: Sequence[Tensor], arithmetic: Arithmetic, seed: Callable[[int], None]) -> Cut:
    """Find where the frozen beginning of a network ends.

    Args:
        backbone: in the state in which it trains; left as it is.
        batches: a few pictures, as the network gets them, in at least two batches of different sizes.
        arithmetic: in which the network is asked.
        seed: of all that the network may draw from.

    Raises:
        NoCutError: nothing is frozen, or the rest cannot go on from one tensor; it says why.
    """
    network = backbone.network
    if network._compiled_call_impl is not None:  # noqa: SLF001 - nn.Module.compile leaves no other trace
        raise NoCutError("the network is compiled")
    if has_hooks(network):
        raise NoCutError("some modules of the network have hooks")
    watched, still = [], list(backbone.moving)
    for number in range(2):
        with _undisturbed(backbone) as copies, arithmetic():
            seed(number)
            try:
                watched.append(_watched(network, batches[0]))
            except Exception as error:  # a few pictures may not do where a batch does
                raise NoCutError(f"{len(batches[0])} pictures alone end in {type(error).__name__}: {error}") from error
            moved = _moved(copies)
        still = [buffer for buffer in still if id(buffer) not in moved]
    live = _first_live(backbone, *watched)
    others = _other_heads(watched[0], watched[1], live)
    chain = [live, *reversed(live.parents[1:])]
    alone = [[call] for call in chain]
    together = [[call, *(other for other in others if call not in other.parents)] for call in chain]
    for calls in [*alone, *together] if others else alone:
        cut = _cut_at(network, watched[0], calls, batches[0].shape)
        if cut is not None and _is_true(backbone, cut, batches, arithmetic, seed):
            with backbone.evaluating():
                last = batches[-1:]
                return replace(cut, still=still, evaluates=_is_true(backbone, cut, last, arithmetic, seed))
    raise NoCutError("what trains needs more of what comes before than can be handed in")


def _watched(network: nn.Module, images: Tensor) -> list[_Call]:
    """Ask a network and note all calls of its modules, in the order in which they begin; the first is its own."""
    calls: list[_Call] = []
    going_on: list[_Call] = []
    results: list[tuple[_Call, weakref.ref[Tensor]]] = []

    def begin(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if going_on:
            going_on[-1].is_leaf = False
        is_plain = len(_tensors(arguments)) == 1 and isinstance(arguments[0], Tensor) and not named
        has_parts = next(module.children(), None) is not None  # what these are given is looked at
        given = _traces((arguments, named), with_bits=not has_parts)
        calls.append(_Call(module, [*going_on], given, is_plain, standing(images.device)))
        going_on.append(calls[-1])

    def end(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:  # noqa: ARG001 - as torch calls it
        call = going_on.pop()
        call.result = tree_map(_shape, result)
        if call.is_leaf:
            call.answer = _traces(result)
            call.ended = standing(images.device)
        if isinstance(result, Tensor):
            results.append((call, weakref.ref(result)))

    with ExitStack() as stack:
        for module in network.modules():
            stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(end).remove)
        answer = network(images)
    for call, result in results:
        call.is_last = result() is answer
    return calls


def _first_live(backbone: Backbone, first: Sequence[_Call], second: Sequence[_Call]) -> _Call:
    """Find the first call of a module that trains, draws, or looks at its batch as a whole."""
    if [call.module for call in first] != [call.module for call in second]:
        raise NoCutError("the network goes another way each time")
    for one, other in zip(first, second, strict=True):
        if not one.is_leaf:
            continue
        if one.begun != first[0].begun or not _alike(one.given, other.given):
            raise NoCutError(
                "a forward draws random numbers outside of modules such as nn.Dropout, or counts its calls"
            )
        trains = any(parameter.requires_grad for parameter in one.module.parameters())
        draws = one.ended != one.begun or not _alike(one.answer, other.answer)
        if trains or draws or backbone.mixes(one.module):
            return one
    raise NoCutError("nothing of the network trains")


def _other_heads(first: Sequence[_Call], second: Sequence[_Call], live: _Call) -> list[_Call]:
    """Find the later calls of modules that train and are given nothing that trains or is drawn: those of more heads."""
    pairs = zip(first, second, strict=True)
    return [
        one
        for one, other in list(pairs)[first.index(live) + 1 :]
        if one.is_leaf and any(parameter.requires_grad for parameter in one.module.parameters())
        if not one.needs_gradient and _alike(one.given, other.given)
    ]


def _cut_at(network: nn.Module, calls: Sequence[_Call], at: Sequence[_Call], images: torch.Size) -> Cut | None:
    """Make a cut in front of calls, if one tensor arrives at each, and something has come before."""
    if not all(call.is_plain and not call.needs_gradient and call.given[0].shape[:1] == images[:1] for call in at):
        return None
    before: dict[nn.Module, list[Any]] = {}
    for call in calls[: calls.index(at[0])]:
        # Those inside of one that is replaced are not called at all.
        if call not in at[0].parents and not any(parent.module in before for parent in call.parents):
            before.setdefault(call.module, []).append(call.result)
    names = {module: name for name, module in network.named_modules()}
    places = {names[call.module]: call.module for call in at}
    if not before or len(places) < len(at) or not before.keys().isdisjoint(places.values()):
        return None
    shapes = tuple(call.given[0].shape[1:] for call in at)
    after = [(call.module, [call.result]) for call in at[:-1]]
    return Cut(network, places, shapes, [*before.items()], after, len(at) == 1 and at[0].is_last, images)


def _is_true(
    backbone: Backbone, cut: Cut, batches: Sequence[Tensor], arithmetic: Arithmetic, seed: Callable[[int], None]
) -> bool:
    """Say whether what arrives at a cut is a matter of each picture alone, and all that the rest needs to know."""
    found = [_features(backbone, cut, images, arithmetic) for images in batches]
    if any(features is None for features in found):
        return False
    known = [features for features in found if features is not None]
    if len(batches) > 1 and _mixes(backbone, cut, batches, arithmetic):
        return False
    pairs = zip(batches, known, strict=True)
    return all(_holds(backbone, cut, images, features, arithmetic, seed) for images, features in pairs)


def _features(backbone: Backbone, cut: Cut, images: Tensor, arithmetic: Arithmetic) -> Tensor | None:
    """Give what arrives at a cut; None where that moves a buffer, for then it is another one each time."""
    with _undisturbed(backbone) as copies, arithmetic():
        features = cut.features(images)
        return None if _moved(copies) else features


def _mixes(backbone: Backbone, cut: Cut, batches: Sequence[Tensor], arithmetic: Arithmetic) -> bool:
    """Say whether what arrives at a cut differs, but for rounding, where more pictures come along.

    Without autocast, as coarse as half precision is, so that a little mixing shows.
    """
    halves = any(tensor.dtype in _HALVES for tensor in backbone.network.parameters())
    plainly = arithmetic if halves else nullcontext
    try:
        together, alone = (_features(backbone, cut, some, plainly) for some in (torch.cat([*batches]), batches[-1]))
    except RuntimeError:  # its forward counts on autocast
        return True
    if together is None or alone is None:
        return True
    most = _COARSE if halves or alone.dtype in _HALVES else _FINE if alone.device.type == "cpu" else _TF32
    one, other = together[-len(alone) :].float(), alone.float()
    return bool((one - other).abs().amax() > most * other.abs().amax())


def _holds(
    backbone: Backbone,
    cut: Cut,
    images: Tensor,
    features: Tensor,
    arithmetic: Arithmetic,
    seed: Callable[[int], None],
) -> bool:
    """Say whether a network says the same of pictures and of their features, to the last bit."""
    answers: list[Any] = []
    with _awake(backbone.network):
        for ask, given in ((cut.network, images), (cut, features)):
            with _undisturbed(backbone), arithmetic(), torch.no_grad():
                seed(2)
                try:
                    answers.append(ask(given))
                except Exception:
                    return False
    return _equal(*answers)


@contextmanager
def _awake(network: nn.Module) -> Iterator[None]:
    """Give weights that train and are zero other values inside: a new head would say the same of everything.

    Not biases: what is very small, as in a network that has learned nothing, would be lost beside them.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [p for name, p in network.named_parameters() if p.requires_grad and not name.endswith("bias")]
    zeros = [weight for weight in weights if not weight.any()]
    with torch.no_grad():
        for parameter in zeros:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        try:
            yield
        finally:
            for parameter in zeros:
                parameter.zero_()


@contextmanager
def _undisturbed(backbone: Backbone) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Give the buffers that a forward pass in training may move, each with a copy, and put them back afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in backbone.moving]
    try:
        yield buffers
    finally:
        for buffer, copy in buffers:
            buffer.copy_(copy)


def _moved(buffers: Sequence[tuple[Tensor, Tensor]]) -> set[int]:
    """Give the ids of the buffers that are no longer as their copies are."""
    return {id(buffer) for buffer, copy in buffers if bits_of(buffer) != bits_of(copy)}


def _giving(features: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """Make a hook that hands these features in."""
    return lambda module, arguments: (features, *arguments[1:])  # noqa: ARG005 - as torch calls it


@contextmanager
def _standing_in(module: nn.Module, results: Sequence[Any], pictures: int, features: Tensor) -> Iterator[None]:
    """Let a module give, in its first calls, empty tensors of the shapes that it gave for so many pictures."""
    waiting = [*results][::-1]
    forward = module.forward

    def give(*arguments: Any, **named: Any) -> Any:
        if not waiting:
            return forward(*arguments, **named)
        return tree_map(lambda value: _empty(value, pictures, features), waiting.pop())

    own = vars(module).get("forward")
    vars(module)["forward"] = give
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


@dataclass(frozen=True)
class _Shape:
    sizes: tuple[int, ...]
    dtype: torch.dtype


def _shape(value: Any) -> Any:
    return _Shape(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _empty(value: Any, pictures: int, features: Tensor) -> Any:
    if not isinstance(value, _Shape):
        return value
    sizes = value.sizes
    if sizes and sizes[0] % pictures == 0:
        sizes = (sizes[0] // pictures * features.shape[0], *sizes[1:])
    return torch.zeros((), dtype=value.dtype, device=features.device).expand(sizes)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]


def _traces(values: Any, *, with_bits: bool = True) -> list[_Trace]:
    return [_Trace(v.shape, v.requires_grad, bits_of(v.detach()) if with_bits else 0) for v in _tensors(values)]


def _alike(one: Sequence[_Trace], other: Sequence[_Trace]) -> bool:
    return [(trace.shape, trace.bits) for trace in one] == [(trace.shape, trace.bits) for trace in other]


def _equal(one: Any, other: Any) -> bool:
    ones, others = _tensors(one), _tensors(other)
    return len(ones) == len(others) and all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))
