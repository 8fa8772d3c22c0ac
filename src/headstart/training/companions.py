"""The callbacks that a fit brings along by itself."""

from typing import ClassVar

import torch
from torch import nn

from headstart.data.doctor import diagnose
from headstart.data.image_data import ImageData
from headstart.data.loading import SourceBatches
from headstart.data.preprocessing import Preprocessing
from headstart.machine import cores
from headstart.model.backbone import objection
from headstart.training.callback import Callback, Order
from headstart.training.metrics import Logs

AFTER = 5.0
"""Seconds of training after which one looks how much of them was waiting for pictures."""


class Recorder(Callback):
    """Add each epoch to the history, when all keys are there and before anybody reports it."""

    order: ClassVar[Order] = Order.REPORT

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Add the epoch."""
        self.run.history.add(epoch, logs)

    def on_train_end(self, logs: Logs) -> None:
        """Add the epoch whose end another callback has left by an exception."""
        run = self.run
        # A StopTraining of a callback before this one: the epoch was over, and it was not its turn any more.
        skipped = run.status == "stopped" and run.unfinished_hook == "on_epoch_end"
        if skipped and run.epoch not in run.history.epoch:
            run.history.add(run.epoch, logs)


class Comparison(Callback):
    """Tell when a pipeline of the user's makes other pictures than evaluation, by the first batch of a fit.

    Args:
        preprocessing: what evaluation does.
    """

    order: ClassVar[Order] = Order.DATA

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.is_over = False

    def on_batch_ready(self) -> None:
        """Compare, the first time."""
        if self.is_over:
            return
        self.is_over = True
        images, seen = self.run.batch.images, self.preprocessing
        if images.shape[2:] != seen.image_size:
            sizes = [" x ".join(map(str, size)) for size in (images.shape[2:], seen.image_size)]
            self._tell(f"{sizes[0]} pixels, evaluation sees {sizes[1]}", "image_size= sets these")
        if images.min() >= 0 and images.max() <= 1 and any(seen.mean):
            mean, std = ([round(value, 3) for value in values] for values in (seen.mean, seen.std))
            cure = f"end it before ToTensor(), or with Normalize({mean}, {std})"
            self._tell("values in [0, 1], evaluation normalises", cure)

    @staticmethod
    def _tell(difference: str, cure: str) -> None:
        print(f"your pipeline trains on {difference}: {cure}")  # noqa: T201 - else accuracy would suffer in silence


class ClipNorm(Callback):
    """Scale a step's gradients down so that their joint norm is at most `most`.

    Args:
        most: the largest norm that is left alone, above 0.
    """

    order: ClassVar[Order] = Order.TRAIN

    def __init__(self, most: float) -> None:
        self.most = most

    def on_step_begin(self) -> None:
        """Scale the gradients down."""
        nn.utils.clip_grad_norm_(self.run.network.parameters(), self.most)


class Doctor(Callback):
    """Tell once when training waits for its pictures much of the time, and what would help.

    Args:
        data: whose train part is trained on.
        batches: those of the fit.
    """

    order: ClassVar[Order] = Order.REPORT

    def __init__(self, data: ImageData, batches: SourceBatches) -> None:
        self.data = data
        self.batches = batches
        self.is_over = False

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Tell, once there is enough to go by."""
        if self.is_over or self.batches.pace.seconds < AFTER:
            return
        self.is_over = True
        busy = torch.get_num_threads() if self.run.batch.images.device.type == "cpu" else 1
        backbone, epochs = self.run.backbone, self.run.epochs - self.run.epoch - 1
        if told := diagnose(
            self.data,
            self.batches.pace,
            self.batches.workers,
            (cores(), busy),
            epochs,
            lambda side: objection(backbone, (side, side)) is None,
        ):
            print(told)  # noqa: T201 - nobody would look for it
