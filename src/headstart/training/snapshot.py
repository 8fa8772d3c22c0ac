"""The state of a fit between two steps: taken as plain values and tensors, and put back bit for bit.

Chance is not in it: seeds are derived from where the fit stands.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headstart.model.weights import forget_cached
from headstart.training.checkpoint import demand_same
from headstart.training.loop import Loop

_EXTRA = "_extra_state"  # where torch keeps what `get_extra_state` gives


def take(loop: Loop) -> dict[str, Any]:
    """Give all that a fit has changed, but for what its callbacks remember; tensors are not copied.

    Args:
        loop: of a fit, between two steps.
    """
    run = loop.run
    return {
        "run": run.state_dict(),
        "history": run.history.state_dict(),
        "network": tensors_of(run.network),
        "frozen": run.backbone.frozen,
        "optimizer": loop.optimizer.state_dict(),
        "scaler": loop.scaler.state_dict(),
        "portions": loop.portions.state_dict(),
        "tally": loop.train_tally.state_dict(),
    }


def put_back(loop: Loop, state: Mapping[str, Any]) -> None:
    """Let a fit stand where `take` was.

    Raises:
        CheckpointError: the network has other tensors; nothing has been changed.
    """
    run = loop.run
    put_tensors(run.network, state["network"])
    run.backbone.freeze_only(state["frozen"])
    loop.optimizer.load_state_dict(state["optimizer"])
    lay_as_parameters(loop.optimizer)
    loop.scaler.load_state_dict(state["scaler"])
    loop.portions.load_state_dict(state["portions"])
    loop.train_tally.load_state_dict(state["tally"])
    params = run.history.params
    run.history.load_state_dict(state["history"])
    run.history.params = params  # of the fit that goes on, which may have more epochs
    run.load_state_dict(state["run"])


def tensors_of(network: nn.Module) -> dict[str, Any]:
    """Give all that a network holds by name: parameters, buffers that are in no file of weights, and what else is."""
    buffers = dict(network.named_buffers(remove_duplicate=False))
    return {**buffers, **network.state_dict(keep_vars=True)}


def put_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into a network's own tensors."""
    own = tensors_of(network)
    demand_same(_shaped(own), _shaped(tensors), "the state of the run")
    with torch.no_grad():
        for name, value in tensors.items():
            path, _, last = name.rpartition(".")
            if last == _EXTRA:
                network.get_submodule(path).set_extra_state(value)
            else:
                own[name].copy_(value)
    forget_cached(network)


def _shaped(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Leave out what modules keep beside tensors: it may be anything."""
    return {name: value for name, value in values.items() if name.rpartition(".")[2] != _EXTRA}


def lay_as_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Let moments lie in memory as their parameters do: a fused kernel goes through both in one order."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
