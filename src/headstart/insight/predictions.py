"""What a network says about pictures: probabilities, made readable.

How they are computed is not this room's business.
"""

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from headstart.drawing import table
from headstart.errors import ConfigError, Demands, is_count
from headstart.files import as_path, write_csv

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

SHOWN_PICTURES, SHOWN_SIGNS = 20, 40
"""How many pictures are printed, and how many signs of a path."""


class Prediction(NamedTuple):
    """What a network says about one picture.

    Attributes:
        path: the picture's file, or None when it came from elsewhere.
        label: the most probable class.
        confidence: its probability, in [0, 1].
        probabilities: the probability of each class.
    """

    path: Path | None
    label: str
    confidence: float
    probabilities: dict[str, float]


class Predictions(Sequence[Prediction]):
    """Keep the probabilities of the classes for each of some pictures.

    An index gives a `Prediction`, a slice gives Predictions, and numpy takes it for its probabilities.

    Args:
        probabilities: `[pictures, classes]`, in [0, 1]; kept as float32 on the CPU.
        classes: the classes' names, in the order of the columns.
        paths: the pictures' files; None for all, or in the place of one, that came from elsewhere.

    Attributes:
        probabilities: `[pictures, classes]`, float32, on the CPU.
        classes: the classes' names.
        paths: for each picture its file, or None.
        indices: the most probable class of each picture `[pictures]`, int64; the first of equals.
        labels: its name.
        confidence: its probability `[pictures]`, float32.

    Raises:
        ConfigError: there is not a column for each class, or not a path for each row.

    Example:
        >>> predictions = Predictions(torch.tensor([[0.25, 0.75], [0.5, 0.5]]), ["ants", "bees"], ["a.jpg", "b.jpg"])
        >>> predictions
        2 pictures
        path   label  confidence  next
        ------------------------------------
        a.jpg  bees       0.7500  ants 0.250
        b.jpg  ants       0.5000  bees 0.500
        >>> np.argmax(predictions, axis=1)
        array([1, 0])
    """

    def __init__(
        self, probabilities: Tensor, classes: Sequence[str], paths: Iterable[str | Path | None] | None = None
    ) -> None:
        self.probabilities = probabilities.detach().to("cpu", torch.float32)
        self.classes = tuple(classes)
        shape, count = list(probabilities.shape), len(self.classes)
        pictures = shape[0] if shape else 0
        files = [None] * pictures if paths is None else paths
        self.paths = tuple(None if path is None else Path(path) for path in files)
        demands = Demands("Pass a row for each picture, a column and a name for each class, and a path for each row.")
        demands.check("shape of probabilities", shape, count > 0 and shape[1:] == [count], f"[pictures, {count or 1}]")
        demands.check("number of paths", len(self.paths), len(self.paths) == pictures, f"{pictures}, as many as rows")
        demands.settle()
        self.indices = self.probabilities.argmax(dim=1)
        self.labels = [self.classes[index] for index in self.indices.tolist()]
        self.confidence = self.probabilities.gather(1, self.indices[:, None])[:, 0]

    def top(self, k: int) -> list[list[tuple[str, float]]]:
        """Name the most probable classes of each picture, the most probable first.

        Args:
            k: how many, from 1 to the number of classes.

        Returns:
            For each picture `k` pairs of a class and its probability; equals stand in the order of the classes.

        Raises:
            ConfigError: `k` is not from 1 to the number of classes.

        Example:
            >>> Predictions(torch.tensor([[0.25, 0.75]]), ["ants", "bees"]).top(2)
            [[('bees', 0.75), ('ants', 0.25)]]
        """
        if not (is_count(k) and k <= len(self.classes)):
            raise ConfigError(
                f"k={k!r}",
                f"a whole number from 1 to {len(self.classes)}, the number of classes",
                f"Pass for example top({min(3, len(self.classes))}).",
            )
        values, indices = self.probabilities.sort(dim=1, descending=True, stable=True)
        rows = zip(indices[:, :k].tolist(), values[:, :k].tolist(), strict=True)
        return [[(self.classes[i], value) for i, value in zip(*row, strict=True)] for row in rows]

    def to_csv(self, path: str | Path) -> Path:
        """Write a table: path, label, confidence, then the probability of each class, a row for each picture.

        Args:
            path: the file; what it held before is replaced in one move.

        Returns:
            The path, so that it can be passed on.

        Raises:
            CheckpointError: the file cannot be written; choose another folder.
        """
        columns = zip(self.paths, self.labels, self.confidence.numpy(), self.probabilities.numpy(), strict=True)
        # NumPy writes the shortest text that is exactly this float32.
        rows = ([picture, label, str(confidence), *map(str, row)] for picture, label, confidence, row in columns)
        target = as_path(path)
        write_csv(target, ["path", "label", "confidence", *self.classes], rows)
        return target

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> "Predictions": ...

    def __getitem__(self, index: int | slice) -> "Prediction | Predictions":
        if isinstance(index, slice):
            rows = range(len(self))[index]
            return Predictions(self.probabilities[list(rows)], self.classes, [self.paths[row] for row in rows])
        row = range(len(self))[operator.index(index)]
        probabilities = dict(zip(self.classes, self.probabilities[row].tolist(), strict=True))
        return Prediction(self.paths[row], self.labels[row], self.confidence[row].item(), probabilities)

    def __array__(self, dtype: "DTypeLike | None" = None, copy: bool | None = None) -> "NDArray[Any]":
        return np.array(self.probabilities.numpy(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        count = f"{len(self)} picture{'' if len(self) == 1 else 's'}"
        if not len(self):
            return count
        shown = self[:SHOWN_PICTURES]
        rows = [
            (_short(path), *best[0], ", ".join(f"{label} {value:.3f}" for label, value in best[1:]))
            for path, best in zip(shown.paths, shown.top(min(3, len(self.classes))), strict=True)
        ]
        used = [place for place, cells in enumerate(zip(*rows, strict=True)) if any(cell != "" for cell in cells)]
        header = ("path", "label", "confidence", "next")
        lines = table([header[place] for place in used], [[row[place] for place in used] for row in rows])
        more = f"\n... and {len(self) - len(shown)} more" if len(self) > len(shown) else ""
        return f"{count}\n{lines}{more}"


def _short(path: Path | None) -> str:
    """Write a path so that it can be printed, the beginning of a long one left out."""
    text = "" if path is None else str(path).encode(errors="replace").decode()
    return text if len(text) <= SHOWN_SIGNS else f"…{text[1 - SHOWN_SIGNS :]}"
