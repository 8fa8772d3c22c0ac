"""Memory does not grow with the number of pictures, but for what was asked for: evaluation, prediction, training."""

import resource
from pathlib import Path

import pytest
import torch
from handmade import At, made_learner
from PIL import Image
from torch import nn

from headstart import ImageData, Learner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs a system that tells what is in memory"),
]
PICTURES = 100_000
LITTLE = 8_000_000
"""Bytes that may come and go with the allocator."""


def taken() -> int:
    """Give the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Repeated:
    """A loader of so many pictures, which are always the same ones."""

    def __init__(self, count: int, batch_size: int = 250) -> None:
        self.count = count // batch_size
        self.pair = torch.rand(batch_size, 3, 8, 8), torch.arange(batch_size) % 3

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        return ((images.clone(), targets.clone()) for images, targets in (self.pair for _ in range(self.count)))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


class Noting:
    """Note after each batch what is in memory."""

    def __init__(self) -> None:
        self.notes: list[int] = []

    def __call__(self, *_: object) -> None:
        self.notes.append(taken())

    @property
    def growth(self) -> int:
        """What came in the last nine tenths."""
        return max(self.notes[len(self.notes) // 10 :]) - self.notes[len(self.notes) // 10]


def test_evaluation_keeps_sums_and_nothing_else():
    noting = Noting()
    learner = made_learner(network=network(), metrics=("accuracy", "f1"))
    learner.evaluate(Repeated(PICTURES), callbacks=[At(on_test_batch_end=noting)])
    assert len(noting.notes) == PICTURES // 250
    assert noting.growth < LITTLE


def test_training_keeps_sums_and_nothing_else():
    noting = Noting()
    learner = made_learner(Repeated(PICTURES), Repeated(PICTURES), network=network())
    learner.fit(1, 0.1, callbacks=[At(on_train_batch_end=noting, on_test_batch_end=noting)], verbose=False)
    assert noting.growth < LITTLE


def test_prediction_keeps_the_answers_and_nothing_else():
    noting = Noting()
    pictures = [Image.new("RGB", (8, 8))] * PICTURES
    data = ImageData.from_datasets(
        [(picture, 0) for picture in pictures[:4]], classes=3, image_size=8, batch_size=250, workers=0
    )
    learner = Learner(network(), data, device="cpu")
    answers = learner.predict(pictures, callbacks=[At(on_predict_batch_end=noting)])
    assert answers.probabilities.shape == (PICTURES, 3)
    assert noting.growth < LITTLE + answers.probabilities.nbytes
