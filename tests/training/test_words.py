"""Values in words: equal ones read the same in every process, different ones do not."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torchmetrics.classification import MulticlassFBetaScore
from torchvision.transforms import v2

from headstart import Callback
from headstart.training.words import words_for


def made(rate):
    return lambda parameters: SGD(parameters, rate)


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def loss(self, logits, targets):
        return self.factor * nn.functional.cross_entropy(logits, targets)


@dataclass
class Settings:
    names: frozenset = field(default_factory=lambda: frozenset({"aa", "bb", "cc", "dd"}))
    rate: float = 0.1


DIFFERENT = [
    (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.9)),
    (nn.CrossEntropyLoss(weight=torch.ones(3)), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]))),
    (lambda parameters: SGD(parameters, 0.1), lambda parameters: Adam(parameters, 0.1)),
    (made(0.1), made(0.2)),
    (functools.partial(made, rate=0.1), functools.partial(made, rate=0.2)),
    (functools.partial(SGD, momentum=0.9), functools.partial(Adam, eps=0.9)),
    (Scaled(1).loss, Scaled(2).loss),
    (MulticlassFBetaScore(0.5, 3), MulticlassFBetaScore(2.0, 3)),
    (v2.RandomResizedCrop(32), v2.RandomResizedCrop(64)),
    (v2.Compose([v2.RandomRotation(10)]), v2.Compose([v2.RandomRotation(20)])),
    (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    (Settings(), Settings(rate=0.2)),
    (lambda values: [value + 1 for value in values], lambda values: [value + 2 for value in values]),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_differs_reads_differently(one, other):
    assert words_for(one) == words_for(one)
    assert words_for(one) != words_for(other)


def test_what_is_equal_reads_the_same_in_another_process():
    script = "import test_words; print(*test_words.told(), sep='\\n')"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)  # noqa: S603
    assert done.stdout == "\n".join(told()) + "\n"
    assert len(told()) == 2 * len(DIFFERENT)


def told() -> list[str]:
    return [words_for(value) for pair in DIFFERENT for value in pair]


def test_a_name_without_a_value_yet_is_no_trouble():
    def outer():
        def inner():
            return later

        words = words_for(inner)
        later = 1
        return words, later

    assert "later=None" in outer()[0]


class Unfinished:
    def __repr__(self):
        raise AttributeError("not yet")


@pytest.mark.parametrize(
    "value",
    [torch.zeros(2, device="meta"), nn.LazyLinear(3), torch.eye(2).to_sparse(), Unfinished()],
    ids=["meta", "lazy", "sparse", "unfinished"],
)
def test_a_callback_may_be_given_what_cannot_be_described(value):
    class Given(Callback):
        def __init__(self, what):
            self.what = what

    assert Given(value).what is value
