"""Write `docs/reference/backbones.md`: what every architecture of timm and torchvision is made of.

    python docs/scripts/backbones.py

Opens them all, see `sweep.py`. Where one is not as it should be the page stays as it is, and what is wrong is printed.
"""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

import timm
import torch
import torchvision
from sweep import CHECKS, Row, names, sweep
from timm.data import constants
from tqdm import tqdm

PAGE = Path(__file__).resolve().parent.parent / "reference" / "backbones.md"

TEXT = """\
# Backbones

<!-- Written by docs/scripts/backbones.py: change that, not this page. -->

A `Learner` can be made of whatever classifier timm and torchvision list. For this page every network that they list was
opened, those of {libraries}, under torch {torch}: all modules and shapes, without values.

{counts}
The tables below show, for each family (a module of the library):

- **Head**: the class of the module that makes up the head. `2 x Linear` are two classifiers side by side; each of them
  becomes the head that you ask for.
- **Stages**: how many there are, and their names in the smallest network of the family (but for those that timm calls
  `test_...`). `from_layer=` takes such a name, and `learner.layers` lists those of your network.
- **Input**: height and width in pixels that the usual weights expect. *Fixed* are networks that take no other
  `image_size=`, as timm's configuration says; torchvision does not say.
- **Normalisation**: what the usual weights expect of pixels in [0, 1]:
  {normalisations}.

Numbers in brackets count networks.

{families}
## Stages that run in another order

Stages stand in the order in which a network lists its modules. Nearly everywhere pictures pass them in this order. In
these networks a part of a stage runs before a stage that stands further up, so that some of what `from_layer=` freezes
may lie behind something that trains:

{turned}
## Refused

A `BackboneError` refuses what gives no classes. As part of a module of your own that ends in a Linear layer, each of
these can be a backbone all the same:

{refused}
## What holds for every one of them

A test opens every network that is not refused, and checks these sentences:

{checks}"""

NORMALISATIONS = {
    (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD): "ImageNet",
    (constants.IMAGENET_INCEPTION_MEAN, constants.IMAGENET_INCEPTION_STD): "0.5",
    (constants.OPENAI_CLIP_MEAN, constants.OPENAI_CLIP_STD): "CLIP",
    (constants.IMAGENET_DPN_MEAN, constants.IMAGENET_DPN_STD): "DPN",
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)): "0 and 1",
}
"""What the page calls a pair of (mean, std)."""

NAMES_SHOWN = 8
"""How many names of stages a cell holds; of more the middle is left out."""


def libraries() -> str:
    """Say whose architectures these are."""
    return f"timm {timm.__version__} and torchvision {plain(torchvision.__version__)}"


def page(rows: Sequence[Row]) -> str:
    """Write the page."""
    opened = [row for row in rows if row.refusal is None]
    return TEXT.format(
        libraries=libraries(),
        torch=plain(torch.__version__),
        counts=table(("Library", "Families", "Networks", "Opened", "Refused"), map(library_cells, libraries_in(rows))),
        normalisations=normalisations_shown(opened),
        families="\n".join(f"## {name}\n\n{family_table(members)}" for name, members in libraries_in(opened)),
        turned=turned_list(opened),
        refused=refused_list(rows),
        checks="".join(f"- {inspect.getdoc(check)}\n" for check in CHECKS),
    )


# Parts of it


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table, columns of numbers to the right."""
    lines = [tuple(map(str, row)) for row in rows]
    marks = ["---:" if re.fullmatch(r"[\d,]+", "".join(column)) else "---" for column in zip(*lines, strict=True)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, marks, *lines))


def libraries_in(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Put the rows of each library together."""
    return [(name, list(members)) for name, members in groupby(rows, lambda row: row.library)]


def families_in(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Put the rows of each family together, in alphabetical order."""
    ordered = sorted(rows, key=lambda row: row.family)
    return [(name, list(members)) for name, members in groupby(ordered, lambda row: row.family)]


def library_cells(library: tuple[str, list[Row]]) -> tuple[object, ...]:
    """Count what there is of a library."""
    name, rows = library
    refused = sum(row.refusal is not None for row in rows)
    return name, *(f"{n:,}" for n in (len(families_in(rows)), len(rows), len(rows) - refused, refused))


def family_table(rows: Sequence[Row]) -> str:
    """Write the table of a library: a row for each family."""
    header = ("Family", "Networks", "Head", "Stages", "In the smallest", "Input", "Normalisation")
    return table(header, (family_cells(*family) for family in families_in(rows)))


def family_cells(name: str, rows: Sequence[Row]) -> tuple[object, ...]:
    """Say in a few words what the members of a family are made of."""
    smallest = min(rows, key=lambda row: (row.name.startswith("test_"), row.parameters))
    counts = [len(row.stages) for row in rows]
    return (
        name,
        f"{len(rows):,}",
        variants(rows, head),
        span(counts),
        f"`{smallest.name.rpartition('/')[2]}`: {shortened(smallest.stages)}",
        inputs(rows),
        variants(rows, normalisation),
    )


def variants(rows: Sequence[Row], word: Callable[[Row], str]) -> str:
    """Give the word for all rows, or each word with the number of rows that it is for, the most frequent first."""
    counted = Counter(map(word, rows)).most_common()
    return counted[0][0] if len(counted) == 1 else ", ".join(f"{text} ({count})" for text, count in counted)


def head(row: Row) -> str:
    """Say what a head is, such as `2 x Linear`."""
    kinds = Counter(row.kinds).items()
    words = " + ".join(kind if count == 1 else f"{count} x {kind}" for kind, count in kinds)
    return words if len(row.layers) == len(row.kinds) else f"{words} with {len(row.layers)} classifiers"


def normalisation(row: Row) -> str:
    """Give the name of mean and std."""
    return NORMALISATIONS.get(moments(row), "other")


def moments(row: Row) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give mean and std."""
    return row.preprocessing.mean, row.preprocessing.std


def normalisations_shown(rows: Sequence[Row]) -> str:
    """Spell out the names of mean and std."""
    found = sorted({(normalisation(row), moments(row)) for row in rows}, key=lambda pair: pair[0].casefold())
    return ";\n  ".join(f"{name} is mean {numbers(mean)} and std {numbers(std)}" for name, (mean, std) in found)


def numbers(values: Sequence[float]) -> str:
    """Write three numbers, or one where they are alike."""
    return ", ".join(f"{value:.3g}" for value in dict.fromkeys(values))


def inputs(rows: Sequence[Row]) -> str:
    """Give the sizes of input, and how many networks take no other."""
    sizes = Counter(row.preprocessing.image_size for row in rows)
    squares = span([height for height, width in sizes if height == width])
    others = [f"{height} x {width}" for height, width in sorted(sizes) if height != width]
    fixed = sum(row.fixed for row in rows)
    notes = ["fixed"] if fixed == len(rows) else [f"fixed ({fixed})"] * bool(fixed)
    return ", ".join([*filter(None, [squares]), *others, *notes])


def span(values: Sequence[int]) -> str:
    """Write one or two values, or the range of more."""
    found = sorted(set(values))
    return f"{found[0]} to {found[-1]}" if len(found) > 2 else ", ".join(map(str, found))


def shortened(stages: Sequence[str]) -> str:
    """Write names of stages, of numbered ones the first and the last, and of very many the middle not at all.

    >>> shortened(["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"])
    '`stem`, `blocks.0` … `blocks.3`, `head`'
    """
    runs = [list(run) for _, run in groupby(stages, lambda name: re.sub(r"\d+(?=\D*$)", "#", name))]
    parts = []
    for run in runs:
        parts += [f"`{run[0]}` … `{run[-1]}`"] if len(run) > 2 else [f"`{name}`" for name in run]
    if len(parts) > NAMES_SHOWN:
        parts = [*parts[: NAMES_SHOWN // 2], "…", *parts[-NAMES_SHOWN // 2 :]]
    return ", ".join(parts)


def turned_list(rows: Sequence[Row]) -> str:
    """List the families with stages that run in another order than they stand, each with an example."""
    lines = []
    for library, members in libraries_in(rows):
        for family, relatives in families_in(members):
            if found := [row for row in relatives if row.turned]:
                before, after = found[0].turned
                lines.append(
                    f"- {library}'s {family} ({len(found)} of {len(relatives)}): in `{found[0].name}` a part of "
                    f"`{after}` runs before `{before}`\n"
                )
    return "".join(lines)


def refused_list(rows: Sequence[Row]) -> str:
    """List what is not opened under the reason for it."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.refusal is not None:
            reasons.setdefault(row.refusal.removeprefix(f"{row.name}, "), []).append(f"`{row.name}`")
    return "".join(f"- {reason}: {', '.join(refused)}\n" for reason, refused in reasons.items())


def plain(version: str) -> str:
    """Leave out what a version says of the build."""
    return version.partition("+")[0]


def main() -> None:
    """Open all networks and write the page."""
    everything = names()
    rows = list(tqdm(sweep(everything), total=len(everything), unit="network"))
    if wrong := [f"{row.name}: {problem}" for row in rows for problem in row.problems]:
        sys.exit("\n".join(wrong))
    PAGE.write_text(page(rows), "utf-8")


if __name__ == "__main__":
    main()
