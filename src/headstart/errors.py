"""The exceptions of headstart, and the words they are made of.

    HeadstartError
    ├── ConfigError (also a ValueError)   an argument, or a combination of arguments, cannot work
    ├── BackboneError                     a network, its weights or its layers are not what was asked for
    ├── DataError                         pictures, labels or loaders are not what training needs
    └── CheckpointError                   a file of weights cannot be written, read or trusted

Every one of them says three things: what arrived, what is needed, and what to do about it. Nothing else lives here.
"""

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real


class HeadstartError(Exception):
    """Tell what arrived, what is needed and what to do.

    Args:
        arrived: the value that came in, spelled out.
        needed: what would have been right.
        todo: the next thing to type or to look at.

    Example:
        >>> error = ConfigError("epochs=0", "a whole number of epochs, 1 or more", "Pass for example fit(5, lr=1e-3).")
        >>> print(error)
        Arrived: epochs=0
        Needed:  a whole number of epochs, 1 or more
        To do:   Pass for example fit(5, lr=1e-3).
    """

    def __init__(self, arrived: str, needed: str, todo: str) -> None:
        super().__init__(arrived, needed, todo)
        self.arrived = arrived
        self.needed = needed
        self.todo = todo

    def __str__(self) -> str:
        return f"Arrived: {self.arrived}\nNeeded:  {self.needed}\nTo do:   {self.todo}"


class ConfigError(HeadstartError, ValueError):
    """An argument, or a combination of arguments, cannot work."""


class BackboneError(HeadstartError):
    """A network, its weights or its layers are not what was asked for."""


class DataError(HeadstartError):
    """Pictures, labels or loaders are not what training needs."""


class CheckpointError(HeadstartError):
    """A file of weights cannot be written, read or trusted."""


class Demands:
    """Collect everything that is wrong with a call, then tell it all at once.

    Example:
        >>> demands = Demands("Pass for example fit(5, lr=1e-3).")
        >>> demands.check("epochs", 0, False, "a whole number, 1 or more")
        >>> demands.check("lr", 0.1, True, "a positive number")
        >>> demands.settle()
        Traceback (most recent call last):
        headstart.errors.ConfigError: Arrived: epochs=0
        Needed:  epochs: a whole number, 1 or more
        To do:   Pass for example fit(5, lr=1e-3).
    """

    def __init__(self, todo: str) -> None:
        self._todo = todo
        self._arrived: list[str] = []
        self._needed: list[str] = []

    def check(self, name: str, value: object, right: bool, needed: str) -> None:
        """Note that argument `name` arrived as `value` unless it is `right`."""
        if not right:
            self._arrived.append(f"{name}={value!r}")
            self._needed.append(f"{name}: {needed}")

    def settle(self) -> None:
        """Raise one ConfigError that lists all that was noted, or return when nothing was."""
        if self._arrived:
            raise ConfigError(", ".join(self._arrived), "; ".join(self._needed), self._todo)


def is_count(value: object, least: int = 1) -> bool:
    """Say whether `value` is a whole number, also one of NumPy's, `least` or more (True and False are none here)."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def is_number(value: object) -> bool:
    """Say whether `value` is a finite real number, also one of NumPy's (True and False are none here)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isinstance(value, Integral) or math.isfinite(value)


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """Name the known words closest to a misspelt one, ready to be put into a sentence.

    Example:
        >>> nearest("resnet81", ["resnet18", "vgg16"])
        "Did you mean 'resnet18'? "
        >>> nearest("f1_score", ["accuracy", "f1"]), nearest("acc", ["accuracy", "f1"])
        ("Did you mean 'f1'? ", "Did you mean 'accuracy'? ")
        >>> nearest("zebra", ["resnet18", "vgg16"])
        ''
    """
    words = list(dict.fromkeys(known))
    found = difflib.get_close_matches(name, words, n=most)
    if not found and len(name) > 1:  # else one that is longer or shorter
        found = [word for word in words if len(word) > 1 and (word.startswith(name) or name.startswith(word))][:most]
    return f"Did you mean {' or '.join(map(repr, found))}? " if found else ""


def listing(items: Iterable[object], most: int = 10) -> str:
    """Join items for a message, cutting a long list short and saying by how much.

    Example:
        >>> listing(range(4), most=2)
        '0, 1 and 2 more'
    """
    words = [str(item) for item in items]
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown
