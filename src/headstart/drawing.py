"""Tables, learning curves and contact sheets, drawn from plain arrays.

What the numbers mean, and how the pictures came about, is not this room's business. Figures are made without pyplot:
they need no display, leave nothing open behind them and change nobody's settings. Keep one with
`figure.savefig("curves.png")`; a notebook shows one that a cell ends with.
"""

import bisect
import io
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstart.errors import ConfigError, DataError, Demands, is_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

NOTHING: Mapping[str, int] = MappingProxyType({})

INK, FAINT, TRAIN, VAL, WRONG = "#3c4043", "#c9cdd2", "#3a6fb0", "#dd6b20", "#c62828"
FONTS = ["DejaVu Sans", "sans-serif"]
"""The font that comes with matplotlib first, because it has every sign used here; then what the user has chosen."""

CELL, GAP, LINE, MARGIN = 1.7, 0.2, 0.16, 0.25
"""Of a contact sheet, in inches: a picture's width, the space between two, a title's line, the paper around all."""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Align rows of values as plain text, numbers to the right and text to the left.

    The floats of a column share their number of decimals: four significant digits of the largest. None is left blank.

    Args:
        header: the columns' names.
        rows: one value for each column in every row.

    Example:
        >>> print(table(["layer", "parameters", "lr_scale"], [["stem", 9_536, 0.5], ["head", 1_026, 1.0]]))
        layer  parameters  lr_scale
        ---------------------------
        stem        9,536     0.500
        head        1,026     1.000
    """
    columns = [_column(name, [row[place] for row in rows]) for place, name in enumerate(header)]
    lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
    lines.insert(1, "-" * len("  ".join("-" * _width(column[0]) for column in columns)))
    return "\n".join(lines)


def _column(name: str, values: Sequence[object]) -> list[str]:
    """Write a column's name and values, all equally wide."""
    sizes = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value) and value]
    magnitude = math.floor(math.log10(max(sizes))) if sizes else 0
    style = f".{max(0, 3 - magnitude)}f" if -6 <= magnitude <= 9 else ".3e"
    cells = [name, *(_cell(value, style) for value in values)]
    width = max(map(_width, cells))
    to_right = bool(values) and all(_is_number(value) or value is None for value in values)
    blanks = [" " * (width - _width(cell)) for cell in cells]
    return [blank + cell if to_right else cell + blank for cell, blank in zip(cells, blanks, strict=True)]


def _is_number(value: object) -> bool:
    """Say whether a value is written as a number (nan is; True and False are words)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object, style: str) -> str:
    """Write one value, a float in the style of its column."""
    if isinstance(value, float):
        return format(value, style)
    if _is_number(value):
        return f"{value:,}"
    return "" if value is None else str(value)


def _width(text: str) -> int:
    """Count the places a text takes on a terminal, where a Chinese sign takes two and a combining accent none."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else not unicodedata.combining(sign) for sign in text)


def curves(
    series: Mapping[str, Sequence[float]],
    epochs: Sequence[int],
    best: Mapping[str, int] = NOTHING,
    borders: Sequence[int] = (),
) -> "Figure":
    """Draw learning curves: a panel for each quantity, `loss` and `val_loss` together, the learning rate last.

    Epochs count from 0 as arguments and from 1 on the axis. Values that are not finite are left out.

    Args:
        series: a value for each epoch, by the names that logs have.
        epochs: the epochs the values belong to.
        best: the epoch to mark on a curve, by the curve's name.
        borders: the epochs with which another fit begins.

    Raises:
        ConfigError: there is nothing to draw yet (wait for the end of the first epoch), or the lengths differ.

    Example:
        >>> figure = curves({"loss": [0.9, 0.5], "val_loss": [0.8, 0.6], "accuracy": [0.5, 0.9]}, epochs=[0, 1])
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss', 'accuracy']
    """
    _check_curves(series, epochs)
    quantities = list(dict.fromkeys(name.removeprefix("val_") for name in series))
    quantities.sort(key=lambda quantity: quantity == "learning_rate")
    columns = min(len(quantities), 3)
    rows = math.ceil(len(quantities) / columns)
    figure = _figure(4.3 * columns, 3.2 * rows)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    for place, quantity in enumerate(quantities, start=1):
        axes = figure.add_subplot(rows, columns, place)
        _dress(axes, quantity, epochs)
        for name in (quantity, f"val_{quantity}"):
            _draw_curve(axes, name, dict(zip(epochs, series.get(name, ()), strict=False)), best.get(name))
        _explain(axes)
        _draw_borders(axes, borders)
    return figure


def _check_curves(series: Mapping[str, Sequence[float]], epochs: Sequence[int]) -> None:
    """Refuse series that are empty or not as long as the epochs."""
    if not (series and epochs):
        raise ConfigError(
            f"{len(series)} series over {len(epochs)} epochs",
            "one series and one epoch at least",
            "Draw the curves when the first epoch has ended.",
        )
    if wrong := {name: len(values) for name, values in series.items() if len(values) != len(epochs)}:
        raise ConfigError(
            f"{len(epochs)} epochs, and series of other lengths: {wrong}",
            "one value for each epoch in every series",
            "Fill the epochs that have no value with nan.",
        )


def _dress(axes: "Axes", quantity: str, epochs: Sequence[int]) -> None:
    """Give an empty panel its labels, its grid and whole epochs as ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor("white")
    axes.set_xlim(min(epochs) + 0.5, max(epochs) + 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("epoch", color=INK, fontfamily=FONTS, fontsize=9.5)
    axes.set_ylabel(quantity.replace("_", " "), color=INK, fontfamily=FONTS, fontsize=9.5, parse_math=False)
    axes.tick_params(colors=INK, labelsize=8.5, length=0, labelfontfamily=FONTS)
    axes.grid(visible=False, axis="x")
    axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.6, linestyle="-", alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(color=FAINT, visible=True)


def _draw_borders(axes: "Axes", borders: Sequence[int]) -> None:
    """Draw a line before the first epoch of each further fit, and name the fit where there is room for its name."""
    left, right = axes.get_xlim()
    named = -math.inf
    for number, border in enumerate(borders, start=2):
        axes.axvline(border + 0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 3)), alpha=0.7)
        if border - named > 0.14 * (right - left):
            above = axes.get_xaxis_transform()
            axes.text(border + 0.5, 1.01, f"fit {number}", transform=above, ha="center", va="bottom", **_text(8))
            named = border


def _draw_curve(axes: "Axes", name: str, values: Mapping[int, float], best: int | None) -> None:
    """Draw the values of some epochs, with markers while they are few, and a ring around the best."""
    points = {epoch + 1: value for epoch, value in values.items() if math.isfinite(value)}
    if not points:
        return
    part, color, marker = ("val", VAL, "o") if name.startswith("val_") else ("train", TRAIN, "s")
    if name == "learning_rate":
        part, color = "_unnamed", INK
    style: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "markersize": 3.5 if len(points) <= 30 else 0}
    axes.plot(list(points), list(points.values()), color=color, marker=marker, label=part, **style)
    if best is not None and (value := points.get(best + 1)) is not None:
        ring: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 10, "markerfacecolor": "none"}
        label = f"best {part}: {value:.4g} in epoch {best + 1}"
        axes.plot([best + 1], [value], markeredgecolor=color, alpha=0.6, label=label, **ring)


def _explain(axes: "Axes") -> None:
    """Say what the curves are, or that there is none."""
    if not axes.lines:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center", **_text(9))
    if axes.get_legend_handles_labels()[0]:
        font = {"family": FONTS, "size": 8.5}
        axes.legend(prop=font, labelcolor=INK, facecolor="white", edgecolor="none", framealpha=0.8, shadow=False)


def contact_sheet(
    pictures: "Tensor | NDArray[Any]",
    titles: Sequence[str],
    marks: Sequence[bool] | None = None,
    columns: int = 6,
    heading: str = "",
) -> "Figure":
    """Lay out pictures in a grid, each under its title; those marked wrong in red, with a ✗.

    Args:
        pictures: `[pictures, 3, height, width]`, uint8, or float in [0, 1].
        titles: one for each picture; a line of it that is too long takes two lines, what they cannot hold is cut.
        marks: True for a right picture and False for a wrong one; None when there is no right and wrong.
        columns: the most pictures in a row.
        heading: a line above the sheet.

    Raises:
        ConfigError: titles or marks are not as many as the pictures, or columns is not 1 or more.
        DataError: the pictures have another shape, type or range; undo a normalisation before drawing.

    Example:
        >>> pictures = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
        >>> figure = contact_sheet(pictures, ["ants", "bees", "bees"], marks=[True, True, False])
        >>> [axes.get_title() for axes in figure.axes]
        ['ants', 'bees', '✗ bees']
    """
    shown = _drawable(pictures)
    right = [True] * len(shown) if marks is None else list(marks)
    _check_sheet(len(shown), len(titles), len(right), columns)
    above = [_fitted(title if ok else f"✗ {title}", CELL, 9) for title, ok in zip(titles, right, strict=True)]
    height = CELL * shown.shape[1] / shown.shape[2]
    figure, places = _sheet(len(shown), min(columns, len(shown)), height, LINE * max(map(len, above)) + 0.12, heading)
    for place, picture, lines, ok in zip(places, shown, above, right, strict=True):
        _draw_picture(figure.add_axes(place), picture, "\n".join(lines), ok)
    return figure


def _drawable(pictures: "Tensor | NDArray[Any]") -> "NDArray[Any]":
    """Check pictures and give them as `[pictures, height, width, 3]`, uint8 or float in [0, 1]."""
    images = (pictures if isinstance(pictures, Tensor) else torch.tensor(pictures)).detach().cpu()
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise DataError(
            f"pictures of shape {list(images.shape)}",
            "[pictures, 3, height, width], one picture at least",
            "Stack the pictures, their colours before their height and width.",
        )
    if images.dtype != torch.uint8:
        images = images.float()
        low, high = float(images.min()), float(images.max())
        if not (low > -0.001 and high < 1.001):  # what rounding does when a normalisation is undone is forgiven
            raise DataError(
                f"pictures with values from {low:.4g} to {high:.4g}",
                "uint8, or float in [0, 1]",
                "Undo the normalisation: multiply by std, then add mean.",
            )
        images = images.clamp(0, 1)
    return images.permute(0, 2, 3, 1).numpy()


def _check_sheet(pictures: int, titles: int, marks: int, columns: int) -> None:
    """Refuse a number of titles, marks or columns that does not fit the pictures."""
    demands = Demands("Pass one title and, if any, one mark for each picture, and for example columns=6.")
    demands.check("number of titles", titles, titles == pictures, f"{pictures}, as many as pictures")
    demands.check("number of marks", marks, marks == pictures, f"{pictures}, as many as pictures")
    demands.check("columns", columns, is_count(columns), "a whole number, 1 or more")
    demands.settle()


def _sheet(
    pictures: int, columns: int, height: float, band: float, heading: str
) -> tuple["Figure", list[tuple[float, float, float, float]]]:
    """Cut an empty sheet to size, write its heading, and find each picture's place.

    Args:
        pictures: how many there are.
        columns: how many of them stand in a row.
        height: a picture's height in inches.
        band: the height in inches of what is above each picture.
        heading: a line above them all.

    Returns:
        The figure, and for each picture left, bottom, width and height as shares of it.
    """
    across, rows = columns * (CELL + GAP) - GAP + 2 * MARGIN, math.ceil(pictures / columns)
    lines = _fitted(heading, across - 2 * MARGIN, 12)
    down = rows * (band + height) + 2 * MARGIN - 0.1 + 0.22 * len(lines)
    figure = _figure(across, down)
    figure.text(MARGIN / across, 1 - MARGIN / down, "\n".join(lines), va="top", **_text(12))
    places = []
    for row, column in (divmod(place, columns) for place in range(pictures)):
        left, bottom = MARGIN + column * (CELL + GAP), MARGIN + (rows - 1 - row) * (band + height)
        places.append((left / across, bottom / down, CELL / across, height / down))
    return figure, places


def _draw_picture(axes: "Axes", picture: "NDArray[Any]", title: str, right: bool) -> None:
    """Draw one picture in its frame, its title above."""
    color, thickness = (FAINT, 0.6) if right else (WRONG, 3)
    axes.imshow(picture)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=color, linewidth=thickness)
    axes.set_title(title, pad=5, linespacing=1.15, **_text(9, INK if right else WRONG))


def _text(size: float, color: str = INK) -> dict[str, Any]:
    """Give a text's style; a $ in a name is a dollar and begins no formula."""
    return {"fontsize": size, "fontfamily": FONTS, "color": color, "parse_math": False}


def _fitted(text: str, inches: float, size: float) -> list[str]:
    """Break each line of a text into at most two that fit a width, cutting what those cannot hold."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONTS, size=size)

    def fits(line: str) -> bool:
        return text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] <= 72 * inches

    lines: list[str] = []
    for line in text.splitlines():
        length = _fitting(line, fits)
        if length >= len(line):
            lines.append(line)
            continue
        stop = max(line.rfind(" ", 0, length + 1), *(line.rfind(sign, 0, length) for sign in "_-/")) + 1 or length
        first, rest = line[:stop].rstrip(), line[stop:].lstrip()
        if _fitting(rest, fits) < len(rest):
            rest = rest[: _fitting(rest, lambda part: fits(f"{part}…"))] + "…"
        lines += [first, rest]
    return lines


def _fitting(text: str, fits: Callable[[str], bool]) -> int:
    """Count the signs at the beginning of a text that fit, one at least."""
    return max(1, bisect.bisect_left(range(1, len(text) + 1), True, key=lambda length: not fits(text[:length])))


def _figure(across: float, down: float) -> "Figure":
    """Make an empty figure, so many inches wide and high, that a notebook shows also where nobody imported pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that knows how to show itself in a notebook."""

        def _repr_png_(self) -> bytes:
            png = io.BytesIO()
            self.savefig(png, format="png")
            return png.getvalue()

    figure = Picture(figsize=(across, down), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    return figure
