"""Measure the same work with headstart and with its peers: time, val accuracy and memory.

Every training is a process of its own, and the contenders take turns; each round begins with another one. A ratio is a
contender's seconds by headstart's in the same round. Peers that are not installed are named and left out; all come with
`pip install -e ".[bench]"`.

    python examples/benchmarks/peers/compare.py --data hymenoptera_data --weights mobilenet_v2.pth --rounds 3
    python examples/benchmarks/peers/compare.py --data hymenoptera_data --model resnet18 --weights resnet18.pth
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from common import command_line
from speed import watched

WORKS = {"fixed": "the head alone", "whole": "the whole network"}


@dataclass(frozen=True)
class Contender:
    """One side: the package it needs, its script, what it is told beyond the others, and the works it is for."""

    package: str
    script: str
    options: Sequence[str] = ()
    works: Sequence[str] = tuple(WORKS)


CONTENDERS = {
    "headstart": Contender("headstart", "with_headstart.py"),
    "headstart, 4 views": Contender("headstart", "with_headstart.py", ("--views", "4"), ("fixed",)),
    "headstart, 1 view": Contender("headstart", "with_headstart.py", ("--views", "1"), ("fixed",)),
    "fastai": Contender("fastai", "with_fastai.py"),
    "Lightning": Contender("lightning", "with_lightning.py"),
    "Keras": Contender("keras", "with_keras.py"),
    "Transformers": Contender("transformers", "with_transformers.py"),
    "pytorch-accelerated": Contender("pytorch-accelerated", "with_pytorch_accelerated.py"),
}


def installed(names: Sequence[str]) -> list[str]:
    """Give the contenders that are there, headstart first; print which are missing, and the versions of the others."""
    there, versions = [], {"torch": str(torch.__version__)}
    for name in dict.fromkeys(["headstart", *names]):
        package = CONTENDERS[name].package
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            print(f'{name} is left out: {package} is not installed (pip install -e ".[bench]")')
        else:
            there.append(name)
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    return there


def measured(name: str, work: str, number: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Let a contender train in a process of its own; a round's number is added to the seed."""
    contender = CONTENDERS[name]
    command = [sys.executable, str(Path(__file__).with_name(contender.script)), *contender.options, "--work", work]
    command += ["--seed", str(arguments.seed + number)]
    for setting in ("data", "model", "weights", "epochs"):
        command += [f"--{setting}", str(getattr(arguments, setting))]
    return watched(command)


def compare(work: str, names: list[str], arguments: argparse.Namespace) -> None:
    """Let all contenders take turns at one work, and print a table."""
    names = [name for name in names if work in CONTENDERS[name].works]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(measured(name, work, number, arguments))
    print(f"\n{WORKS[work]}:\n{'':20}    seconds   ratio                best accuracy   peak memory")
    for name, runs in found.items():
        print(line(name, runs, found["headstart"]), flush=True)


def line(name: str, runs: list[dict[str, float]], own: list[dict[str, float]]) -> str:
    """Make a row of the table, from a contender's rounds and headstart's."""
    middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "best", "megabytes")}
    ratios = [run["seconds"] / base["seconds"] for run, base in zip(runs, own, strict=True)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"{name:20} {middle['seconds']:9.1f} s {ratio:>22} {middle['best']:14.3f} {middle['megabytes']:10.0f} MB"


def main() -> None:
    """Compare at each work."""
    parser = command_line()
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.set_defaults(work=None)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    names = installed(arguments.contenders)
    print(f"{arguments.model}, {arguments.epochs} epochs, {arguments.rounds} rounds, {torch.get_num_threads()} threads")
    for work in [arguments.work] if arguments.work else WORKS:
        compare(work, names, arguments)


if __name__ == "__main__":
    main()
