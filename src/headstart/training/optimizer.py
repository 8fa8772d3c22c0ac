"""One optimizer for all parameters: its groups, their rates, and what survives from fit to fit.

Every parameter is in the optimizer from the start, frozen or not; a frozen one has no gradient and is passed over. So
freezing and unfreezing change no group, and schedulers never meet a group that came late.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import timm.optim
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from headstart.errors import ConfigError, nearest
from headstart.model.backbone import Backbone

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
"""From parameter groups to an optimizer; the rate it sets is ignored."""


def lr_scales(stages: int, head_lr_mult: float, layer_lr_decay: float | None) -> list[float]:
    """Give the factor on the base rate of every stage and, last, of the head.

    Args:
        stages: number of stages.
        head_lr_mult: the head's factor.
        layer_lr_decay: what each stage's rate is multiplied by for every stage between it and the last one, whose
            factor is 1 (layer-wise decay: Howard and Ruder, 2018; Bao et al., 2021); None is 1.

    Example:
        >>> lr_scales(3, head_lr_mult=10, layer_lr_decay=0.5)
        [0.25, 0.5, 1.0, 10.0]
    """
    decay = 1.0 if layer_lr_decay is None else layer_lr_decay
    return [*(decay ** (stages - 1 - place) for place in range(stages)), float(head_lr_mult)]


def parameter_groups(backbone: Backbone, *, decays: bool = True) -> list[dict[str, Any]]:
    """Sort all parameters into one group for each distinct (rate factor, decayed or not).

    Norms, biases and what the network itself names in `no_weight_decay()` are spared from weight decay.

    Args:
        backbone: whose parameters are sorted.
        decays: whether there is any weight decay; without it fewer groups do, and fewer groups are faster.

    Returns:
        Groups with `params`, `lr_scale` and `decayed`.
    """
    spared = set(getattr(backbone.network, "no_weight_decay", set)())
    names = {id(parameter): name for name, parameter in backbone.network.named_parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    parts = [*(stage.parameters for stage in backbone.stages), backbone.head]
    for scale, parameters in zip(backbone.lr_scales, parts, strict=True):
        for parameter in parameters:
            decayed = decays and parameter.ndim > 1 and names[id(parameter)] not in spared
            groups.setdefault((scale, decayed), []).append(parameter)
    return [{"params": params, "lr_scale": scale, "decayed": decayed} for (scale, decayed), params in groups.items()]


def make_optimizer(
    choice: str | OptimizerFactory, backbone: Backbone, lr: float, weight_decay: float | None, device: torch.device
) -> Optimizer:
    """Build the optimizer of a fit.

    Args:
        choice: `"adamw"`, `"sgd"` (momentum 0.9), a name of timm's factory, or a factory of the user's.
        backbone: whose parameters it gets.
        lr: the base rate; each group gets it times its `lr_scale`.
        weight_decay: None is 0.01, 0 for sgd, and a factory's own value.
        device: where the parameters are; decides whether a fused kernel exists.

    Raises:
        ConfigError: the optimizer cannot be made here, needs more than gradients, or has groups of its own.
    """
    if weight_decay is None and isinstance(choice, str):
        weight_decay = 0.0 if re.search("sgd|momentum|nesterov", choice) else 0.01
    groups = parameter_groups(backbone, decays=weight_decay != 0)
    optimizer = choice(groups) if callable(choice) else _by_name(choice, groups, device)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"an optimizer factory that gives {type(optimizer).__name__}",
            "a function of parameters that returns a torch optimizer",
            "For example optimizer=lambda parameters: torch.optim.SGD(parameters, momentum=0.9).",
        )
    _demand_first_order(optimizer)
    if [group.get("lr_scale") for group in optimizer.param_groups] != [group["lr_scale"] for group in groups]:
        raise ConfigError(
            f"an optimizer factory that makes groups of its own for {type(optimizer).__name__}",
            "an optimizer over the parameters as they came: in groups that carry their lr_scale",
            "Hand them on whole: optimizer=lambda parameters: torch.optim.SGD(parameters, momentum=0.9).",
        )
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = lr * group["lr_scale"]
        if "weight_decay" in group:
            own = group["weight_decay"] if weight_decay is None else weight_decay
            group["weight_decay"] = own if group["decayed"] else 0.0
    return optimizer


def _demand_first_order(optimizer: Optimizer) -> None:
    """Refuse an optimizer that wants to evaluate the loss itself, or to differentiate twice."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        wants = "whose step needs a closure"
    elif getattr(optimizer, "is_second_order", False):
        wants = "which needs second derivatives"
    else:
        return
    raise ConfigError(
        f"the optimizer {type(optimizer).__name__}, {wants}",
        "an optimizer that steps once for each gradient",
        "It would run passes of its own that no hook sees. Take adamw, sgd or another first-order method.",
    )


def demand_known(choice: str | OptimizerFactory) -> None:
    """Raise a ConfigError when an optimizer's name is none; the nearest names are given."""
    known = ("adamw", "sgd", *timm.optim.list_optimizers())
    if not callable(choice) and choice not in known:
        raise ConfigError(
            f"optimizer={choice!r}",
            "'adamw', 'sgd', a name that timm's factory knows, or a function of parameters",
            f"{nearest(str(choice), known)}`timm.optim.list_optimizers()` lists the names.",
        )


def _by_name(name: str, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
    # A fused kernel updates all parameters at once; where there is none, foreach is torch's own choice.
    plain = all(parameter.is_floating_point() for group in groups for parameter in group["params"])
    fused = True if device.type in ("cuda", "cpu") and plain else None
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=0.9, fused=fused)
    try:
        optimizer: Optimizer = timm.optim.create_optimizer_v2(groups, name, lr=1.0)
    except (AssertionError, ImportError) as error:
        raise ConfigError(
            f"optimizer={name!r}, which cannot be made here: {error}",
            "an optimizer that this machine has all parts of",
            "Take another one, such as 'adamw', or install what it needs.",
        ) from error
    return optimizer


def carry_over(old: Optimizer | None, new: Optimizer) -> None:
    """Let the state of every parameter (its momentum, its step count) go on in a new optimizer."""
    if old is not None and type(old) is type(new):
        new.state.update(old.state)
        for group in new.param_groups:  # where some of timm's keep their step count
            kept = {key: value for key, value in old.param_groups[0].items() if key not in group}
            group.update(copy.deepcopy(kept))
    _complete_momentum(new)


def drop_gradients(optimizer: Optimizer) -> None:
    """Let go of all gradients, but not by torch's `zero_grad`: its profiling takes several percent of a small step."""
    if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
        optimizer.zero_grad()  # one of its own, which may leave zeros, and do more
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def size_of_moments(optimizer: Optimizer) -> int:
    """Give the bytes that an optimizer keeps beside the weights, or probably will when it has not begun."""
    if optimizer.state:
        states = [value for state in optimizer.state.values() for value in state.values()]
        return sum(value.nbytes for value in states if isinstance(value, Tensor))
    size = 0
    for group in optimizer.param_groups:
        moments = 2 if "betas" in group else 1 if group.get("momentum") else 0
        size += moments * sum(parameter.nbytes for parameter in group["params"] if parameter.requires_grad)
    return size


def forget(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Drop the state of parameters that begin to train: old momentum would move them without a gradient."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
    _complete_momentum(optimizer)


def _complete_momentum(optimizer: Optimizer) -> None:
    """Start missing momenta at 0, as they would start anyway: a fused SGD fails where only some have one."""
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group.get("fused") and group["momentum"]:
            for parameter in group["params"]:
                if parameter.requires_grad and optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def demand_trainable(backbone: Backbone) -> None:
    """Raise a ConfigError when nothing is left to train."""
    if not any(parameter.requires_grad for parameter in backbone.network.parameters()):
        raise ConfigError(
            "a fit with every parameter frozen",
            "at least one parameter that trains",
            "Call learner.unfreeze(), or learner.freeze() to train the head alone.",
        )
