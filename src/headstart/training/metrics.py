"""Exact sums of loss and accuracy, metrics of torchmetrics by name, and the logs that callbacks read.

Nothing here makes the device wait before somebody reads a value.
"""

import math
import re
import reprlib
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstart.errors import ConfigError, nearest
from headstart.training.batch import shape_or_type

if TYPE_CHECKING:
    from torchmetrics import Metric

Direction = str | None
"""`"min"`, `"max"`, or None when nobody knows which way is better."""

_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "top5_accuracy": ("MulticlassAccuracy", {"top_k": 5, "average": "micro"}),
    "balanced_accuracy": ("MulticlassAccuracy", {"average": "macro"}),
    "f1": ("MulticlassF1Score", {"average": "macro"}),
    "precision": ("MulticlassPrecision", {"average": "macro"}),
    "recall": ("MulticlassRecall", {"average": "macro"}),
    "auroc": ("MulticlassAUROC", {"average": "macro"}),
    "average_precision": ("MulticlassAveragePrecision", {"average": "macro"}),
    "cohen_kappa": ("MulticlassCohenKappa", {}),
    "matthews": ("MulticlassMatthewsCorrCoef", {}),
    "calibration_error": ("MulticlassCalibrationError", {}),
}


def make_metrics(metrics: Sequence["str | Metric"], classes: int) -> "dict[str, Metric | None]":
    """Turn names into metrics; None stands for accuracy, which the tally counts itself.

    Args:
        metrics: names (`"accuracy"`, `"f1"`, `"auroc"`, ...) or torchmetrics objects that take logits and class ids.
        classes: number of classes.

    Raises:
        ConfigError: an unknown name (the nearest are given), the same name twice, something that is no metric, or a
            metric that gives anything but one number for logits of these classes.
    """
    made: dict[str, Metric | None] = {}
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        if not isinstance(metric, str) and (isinstance(metric, type) or not hasattr(metric, "higher_is_better")):
            raise ConfigError(
                f"{metric!r} among the metrics",
                "names, or objects of torchmetrics' classes",
                "For example metrics=('accuracy', 'f1'), or metrics=(MulticlassF1Score(num_classes=10),).",
            )
        name = metric if isinstance(metric, str) else _snake(type(metric).__name__)
        if name in made:
            raise ConfigError(f"metrics with {name!r} twice", "each metric once", "Remove one of the two.")
        made[name] = _by_name(name, classes) if isinstance(metric, str) else _rehearsed(metric, classes)
    return made


def _rehearsed(metric: "Metric", classes: int) -> "Metric":
    """Make sure that a metric of the user's takes logits of these classes and gives one number, on a copy of it."""
    copy = metric.clone().cpu()
    failure: Exception | None = None
    found: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two pictures are few
        try:
            copy.update(torch.zeros(2, classes), torch.tensor([0, classes - 1]))
        except Exception as error:
            failure = error
        else:
            with suppress(Exception):  # two pictures may be too few to say anything
                found = copy.compute()
    several = isinstance(found, Tensor) and found.numel() != 1
    if failure or several or isinstance(found, Mapping | Sequence):
        told = f"fails: {failure}" if failure else f"gives {shape_or_type(found)}"
        raise ConfigError(
            f"the metric {type(metric).__name__}, which {told}",
            f"a metric that turns logits [batch, {classes}] and class ids [batch] into one number",
            f"Give it num_classes={classes} and an average, such as average='macro'.",
        ) from failure
    return metric


def _by_name(name: str, classes: int) -> "Metric | None":
    if name == "accuracy":
        return None
    if name not in _NAMES:
        known = ["accuracy", *_NAMES]
        raise ConfigError(
            f"the metric {name!r}",
            f"one of {', '.join(known)}, or a torchmetrics object",
            f"{nearest(name, known)}For example metrics=('accuracy', 'f1').",
        )
    import torchmetrics.classification

    kind, options = _NAMES[name]
    if name == "top5_accuracy":
        options = {**options, "top_k": min(5, classes)}
    # Labels have been checked when they came; torchmetrics would make the device wait to check them again.
    metric: Metric = getattr(torchmetrics.classification, kind)(num_classes=classes, validate_args=False, **options)
    return metric


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def directions(metrics: "Mapping[str, Metric | None]") -> dict[str, Direction]:
    """Say for the loss and for each metric which way is better."""
    found: dict[str, Direction] = {"loss": "min"}
    for name, metric in metrics.items():
        better = True if metric is None else metric.higher_is_better
        found[name] = None if better is None else ("max" if better else "min")
    return found


_WAITING = 64  # batches whose losses wait at the most


class Tally:
    """Sum up loss and metrics over batches, exactly per sample.

    The loss is summed in double precision, correct answers are counted in whole numbers, so a ragged last batch weighs
    what it should.

    Args:
        metrics: what `make_metrics` gave.
        device: where the sums live.
    """

    def __init__(self, metrics: "Mapping[str, Metric | None]", device: torch.device) -> None:
        self._counts_accuracy = "accuracy" in metrics and metrics["accuracy"] is None
        self._metrics = {name: metric.clone().to(device) for name, metric in metrics.items() if metric is not None}
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=exact, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._samples = 0
        # Batches of one size wait here to be summed up together: an addition costs a small step several percent.
        self._size = 0
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._names = ["loss", *metrics]

    def reset(self) -> None:
        """Start anew."""
        self._losses.clear()
        self._hits.clear()
        self._loss.zero_()
        self._correct.zero_()
        self._samples = 0
        for metric in self._metrics.values():
            metric.reset()

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            loss: mean over the batch, a scalar.
            logits: `[batch, classes]`.
            targets: class ids `[batch]`, or probabilities `[batch, classes]`, of which the largest counts.
        """
        samples = targets.shape[0]
        if samples != self._size or len(self._losses) == _WAITING:
            self._sum_up()
        self._size = samples
        self._samples += samples
        self._losses.append(loss.detach())
        if self._counts_accuracy or self._metrics:
            classes = targets.argmax(1) if targets.is_floating_point() else targets
            if self._counts_accuracy:
                self._hits.append(logits.argmax(1) == classes)
            for metric in self._metrics.values():
                metric.update(logits.detach().float(), classes)

    def state_dict(self) -> dict[str, Any]:
        """Give the sums, and what waits to be added to them, as they are."""
        return {
            "loss": self._loss,
            "correct": self._correct,
            "samples": self._samples,
            "size": self._size,
            "losses": torch.stack(self._losses) if self._losses else None,
            "hits": torch.cat(self._hits) if self._hits else None,
            "metrics": {
                name: [{"values": dict(part.metric_state), "updates": part.update_count} for part in _parts(metric)]
                for name, metric in self._metrics.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was."""
        self.reset()
        self._loss.copy_(state["loss"])
        self._correct.copy_(state["correct"])
        self._samples, self._size = state["samples"], state["size"]
        if state["losses"] is not None:
            self._losses.extend(state["losses"].to(self._loss.device).unbind())
        if state["hits"] is not None:
            self._hits.append(state["hits"].to(self._loss.device))
        for name, metric in self._metrics.items():
            for part, held in zip(_parts(metric), state["metrics"][name], strict=True):
                for key, value in held["values"].items():
                    setattr(part, key, _moved(value, self._loss.device))
                part._update_count = held["updates"]  # noqa: SLF001 - what update() counts, and compute() asks for

    def _sum_up(self) -> None:
        """Add what waits to the sums, without waiting for the device."""
        if self._losses:
            self._loss.add_(torch.stack(self._losses).to(self._loss.dtype).sum(), alpha=self._size)
        if self._hits:
            self._correct.add_(torch.cat(self._hits).sum())
        self._losses.clear()
        self._hits.clear()

    def logs(self) -> "Logs":
        """Give a live view: each read tells the means of what has been added so far."""
        return Logs({name: self._reader(name) for name in self._names})

    def _reader(self, name: str) -> Callable[[], float]:
        def read() -> float:
            if self._samples == 0:
                return math.nan
            self._sum_up()
            if name == "loss":
                return float(self._loss) / self._samples
            if name == "accuracy" and self._counts_accuracy:
                return int(self._correct) / self._samples
            return float(self._metrics[name].compute())

        return read


def _parts(metric: "Metric") -> "list[Any]":
    """Give a metric and those that it is made of."""
    return [part for part in metric.modules() if hasattr(part, "metric_state")]


def _moved(value: "Tensor | list[Tensor]", device: torch.device) -> "Tensor | list[Tensor]":
    return [item.to(device) for item in value] if isinstance(value, list) else value.to(device)


class Logs(MutableMapping[str, float]):
    """What callbacks read: names and floats, converted only when somebody looks.

    Raises:
        ConfigError: when a value is read that is not one number; reduce it first, for example with `.mean()`.

    Example:
        >>> logs = Logs({"loss": lambda: 0.5})
        >>> logs["mine"] = torch.tensor(2)
        >>> dict(logs)
        {'loss': 0.5, 'mine': 2.0}
    """

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values: dict[str, Any] = dict(values or {})

    def __getitem__(self, key: str) -> float:
        if key not in self._values:
            there = ", ".join(self._values) or "no logs here"
            raise KeyError(f"{key!r}. {nearest(str(key), self._values)}There are {there}")
        value = self._values[key]
        return _number(key, value() if callable(value) else value)

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values  # Mapping's own way would read the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))


def _number(key: str, value: object) -> float:
    """Read a logged value as a float, if it is one number."""
    failure: Exception | None = None
    if not isinstance(value, Tensor) or (value.numel() == 1 and not value.is_complex()):
        try:
            return float(value)  # type: ignore[arg-type]  # what cannot be read is told below
        except (TypeError, ValueError) as error:
            failure = error
    raise ConfigError(
        f"logs[{key!r}] = {reprlib.repr(value)}",
        "one number for each key",
        "Reduce it to one number before it is logged, for example with .mean(), or keep it in the callback.",
    ) from failure
