"""The loop of PyTorch's transfer learning tutorial, written by hand, to compare accuracy and time with.

It knows nothing of headstart: torchvision's ImageFolder, a DataLoader, SGD (rate 0.001, momentum 0.9), StepLR(7, 0.1),
and the tutorial's pictures and augmentation.

    python examples/benchmarks/by_hand.py --data hymenoptera_data --model squeezenet1_1 --weights squeezenet1_1.pth
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

NORMALISE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRAIN = transforms.Compose(
    [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALISE]
)
VAL = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALISE])


def open_network(name: str, weights: Path, classes: int) -> Any:
    """Open a torchvision network with its weights and a new last layer."""
    state = torch.load(weights, weights_only=True)
    known = next(reversed(state.values())).shape[0]
    network = models.get_model(name, weights=None, num_classes=known)
    network.load_state_dict(state)
    if isinstance(network, models.SqueezeNet):
        network.classifier[1] = nn.Conv2d(512, classes, kernel_size=1)
    elif isinstance(network, models.ResNet):
        network.fc = nn.Linear(network.fc.in_features, classes)
    else:
        network.classifier[-1] = nn.Linear(network.classifier[-1].in_features, classes)
    return network


def train(arguments: argparse.Namespace, seed: int) -> tuple[float, list[float]]:
    """Train once; give the best val accuracy and the seconds that each epoch took."""
    torch.manual_seed(seed)
    sets = {"train": ImageFolder(arguments.data / "train", TRAIN), "val": ImageFolder(arguments.data / "val", VAL)}
    loaders = {
        part: DataLoader(pictures, batch_size=arguments.batch_size, shuffle=part == "train", num_workers=1)
        for part, pictures in sets.items()
    }
    network = open_network(arguments.model, arguments.weights, len(sets["train"].classes))
    if arguments.fixed:
        network.requires_grad_(False)
        head = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        head.requires_grad_(True)
    for layer in arguments.layers:
        network.get_submodule(layer).requires_grad_(True)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, seconds = 0.0, []
    for epoch in range(arguments.epochs):
        began = time.monotonic()
        for part, loader in loaders.items():
            network.train(part == "train")
            correct = 0
            for images, targets in loader:
                with torch.set_grad_enabled(part == "train"):
                    outputs = network(images)
                    loss = nn.functional.cross_entropy(outputs, targets)
                if part == "train":
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                correct += int((outputs.argmax(1) == targets).sum())
            if part == "val":
                best = max(best, correct / len(sets["val"]))
                print(f"epoch {epoch + 1}: val accuracy {correct / len(sets['val']):.4f}")
        scheduler.step()
        seconds.append(time.monotonic() - began)
    return best, seconds


def main() -> None:
    """Train with every seed and print the median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="squeezenet1_1", help="squeezenet1_1, mobilenet_v2 or a resnet")
    parser.add_argument("--fixed", action="store_true", help="train only the last layer")
    parser.add_argument("--layers", nargs="*", default=[], help="with --fixed: what trains beside the last layer")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    results = [train(arguments, seed) for seed in arguments.seeds]
    accuracies = [accuracy for accuracy, _ in results]
    print(f"best val accuracy by hand: {', '.join(f'{accuracy:.4f}' for accuracy in accuracies)}")
    print(f"median {statistics.median(accuracies):.4f}, {statistics.median(sum(s) for _, s in results):.0f} s")


if __name__ == "__main__":
    main()
