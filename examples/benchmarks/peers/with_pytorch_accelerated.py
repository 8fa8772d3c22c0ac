"""The work with pytorch-accelerated: its Trainer, its ModelFreezer, and a callback that counts what was right.

In `fixed` the BatchNorm layers are frozen as well (`freeze_batch_norms=True`), so that the work is that of the others;
the Trainer puts the whole network into training, so that their statistics move. Loaders have one process, not one for
each core as they would have by themselves.
"""

import argparse
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from common import BATCH_SIZE, LR, MOMENTUM, STEP_EPOCHS, STEP_FACTOR, open_network, open_pictures, run
from pytorch_accelerated import Trainer
from pytorch_accelerated.callbacks import MoveModulesToDeviceCallback, TerminateOnNaNCallback, TrainerCallback
from pytorch_accelerated.finetuning import ModelFreezer
from pytorch_accelerated.trainer import TrainerPlaceholderValues
from torch import nn
from torchmetrics.classification import MulticlassAccuracy


class Accuracy(TrainerCallback):  # type: ignore[misc] # not typed where pytorch-accelerated is not installed
    """Put the val accuracy of each epoch into the run's history."""

    def __init__(self, classes: int) -> None:
        """Count over so many classes."""
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def on_eval_step_end(self, trainer: Any, batch: Any, batch_output: Any, **kwargs: Any) -> None:
        self.accuracy.update(batch_output["model_outputs"], batch[1])

    def on_eval_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        trainer.run_history.update_metric("accuracy", float(self.accuracy.compute()))
        self.accuracy.reset()


def train(arguments: argparse.Namespace) -> list[float]:
    """Train once; give the val accuracy of each epoch."""
    set_seed(arguments.seed)
    train_pictures, val_pictures = open_pictures(arguments.data)
    classes = len(train_pictures.classes)
    network = nn.Sequential(*open_network(arguments.model, arguments.weights, classes))
    if arguments.work == "fixed":
        ModelFreezer(network, freeze_batch_norms=True).freeze()  # all layer groups but the last
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    trainer = Trainer(
        network,
        loss_func=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM),
        callbacks=(MoveModulesToDeviceCallback, TerminateOnNaNCallback, Accuracy(classes)),
    )
    trainer.train(
        train_pictures,
        num_epochs=arguments.epochs,
        eval_dataset=val_pictures,
        per_device_batch_size=BATCH_SIZE,
        create_scheduler_fn=partial(
            torch.optim.lr_scheduler.StepLR,
            step_size=TrainerPlaceholderValues.NUM_UPDATE_STEPS_PER_EPOCH * STEP_EPOCHS,
            gamma=STEP_FACTOR,
        ),
        train_dataloader_kwargs={"num_workers": 1},
        eval_dataloader_kwargs={"num_workers": 1},
    )
    return [float(value) for value in trainer.run_history.get_metric_values("accuracy")]


if __name__ == "__main__":
    run(train)
