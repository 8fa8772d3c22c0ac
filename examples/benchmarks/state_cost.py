"""Measure what saving the state of a run costs: a ResNet-50 with AdamW, whose state is 283 MB.

What holds training up is the copy that is taken between two steps; it is written in the background. Both are timed in
one training, state by state.

    python examples/benchmarks/state_cost.py --states 10
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from headstart import Callback, ImageData, Learner, ModelCheckpoint

EVERY = 60.0  # seconds between two states, for the share that is printed


class Timing(Callback):
    """Ask for a state after each batch, and note how long training waits for it."""

    def __init__(self) -> None:
        self.copies: list[float] = []
        self.writes: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        """Ask for a state."""
        self.run.between_steps(self.save)

    def save(self) -> None:
        """Save, and wait for the writing only to time it."""
        began = time.perf_counter()
        self.run.save_state()
        self.copies.append(time.perf_counter() - began)
        self.run.write(lambda: self.writes.append(time.perf_counter() - began))
        while len(self.writes) < len(self.copies):
            time.sleep(0.001)


def main() -> None:
    """Train a few steps, saving a state after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--states", type=int, default=10)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    batch = (torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    data = ImageData.from_datasets(
        [(image, int(label)) for image, label in zip(*batch, strict=True)] * arguments.states,
        classes=("a", "b"),
        batch_size=2,
        workers=0,
    )
    learner = Learner("resnet50", data, pretrained=False, device=arguments.device)
    timing = Timing()
    with tempfile.TemporaryDirectory() as folder:
        learner.fit(1, lr=1e-4, callbacks=[timing, ModelCheckpoint(folder)], verbose=False)
        size = max(path.stat().st_size for path in Path(folder).rglob("state-*"))
    copy, write = statistics.median(timing.copies), statistics.median(timing.writes)
    count = len(timing.copies)
    print(f"{count} state{'s' * (count > 1)} of {size / 1e6:.0f} MB; median seconds (and range):")
    for name, seconds in (("training waits", timing.copies), ("until it is written", timing.writes)):
        print(f"{name:20}  {statistics.median(seconds):.3f}  ({min(seconds):.3f} to {max(seconds):.3f})")
    print(f"with a state every {EVERY:.0f} s training waits {copy / EVERY:.2%} of the time")
    print(f"if the writing took its whole time from training, it would be {write / EVERY:.2%}")


if __name__ == "__main__":
    main()
