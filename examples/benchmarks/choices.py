"""What a choice costs in accuracy and gains in time: the same trainings with and without it, seed by seed.

`--choice bf16` compares bf16 with fp32. Any CPU computes in bf16, but few gain time by it; on the others only the
accuracies are worth comparing. `--choice progressive` compares pictures that grow with pictures of one
size. Both sides take turns, and both are headstart's: the whole network, and for bf16 also fixed features under a new
head, for which pictures do not grow.

    python examples/benchmarks/choices.py --choice bf16 --data hymenoptera_data flowers --weights resnet18.pth
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from headstart import ImageData, Learner, LRSchedule, ProgressiveResize, cosine

CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "bf16": {"fp32": {"precision": "fp32"}, "bf16": {"precision": "bf16"}},
    "progressive": {"one size": {}, "progressive": {"resize": True}},
}
"""Both sides of a choice by their names, each with what `train` is told."""


def train(
    arguments: argparse.Namespace,
    data: ImageData,
    way: str,
    seed: int,
    *,
    precision: Any = "auto",
    resize: bool = False,
) -> tuple[float, float]:
    """Train once; give the last val accuracy and the seconds it took."""
    learner = Learner(arguments.model, data, pretrained=arguments.weights, precision=precision, seed=seed)
    began = time.monotonic()
    if way == "fixed":
        learner.freeze()
        learner.fit(arguments.epochs, lr=1e-3, cache_features=1, verbose=False)
    else:
        callbacks = [LRSchedule(cosine(warmup=0.2)), *([ProgressiveResize(arguments.start)] if resize else [])]
        learner.fit(arguments.whole_epochs, lr=arguments.lr, head_lr_mult=4, callbacks=callbacks, verbose=False)
    return learner.history.history["val_accuracy"][-1], time.monotonic() - began


def compare(arguments: argparse.Namespace, folder: Path, way: str) -> None:
    """Train with every seed on both sides of the choice, and print a line."""
    sides = CHOICES[arguments.choice]
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    data = ImageData.from_folder(folder, batch_size=16, image_size=arguments.image_size)
    short = argparse.Namespace(**vars(arguments) | {"epochs": 1, "whole_epochs": 1})
    train(short, data, way, 0)  # decodes, and warms up
    for number, seed in enumerate(arguments.seeds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            results[name].append(train(arguments, data, way, seed, **sides[name]))
    parts = []
    for name, runs in results.items():
        accuracies = sorted(accuracy for accuracy, _ in runs)
        middle, seconds = statistics.median(accuracies), statistics.median(seconds for _, seconds in runs)
        parts.append(f"{name} {middle:.3f} ({accuracies[0]:.3f} to {accuracies[-1]:.3f}), {seconds:.0f} s")
    without, with_it = results.values()
    gain = statistics.mean(new - old for (new, _), (old, _) in zip(with_it, without, strict=True))
    ratio = statistics.median(old / new for (_, new), (_, old) in zip(with_it, without, strict=True))
    parts.append(f"mean difference {gain:+.4f} of {len(data.part('val'))} val pictures, time ratio {ratio:.2f}")
    print(f"{folder.name}, {way}: {'; '.join(parts)}", flush=True)


def main() -> None:
    """Compare both sides on every folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choice", choices=tuple(CHOICES), required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of pictures by class")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="torchvision/resnet18")
    parser.add_argument("--image-size", type=int, help="pixels; left out, what the weights expect")
    parser.add_argument("--ways", nargs="+", choices=("fixed", "whole"), help="left out, all that the choice is for")
    parser.add_argument("--epochs", type=int, default=25, help="of the head alone")
    parser.add_argument("--whole-epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=5e-4, help="of the whole network")
    parser.add_argument("--start", type=int, default=128, help="pixels to begin with, where pictures grow")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    ways = {"bf16": ["fixed", "whole"], "progressive": ["whole"]}[arguments.choice]
    for folder in arguments.data:
        for way in arguments.ways or ways:
            compare(arguments, folder, way)


if __name__ == "__main__":
    main()
