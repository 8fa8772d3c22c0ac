"""Values in plain words, so that two processes can compare what they were asked for."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headstart.model.weights import digest_of

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def words_for(value: Any, depth: int = 4) -> str:
    """Describe a value so that equal ones read the same in every process: no addresses, code by its names and values.

    Example:
        >>> words_for((0.1, Path("a/b"), {"every": [1, 2]}))
        "(0.1, 'a/b', {every: (1, 2)})"
    """
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    if depth <= 0 or isinstance(value, type):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {words_for(item, depth - 1)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        items = [words_for(item, depth - 1) for item in value]
        return f"({', '.join(sorted(items) if isinstance(value, set | frozenset) else items)})"
    return _words_for_object(value, depth)


def arguments(values: Mapping[str, Any], depth: int = 4) -> str:
    """Describe values by their names, as they would stand in a call.

    Example:
        >>> arguments({"patience": 3, "monitor": "val_loss"})
        "patience=3, monitor='val_loss'"
    """
    return ", ".join(f"{name}={words_for(item, depth - 1)}" for name, item in values.items())


def _words_for_object(value: Any, depth: int) -> str:
    name = type(value).__qualname__
    if isinstance(value, Tensor):
        return _words_for_tensor(value)
    if isinstance(value, nn.Module):
        return _words_for_module(value, depth)
    if isinstance(value, functools.partial):
        return f"partial({words_for(value.func, depth - 1)}, {words_for(value.args, depth - 1)}, {value.keywords})"
    if isinstance(value, types.MethodType):
        return f"{words_for(value.__self__, depth - 1)}.{value.__name__}"
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__}({arguments(_held(value), depth)})"
    if isinstance(value, types.CodeType):
        return words_for(_code(value), max(depth, 3))
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return f"{name}({arguments(fields, depth)})"
    text = _printed(value)
    return f"{name}({arguments(getattr(value, '__dict__', {}), depth)})" if text is None else text


def _words_for_module(module: nn.Module, depth: int) -> str:
    """Describe a loss, a metric or a pipeline by what it prints, by settings that it may not print, and by tensors."""
    parts = [text for text in [_printed(module)] if text is not None]
    for path, part in module.named_modules():
        own = {name: item for name, item in vars(part).items() if not name.startswith("_") and name != "training"}
        plain = {name: item for name, item in own.items() if not (isinstance(item, Tensor) or callable(item))}
        parts.append(f"{path}{type(part).__qualname__}({arguments(plain, depth - 1)})")
    parts += [f"{name} {words_for(value)}" for name, value in module.state_dict().items()]
    return "; ".join(parts)


def _words_for_tensor(tensor: Tensor) -> str:
    try:
        return f"Tensor {list(tensor.shape)} ({digest_of({'': tensor.detach().cpu()}, '')[:8]})"
    except RuntimeError:  # lazy, sparse or without values: there is nothing to take a digest of
        return f"Tensor of {tensor.layout} on {tensor.device}"


def _printed(value: Any) -> str | None:
    """Give what a value prints as, or None where that holds an address, or fails."""
    try:
        text = repr(value)
    except Exception:  # of the user's own: a callback may be made before what it was given can be printed
        return None
    return None if " at 0x" in text else text


def _held(function: types.FunctionType) -> dict[str, Any]:
    """Give what a function works with: its code, its defaults, and what it has from where it was made."""
    defaults = {**(function.__kwdefaults__ or {}), "": function.__defaults__ or ()}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {
        **_code(function.__code__),
        **({"defaults": defaults} if any(defaults.values()) else {}),
        **{name: _content(cell) for name, cell in cells},
    }


def _code(code: types.CodeType) -> dict[str, Any]:
    """Give the constants of some code and the names that it uses, those of functions inside it too."""
    constants = [value for value in code.co_consts if isinstance(value, (*_PLAIN, types.CodeType))]
    return {"constants": constants, "names": code.co_names}


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None
