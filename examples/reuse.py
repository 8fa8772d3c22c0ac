"""Hot dog or not, with and without what the weights already know of hot dogs.

The weights have learned to tell dishes apart, hot dogs among them. A new head either begins at zero or begins the class
that the weights know by name with what they have learned of it; everything else is the same. Printed is the accuracy
before any training and after some epochs of it, for the whole network fine-tuned and for the head alone.

    python examples/reuse.py --data hotdog --weights food101.pth --source-classes food101.classes.txt

The pictures are like those of https://d2l.ai/chapter_computer-vision/fine-tuning.html, in train/ and test/; without
--weights, those of the library are downloaded, whose names are known.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from headstart import Head, HeadstartError, ImageData, Learner

WAYS = ("fine-tuned", "head alone")


def accuracies(way: str, head: Head, seed: int, arguments: argparse.Namespace) -> list[float]:
    """Give the val accuracy before training and after each epoch of it."""
    data = ImageData.from_folder(arguments.data, image_size=arguments.image_size)
    learner = Learner(arguments.model, data, pretrained=arguments.weights or True, head=head, seed=seed)
    if way == "head alone":
        learner.freeze()
    before = learner.evaluate()["accuracy"]
    history = learner.fit(max(arguments.epochs), lr=arguments.lr, head_lr_mult=10, verbose=False)
    return [before, *history.history["val_accuracy"]]


def row(way: str, name: str, runs: Sequence[Sequence[float]], epochs: Sequence[int]) -> str:
    """Write the median of the seeds, and what lies around it, after each number of epochs."""
    cells = []
    for epoch in epochs:
        found = [run[epoch] for run in runs]
        cells.append(f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    return f"{way:10}  {name:8}  " + "  ".join(f"{cell:22}" for cell in cells)


def main() -> None:
    """Train with and without reuse, with every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with train/ and test/ or val/")
    parser.add_argument("--weights", type=Path, help="a file of weights; default: those of the library")
    parser.add_argument("--source-classes", type=Path, help="the names of the file's classes, one on each line")
    parser.add_argument("--model", default="resnet18", help="a timm or torchvision name")
    parser.add_argument("--image-size", type=int, default=80)
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--lr", type=float, default=1e-4, help="of the backbone; the head's is ten times as high")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()

    heads = {"zero": Head(), "reuse": Head(reuse="auto", source_classes=arguments.source_classes)}
    rows = []
    for way in WAYS:
        for name, head in heads.items():
            runs = [accuracies(way, head, seed, arguments) for seed in arguments.seeds]
            rows.append(row(way, name, runs, arguments.epochs))
    print(f"{'trained':10}  {'head':8}  " + "  ".join(f"{f'after {epoch} epochs':22}" for epoch in arguments.epochs))
    print("\n".join(rows))


if __name__ == "__main__":
    try:
        main()
    except HeadstartError as error:
        sys.exit(str(error))
