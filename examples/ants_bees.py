"""Ants and bees, three ways: what a network gains from weights that have seen other pictures before.

The experiment of PyTorch's transfer learning tutorial. The same network is trained for 25 epochs with SGD (rate 0.001,
momentum 0.9, a tenth of it after every 7 epochs): from random weights, fine-tuned from the given ones, and as a fixed
feature extractor, where only a new head trains.

    python examples/ants_bees.py --data hymenoptera_data --weights mobilenet_v2.pth
    python examples/ants_bees.py --data hymenoptera_data --model torchvision/squeezenet1_1 --weights squeezenet1_1.pth

The pictures are at https://download.pytorch.org/tutorial/hymenoptera_data.zip; without --weights, those of the library
are downloaded.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

from headstart import HeadstartError, History, ImageData, Learner, LRSchedule, step_decay

WAYS = ("random", "finetuned", "fixed")


@dataclass
class Result:
    """One training: how it was done, with which seed, and what came of it."""

    way: str
    seed: int
    history: History
    seconds: float

    @property
    def best(self) -> float:
        """The best val accuracy of all epochs."""
        return self.history.best("val_accuracy", "max")[1]


def train(way: str, seed: int, arguments: argparse.Namespace) -> Result:
    """Train once, the given way."""
    data = ImageData.from_folder(
        arguments.data,
        batch_size=arguments.batch_size,
        augment=Compose([RandomResizedCrop(224), RandomHorizontalFlip()]),
    )
    weights = False if way == "random" else arguments.weights or True
    learner = Learner(arguments.model, data, pretrained=weights, optimizer="sgd", seed=seed)
    if way == "fixed":
        learner.freeze()
    began = time.monotonic()
    history = learner.fit(arguments.epochs, lr=1e-3, callbacks=[LRSchedule(step_decay(every_epochs=7, factor=0.1))])
    return Result(way, seed, history, time.monotonic() - began)


def report(results: list[Result]) -> None:
    """Compare the ways: best val accuracy and time, the median of the seeds and what lies around it."""
    print("way        seeds  best val accuracy  (range)         seconds")
    for way in WAYS:
        own = [result for result in results if result.way == way]
        if own:
            accuracies = [result.best for result in own]
            span = f"({min(accuracies):.3f} to {max(accuracies):.3f})"
            seconds = statistics.median(result.seconds for result in own)
            print(f"{way:10} {len(own):5}  {statistics.median(accuracies):17.3f}  {span}  {seconds:7.0f}")


def draw(results: list[Result], path: Path) -> None:
    """Draw the val accuracy of each way, one thin line for each seed."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epoch", ylabel="val accuracy", title="Ants and bees, three ways")
    for way, color in zip(WAYS, ("tab:gray", "tab:blue", "tab:orange"), strict=True):
        for number, result in enumerate(result for result in results if result.way == way):
            accuracies = result.history.history["val_accuracy"]
            epochs = range(1, len(accuracies) + 1)
            axes.plot(epochs, accuracies, color=color, alpha=0.8, label=f"_{way}" if number else way)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train every way with every seed, print the table, save the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="hymenoptera_data, with train/ and val/")
    parser.add_argument("--weights", type=Path, help="a file of weights; default: those of the library")
    parser.add_argument("--model", default="torchvision/mobilenet_v2.IMAGENET1K_V1", help="a timm or torchvision name")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--out", type=Path, default=Path("runs/ants_bees"), help="where the curves go")
    arguments = parser.parse_args()

    results = []
    for seed in arguments.seeds:
        for way in arguments.ways:
            print(f"{way}, seed {seed}")
            results.append(train(way, seed, arguments))
    report(results)
    draw(results, arguments.out / "curves.png")
    print(f"the curves are in {arguments.out / 'curves.png'}")


if __name__ == "__main__":
    try:
        main()
    except HeadstartError as error:
        sys.exit(str(error))
