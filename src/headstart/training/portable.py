"""A Learner in one file: what stands beside its weights, and how a file becomes one again, here or elsewhere."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headstart.data.image_data import ImageData
from headstart.data.own_loader import OwnLoader
from headstart.data.preprocessing import Preprocessing
from headstart.errors import CheckpointError, DataError
from headstart.model.backbone import Backbone
from headstart.model.opened import Opened
from headstart.model.weights import load_state, named_as, read_state
from headstart.model.zoo import rebuild
from headstart.randomness import preserved
from headstart.training.checkpoint import demand_classes, demand_same, demand_size, is_ours, read_weights
from headstart.training.precision import PrecisionName
from headstart.version import VERSION


class Reopened(NamedTuple):
    """What a file becomes: a network with its weights, the data it predicts with, and the precision it was used in."""

    opened: Opened
    data: ImageData
    precision: PrecisionName


def describe(backbone: Backbone, data: ImageData, precision: str) -> dict[str, Any]:
    """Give the plain values that travel with the weights.

    Args:
        backbone: the network and what is known of it.
        data: bound to its preprocessing.
        precision: as it was asked for, `"auto"` included.
    """
    return {
        "version": VERSION,
        "classes": list(data.classes),
        "preprocessing": backbone.preprocessing.to_json(),
        "architecture": backbone.architecture,
        "batch_size": data.batch_size,
        "precision": precision,
        "own_eval_transform": data.eval_transform is not None,
        "without_headstart": backbone.recipe,
    }


def reopen(file: Path, data: ImageData | None, device: torch.device) -> Reopened:
    """Make of a file the network that was saved, so that it predicts as it did.

    Args:
        file: what `write_weights` wrote with a `describe` beside the weights.
        data: pictures to go on with; None makes data that can only predict.
        device: where the network will work; fp16 is no choice on a CPU.

    Raises:
        CheckpointError: the file is missing, damaged, not headstart's, of other classes, another image size or another
            evaluation, or of a network or head of the user's own.
    """
    state, description = _read_model(file)
    classes = tuple(description["classes"])
    if data is not None:
        demand_classes(data.classes, classes, file)
        demand_size(data.image_size, description["preprocessing"]["image_size"], file)
        _demand_transform(data, file, needed=description["own_eval_transform"])
    with preserved():
        opened = rebuild(description["architecture"])
    opened.preprocessing = Preprocessing.from_json(description["preprocessing"])
    demand_same(opened.network.state_dict(), state, file)
    load_state(opened.network, state)
    opened.description = f"{opened.name} (weights from {file.name})"
    if data is None:
        # The same batches as before: on a CPU the last bits of a probability depend on the size of its batch.
        transform = _lost_transform if description["own_eval_transform"] else None
        data = ImageData(classes, batch_size=description["batch_size"], eval_transform=transform)
    asked = description.get("precision", "auto")
    return Reopened(opened, data, "auto" if asked == "fp16" and device.type == "cpu" else asked)


def load_into(network: nn.Module, classes: tuple[str, ...], path: Path) -> None:
    """Load the weights of the same network, or change nothing.

    Raises:
        CheckpointError: the file cannot be read, is damaged, or is of another network or other classes.
    """
    own = network.state_dict()
    if is_ours(path):
        state, description = _read_model(path)
        demand_classes(classes, tuple(description["classes"]), path)
    else:
        state = named_as(own, read_state(path))
    demand_same(own, state, path)
    load_state(network, state)


def _read_model(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and their description, and refuse the state of a run, which lies beside them."""
    state, description = read_weights(file)
    if "classes" not in description:
        raise CheckpointError(
            f"{file}, which holds the state of a run",
            "a model: a file that learner.save(path) wrote, or best.safetensors or last.safetensors beside it",
            "Load one of these; fit(..., resume=True) goes on with a run.",
        )
    return state, description


def _demand_transform(data: ImageData, file: Path, *, needed: bool) -> None:
    """Refuse pictures that would reach a network otherwise than those that it was judged on."""
    if needed and data.eval_transform is None and not isinstance(data.train, OwnLoader):
        raise CheckpointError(
            f"data without an eval_transform, for {file}, which was saved with one",
            "the same eval_transform: a file of weights holds no code",
            "Pass it to the data: ImageData.from_folder(..., eval_transform=...).",
        )


def _lost_transform(picture: object) -> Tensor:
    raise DataError(
        f"a {type(picture).__name__} for a network that was saved with an eval_transform of your own",
        "the same eval_transform: a file of weights holds no code",
        "Pass the data it belongs to, Learner.load(file, data), or float tensors that it has already made.",
    )
