"""A new head that begins with what the old one knew: classes are matched by their names, never by their places."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from headstart.errors import BackboneError, ConfigError, listing, nearest
from headstart.model.head import Head


class Source(NamedTuple):
    """The classes that weights were trained for.

    Args:
        names: for each class in order all names it goes by, the full one first.
        origin: whose names they are, for messages.
    """

    names: tuple[tuple[str, ...], ...]
    origin: str

    @classmethod
    def of_descriptions(cls, descriptions: Sequence[str], origin: str) -> "Source":
        """Read names as ImageNet's lists write them: synonyms between commas.

        Example:
            >>> Source.of_descriptions(["hotdog, hot dog, red hot"], "ImageNet").names
            (('hotdog, hot dog, red hot', 'hotdog', 'hot dog', 'red hot'),)
        """
        return cls(tuple(tuple(dict.fromkeys((text, *re.split(r",\s*", text)))) for text in descriptions), origin)


class Rows(NamedTuple):
    """What a layer has learned of its classes: a row of weights for each, and its bias if there is one."""

    weight: Tensor
    bias: Tensor | None


def given_source(source_classes: Sequence[str] | str | Path) -> Source:
    """Take the names that the user brings along: a list, or a text file with a name on each line.

    Raises:
        ConfigError: the file cannot be read, or there is no name.
    """
    origin = "source_classes"
    if isinstance(source_classes, str | Path):
        origin = str(source_classes)
        try:
            lines = Path(source_classes).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"source_classes={str(source_classes)!r}: {getattr(error, 'strerror', None) or error}",
                "a list of names, or the path of a text file with a name on each line",
                "Check the path, and that the file is saved as UTF-8.",
            ) from error
        source_classes = [line.strip() for line in lines if line.strip()]
    if not source_classes:
        raise ConfigError(
            f"no names from {origin}",
            "one name for each class of the weights, in their order",
            "Take the list that the weights were trained with.",
        )
    return Source.of_descriptions(source_classes, origin)


def matched(classes: Sequence[str], source: Source, reuse: Literal["auto"] | Mapping[str, str]) -> dict[str, int]:
    """Find the classes that the weights know.

    Capitals, underscores and hyphens do not matter, nor does a plural's s; a name that several classes of the weights
    go by says nothing.

    Args:
        classes: of the data.
        source: the weights'.
        reuse: `"auto"` compares names; a mapping says which of the weights' classes stands for one of the data's.

    Returns:
        For each class that is known its place in the weights' list.

    Raises:
        BackboneError: the mapping names a class that the weights do not have; the nearest ones are given.
        ConfigError: it names one that the data does not have.

    Example:
        >>> source = Source.of_descriptions(["bee", "ant, emmet, pismire", "hotdog, hot dog, red hot"], "ImageNet")
        >>> matched(["ants", "hot_dog", "wasp"], source, "auto")
        {'ants': 1, 'hot_dog': 2}
        >>> matched(["ants", "wasp"], source, {"wasp": "bee"})
        {'wasp': 0}
    """
    places: dict[str, list[int]] = {}
    for place, names in enumerate(source.names):
        for name in dict.fromkeys(map(_plain, names)):
            places.setdefault(name, []).append(place)

    def find(name: str) -> list[int]:
        return places.get(name, [])

    def find_any(name: str) -> list[int]:
        return next((hits for spelling in _spellings(name) if (hits := find(spelling))), [])

    if reuse == "auto":
        hits = {name: find_any(name) for name in classes}
        return {name: places[0] for name, places in hits.items() if len(places) == 1}
    _demand_own(reuse, classes)
    found = {}
    for own, name in reuse.items():
        hits_of_one = find_any(name)
        if len(hits_of_one) != 1:
            only = [[each for each in source.names[place] if find(_plain(each)) == [place]] for place in hits_of_one]
            raise _not_one(own, name, only, source)
        found[own] = hits_of_one[0]
    return found


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFC", name).strip().casefold()))


def _spellings(name: str) -> list[str]:
    """Give a name as it is written, then what it may be the plural of."""
    plain = _plain(name)
    endings = [("ies", "y"), ("es", ""), ("s", "")]
    singular = [plain.removesuffix(end) + instead for end, instead in endings if plain.endswith(end)]
    return [plain, *reversed(singular)]


def _demand_own(reuse: Mapping[str, str], classes: Sequence[str]) -> None:
    if unknown := [name for name in reuse if name not in classes]:
        raise ConfigError(
            f"reuse for {listing(unknown, 3)}, which the data does not have",
            f"some of its classes: {listing(classes)}",
            f"{nearest(unknown[0], classes)}A mapping goes from your class to the weights' class.",
        )


def _not_one(own: str, name: str, meant: Sequence[Sequence[str]], source: Source) -> BackboneError:
    """Say that a name stands for none of the weights' classes, or for several, and how these are told apart."""
    if meant:
        ways = [repr(names[-1]) for names in meant if names]
        return BackboneError(
            f"reuse={{{own!r}: {name!r}}}, a name of {len(meant)} classes of {source.origin}",
            f"a name that only one of them has: {listing(ways) or 'they have none'}",
            "Write the name that only the one you mean goes by.",
        )
    known = list(dict.fromkeys(each for names in source.names for each in names))
    return BackboneError(
        f"reuse={{{own!r}: {name!r}}}, which is no class of {source.origin}",
        f"one of its {len(source.names)} classes",
        f"{nearest(name, known)}reuse='auto' takes what is there and prints it.",
    )


class Reuse(NamedTuple):
    """Which classes begin as which classes of the weights.

    Args:
        source: the weights' classes.
        rows: places in the source for the classes that it knows.
        classes: all of the data's.
    """

    source: Source
    rows: dict[str, int]
    classes: tuple[str, ...]

    def __str__(self) -> str:
        if not self.rows:
            there = listing((names[0] for names in self.source.names), 3)
            return f"reuse: {self.source.origin} has none of the classes, the whole head is new; it has {there}"
        names = {own: f"begins as {self.source.names[place][0]!r}" for own, place in self.rows.items()}
        width = max(map(len, self.classes))
        lines = [f"  {name:{width}}  {names.get(name, 'new')}" for name in self.classes]
        return "\n".join((f"reuse, from {self.source.origin}:", *lines))


def plan_reuse(head: Head, classes: Sequence[str], known: Source | None) -> Reuse:
    """Find out which classes begin as which, before anything is built.

    Args:
        head: with a `reuse`.
        classes: the data's.
        known: the classes of the weights, where the library or the file tells them.

    Raises:
        ConfigError: nobody knows the classes of the weights, or a name is not the data's.
        BackboneError: a name is not the weights'.
    """
    source = known if head.source_classes is None else given_source(head.source_classes)
    if source is None or head.reuse is None:
        raise ConfigError(
            f"reuse={head.reuse!r} for weights whose classes nobody has named",
            "the names of the weights' classes, in their order",
            "Pass them: Head(reuse=..., source_classes=[...]), or a text file with a name on each line.",
        )
    return Reuse(source, matched(classes, source, head.reuse), tuple(classes))


def demand_count(count: int, reuse: Reuse) -> None:
    """Raise a BackboneError unless weights have as many classes as were named."""
    if count != len(reuse.source.names):
        raise BackboneError(
            f"weights with {count} classes, and {len(reuse.source.names)} names from {reuse.source.origin}",
            "one name for each class of the weights, in their order",
            "Pass the names they were trained with: Head(reuse=..., source_classes=[...]).",
        )


def begin_as_known(layer: nn.Linear | nn.Conv2d, old: Rows, reuse: Reuse, *, alike: bool) -> None:
    """Give the layer of a new head what an old one knows of its classes.

    Args:
        layer: is changed.
        old: what the old layer has learned, with as many features for each class.
        reuse: which class begins as which.
        alike: whether the other classes all begin with what the old ones have in common, at the scale of one of them:
            a row drawn by chance for each would set them apart where nothing is known. If not they keep their values.

    Raises:
        BackboneError: the old layer has another number of features, or other classes than those that were named.
    """
    demand_count(len(old.weight), reuse)
    if old.weight.shape[1:] != layer.weight.shape[1:]:
        sizes = [list(rows.shape[1:]) for rows in (old.weight, layer.weight)]
        raise BackboneError(
            f"classes of {sizes[0]} weights to reuse, in a head with {sizes[1]} for each",
            "a head that gets the features which the old one got",
            "Leave reuse= or at= out of the Head, or take weights whose head has no hidden layers of its own.",
        )
    if not reuse.rows:
        return
    known = [place for place, name in enumerate(reuse.classes) if name in reuse.rows]
    others = [place for place, name in enumerate(reuse.classes) if name not in reuse.rows]
    rows = [reuse.rows[reuse.classes[place]] for place in known]
    with torch.no_grad():
        weight = old.weight.to(layer.weight)
        layer.weight[known] = weight[rows]
        if alike:
            common = weight.mean(0)
            scale = weight.flatten(1).norm(dim=1).mean()
            layer.weight[others] = common * (scale / common.norm().clamp_min(1e-12))
        if layer.bias is not None and old.bias is not None:
            bias = old.bias.to(layer.bias)
            layer.bias[known] = bias[rows]
            if alike:
                layer.bias[others] = bias.mean()
