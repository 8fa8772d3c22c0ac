"""Measure what a training step costs beside a loop written by hand.

Both train the same tiny network on the same batches in memory, with the same optimizer, and both keep the epoch's mean
loss and accuracy. They take turns in one process; what is printed is the ratio of each round and the median of all.

    python examples/benchmarks/overhead.py --steps 3000 --rounds 5
"""

import argparse
import contextlib
import io
import statistics
import time

import torch
from torch import nn

from headstart import ImageData, Learner

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def tiny_network() -> nn.Module:
    """A network so small that a step is mostly the loop's own work."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def make_batches(steps: int) -> Batches:
    """One epoch of batches of 8 pictures of 16 pixels, in memory."""
    generator = torch.Generator().manual_seed(0)
    pool = [
        (torch.rand(8, 3, 16, 16, generator=generator), torch.randint(10, (8,), generator=generator)) for _ in range(50)
    ]
    return [pool[step % len(pool)] for step in range(steps)]


def by_hand(batches: Batches) -> tuple[float, float, float]:
    """The loop people write, with the same fused optimizer; seconds, loss, accuracy."""
    network = tiny_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    loss_function = nn.CrossEntropyLoss()
    network.train()
    began = time.perf_counter()
    loss_sum, correct, seen = 0.0, 0, 0
    for images, targets in batches:
        optimizer.zero_grad()
        outputs = network(images)
        loss = loss_function(outputs, targets)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(images)
        correct += int((outputs.argmax(1) == targets).sum())
        seen += len(images)
    return time.perf_counter() - began, loss_sum / seen, correct / seen


def with_headstart(batches: Batches) -> tuple[float, float, float]:
    """The same through `Learner.fit`, everything that fit does around its steps included."""
    with contextlib.redirect_stdout(io.StringIO()):
        learner = Learner(tiny_network(), ImageData.from_loaders(batches, classes=10), optimizer="sgd", device="cpu")
    began = time.perf_counter()
    history = learner.fit(1, lr=0.01, verbose=False).history
    return time.perf_counter() - began, history["loss"][0], history["accuracy"][0]


def main() -> None:
    """Let both take turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batches = make_batches(arguments.steps)
    by_hand(batches[:200])
    with_headstart(batches[:200])
    hands, owns = [], []
    print(f"{arguments.steps} steps a round, torch {torch.__version__}, one thread")
    print("round  by hand us/step  headstart us/step  ratio  loss by hand  loss headstart")
    for number in range(1, arguments.rounds + 1):
        if number % 2:  # who begins takes turns too, so that a machine that slows down favours neither
            hand_seconds, hand_loss, _ = by_hand(batches)
            own_seconds, own_loss, _ = with_headstart(batches)
        else:
            own_seconds, own_loss, _ = with_headstart(batches)
            hand_seconds, hand_loss, _ = by_hand(batches)
        hands.append(1e6 * hand_seconds / arguments.steps)
        owns.append(1e6 * own_seconds / arguments.steps)
        print(
            f"{number:5}  {hands[-1]:15.1f}  {owns[-1]:17.1f}  {owns[-1] / hands[-1]:5.3f}  "
            f"{hand_loss:12.6f}  {own_loss:14.6f}"
        )
    ratios = [own / hand for own, hand in zip(owns, hands, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"by hand {statistics.median(hands):.0f} us/step, headstart {statistics.median(owns):.0f} us/step")
    print(f"median ratio {middle:.3f} (half of the rounds from {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
