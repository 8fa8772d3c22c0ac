"""Weights: where they are, how they come here, and how a file of them gets into a network.

Reading never runs code that may be in a file; what cannot be had is said within seconds, before anything is built.
"""

import hashlib
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from headstart.errors import BackboneError, CheckpointError, HeadstartError, listing
from headstart.files import download, reachable

DESCRIPTION = "headstart"
"""Where in the header of a safetensors file headstart writes what is not a tensor."""
AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""Side branches of GoogLeNet and Inception, of no use for fine-tuning."""

_CONTAINERS = ("state_dict", "model", "model_state_dict", "network")  # where checkpoints like to hide their weights
_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
_COUNTER = "num_batches_tracked"  # of a norm; older files do not have it, and nothing depends on it
# What torchvision's own files still call by earlier names: layers of DenseNet, and of the vision transformers.
_EARLIER_NAMES = (
    (re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(\.mlp)\.linear_2\."), r"\1.3."),
)


class DamagedError(CheckpointError):
    """A file is not whole, or not as it was written."""


def timm_source(full: str, config: Any) -> dict[str, Any]:
    """Find out where the weights are before anything is built: in the cache, or behind a network that answers."""
    if config is None or not config.has_weights:
        raise BackboneError(
            f"{full} with pretrained=True",
            "a network that timm has weights for",
            f"Pass pretrained=False to train it from scratch, or choose a network that "
            f"timm.list_models('{full.partition('.')[0][:6]}*', pretrained=True) lists.",
        )
    if config.file or config.state_dict:
        return {}
    if not config.hf_hub_id:
        fetch(config.url, full, checked=False)  # to where timm looks for it
        return {}
    for filename in (config.hf_hub_filename, *_HUB_FILES):
        cached = filename and huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
        if isinstance(cached, str):
            # The hub would ask the network before its own cache. A custom loader is for the files of other libraries.
            return {"pretrained_cfg_overlay": {"file": cached, "custom_load": False}}
    address = f"{huggingface_hub.constants.ENDPOINT}/{config.hf_hub_id}"
    if (reason := reachable(address)) is not None:
        raise _no_weights(f"{config.hf_hub_id} ({config.hf_hub_filename or _HUB_FILES[0]})", address, reason)
    return {}


def fetch(url: str, name: str, *, checked: bool = True) -> Path:
    """Put a file of weights where torch keeps them, unless it is there, and say where that is.

    Args:
        url: where it is.
        name: of the network, for messages.
        checked: whether the file's name ends in the beginning of its SHA-256, as torch's own do.

    Raises:
        BackboneError: there is no network, or the file did not arrive whole.
    """
    filename = Path(urlparse(url).path).name
    target = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if target.exists():
        return target
    if (reason := reachable(url)) is not None:
        raise _no_weights(filename, url, reason)
    digest = re.search(r"-([0-9a-f]{8,})\.", filename) if checked else None
    try:
        download(url, target, digest_prefix="" if digest is None else digest[1])
    except CheckpointError as error:
        raise _no_weights(f"{filename} for {name}", url, error.arrived) from error
    return target


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file of weights without running any code that may be in it.

    Args:
        path: `.safetensors`, or anything `torch.save` wrote; weights inside a larger checkpoint are found.

    Raises:
        CheckpointError: it cannot be read, holds no weights, or carries a digest that is not its content's.
    """
    try:
        safe = path.suffix == ".safetensors" or begins_as_safetensors(path)
        content: Any = read_safetensors(path)[0] if safe else torch.load(path, "cpu", weights_only=True)
    except HeadstartError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}", "a file of weights that can be read", "Check the path."
        ) from error
    except Exception as error:  # whatever a file that is no such file makes its reader raise
        raise CheckpointError(
            f"{path}, which is no file of weights that can be read without running code ({type(error).__name__})",
            "a .safetensors file, or one that torch.save(network.state_dict(), path) wrote",
            "If it was downloaded, download it again; if it holds a whole network, save its state_dict instead.",
        ) from error
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path} with a {type(content).__name__} that is no state_dict",
            "a file of named tensors",
            "Write it with torch.save(network.state_dict(), path).",
        )
    state: dict[str, Tensor] = content
    return state


def begins_as_safetensors(path: Path) -> bool:
    """Say whether a file begins as those of safetensors do: with the length of its header, which is JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of safetensors, tensors and header; one of headstart's must be as it was written.

    Raises:
        DamagedError: its content is not what its digest says.
        OSError, SafetensorError, ValueError: it cannot be read.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        header = file.metadata() or {}
    if DESCRIPTION in header and header.get("sha256") != digest_of(tensors, header[DESCRIPTION]):
        raise DamagedError(
            f"{path}, whose content does not match its own digest",
            "a file as it was written",
            "It was damaged on the disk or on the way: take another copy.",
        )
    return tensors, header


def digest_of(tensors: Mapping[str, Tensor], words: str) -> str:
    """Give the SHA-256 of a description and of every tensor's name, type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(words.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def named_as(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a file's tensors the names of a network, where wrappers or earlier versions have called them otherwise.

    Args:
        own: the network's `state_dict`.
        state: the file's; prefixes such as `module.` (DataParallel) and `_orig_mod.` (torch.compile) are taken off.

    Returns:
        The same tensors; counters of norms, which old files do not have, are the network's own.

    Example:
        >>> own = {"fc.weight": torch.zeros(1)}
        >>> list(named_as(own, {"_orig_mod.module.fc.weight": torch.ones(1)}))
        ['fc.weight']
    """
    found = dict(state)
    while (
        found
        and "" not in found
        and not own.keys() & found.keys()
        and len({name.partition(".")[0] for name in found}) == 1
    ):
        found = {name.partition(".")[2]: value for name, value in found.items()}
    found = found if own.keys() & found.keys() else dict(state)
    for pattern, name_now in _EARLIER_NAMES:
        found = {name if name in own else pattern.sub(name_now, name): value for name, value in found.items()}
    counters = {name: value for name, value in own.items() if name.rpartition(".")[2] == _COUNTER}
    return counters | found


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load tensors under the names that the network has for them now."""
    named = OrderedDict(state)
    # Without it some networks (MNASNet) refuse, or take the names for earlier ones.
    named._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]  # noqa: SLF001
    network.load_state_dict(named, strict=strict)
    forget_cached(network)


def forget_cached(network: nn.Module) -> None:
    """Let go of what was computed from earlier weights: LeViT keeps its attention biases until `train()`."""
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    for module, training in modes:
        module.training = training


def load_backbone(network: nn.Module, layers: tuple[str, ...], path: Path, name: str) -> dict[str, Tensor]:
    """Load everything but the layers that give classes from a file of the original architecture.

    Args:
        network: is changed, or left as it is when the file does not fit.
        layers: paths of the layers that give classes, which keep their values.
        path: the file.
        name: what the network is called in messages.

    Returns:
        What the file holds for those layers, by its name in the network.

    Raises:
        CheckpointError: the file cannot be read.
        BackboneError: it is of another architecture; what is missing and what is too much is told.
    """
    own = network.state_dict()
    left_out = (*layers, *AUXILIARY)
    read = read_state(path)
    state = named_as(own, read)
    if misfits(own, state, left_out):
        state = _as_timm_reads_it(network, read, left_out) or state
    if words := misfits(own, state, left_out):
        fitting = len(own.keys() & state.keys())
        raise BackboneError(
            f"{path} with {len(read)} tensors for {name}, which has {len(own)}: {words}",
            "weights of the same architecture, whole, under the library's own names",
            "Check the model name: timm and torchvision name the same network's tensors differently."
            if 2 * fitting < len(own)
            else "Take another copy of the file, or the name of the very variant that it is of.",
        )
    given = {name: value for name, value in state.items() if not _is_in(name, left_out)}
    load_state(network, given, strict=False)
    return {name: value for name, value in state.items() if name not in given}


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor], left_out: Iterable[str] = ()) -> str:
    """Say what of a network a file lacks, has too much or has in another shape; nothing where it fits.

    Args:
        own: the network's `state_dict`.
        state: the file's.
        left_out: paths of modules that do not count.

    Example:
        >>> misfits({"fc.weight": torch.zeros(2), "bn.bias": torch.zeros(1)}, {"fc.weight": torch.zeros(3)})
        '1 missing (bn.bias); 1 of another shape (fc.weight)'
    """
    wanted, given = ({name for name in names if not _is_in(name, left_out)} for names in (own, state))
    unfit = {name for name in wanted & given if own[name].shape != state[name].shape}
    found = [("missing", wanted - given), ("not known to it", given - wanted), ("of another shape", unfit)]
    return "; ".join(f"{len(names)} {what} ({listing(sorted(names), 3)})" for what, names in found if names)


def is_within(path: str, outer: str) -> bool:
    """Say whether a module or a tensor is another one or inside it.

    Example:
        >>> is_within("head.fc", "head"), is_within("head", "head"), is_within("head_dist", "head")
        (True, True, False)
    """
    return path == outer or path.startswith(f"{outer}.")


def _is_in(name: str, paths: Iterable[str]) -> bool:
    return any(is_within(name, path) for path in paths)


def _as_timm_reads_it(
    network: nn.Module, read: Mapping[str, Tensor], left_out: Iterable[str]
) -> dict[str, Tensor] | None:
    """Give a file in the format of its authors under timm's names, where timm has a converter for the family.

    A converter may also fit tensors of another size, such as patches, to the network: that is another architecture.
    """
    module = sys.modules.get(type(network).__module__)
    convert = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return None
    own = network.state_dict()
    try:
        converted = named_as(own, convert(dict(read), network))
    except Exception:  # a converter fails in its own way at a file that it is not for; what does not fit is told anyway
        return None
    resized = any(name in converted and converted[name].shape != value.shape for name, value in read.items())
    return None if resized or misfits(own, converted, left_out) else converted


def classes_in(path: Path) -> tuple[str, ...] | None:
    """Give the names of the classes that stand in a file which `learner.save` wrote; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(json.loads((file.metadata() or {})[DESCRIPTION])["classes"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _no_weights(file: str, address: str, reason: str) -> BackboneError:
    return BackboneError(
        f"no way to the weights {file} at {address}: {reason}",
        "a network connection for the first use of these weights, or a file of them",
        "Pass pretrained='path/to/weights.pth' for a file you have, or pretrained=False to train from scratch.",
    )


@contextmanager
def telling_failures(name: str) -> Iterator[None]:
    """Turn what a download, or a library that builds a network, can raise into an error that says what to do."""
    try:
        yield
    except HeadstartError:
        raise
    except Exception as error:  # the hub's client lets through whatever its own client raises
        raise BackboneError(
            f"{name}, which could not be built or its weights not be loaded: {error}",
            "a network that its library can open",
            "Try again; pretrained='path/to/weights.pth' takes a file you have, pretrained=False trains from scratch.",
        ) from error
