"""Kill a training again and again, at random moments, and see whether anything was lost.

One process trains a ResNet-18 without being disturbed. Another training of the same is killed with SIGKILL: in the
middle of an epoch, in validation, or while a state is being written, after a random delay. The same script is started
again each time, until it comes to its end. Then the two networks are compared, bit by bit.

    python examples/benchmarks/kill_resume.py --data hymenoptera_data --kills 30

The pictures are at https://download.pytorch.org/tutorial/hymenoptera_data.zip; any folder of pictures will do.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from headstart import Callback, EarlyStopping, ImageData, Learner, LRSchedule, ModelCheckpoint, Order, cosine

MOMENTS = ("training", "validation", "writing")


class Trace(Callback):
    """Write what happens into a file, where it outlives the process."""

    order = Order.REPORT

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, logs: Any) -> None:
        """Note where this process begins."""
        self.note("begin")

    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        """Note a batch that has been trained."""
        self.note(f"train {self.run.epoch} {batch}")

    def on_test_batch_end(self, batch: int, logs: Any) -> None:
        """Note a batch of the validation."""
        self.note(f"val {self.run.epoch} {batch}")

    def note(self, words: str) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(f"{words}\n")


def train(arguments: argparse.Namespace, folder: Path) -> None:
    """Train, or go on; this is all that a process does."""
    data = ImageData.from_folder(arguments.data, image_size=96, batch_size=16, workers=arguments.workers)
    learner = Learner("resnet18", data, pretrained=False, device="cpu")
    learner.fit(
        arguments.epochs,
        lr=1e-3,
        callbacks=[
            LRSchedule(cosine(warmup=0.1)),
            EarlyStopping(patience=arguments.epochs),
            ModelCheckpoint(folder, every_seconds=arguments.every),
            Trace(folder / "trace.txt"),
        ],
        resume=True,
        verbose=False,
    )
    learner.save(folder / "end.safetensors")


@dataclass
class Outcome:
    """What a training went through."""

    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    processes: int = 0


def start(arguments: argparse.Namespace, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a process that trains in a folder."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("data", "epochs", "every", "workers")]
    command = [sys.executable, __file__, *options, f"--folder={folder}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 - itself


def is_at(moment: str, folder: Path, since: int) -> bool:
    """Say whether a training is at such a moment, with a few batches behind it."""
    lines = (folder / "trace.txt").read_text().splitlines()[since:] if (folder / "trace.txt").exists() else []
    if sum(line.startswith("train") for line in lines) < 3:
        return False
    if moment == "writing":
        return any(path.name.startswith(".state-") for path in (folder / "fit-1").iterdir())
    return lines[-1].startswith("train" if moment == "training" else "val")


def killed_again_and_again(arguments: argparse.Namespace, folder: Path) -> Outcome:
    """Train to the end, killing the process on the way as often as asked for."""
    chance = random.Random(arguments.seed)  # noqa: S311 - moments, not secrets
    outcome, began = Outcome(), time.monotonic()
    while True:
        since = len((folder / "trace.txt").read_text().splitlines()) if outcome.processes else 0
        process, moment = start(arguments, folder), MOMENTS[outcome.kills.total() % len(MOMENTS)]
        outcome.processes += 1
        while process.poll() is None:
            if outcome.kills.total() < arguments.kills and is_at(moment, folder, since):
                time.sleep(chance.uniform(0, 0.3 if moment == "training" else 0.03))
                os.killpg(process.pid, signal.SIGKILL)
                if process.wait() == -signal.SIGKILL:
                    outcome.kills[moment] += 1
                break
            time.sleep(0.002)
        if process.wait() == 0:
            outcome.seconds = time.monotonic() - began
            return outcome
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the training itself failed with exit code {process.returncode}")


def report(arguments: argparse.Namespace, folder: Path, whole: Path, outcome: Outcome) -> None:
    """Print what was lost, if anything."""
    trained = Counter(line for line in (folder / "trace.txt").read_text().splitlines() if line.startswith("train"))
    wanted = {line for line in (whole / "trace.txt").read_text().splitlines() if line.startswith("train")}
    one, other = (load_file(path / "end.safetensors") for path in (folder, whole))
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    moved = any(not torch.equal(one[name], value) for name, value in load_file(whole / "start.safetensors").items())
    kinds = ", ".join(f"{outcome.kills[moment]} in {moment}" for moment in MOMENTS)
    print(f"kills survived: {outcome.kills.total()} of {arguments.kills} ({kinds})")
    print(f"batches: {len(wanted)}; missing: {len(wanted - trained.keys())}; ", end="")
    print(f"trained again since the last state: {trained.total() - len(trained)}")
    print(f"final weights identical, bit for bit: {'yes' if same else 'NO'}; training changed them: {moved}")
    print(f"{outcome.processes} processes, {outcome.seconds:.0f} s")
    if not same or not moved or wanted - trained.keys():
        raise SystemExit(1)


def main() -> None:
    """Train twice, once undisturbed and once not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures, one sub-folder for each class")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two states inside an epoch")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.folder:
        train(arguments, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        whole, folder = Path(place) / "whole", Path(place) / "killed"
        data = ImageData.from_folder(arguments.data, image_size=96, batch_size=16)
        Learner("resnet18", data, pretrained=False, device="cpu").save(whole / "start.safetensors")
        if start(arguments, whole).wait() != 0:
            raise SystemExit("the training failed before anything was killed")
        report(arguments, folder, whole, killed_again_and_again(arguments, folder))


if __name__ == "__main__":
    main()
