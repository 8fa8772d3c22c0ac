"""What many tests need: pictures small enough to be learned within seconds, a network to learn them, real pictures."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from headstart import ImageData, Learner
from headstart.training import companions

# Here and in processes that tests start: figures need no display, and networks this small lose by sharing their work.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent
SHAPES = ("circle", "square", "triangle")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Find the folder of real pictures and weights, or skip the test."""
    named = os.environ.get("HEADSTART_ASSETS")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "assets"
    if named and not folder.is_dir():
        pytest.fail(f"HEADSTART_ASSETS={named} is no folder. Correct it, or unset it to skip this test.")
    if not folder.is_dir():
        pytest.skip("needs real pictures and weights: set HEADSTART_ASSETS to the folder that holds them")
    return folder


@pytest.fixture(autouse=True)
def unflushed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk, which takes minutes in all: what a killed process has written is there all the same.

    That files are flushed, and when, is looked at in `test_files.py`.
    """
    if request.path.name != "test_files.py":
        monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in fp32 unless a test asks for something else, whatever the processor has."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fit not say how long it waits for pictures, which on a busy machine is anybody's guess."""
    monkeypatch.setattr(companions, "AFTER", math.inf)


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw three classes of shapes as JPEG files: 24 to train on and 9 to validate on of each. Do not write into it."""
    root = tmp_path_factory.mktemp("pictures") / "shapes"
    for number, kind in enumerate(SHAPES):
        for index in range(33):
            path = root / ("train" if index < 24 else "val") / kind / f"{index:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            _shape(kind, np.random.default_rng([number, index])).save(path, quality=90)
    return root


def _shape(kind: str, chance: np.random.Generator) -> Image.Image:
    """Draw one bright shape on a dark, noisy ground, 40 to 90 pixels a side; each kind leans towards a colour."""
    width, height = (int(side) for side in chance.integers(40, 91, size=2))
    noise = chance.normal(chance.uniform(20, 70, size=3), 15, size=(height, width, 3))
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    radius = chance.uniform(0.28, 0.42) * min(width, height)
    x, y = (radius + chance.uniform(0, 1) * (side - 2 * radius) for side in (width, height))
    colour = chance.integers(100, 180, size=3)
    colour[SHAPES.index(kind)] += 70
    draw = ImageDraw.Draw(image)
    if kind == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour.tolist()))
    else:
        sides = 4 if kind == "square" else 3
        draw.regular_polygon((x, y, radius), sides, rotation=int(chance.integers(-15, 16)), fill=tuple(colour.tolist()))
    return image


class TinyNetwork(nn.Module):
    """A small network for pictures of 32 pixels, with the parts of a big one: stem, stages, batch norm, a head."""

    def __init__(self, classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = _convolution(3, width)
        self.stage1 = _convolution(width, 2 * width)
        self.stage2 = _convolution(2 * width, 4 * width)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images `[batch, 3, height, width]` into logits `[batch, classes]`."""
        logits: Tensor = self.fc(self.pool(self.stage2(self.stage1(self.stem(images)))))
        return logits


def _convolution(channels: int, width: int) -> nn.Sequential:
    """Make one block that halves height and width."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


@pytest.fixture
def tiny_network() -> Callable[..., TinyNetwork]:
    """Give a maker of small networks, `tiny_network(classes=3, seed=0)`; the same seed gives the same weights."""

    def make(classes: int = 3, seed: int = 0) -> TinyNetwork:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TinyNetwork(classes)

    return make


@pytest.fixture(scope="session")
def shapes(shapes_folder: Path) -> dict[str, list[tuple[Image.Image, int]]]:
    """Open some of the pictures once, small: what matters here is not how they are read."""

    def small(part: str, most: int) -> list[tuple[Image.Image, int]]:
        paths = [
            (path, n)
            for n, kind in enumerate(SHAPES)
            for path in sorted((shapes_folder / part / kind).iterdir())[:most]
        ]
        return [(Image.open(path).resize((36, 36)), label) for path, label in paths]

    return {"train": small("train", 12), "val": small("val", 4)}


@pytest.fixture
def make(shapes: dict[str, Any], tiny_network: Any) -> Any:
    """Make a Learner with all that chance has a hand in: dropout, batch norm, augmentation."""

    def learner(workers: int = 0, root: Path | None = None, data: ImageData | None = None, **options: Any) -> Learner:
        torch.manual_seed(0)
        network = nn.Sequential(tiny_network(), nn.Dropout(0.1))
        settings = {"image_size": 32, "batch_size": 8, "workers": workers}
        if data is not None:
            pass
        elif root is not None:
            data = ImageData.from_folder(root, **settings)
        else:
            data = ImageData.from_datasets(**shapes, classes=SHAPES, **settings)
        return Learner(network, data, device="cpu", metrics=("accuracy", "f1"), **options)

    return learner
