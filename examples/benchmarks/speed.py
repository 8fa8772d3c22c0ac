"""Measure whole trainings beside the loop of PyTorch's tutorial, with the accuracy and the memory beside every time.

The same task for both: 25 epochs of SGD in batches of 16 on the CPU, val after each, with pictures that are cropped at
random and flipped. Both do it as they come: the loop by hand in fp32 with one process for its pictures and crops that
show 8 % of them at the least, headstart with its own precision, processes, cache and crops. With "views" headstart does
less: it keeps features of so many views of each picture, one of them without augmentation. Every training is a process
of its own, the two take turns, and each round has another seed. The clock of the loop by hand starts with its first
epoch, that of headstart before it has looked at the folder. Of the loop by hand fewer epochs can be timed
(--hand-epochs): the others are taken to be as long as the median of those after the first one, and no accuracy is told
for it.

    python examples/benchmarks/speed.py --data hymenoptera_data --weights mobilenet_v2.pth --rounds 5
    python examples/benchmarks/speed.py --data hymenoptera_data --model resnet18 --layers layer4 --weights resnet18.pth
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import by_hand
import torch

from headstart import ImageData, Learner, LRSchedule, step_decay


@dataclass(frozen=True)
class Work:
    """One kind of training: what trains, and how many views of a picture are kept as features."""

    frozen: Literal["backbone", "up to the last stage", "nothing"]
    views: int | Literal["auto"]


WORKS = {
    "fixed features, 1 view": Work("backbone", 1),
    "fixed features, 4 views": Work("backbone", 4),
    "fixed features, fresh views": Work("backbone", "auto"),
    "last stage, 4 views": Work("up to the last stage", 4),
    "last stage, fresh views": Work("up to the last stage", "auto"),
    "everything": Work("nothing", "auto"),
}


def with_headstart(work: Work, arguments: argparse.Namespace) -> tuple[float, float]:
    """Train in this process; give the best val accuracy and the seconds, from the first look at the folder on."""
    began = time.monotonic()
    data = ImageData.from_folder(arguments.data, batch_size=16)
    name = f"torchvision/{arguments.model}"
    learner = Learner(name, data, pretrained=arguments.weights, optimizer="sgd", device="cpu", seed=arguments.seed)
    if work.frozen == "backbone":
        learner.freeze()
    elif work.frozen != "nothing":
        learner.unfreeze(arguments.layers[0])
    schedule = LRSchedule(step_decay(every_epochs=7, factor=0.1))
    history = learner.fit(arguments.epochs, lr=1e-3, callbacks=[schedule], cache_features=work.views, verbose=False)
    return history.best("val_accuracy", "max")[1], time.monotonic() - began


def by_the_tutorial(work: Work, arguments: argparse.Namespace) -> tuple[float, float]:
    """Do the same with the loop by hand, or fewer epochs of it; then the seconds are what all of them would take."""
    layers = arguments.layers if work.frozen == "up to the last stage" else []
    epochs = min(arguments.epochs, arguments.hand_epochs)
    settings = {**vars(arguments), "fixed": work.frozen != "nothing", "layers": layers, "batch_size": 16}
    accuracy, seconds = by_hand.train(argparse.Namespace(**settings | {"epochs": epochs}), arguments.seed)
    missing = arguments.epochs - epochs
    return accuracy, sum(seconds) + (missing * statistics.median(seconds[1:]) if missing else 0.0)


def measured(side: str, work: str, number: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Train in a process of its own; a round's number is added to the seed."""
    settings = ["data", "weights", "model", "epochs", "hand_epochs"]
    command = [sys.executable, __file__, "--side", side, "--works", work, "--seed", str(arguments.seed + number)]
    command += [word for name in settings for word in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))]
    command += ["--layers", *arguments.layers]
    return watched(command)


def watched(command: list[str]) -> dict[str, float]:
    """Run a command whose last line is JSON; give what it says, and the most megabytes it had at a time."""
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own file
        while process.poll() is None:
            peak = max(peak, megabytes(process.pid))
            time.sleep(0.5)  # looking takes the kernel a fortieth of a second
        told = process.stdout.read() if process.stdout is not None else ""
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return {**found, "megabytes": peak}


def megabytes(pid: int) -> float:
    """Give the memory of a process and of those it has started, where what they share counts once (Linux only)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    except OSError:
        return 0.0  # it has just ended
    own = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3
    return own + sum(megabytes(int(child)) for child in children)


def compare(work: str, arguments: argparse.Namespace) -> None:
    """Let both sides take turns at one kind of training and print a line."""
    found: dict[str, list[dict[str, float]]] = {"hand": [], "headstart": []}
    for number in range(arguments.rounds):
        for side in ("hand", "headstart") if number % 2 else ("headstart", "hand"):
            found[side].append(measured(side, work, number, arguments))
    columns = {side: {name: [one[name] for one in runs] for name in runs[0]} for side, runs in found.items()}
    hand, own = columns["hand"], columns["headstart"]
    ratios = [slow / fast for slow, fast in zip(hand["seconds"], own["seconds"], strict=True)]
    accuracies = [spread(own["accuracy"], 3)]
    if arguments.hand_epochs >= arguments.epochs:
        accuracies.insert(0, spread(hand["accuracy"], 3))
    seconds, peak = ([statistics.median(column[name]) for column in (hand, own)] for name in ("seconds", "megabytes"))
    print(
        f"{work:28} {seconds[0]:7.1f} s {seconds[1]:7.1f} s {spread(ratios, 1):>19}  {', '.join(accuracies)}  "
        f"{peak[0]:5.0f} {peak[1]:5.0f} MB",
        flush=True,
    )


def spread(values: list[float], digits: int) -> str:
    """Write the median and the range of some values."""
    middle, least, most = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def main() -> None:
    """Compare, or be one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="mobilenet_v2", help="a network of torchvision")
    parser.add_argument("--layers", nargs="*", default=["features.17", "features.18"], help="the last stage")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--hand-epochs", type=int, default=25, help="3 or more, or as many as --epochs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=["hand", "headstart"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        train: Any = by_the_tutorial if arguments.side == "hand" else with_headstart
        accuracy, seconds = train(WORKS[arguments.works[0]], arguments)
        print(json.dumps({"accuracy": accuracy, "seconds": seconds}))
        return
    print(f"{arguments.model}, {arguments.epochs} epochs, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'':28} {'by hand':>9} {'headstart':>9} {'ratio':>19}  accuracy and peak memory (by hand, headstart)")
    for work in arguments.works:
        compare(work, arguments)


if __name__ == "__main__":
    main()
