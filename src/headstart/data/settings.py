"""What the ways into `ImageData` take beside pictures: what each argument must be, and the words for it."""

import os
from collections.abc import Callable
from typing import Any, Literal, get_args

from headstart.data.augment import Augment, Pipeline, check_augment
from headstart.data.preprocessing import Preprocessing
from headstart.errors import Demands, is_count, is_number

Workers = int | Literal["auto"]
OnError = Literal["raise", "skip"]

MOST_SKIPPED = 0.2
"""The share of a part's pictures that may be unreadable where they are to be passed over."""

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "root": (lambda root: isinstance(root, str | os.PathLike), "the path of a folder"),
    "val_fraction": (
        lambda share: is_number(share) and 0 < share < 1,
        "the share of the pictures to validate on, a number between 0 and 1",
    ),
    "seed": (lambda seed: is_count(seed, 0), "a whole number, 0 or more"),
    "batch_size": (is_count, "a whole number of pictures, 1 or more"),
    "image_size": (lambda size: size is None or is_count(size, 8), "a whole number of pixels, 8 or more, or None"),
    "workers": (lambda count: count == "auto" or is_count(count, 0), "a whole number, 0 or more, or 'auto'"),
    "on_error": (lambda word: word in get_args(OnError), "'raise' or 'skip'"),
    "eval_transform": (lambda it: it is None or callable(it), "a function of a picture, such as a Compose, or None"),
    "preprocessing": (lambda it: it is None or isinstance(it, Preprocessing), "a Preprocessing, or None"),
    "pictures": (is_count, "a whole number of pictures, 1 or more"),
}
"""Arguments by their names."""


def demand(todo: str, **arguments: object) -> None:
    """Check arguments by their names.

    Args:
        todo: the cure that an error names.
        arguments: by names that are known here.

    Raises:
        ConfigError: some are out of range; all of them are told.

    Example:
        >>> demand("Pass for example batch_size=32.", batch_size=0, workers="auto")
        Traceback (most recent call last):
        headstart.errors.ConfigError: Arrived: batch_size=0
        Needed:  batch_size: a whole number of pictures, 1 or more
        To do:   Pass for example batch_size=32.
    """
    demands = Demands(todo)
    for name, value in arguments.items():
        right, needed = _RULES[name]
        demands.check(name, value, right(value), needed)
    demands.settle()


def settings(
    batch_size: int,
    image_size: int | None,
    augment: Augment,
    eval_transform: Pipeline | None,
    workers: Workers,
    on_error: OnError,
    **others: object,
) -> dict[str, Any]:
    """Check what folders and datasets are given alike, and `others` with it; give whole numbers as Python's own.

    Raises:
        ConfigError: something is out of range, or an augmentation is unknown.
    """
    numbers: dict[str, Any] = {"batch_size": batch_size, "image_size": image_size, "workers": workers}
    todo = "For example ImageData.from_folder('flowers', batch_size=32, image_size=224, workers=2)."
    demand(todo, **others, **numbers, eval_transform=eval_transform, on_error=on_error)
    check_augment(augment)
    plain = {name: int(number) if is_count(number, 0) else number for name, number in numbers.items()}
    return {**plain, "augment": augment, "eval_transform": eval_transform, "on_error": on_error}
