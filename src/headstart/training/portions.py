"""How many pictures go through the network at once: a whole batch, or fewer where memory does not hold it.

A batch that does not fit is halved until its portions do. For everybody else it stays one batch: one loss, each hook
once, one step, the same gradient. The outputs of all portions are found first, without what a backward pass needs;
the loss is that of the whole batch; then each portion goes through the network again and takes its share of the loss's
gradient backward (Gao, Zhang, Han and Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup", 2021). So the loss may be any, also one that is no mean over pictures. The price is a second forward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.training.run import Run

OnOom = Literal["auto", "split", "raise"]

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""How those parts of torch put it that do not raise the class which is meant for it."""


class OutOfMemory(ConfigError, torch.OutOfMemoryError):  # noqa: N818 - torch's name is taken, and it is one of those
    """Memory does not hold a batch, and the batch may not be split, or not further."""


class Portions:
    """Take batches through a network, in portions once memory has run out.

    Args:
        run: whose network it is.
        on_oom: `"auto"` splits where that changes nothing but time: not where norms look at the batch as a whole;
            `"split"` splits always, `"raise"` never.
        reseed: seeds what the network draws from in training, for the batch in progress.
        most: pictures at once in training (True) and in evaluation (False), where memory has run out before; is kept
            up to date.
    """

    def __init__(self, run: Run, on_oom: OnOom, reseed: Callable[[], None], most: dict[bool, int]) -> None:
        self._run = run
        self._on_oom = on_oom
        self._reseed = reseed
        self._most = most
        self._is_split = self._ran_out = False
        self._untold = 0  # pictures that memory did not hold, until it is known how many it does
        self._held: list[tuple[nn.Parameter, Tensor | None, int]] | None = None

    def state_dict(self) -> dict[str, int | None]:
        """Give how many pictures go through at once in training, if memory has ever run out."""
        return {"most": self._most.get(True)}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Let as many go through at once as where `state_dict` was."""
        if state["most"] is not None:
            self._most[True] = state["most"]

    def outputs(self, ask: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Give what the network says of a batch; where gradients are wanted, one that they can be had for.

        Raises:
            OutOfMemory: memory does not hold it, and it may not be split, or not further.
        """
        trains = torch.is_grad_enabled()
        buffers = self._copied_buffers() if trains else []
        while True:
            portions = self._cut(images)
            self._is_split = len(portions) > 1
            with self._trying(portions[0].shape[0]):
                if not self._is_split:
                    outputs = ask(images)
                    if outputs.requires_grad:
                        outputs.retain_grad()  # to go on from there if memory runs out in the backward pass
                    return outputs
                if trains:
                    self._reseed()
                with torch.no_grad():
                    outputs = torch.cat([ask(portion) for portion in portions])
                return outputs.requires_grad_(trains)
            _let_go()
            _put_back(buffers)

    def adding(self, pictures: int, *, to_none: bool = False) -> AbstractContextManager[None]:
        """Give a context in which gradients of so many pictures are added; if memory runs out, it is noted for `left`.

        Args:
            pictures: how many.
            to_none: whether there are no gradients yet.

        Raises:
            OutOfMemory: memory has run out, and the batch may not be split, or not further.
        """
        self._run.outputs.grad = None  # a callback may have asked for it
        noted = not to_none and self._may_split
        self._held = [(p, p.grad, _version(p.grad)) for p in self._trained()] if noted else None
        return self._trying(pictures)

    def left(self) -> Iterable[tuple[Tensor, Tensor, list[nn.Parameter]]]:
        """Give what has not gone backward yet: pictures, the loss's gradient at their outputs, and its destinations.

        Each is to go inside `adding`; what memory does not hold there comes again in halves.
        """
        return self._halved() if self._is_split or self._ran_out else ()

    def _halved(self) -> Iterator[tuple[Tensor, Tensor, list[nn.Parameter]]]:
        run = self._run
        if self._ran_out:
            _let_go()
        gradient = self._gradient_at_outputs()
        if gradient is None:
            return  # the loss does not depend on them
        lacking = self._untouched() if self._ran_out else self._trained()
        run.outputs, run.loss = run.outputs.detach(), run.loss.detach()  # with all that they kept in memory
        buffers = self._copied_buffers()
        self._reseed()
        pieces = zip(self._cut(run.batch.images), self._cut(gradient), strict=True)
        waiting = [(images, share, lacking) for images, share in pieces][::-1]
        while waiting:
            images, share, lacking = waiting.pop()
            if lacking:
                yield images, share, lacking
                if self._ran_out:
                    _let_go()
                    untouched = {id(parameter) for parameter in self._untouched()}
                    lacking = [parameter for parameter in lacking if id(parameter) in untouched]
                    halves = zip(images.tensor_split(2), share.tensor_split(2), strict=True)
                    waiting += [(images, share, lacking) for images, share in halves][::-1]
        _put_back(buffers)

    def _trying(self, pictures: int) -> "_Attempt":
        """Note that memory runs out inside, and let half as many pictures go through at once from then on."""
        self._ran_out = False
        return _Attempt(partial(self._note, pictures))

    def _note(self, pictures: int, error: BaseException | None) -> bool:
        """Note how it has ended with so many pictures; say whether memory ran out, and half of them may be tried."""
        if error is None:
            if self._untold:
                self._tell()
            return False
        if not (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            return False
        self._demand_way_out(pictures, error)
        self._ran_out = True
        self._most[torch.is_grad_enabled()] = -(-pictures // 2)
        self._untold = self._untold or pictures
        return True

    def _tell(self) -> None:
        """Say what fits, now that it is known."""
        trains = torch.is_grad_enabled()
        what, cost = ("training", ", which costs a second forward pass") if trains else ("evaluation", "")
        most, pictures, self._untold = self._most[trains], self._untold, 0
        print(f"out of memory with {pictures} pictures: {what} takes {most} at a time through the network{cost}")  # noqa: T201

    @property
    def _may_split(self) -> bool:
        return self._on_oom == "split" or (self._on_oom == "auto" and not self._run.backbone.mixes_pictures)

    def _demand_way_out(self, pictures: int, error: RuntimeError) -> None:
        """Raise unless the batch may be split further."""
        if self._may_split and pictures > 1:
            return
        smaller = self._smaller(pictures)
        if pictures == 1:
            todo = "Take a smaller image_size or network, precision='bf16', or freeze more: unfreeze(from_layer)."
        elif self._on_oom == "raise":
            todo = f"{smaller} on_oom='auto' splits batches that do not fit."
        else:
            todo = (
                f"{smaller} on_oom='split' splits the batch, although its BatchNorm will see other pictures together; "
                "frozen norms do not mind: freeze(), or unfreeze(from_layer)."
            )
        first = str(error).splitlines()[0]
        count = "1 picture" if pictures == 1 else f"{pictures} pictures"
        needed = "a step that takes less memory" if pictures == 1 else "fewer pictures at once"
        raise OutOfMemory(f"out of memory with {count} ({first})", needed, todo) from error

    def _smaller(self, pictures: int) -> str:
        """Say which settings take half of the memory."""
        if not torch.is_grad_enabled():
            return f"Batches of {-(-pictures // 2)} take half the memory."
        half, twice = -(-pictures // 2), 2 * self._run.accumulate
        step = " for the same step" if pictures % 2 == 0 and not self._run.backbone.mixes_pictures else ""
        return f"Batches of {half} with accumulate={twice} take half the memory{step}."

    def _gradient_at_outputs(self) -> Tensor | None:
        """Give the loss's gradient at the outputs, after making sure that all that has not arrived is in it."""
        run = self._run
        if self._ran_out and (run.outputs.grad is None or _leads_around(run.loss, run.outputs)):
            raise OutOfMemory(
                f"out of memory in the backward pass of {len(run.batch)} pictures, with a loss that a callback made",
                "a loss of run.outputs alone: it is made only once, and the network is asked again in portions",
                self._smaller(len(run.batch)),
            )
        return run.outputs.grad

    def _trained(self) -> list[nn.Parameter]:
        groups = self._run.optimizer.param_groups if self._run.optimizer is not None else []
        return [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]

    def _untouched(self) -> list[nn.Parameter]:
        """Give the parameters whose gradients are as they were when `adding` began."""
        if self._held is None:
            return [p for p in self._trained() if p.grad is None]
        return [p for p, held, version in self._held if p.grad is held and _version(held) == version]

    def _cut(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Cut a batch into as few portions as fit, all of one size or one less."""
        pictures = tensor.shape[0]
        most = self._most.get(torch.is_grad_enabled(), pictures)
        return (tensor,) if pictures <= most else tensor.tensor_split(-(-pictures // most))

    def _copied_buffers(self) -> list[tuple[Tensor, Tensor]]:
        """Give what a forward pass in training changes, each with a copy."""
        moving = self._run.backbone.moving
        return [(buffer, buffer.clone()) for buffer in moving] if moving and self._may_split else []


class _Attempt(AbstractContextManager[None]):
    """Go on behind an error if its end, once noted, lets it: a generator would take longer around a small step."""

    def __init__(self, note: Callable[[BaseException | None], bool]) -> None:
        self._note = note

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return self._note(error)


def _let_go() -> None:
    """Have memory in one piece again, once the error is gone and with it all that its frames kept."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _put_back(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, copy in buffers:
        buffer.copy_(copy)


def _version(tensor: Tensor | None) -> int:
    """Give how often a tensor has been written to."""
    return -1 if tensor is None else tensor._version  # noqa: SLF001 - what autograd itself counts


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether an error of torch's means that memory does not hold something."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _WORDS)


def _leads_around(loss: Tensor, outputs: Tensor) -> bool:
    """Say whether a loss depends on a parameter in another way than through the outputs."""
    seen = {outputs.grad_fn}
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where a gradient arrives
            return True
        waiting += [following for following, _ in node.next_functions]
    return False
