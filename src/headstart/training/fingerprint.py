"""What a run was asked for, and where it ran, in plain words: a later process compares them before it goes on."""

import hashlib
import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.data.image_data import ImageData
from headstart.data.own_loader import OwnLoader, Part
from headstart.data.sources import FolderSource
from headstart.errors import CheckpointError
from headstart.model.weights import digest_of
from headstart.training.callback import Callback, Order
from headstart.training.words import words_for
from headstart.version import VERSION

SIZES = {"train": "sizes of the train files", "val": "sizes of the val files"}
"""What the sizes of a part's files are called: where unreadable files are passed over, they may differ."""


def of_callbacks(callbacks: Iterable[Callback]) -> list[str]:
    """Name those callbacks that have a say in what comes out, with the arguments that matter for it."""
    return [_words_for(callback) for callback in callbacks if callback.order != Order.REPORT]


def of_data(data: ImageData) -> dict[str, Any]:
    """Say what is trained on: files by their places and labels, in order, and by sizes; anything else by its length."""
    return {
        "classes": list(data.classes),
        "train": _part(data.train),
        "val": _part(data.val),
        **{SIZES[name]: _sizes(part) for name, part in (("train", data.train), ("val", data.val))},
        "batch_size": data.batch_size,
        "image_size": data.image_size,
        "augment": words_for(data.augment),
        "eval_transform": words_for(data.eval_transform),
    }


def of_network(network: nn.Module, frozen: Sequence[str]) -> dict[str, Any]:
    """Say what is trained: its class, its tensors, and which of them are frozen at the start."""
    shapes = [f"{name} {list(tensor.shape)}" for name, tensor in network.state_dict().items()]
    return {
        "network": f"{type(network).__name__} of {len(shapes)} tensors ({_digest(shapes)})",
        "frozen": f"{len(frozen)} parameters ({_digest(frozen)})",
    }


def of_weights(network: nn.Module) -> str:
    """Give a digest of all that a network holds."""
    state = network.state_dict().items()
    return digest_of({name: tensor.cpu() for name, tensor in state if isinstance(tensor, Tensor)}, "")[:16]


def of_machine(device: torch.device) -> dict[str, Any]:
    """Say where a run is: the same numbers come out only where all of this is the same."""
    return {
        "headstart": VERSION,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "timm": version("timm"),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def demand_same_run(facts: Mapping[str, Any], held: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a run that was asked for something else; only its epochs may have become more.

    Another machine, other versions of the libraries, and other weights at the start of a later fit are told as
    warnings, and so are sizes of files where unreadable ones are passed over.

    Raises:
        CheckpointError: something differs; all of it is listed.
    """
    asked, was = facts["asked"], held["asked"]
    keys = [key for key in {**was, **asked} if was.get(key) != asked.get(key)]
    told = [key for key in keys if key in facts["may_differ"]]
    different = [key for key in keys if key not in told and (key != "epochs" or asked[key] < was[key])]
    if different:
        raise CheckpointError(
            f"{path.parent}, which holds another run: "
            + "; ".join(f"{key}: {_difference(was.get(key), asked.get(key))}" for key in different),
            "the script that began the run, unchanged but for more epochs",
            "Change these back to go on. To train anew, name another directory, or pass "
            "ModelCheckpoint(overwrite=True) and resume=False.",
        )
    here, there = facts["machine"], held["machine"]
    moved = [f"{key} {there.get(key)} there, {here[key]} here" for key in here if there.get(key) != here[key]]
    if moved:
        warnings.warn(f"{path.parent} goes on elsewhere, its last bits may differ: {'; '.join(moved)}", stacklevel=2)
    if told:
        warnings.warn(f"{path.parent} goes on with files that have changed: {', '.join(told)}", stacklevel=2)
    if facts["start"] != held["start"]:
        warnings.warn(
            f"{path.parent} began with other weights than those at hand: what an earlier fit has come to since is not "
            "in it. To have it in, train this fit anew in another directory",
            stacklevel=2,
        )


def _words_for(callback: Callback) -> str:
    made_with = callback._made_with  # noqa: SLF001 - noted for this page
    matter = [f"{name}={words}" for name, words in made_with.items() if name not in callback.incidental]
    return f"{type(callback).__name__}({', '.join(matter)})"


def _part(part: Part | None) -> str:
    """Describe a part of the data by its length and, of files, a digest of their places and labels."""
    if part is None:
        return "none"
    if not isinstance(part, FolderSource):
        kind = part.loader if isinstance(part, OwnLoader) else getattr(part, "dataset", part)
        return f"{len(part)} of a {type(kind).__name__}"
    root = _common(part.paths)
    files = zip(part.paths, part.labels, strict=True)
    return f"{len(part)} pictures ({_digest(f'{path.relative_to(root)} {label}' for path, label in files)})"


def _sizes(part: Part | None) -> str:
    """Give a digest of the sizes of files."""
    return _digest(str(_size(path)) for path in part.paths) if isinstance(part, FolderSource) else "none"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # whoever reads the pictures will say so
        return None


def _common(paths: Sequence[Path]) -> Path:
    """Give the folder that all files lie in, somewhere below: a data set may have been moved as a whole."""
    root = paths[0].parent
    while not all(path.is_relative_to(root) for path in paths):
        root = root.parent
    return root


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:8]


def _difference(there: Any, here: Any) -> str:
    """Tell how two values differ: of lists what only one of them has, of long words the part that differs."""
    if isinstance(there, list) and isinstance(here, list) and sorted(there) != sorted(here):
        there, here = ([item for item in one if item not in other] for one, other in ((there, here), (here, there)))
    words = [", ".join(item) if isinstance(item, list) else str(item) for item in (there, here)]
    alike = next((n for n, (one, other) in enumerate(zip(*words, strict=False)) if one != other), 0)
    start = max(0, alike - 12)
    if max(map(len, words)) > 100:
        words = [
            f"{'...' if start else ''}{word[start : start + 100]}{'...' if len(word) > start + 100 else ''}"
            for word in words
        ]
    return f"{words[0] or 'none'} there, {words[1] or 'none'} here"
