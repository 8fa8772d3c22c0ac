"""The work with Hugging Face's Trainer: a module that gives its loss, a collator and TrainingArguments.

The pictures are torchvision's `ImageFolder`, since the network is torchvision's as well. In `fixed` the backbone has
`requires_grad_(False)`; the Trainer puts all of it into training, so that its BatchNorm statistics move. Gradients are
not clipped (`max_grad_norm=0`), for no other contender clips them, and no checkpoint is written.
"""

import argparse
import math
import tempfile
from typing import Any

import torch
from common import BATCH_SIZE, LR, MOMENTUM, STEP_EPOCHS, STEP_FACTOR, open_network, open_pictures, run
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed


class Classifier(nn.Module):
    """A network as the Trainer wants it: it takes labels, and gives loss and logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        """Take the parts of the network."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Give the mean loss of the batch, and logits `[batch, classes]`."""
        logits = self.head(self.backbone(pixel_values))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(examples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Make a batch of pictures and class ids."""
    pictures, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(pictures), "labels": torch.tensor(labels)}


def accuracy(predicted: Any) -> dict[str, float]:
    """Give the share of val pictures whose class was found."""
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def settings(arguments: argparse.Namespace, folder: str) -> Any:
    """Give the Trainer's arguments."""
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        dataloader_num_workers=1,
        dataloader_pin_memory=torch.cuda.is_available(),
        max_grad_norm=0,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=arguments.seed,
    )


def train(arguments: argparse.Namespace) -> list[float]:
    """Train once; give the val accuracy of each epoch."""
    set_seed(arguments.seed)
    train_pictures, val_pictures = open_pictures(arguments.data)
    network = Classifier(*open_network(arguments.model, arguments.weights, len(train_pictures.classes)))
    if arguments.work == "fixed":
        network.backbone.requires_grad_(False)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)
    steps = STEP_EPOCHS * math.ceil(len(train_pictures) / BATCH_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=network,
            args=settings(arguments, folder),
            data_collator=collate,
            train_dataset=train_pictures,
            eval_dataset=val_pictures,
            compute_metrics=accuracy,
            optimizers=(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, steps, STEP_FACTOR)),
        )
        trainer.train()
    return [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]


if __name__ == "__main__":
    run(train)
