"""Fits that are kept, cut short and gone on with, and how one sees that nothing was lost."""

from pathlib import Path
from typing import Any

import torch
from handmade import weights

from headstart import Callback, CSVLogger, EarlyStopping, Learner, LRSchedule, ModelCheckpoint, cosine
from headstart.training.callback import Order

NEVER = 1e9
ALWAYS = 1e-9


class DiedError(Exception):
    """Stands for the end of a process."""


class Death(Callback):
    """End the process at a moment: the n-th call of a hook."""

    order = Order.REPORT

    def __init__(self, hook: str, call: int) -> None:
        self.left = call
        setattr(self, hook, self.strike)

    def strike(self, *arguments: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise DiedError


def fit(learner: Learner, folder: Path, *more: Callback, seconds: float = ALWAYS, resume: bool = True, **options: Any):
    """Train for three epochs of five batches, of which two share a step."""
    callbacks = [
        LRSchedule(cosine(warmup=0.2)),
        EarlyStopping(patience=2),
        ModelCheckpoint(folder, every_seconds=seconds, keep=2),
        CSVLogger(folder / "log.csv"),
        *more,
    ]
    options = {"epochs": 3, "lr": 3e-3, "head_lr_mult": 5, "accumulate": 2, "verbose": False, **options}
    return learner.fit(callbacks=callbacks, resume=resume, **options)


def left(learner: Learner) -> dict[str, Any]:
    """Give all that a fit leaves in a Learner: weights, moments, what is frozen, history."""
    optimizer = learner._session.optimizer
    assert optimizer is not None
    moments = {
        f"{place} {name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for place, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {
        "tensors": {**weights(learner), **moments},
        "groups": groups,
        "trains": [layer.trainable for layer in learner.layers],
        "history": repr(learner.history.state_dict()),
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Name what differs in what two fits have left."""
    tensors, others = one["tensors"], other["tensors"]
    names = [
        n
        for n in {**tensors, **others}
        if n not in tensors or n not in others or not torch.equal(tensors[n], others[n])
    ]
    return names + [key for key in one if key != "tensors" and one[key] != other[key]]
