"""The work with headstart: `freeze()` and `fit` in fp32, everything else as it comes.

With --views 4, `fixed` keeps features of four views of each picture (`cache_features=4`): less work than the peers do.
"""

import argparse
from typing import Literal

from common import BATCH_SIZE, LR, STEP_EPOCHS, STEP_FACTOR, command_line, run

from headstart import ImageData, Learner, LRSchedule, step_decay


def train(arguments: argparse.Namespace) -> list[float]:
    """Train once; give the val accuracy of each epoch."""
    data = ImageData.from_folder(arguments.data, batch_size=BATCH_SIZE)
    name = f"torchvision/{arguments.model}"
    learner = Learner(name, data, pretrained=arguments.weights, optimizer="sgd", precision="fp32", seed=arguments.seed)
    if arguments.work == "fixed":
        learner.freeze()
    schedule = LRSchedule(step_decay(every_epochs=STEP_EPOCHS, factor=STEP_FACTOR))
    views: int | Literal["auto"] = arguments.views or "auto"
    history = learner.fit(arguments.epochs, lr=LR, callbacks=[schedule], cache_features=views, verbose=False)
    return history.history["val_accuracy"]


if __name__ == "__main__":
    parser = command_line()
    parser.add_argument(
        "--views", type=int, help="views of each picture whose features are kept; left out, as it comes"
    )
    run(train, parser)
