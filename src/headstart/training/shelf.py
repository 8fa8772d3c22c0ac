"""Features on the disk, where the next run finds what the same frozen stages have made of the same pictures.

The name of a file is a digest of all that its content depends on, and the file carries a digest of its content. What is
found is believed only when the network makes the same of the first pictures, to the last bit: nothing else would notice
a `forward` that was changed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from headstart.data.cache import Cache, makers_of_pixels
from headstart.data.sources import FolderSource
from headstart.data.store import Stamp
from headstart.errors import CheckpointError
from headstart.model.backbone import Backbone
from headstart.model.cut import Cut
from headstart.model.weights import digest_of
from headstart.training.checkpoint import read_weights, write_weights
from headstart.training.fingerprint import of_machine
from headstart.training.precision import Precision


class Shelf:
    """The features of a network's frozen beginning in a folder of files.

    Args:
        cache: which folder, and how many bytes may go there; None keeps and finds nothing.
        backbone: the network.
        device: where it is.
        precision: the arithmetic of its forward pass.
        pixels: the bytes that pixels have taken of what may go there.
    """

    def __init__(
        self,
        cache: Cache | None,
        backbone: Backbone,
        device: torch.device,
        precision: Precision,
        pixels: Callable[[], int],
    ) -> None:
        self._cache = cache
        self._backbone = backbone
        self._device = device
        self._precision = precision
        self._digested: tuple[Cut | None, str] = (None, "")
        self._pixels = pixels
        self._taken = 0
        self._has_told = False

    def path(self, cut: Cut, words: Sequence[object], part: FolderSource, stamps: Sequence[Stamp]) -> Path | None:
        """Give the file for the features of some pictures, there or not.

        Args:
            cut: where in the network they are.
            words: all that says how the pictures were prepared, in plain values.
            part: the pictures.
            stamps: of their files as they are.
        """
        if self._cache is None:
            return None
        facts = {
            **of_machine(self._device),
            "pixels": makers_of_pixels(),
            "network": type(self._backbone.network).__name__,
            "frozen": self._digest(cut),
            "precision": self._precision.name,
            "places": [*cut.places],
            "words": [*words],
            "pictures": [*zip(map(str, map(Path.absolute, part.paths)), part.labels, stamps, strict=True)],
        }
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self._cache.place / f"{name[:32]}.features"

    def find(self, path: Path | None) -> dict[str, Tensor]:
        """Give what was kept in a file; nothing where there is none, or none that is whole."""
        try:
            if path is None or not path.is_file():
                return {}
            found, _ = read_weights(path)
        except (CheckpointError, OSError):
            return {}  # it is written anew
        with suppress(OSError):  # it may be somebody else's
            os.utime(path)
        return found

    def keep(self, path: Path | None, tensors: dict[str, Tensor]) -> None:
        """Write features into a file; where that fails, it is told once."""
        if self._cache is None or path is None:
            return
        size = sum(tensor.nbytes for tensor in tensors.values())
        try:
            room = self._cache.room(self._taken + self._pixels())
            why = f"they take {size:,} bytes, and may take {room:,}"
            if size <= room:
                self._cache.sweep(size, path)
                write_weights(path, tensors, {})
                self._taken += size
                return
        except (CheckpointError, OSError) as error:
            why = error.arrived if isinstance(error, CheckpointError) else str(error)
        if not self._has_told:
            print(f"features are not kept on the disk: {why}")  # noqa: T201 - the next run will take its time again
        self._has_told = True

    def _digest(self, cut: Cut) -> str:
        """Give a digest of all that is frozen; where something else is, there is another way in."""
        if self._digested[0] is not cut:
            still = {id(buffer) for buffer in cut.still}
            buffers = self._backbone.network.named_buffers()
            held = self._backbone.frozen_tensors | {name: buffer for name, buffer in buffers if id(buffer) in still}
            self._digested = cut, digest_of({name: tensor.cpu() for name, tensor in held.items()}, "")
        return self._digested[1]
