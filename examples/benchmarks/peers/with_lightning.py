"""The work with Lightning: a LightningModule, torch's own loaders and a Trainer.

`fixed` is done as on Lightning's page on transfer learning: the backbone is in evaluation and works under `no_grad`.
Nothing is logged to disk, no checkpoint is written, and the batches that check a validation beforehand are left out.
"""

import argparse
import logging
from typing import Any

import lightning
import torch
from common import LR, MOMENTUM, STEP_EPOCHS, STEP_FACTOR, open_loaders, open_network, run
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class Classifier(lightning.LightningModule):  # type: ignore[misc] # not typed where Lightning is not installed
    """A backbone, fixed or not, and a head."""

    def __init__(self, backbone: nn.Module, head: nn.Module, *, fixed: bool, classes: int) -> None:
        """Take the parts of the network; a fixed backbone keeps its BatchNorm statistics."""
        super().__init__()
        self.backbone, self.head, self.fixed = backbone, head, fixed
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.accuracies: list[float] = []
        if fixed:
            self.backbone.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Give logits `[batch, classes]`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.fixed):
            features = self.backbone(images)
        logits: Tensor = self.head(features)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        return nn.functional.cross_entropy(self(images), targets)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        logits = self(images)
        self.accuracy(logits, targets)
        self.log("val_loss", nn.functional.cross_entropy(logits, targets))
        self.log("val_accuracy", self.accuracy)

    def on_validation_epoch_end(self) -> None:
        """Keep what the epoch came to."""
        self.accuracies.append(float(self.accuracy.compute()))

    def configure_optimizers(self) -> Any:
        """Give the optimizer and the schedule, which goes on after each epoch."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, STEP_EPOCHS, STEP_FACTOR)]


def train(arguments: argparse.Namespace) -> list[float]:
    """Train once; give the val accuracy of each epoch."""
    lightning.seed_everything(arguments.seed, verbose=False)
    train_loader, val_loader, classes = open_loaders(arguments.data)
    backbone, head = open_network(arguments.model, arguments.weights, classes)
    classifier = Classifier(backbone, head, fixed=arguments.work == "fixed", classes=classes)
    trainer = lightning.Trainer(
        max_epochs=arguments.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, train_loader, val_loader)
    return classifier.accuracies


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    run(train)
