"""The names of the classes in the order of their numbers, spelled out from what the user gives or datasets say."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from headstart.errors import ConfigError, DataError, is_count, listing

ClassNames = Sequence[str] | Mapping[str, int] | Mapping[int, str] | int
"""What `classes=` takes: names in the order of the labels, a dict of names and labels, or how many there are."""


def class_names(classes: ClassNames) -> tuple[str, ...]:
    """Spell out the names of the classes in the order of their numbers.

    Args:
        classes: names in this order, how many there are, or a dict from names to numbers or from numbers to names.

    Raises:
        ConfigError: it is none of these, has no order (a set), or there are fewer than two different names.

    Example:
        >>> class_names(["ant", "bee"]), class_names({"bee": 1, "ant": 0}), class_names(3)
        (('ant', 'bee'), ('ant', 'bee'), ('0', '1', '2'))
    """
    names = _spelt_out(classes)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"classes={classes!r}",
            "two or more different names in a list, in the order of the labels; how many there are; or a dict from the "
            "names to their labels, which are 0, 1 and so on",
            "For example classes=['ant', 'bee'], classes={'ant': 0, 'bee': 1} or classes=10.",
        )
    return names


def common_classes(datasets: Mapping[str, Any]) -> tuple[str, ...]:
    """Ask the train dataset for its classes, and the others whether theirs are the same.

    Args:
        datasets: by the names of their parts, such as `"train"`.

    Raises:
        ConfigError: the train dataset does not tell them. Pass them.
        DataError: another dataset has other classes, or these in another order. Number all by one list.
    """
    known = {name: found for name, dataset in datasets.items() if (found := _own_classes(dataset))}
    if "train" not in known:
        raise ConfigError(
            f"a train dataset of type {type(datasets['train']).__name__}, which does not tell its classes in order",
            "the names of the classes in the order of the labels, or how many there are",
            "Pass for example classes=['ant', 'bee'] or classes=10.",
        )
    for name, found in known.items():
        if found != known["train"]:
            raise DataError(
                f"a {name} dataset with the classes {listing(found)}",
                f"those of the train dataset in their order: {listing(known['train'])}",
                "Number the labels of all datasets by one list of classes; if they are, pass it as classes=.",
            )
    return known["train"]


def _own_classes(dataset: Any) -> tuple[str, ...]:
    """Give the classes that a dataset says it has, if any."""
    while dataset is not None:
        for name in ("classes", "class_to_idx"):
            if names := _spelt_out(getattr(dataset, name, None)):
                return names
        dataset = getattr(dataset, "dataset", None)  # a Subset knows only the dataset it is taken from
    return ()


def _spelt_out(classes: Any) -> tuple[str, ...]:
    """Give the names in a list or a dict, or the numbers up to a count as names; nothing for what is none of these."""
    if isinstance(classes, Mapping):
        return _sorted(classes)
    listed = range(int(classes)) if isinstance(classes, Integral) else classes
    if isinstance(listed, str | bytes | set | frozenset) or not isinstance(listed, Iterable):
        return ()
    return tuple(map(str, listed))


def _sorted(classes: Mapping[Any, Any]) -> tuple[str, ...]:
    """Give the names in a dict of names and their numbers 0, 1 and so on; nothing if one side is not just that."""
    pairs = list(classes.items())
    if all(isinstance(value, str) for value in classes.values()):
        pairs = [(name, number) for number, name in pairs]
    if not all(isinstance(name, str) and is_count(number, 0) for name, number in pairs):
        return ()
    names = {int(number): name for name, number in pairs}
    return tuple(names[number] for number in range(len(pairs))) if names.keys() == set(range(len(pairs))) else ()
