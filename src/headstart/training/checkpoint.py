"""Files of weights: safetensors with a JSON description in the header, whole, checked, and free of code."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.errors import CheckpointError, listing
from headstart.files import write_atomically
from headstart.model.weights import DESCRIPTION, DamagedError, begins_as_safetensors, digest_of, read_safetensors

FORMAT = 1
"""Version of the description; a file with a higher one is refused."""


def write_weights(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and their description into one file, in one move.

    Args:
        path: the target; the usual suffix is `.safetensors`.
        state: names and tensors; tensors that are one and the same are written once.
        description: plain values that JSON can hold.

    Raises:
        CheckpointError: the folder cannot be written to or the disk is full; what was there before is untouched. Or
            the state holds something else than tensors.
    """
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{name} in a state_dict, a {type(tensor).__name__}",
                "tensors, which a file of weights can hold without any code",
                "Let the network keep it in a buffer, or leave it out of its state_dict.",
            )
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        values = tensor.detach().cpu().contiguous()
        shared = values.untyped_storage().data_ptr() in storages  # the format knows no overlaps
        kept[name] = values.clone() if shared else values
        storages.add(kept[name].untyped_storage().data_ptr())
    words = json.dumps({**description, "format": FORMAT, "aliases": aliases})
    header = {DESCRIPTION: words, "sha256": digest_of(kept, words)}
    write_atomically(path, lambda temporary: _save(kept, temporary, header))


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as error:  # its own word for a disk that is full
        raise OSError(str(error)) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_weights` wrote, and make sure that not a bit of it has changed.

    Returns:
        The tensors by name, on the CPU, and the description.

    Raises:
        DamagedError: the file is missing, cut short or changed.
        CheckpointError: it is not headstart's, or of a later version.
    """
    with _telling_damage(path):
        state, header = read_safetensors(path)
    if DESCRIPTION not in header:
        raise CheckpointError(
            f"{path}, which headstart did not write",
            "a file that learner.save(path) or a ModelCheckpoint wrote",
            "Weights of a bare architecture go into Learner(name, data, pretrained=path).",
        )
    description: dict[str, Any] = json.loads(header[DESCRIPTION])
    if description["format"] > FORMAT:
        raise CheckpointError(
            f"{path} in format {description['format']}",
            f"format {FORMAT} or lower, which this version of headstart reads",
            "Upgrade: pip install --upgrade headstart.",
        )
    for name, other in description.pop("aliases").items():
        state[name] = state[other]
    return state, description


def demand_classes(arrived: Sequence[str], needed: Sequence[str], path: str | Path) -> None:
    """Raise a CheckpointError when data has other classes than a file, or the same ones in another order."""
    if tuple(arrived) != tuple(needed):
        raise CheckpointError(
            f"data with the classes {listing(arrived)}, for {path}",
            f"the classes of the file, in its order: {listing(needed)}",
            "Use data with these classes; Learner(name, data, pretrained=...) begins with a new head.",
        )


def demand_size(arrived: int | None, needed: Sequence[int], path: str | Path) -> None:
    """Raise a CheckpointError when data asks for another image size than the one a file's network was trained with."""
    if arrived is not None and list(needed) != [arrived, arrived]:
        raise CheckpointError(
            f"data with image_size={arrived}, for {path}",
            f"the image size of the file, {' x '.join(map(str, needed))}",
            "Leave image_size out of the data: the file knows its own.",
        )


def demand_same(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a CheckpointError unless a file has just the tensors of a network, in the same shapes."""
    shapes, given = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (own, state))
    different = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if different:
        raise CheckpointError(
            f"{path}, which differs in {len(different)} tensors ({listing(different, 3)})",
            f"the {len(own)} tensors of this Learner's network",
            "Load it into a Learner of the same model and head; pretrained=path takes weights without the head.",
        )


def digest_in(path: Path) -> str:
    """Give the digest that a file of `write_weights` carries in its header; equal files have equal ones.

    Raises:
        DamagedError: it has none.
    """
    header = _header(path)
    if "sha256" not in header:
        raise DamagedError(
            f"{path} without a digest", "a file that headstart wrote", "Take another copy of it, or remove it."
        )
    return header["sha256"]


def is_ours(path: Path) -> bool:
    """Say whether a file is one that `write_weights` wrote, whatever it is called.

    Raises:
        DamagedError: it begins as such files do, and is cut short or damaged.
    """
    return path.is_file() and begins_as_safetensors(path) and DESCRIPTION in _header(path)


def _header(path: Path) -> dict[str, str]:
    with _telling_damage(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


@contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(
            f"{path}: {error or type(error).__name__}",
            "a whole .safetensors file that learner.save(path) wrote",
            "Check the path, or take another copy of a file that was cut short. Weights that torch.save wrote go into "
            "Learner(name, data, pretrained=path).",
        ) from error
