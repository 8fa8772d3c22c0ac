"""The work with fastai: a DataBlock, a Learner with a splitter, `freeze()` and `fit`.

The head is torchvision's and not that of `vision_learner`, and BatchNorm of the backbone does not train in `fixed`
(`train_bn=False`), so that the work is the same; its running statistics move, as they always do here. Pictures are
prepared by fastai: `RandomResizedCrop` and `FlipItem` on PIL pictures in one process, `Normalize` on batches.
"""

import argparse
from functools import partial

from common import BATCH_SIZE, IMAGE_SIZE, LEAST_AREA, LR, MOMENTUM, lr_at, open_network, run
from fastai.vision.all import (
    SGD,
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    FlipItem,
    GrandparentSplitter,
    ImageBlock,
    Learner,
    Normalize,
    ParamScheduler,
    RandomResizedCrop,
    accuracy,
    default_split,
    get_files,
    imagenet_stats,
    parent_label,
    set_seed,
)
from torch import nn


def train(arguments: argparse.Namespace) -> list[float]:
    """Train once; give the val accuracy of each epoch."""
    set_seed(arguments.seed)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=partial(get_files, extensions={".jpg", ".jpeg", ".png"}),  # others read no GIF
        splitter=GrandparentSplitter(train_name="train", valid_name="val"),
        get_y=parent_label,
        item_tfms=[RandomResizedCrop(IMAGE_SIZE, min_scale=LEAST_AREA), FlipItem()],
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    loaders = block.dataloaders(arguments.data, bs=BATCH_SIZE, num_workers=1, drop_last=False)
    network = nn.Sequential(*open_network(arguments.model, arguments.weights, loaders.c))
    learner = Learner(
        loaders,
        network,
        loss_func=CrossEntropyLossFlat(),
        opt_func=partial(SGD, mom=MOMENTUM),
        splitter=default_split,  # backbone, head
        metrics=accuracy,
        train_bn=False,
    )
    if arguments.work == "fixed":
        learner.freeze()
    schedule = ParamScheduler({"lr": lambda done: lr_at(int(done * arguments.epochs + 1e-6))})
    with learner.no_bar(), learner.no_logging():
        learner.fit(arguments.epochs, LR, cbs=schedule)
    return [float(values[-1]) for values in learner.recorder.values]


if __name__ == "__main__":
    run(train)
