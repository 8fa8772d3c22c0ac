"""Parts that tests put together by hand: batches, networks, runs, learners, and callbacks that note what happens."""

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headstart import Callback, ImageData, Learner, Run
from headstart.data.loading import Batches, Pair
from headstart.errors import HeadstartError
from headstart.model.backbone import Backbone
from headstart.model.zoo import open_network
from headstart.training.callback import HOOKS
from headstart.training.history import History
from headstart.training.metrics import directions, make_metrics
from headstart.training.optimizer import make_optimizer

CLASSES = ("circle", "square", "triangle")
CPU = torch.device("cpu")


def refusal(kind: type[HeadstartError], act: Callable[[], object]) -> HeadstartError:
    """Give the error that `act` raises, after checking that it has its three parts.

    Without the frames it went through: they would keep a loader's workers until the garbage is collected.
    """
    error = None
    try:
        act()
    except kind as raised:
        error = raised.with_traceback(None)
    assert error is not None
    assert all((error.arrived, error.needed, error.todo))
    return error


def png_header(side: int) -> bytes:
    """Make a PNG that claims to be huge and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def pairs(*sizes: int, seed: int = 0, side: int = 6) -> list[Pair]:
    """Make float batches of these many pictures each, with labels of three classes; the same seed, the same batches."""
    chance = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, side, side, generator=chance), torch.randint(3, (size,), generator=chance))
        for size in sizes
    ]


def joined(batches: Sequence[Pair]) -> Pair:
    """Put batches together into one."""
    images, targets = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(targets)


def epoch(batches: Batches, fit: int = 0, number: int = 0) -> Pair:
    """Join the batches of an epoch."""
    return joined(list(batches.epoch(fit, number)))


def evaluated(data: ImageData, part: str = "val") -> Pair:
    """Join a part as evaluation sees it."""
    return epoch(data.eval_batches(data.part(part), part))


def plain_network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """Make a network of two linear layers for pictures of 6 pixels: nothing in it depends on who shares a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(108, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, len(CLASSES))
        )


def made_learner(
    train: Any = None, val: Any = None, *, network: nn.Module | None = None, seed: int = 0, **options: Any
) -> Learner:
    """Make a Learner on the CPU over batches made by hand; plain stochastic gradient descent unless told otherwise."""
    data = ImageData.from_loaders(pairs(4, 4, 4) if train is None else train, val, classes=CLASSES)
    options = {"device": "cpu", "optimizer": torch.optim.SGD, **options}
    return Learner(plain_network() if network is None else network, data, seed=seed, **options)


def made_run(
    network: nn.Module | None = None,
    *,
    lr: float = 0.1,
    lr_scales: Sequence[float] = (),
    val: bool = True,
    **state: Any,
) -> Run:
    """Make the Run of a fit without a Learner: 3 epochs of 4 batches unless told otherwise."""
    backbone = Backbone(open_network(plain_network() if network is None else network, len(CLASSES)))
    backbone.lr_scales = list(lr_scales or backbone.lr_scales)
    own = directions(make_metrics(("accuracy",), len(CLASSES)))
    keys = {**own, **({f"val_{name}": better for name, better in own.items()} if val else {}), "learning_rate": None}
    optimizer = make_optimizer(torch.optim.SGD, backbone, lr, None, CPU)
    state = {"fit": 1, "epochs": 3, "batches": 4, "optimizer": optimizer, "history": History(), **state}
    return Run(backbone, {"lr": lr}, keys, **state)


def weights(learner: Learner) -> dict[str, Tensor]:
    """Copy all that a network holds, buffers included."""
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Say whether two networks hold the same bits."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class At(Callback):
    """Call functions in hooks: `At(on_epoch_end=lambda callback, epoch, logs: ...)`."""

    def __new__(cls, **hooks: Callable[..., Any]) -> "At":
        """Make a class that has just these hooks."""
        return super().__new__(type("At", (cls,), dict(hooks)))

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        """Take what `__new__` has used."""


class Noting(Callback):
    """Note every hook as it is called, as (its name, what it counts)."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []

    @property
    def names(self) -> list[str]:
        return [note[0] for note in self.notes]


def _note(hook: str) -> Callable[..., None]:
    def method(self: Noting, *arguments: Any) -> None:
        self.notes.append((hook, *arguments[:-1]))

    return method


for _hook in HOOKS:
    setattr(Noting, _hook, _note(_hook))


class Script(Callback):
    """Write values into the logs at the end of each epoch: `Script("val_loss", [0.5, 0.4])`; the last one stays."""

    def __init__(self, key: str, values: Sequence[float]) -> None:
        self.key, self.values = key, list(values)
        if not key.startswith("val_") and key != "loss":
            self.adds = {key: "max"}

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        logs[self.key] = self.values[min(epoch, len(self.values) - 1)]


nan = math.nan
