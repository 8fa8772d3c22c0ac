"""The work with Keras on torch: the network in `TorchModuleWrapper`, then `compile` and `fit` with torch's loaders.

With this backend `fit` takes torch's loaders; Keras's own folders of pictures need TensorFlow or Grain. `fixed` is done
as in Keras's guide to transfer learning: `trainable = False`, and the backbone called with `training=False`.
"""

import argparse
import os
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported

import keras
from common import LR, MOMENTUM, lr_at, open_loaders, open_network, run
from torch import nn


class Classifier(keras.Model):  # type: ignore[misc] # not typed where Keras is not installed
    """A backbone, fixed or not, and a head."""

    def __init__(self, backbone: nn.Module, head: nn.Module, *, fixed: bool) -> None:
        """Wrap the parts of the network; a fixed backbone keeps its BatchNorm statistics."""
        super().__init__()
        self.backbone = keras.layers.TorchModuleWrapper(backbone)
        self.head = keras.layers.TorchModuleWrapper(head)
        self.fixed = fixed
        self.backbone.trainable = not fixed

    def call(self, images: Any, training: bool | None = None) -> Any:
        """Give logits `[batch, classes]`."""
        features = self.backbone(images, training=False if self.fixed else training)
        return self.head(features, training=training)


def train(arguments: argparse.Namespace) -> list[float]:
    """Train once; give the val accuracy of each epoch."""
    keras.utils.set_random_seed(arguments.seed)
    train_loader, val_loader, classes = open_loaders(arguments.data)
    backbone, head = open_network(arguments.model, arguments.weights, classes)
    model = Classifier(backbone, head, fixed=arguments.work == "fixed")
    model.compile(
        optimizer=keras.optimizers.SGD(LR, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, _: lr_at(epoch))
    history = model.fit(
        train_loader, validation_data=val_loader, epochs=arguments.epochs, callbacks=[schedule], verbose=0
    )
    return [float(accuracy) for accuracy in history.history["val_accuracy"]]


if __name__ == "__main__":
    run(train)
