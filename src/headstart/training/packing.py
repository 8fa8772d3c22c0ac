"""Plain values and tensors, taken apart into words that JSON can hold and tensors by name, and put together again.

So the state of a run needs no pickle: its file is one of safetensors with a description, like that of a Learner.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.errors import CheckpointError

_TAGS = ("$tensor", "$tuple", "$dict", "$float", "$dtype")
"""How what JSON does not have is written: a mapping with one of these as its only key."""


def pack(value: Any, where: str) -> tuple[Any, dict[str, Tensor]]:
    """Take a value apart.

    Args:
        value: None, a bool, an int, a float, a str, a tensor, a dtype, or a list, a tuple or a mapping of them.
        where: what the value is, for messages, and what the names of its tensors begin with.

    Returns:
        Words that strict JSON can hold, and the tensors by name, as they are.

    Raises:
        CheckpointError: there is something else in it.

    Example:
        >>> words, tensors = pack({"best": float("nan"), "moments": (Tensor([1, 2]), 3)}, "state")
        >>> words
        {'best': {'$float': 'nan'}, 'moments': {'$tuple': [{'$tensor': 'state.moments.0'}, 3]}}
        >>> list(tensors)
        ['state.moments.0']
    """
    tensors: dict[str, Tensor] = {}
    return _packed(value, where, tensors), tensors


def unpack(words: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together again what `pack` took apart; lists stay lists, tuples tuples.

    Example:
        >>> unpack(*pack({"best": float("nan"), "of": (1, [2.5, None])}, "state"))
        {'best': nan, 'of': (1, [2.5, None])}
    """
    if isinstance(words, list):
        return [unpack(item, tensors) for item in words]
    if not isinstance(words, dict):
        return words
    tag = next(iter(words), None)
    if len(words) != 1 or tag not in _TAGS:
        return {key: unpack(item, tensors) for key, item in words.items()}
    held = words[tag]
    if tag == "$tensor":
        return tensors[held]
    if tag == "$float":
        return float(held)
    if tag == "$dtype":
        return getattr(torch, held)
    items = [unpack(item, tensors) for item in held]
    return tuple(items) if tag == "$tuple" else dict(items)


def _packed(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Tensor):
        name = where
        while name in tensors:  # keys such as 1 and "1" read alike
            name += "'"
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        items = [_packed(item, f"{where}.{place}", tensors) for place, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        pairs = [(key, _packed(item, f"{where}.{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) for key, _ in pairs) and not (len(pairs) == 1 and pairs[0][0] in _TAGS):
            return dict(pairs)
        return {"$dict": [[_packed(key, f"{where}.keys", tensors), item] for key, item in pairs]}
    raise CheckpointError(
        f"{where}, of type {type(value).__name__}",
        "None, numbers, words, tensors, and lists, tuples and dicts of them, which a file can hold without any code",
        "Give it as one of these: str(path), list(a_set), torch.from_numpy(array).",
    )
