"""Watch the weakest class: a callback of one's own that adds a log key, and three built-in ones that follow it.

    python examples/custom_callback.py

The accuracy over all pictures can look fine while one class is hardly ever right. `WeakestClass` counts the right
answers of each class during validation and adds the accuracy of the weakest one to the logs. From there it is a key
like any other: it is printed, kept in the history and plotted, the rate falls when it rises no more, EarlyStopping
waits for it, and ModelCheckpoint keeps the network that is best for the weakest class. The pictures are drawn here, so
no connection is needed.
"""

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Literal

import torch
from generated_pictures import make_pictures
from torch import Tensor

from headstart import Callback, EarlyStopping, ImageData, Learner, ModelCheckpoint, ReduceLROnPlateau

OUT = Path("runs/custom_callback")


class WeakestClass(Callback):
    """Add the val accuracy of the weakest class to the logs, as `val_weakest`.

    Args:
        classes: their names.
    """

    adds: Mapping[str, Literal["min", "max"]] = {"val_weakest": "max"}  # what is declared here can be monitored

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self.accuracies: dict[str, float] = {}
        self._right: Tensor
        self._seen: Tensor

    def on_test_begin(self, logs: MutableMapping[str, float]) -> None:
        """Start counting, where the network is."""
        device = next(self.run.network.parameters()).device
        self._right = torch.zeros(len(self.classes), device=device)
        self._seen = torch.zeros(len(self.classes), device=device)

    def on_test_batch_end(self, batch: int, logs: MutableMapping[str, float]) -> None:
        """Count a batch. The counts stay on the device: nobody reads them yet, so nobody has to wait for it."""
        targets = self.run.batch.targets
        right = (self.run.outputs.argmax(1) == targets).float()
        self._right.index_add_(0, targets, right)
        self._seen.index_add_(0, targets, torch.ones_like(right))

    def on_epoch_end(self, epoch: int, logs: MutableMapping[str, float]) -> None:
        """Read the counts, once an epoch, and add the key."""
        counts = zip(self.classes, self._right.tolist(), self._seen.tolist(), strict=True)
        self.accuracies = {name: right / seen for name, right, seen in counts if seen}
        logs["val_weakest"] = min(self.accuracies.values())


def main() -> None:
    """Train with it."""
    data = ImageData.from_folder(make_pictures(OUT / "pictures", per_class=60), image_size=48, batch_size=16)
    learner = Learner("resnet10t", data, pretrained=False)
    weakest = WeakestClass(data.classes)
    checkpoint = ModelCheckpoint(OUT / "checkpoints", monitor="val_weakest", overwrite=True)
    learner.fit(
        8,
        lr=1e-3,
        callbacks=[
            weakest,
            ReduceLROnPlateau(monitor="val_weakest", factor=0.3, patience=1),
            EarlyStopping(monitor="val_weakest", patience=4),
            checkpoint,
        ],
    )
    best, value = learner.history.best("val_weakest", "max")
    print(f"best for the weakest class: epoch {best + 1}, {value:.2f}; its network is in {checkpoint.folder}")
    print("in the last epoch:", ", ".join(f"{name} {share:.2f}" for name, share in weakest.accuracies.items()))
    learner.history.plot({"val_weakest": "max"}).savefig(OUT / "curves.png")
    print(f"the curves are in {OUT / 'curves.png'}")


if __name__ == "__main__":
    main()
