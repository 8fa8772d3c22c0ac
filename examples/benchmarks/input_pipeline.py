"""Measure how fast one core makes training batches of picture files: decoded in every epoch, and kept.

The contenders take turns: torchvision's ImageFolder with its transforms, and headstart without a cache, with one in
memory and with one on the disk (in a new folder). All of them crop at random 35 to 100 % of a picture to 224 pixels,
flip and normalise, in batches of 32. The time that keeping takes is told by itself.

    python examples/benchmarks/input_pipeline.py --data hymenoptera_data/train --rounds 5
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from headstart import ImageData, Preprocessing
from headstart.data.cache import Cache

PLAIN = transforms.Compose(
    [
        transforms.RandomResizedCrop(224, scale=(0.35, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
Epoch = Callable[[int], Iterable[Tensor]]


def by_hand(folder: Path) -> Epoch:
    """Make batches with what torchvision has, in this process."""
    loader = DataLoader(ImageFolder(folder, PLAIN), batch_size=32, shuffle=True)
    return lambda _: (images for images, _ in loader)


def with_headstart(folder: Path, cache: Cache | None) -> tuple[Epoch, float]:
    """Make batches as `fit` does, in this process; also the seconds that keeping the pictures took."""
    preprocessing = Preprocessing()
    data = ImageData.from_folder(folder, cache=cache, workers=0, val_fraction=0.001).bind(preprocessing)
    began = time.perf_counter()
    data.prepare()
    seconds = time.perf_counter() - began
    batches, normalise = data.train_batches(seed=0), preprocessing.normaliser(torch.device("cpu"))
    return lambda epoch: (normalise(images) for images, _ in batches.epoch(1, epoch)), seconds


def measure(epoch: Iterable[Tensor]) -> float:
    """Give the pictures that come out in a second of this process's work."""
    began, pictures = time.process_time(), 0
    for images in epoch:
        pictures += images.shape[0]
    return pictures / (time.process_time() - began)


def main() -> None:
    """Let all take turns and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with one sub-folder per class")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "headstart, no cache": with_headstart(arguments.data, None),
            "headstart, cache in memory": with_headstart(arguments.data, Cache("ram")),
            "headstart, cache on disk": with_headstart(arguments.data, Cache("disk", folder)),
        }
        contenders = {"ImageFolder and transforms": by_hand(arguments.data)}
        contenders |= {name: epoch for name, (epoch, _) in made.items()}
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(arguments.rounds + 1):
            order = list(contenders) if number % 2 else list(contenders)[::-1]
            for name in order:
                rate = measure(contenders[name](number))
                if number:  # the round before the first warms up
                    rates[name].append(rate)
    first = statistics.median(rates["ImageFolder and transforms"])
    for name, values in rates.items():
        rate, kept = statistics.median(values), f", kept in {made[name][1]:.1f} s" if name in made else ""
        print(f"{name:28} {rate:6.0f} ({min(values):.0f} to {max(values):.0f}) pictures/s {rate / first:5.2f}x{kept}")


if __name__ == "__main__":
    main()
