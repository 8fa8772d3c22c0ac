"""What all contenders share: the command line, the rates, the pictures and the network for those that take torch's own.

It knows nothing of headstart, and of no peer. The work is that of PyTorch's tutorial: SGD with a rate of 0.001, which
is divided by ten after every 7 epochs, and a momentum of 0.9, in batches of 16 pictures of 224 pixels, in fp32. Crops
are as large as headstart cuts them, so that all see pictures of the same kind.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

BATCH_SIZE = 16
IMAGE_SIZE = 224
LEAST_AREA = 0.35  # of a picture that a crop shows
LR = 1e-3
MOMENTUM = 0.9
STEP_EPOCHS = 7  # after so many the rate falls ...
STEP_FACTOR = 0.1  # ... to this share of itself

NORMALISE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRAIN = transforms.Compose(
    [
        transforms.RandomResizedCrop(IMAGE_SIZE, scale=(LEAST_AREA, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        NORMALISE,
    ]
)
VAL = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(IMAGE_SIZE), transforms.ToTensor(), NORMALISE])


def lr_at(epoch: int) -> float:
    """Give the rate of an epoch, counted from 0."""
    return LR * STEP_FACTOR ** (epoch // STEP_EPOCHS)


def open_pictures(folder: Path) -> tuple[Any, Any]:
    """Give the train and the val part as torchvision's datasets, whose `classes` are names."""
    return ImageFolder(folder / "train", TRAIN), ImageFolder(folder / "val", VAL)


def open_loaders(folder: Path) -> tuple[DataLoader[Any], DataLoader[Any], int]:
    """Give loaders of the train and the val part with one process each, and the number of classes."""
    train, val = open_pictures(folder)
    loaders = [DataLoader(part, BATCH_SIZE, shuffle=part is train, num_workers=1) for part in (train, val)]
    return loaders[0], loaders[1], len(train.classes)


def open_network(name: str, weights: Path, classes: int) -> tuple[nn.Module, nn.Module]:
    """Open a mobilenet or a resnet of torchvision with its weights, in two parts.

    Returns:
        The backbone, which makes features `[batch, width]` of pictures, and a head with a new last layer, which makes
        logits `[batch, classes]` of these.
    """
    state = torch.load(weights, weights_only=True)
    known = next(reversed(state.values())).shape[0]
    network = models.get_model(name, weights=None, num_classes=known)
    network.load_state_dict(state)
    place = "fc" if isinstance(network, models.ResNet) else "classifier"
    head = getattr(network, place)
    setattr(network, place, nn.Identity())
    if isinstance(head, nn.Linear):
        return network, nn.Linear(head.in_features, classes)
    head[-1] = nn.Linear(head[-1].in_features, classes)
    return network, head


def command_line() -> argparse.ArgumentParser:
    """Give the arguments that every contender takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="a folder that holds train/ and val/")
    parser.add_argument("--model", default="mobilenet_v2", help="a mobilenet or a resnet of torchvision")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", choices=("fixed", "whole"), default="fixed", help="what trains: the head, or all")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def run(train: Callable[[argparse.Namespace], list[float]], parser: argparse.ArgumentParser | None = None) -> None:
    """Train as the command line says, and print seconds and val accuracies as a line of JSON.

    Args:
        train: gives the val accuracy of each epoch. Time begins when it is called, before it has looked at the folder.
        parser: for a contender that takes more arguments than the others.
    """
    arguments = (parser or command_line()).parse_args()
    began = time.monotonic()
    accuracies = train(arguments)
    seconds = time.monotonic() - began
    print(json.dumps({"seconds": seconds, "accuracy": accuracies[-1], "best": max(accuracies)}))
