"""Tables, curves and contact sheets, read back from what was drawn."""

import math
import subprocess
import sys
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from headstart.drawing import WRONG, contact_sheet, curves, table
from headstart.errors import ConfigError, DataError

LOGS = {
    "loss": [0.9, 0.5, 0.3],
    "learning_rate": [1e-3, 5e-4, 1e-4],
    "accuracy": [0.5, 0.7, 0.8],
    "val_loss": [0.8, 0.4, 0.6],
    "val_accuracy": [0.6, 0.9, 0.7],
}


def drawn(figure: Figure) -> Figure:
    """Draw everything, so that warnings come up and positions are known."""
    figure.canvas.draw()
    return figure


def legend_of(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def vertical_lines(axes) -> list[float]:
    return [
        line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2 and len(set(line.get_xdata())) == 1
    ]


# Tables


def test_numbers_stand_to_the_right_and_text_to_the_left():
    assert table(["name", "count"], [["stem", 9], ["layer1", 1234567]]).splitlines() == [
        "name        count",
        "-----------------",
        "stem            9",
        "layer1  1,234,567",
    ]


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0.5, 0.25], ["0.5000", "0.2500"]),
        ([2.5, 0.25], ["2.500", "0.250"]),
        ([1e-3, 1e-5], ["0.001000", "0.000010"]),
        ([12345.6, 0.5], ["12346", "0"]),
        ([1e-9, 2e-10], ["1.000e-09", "2.000e-10"]),
        ([1e300, 1.0], ["1.000e+300", "1.000e+00"]),
        ([0.0, -0.5], ["0.0000", "-0.5000"]),
        ([0.0], ["0.000"]),
        ([math.nan, 0.5, math.inf], ["nan", "0.5000", "inf"]),
    ],
)
def test_floats_of_a_column_share_four_significant_digits_of_the_largest(values, written):
    assert [line.strip() for line in table(["x"], [[value] for value in values]).splitlines()[2:]] == written


def test_missing_values_are_blank_and_leave_a_column_of_numbers_one():
    assert table(["a", "b"], [[None, 1], ["x", None], ["y", 10]]).splitlines()[2:] == ["    1", "x", "y  10"]


def test_words_that_look_like_numbers_are_words():
    assert table(["trainable"], [[True], [False]]).splitlines()[2:] == ["True", "False"]


def test_a_table_without_rows_is_its_header():
    assert table(["a", "bc"], []) == "a  bc\n-----"


def test_wide_signs_and_combining_accents_keep_the_columns_straight():
    lines = table(["name", "n"], [["猫", 1], ["e\u0301te", 2], ["ants", 3]]).splitlines()[2:]
    assert lines == ["猫    1", "e\u0301te   2", "ants  3"]


# Curves


def test_train_and_val_of_a_quantity_share_a_panel_and_the_learning_rate_comes_last():
    figure = drawn(curves(LOGS, [0, 1, 2]))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "learning rate"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch"] * 3
    assert [legend_of(axes) for axes in figure.axes[:2]] == [["train", "val"]] * 2
    assert figure.axes[2].get_legend() is None


def test_curves_go_through_the_values_at_epochs_that_count_from_1():
    loss = drawn(curves(LOGS, [0, 1, 2])).axes[0]
    assert [list(line.get_xdata()) for line in loss.lines] == [[1, 2, 3]] * 2
    assert [list(line.get_ydata()) for line in loss.lines] == [LOGS["loss"], LOGS["val_loss"]]


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 20, 300])
def test_epoch_ticks_are_whole_numbers_within_the_fit(epochs):
    axes = drawn(curves({"loss": [0.5] * epochs}, range(epochs))).axes[0]
    left, right = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= right]
    assert ticks
    assert all(tick == int(tick) and 1 <= tick <= epochs for tick in ticks)


def test_one_epoch_is_seen_as_markers():
    lines = drawn(curves({key: values[:1] for key, values in LOGS.items()}, [0])).axes[0].lines
    assert [(line.get_marker(), line.get_markersize()) for line in lines] == [("s", 3.5), ("o", 3.5)]


def test_markers_go_when_epochs_are_many():
    assert drawn(curves({"loss": [0.5] * 31}, range(31))).axes[0].lines[0].get_markersize() == 0


def test_the_best_epoch_has_a_ring_and_a_line_in_the_legend():
    figure = drawn(curves(LOGS, [0, 1, 2], best={"val_loss": 1, "val_accuracy": 1, "val_f1": 0}))
    assert [legend_of(axes)[-1] for axes in figure.axes[:2]] == [
        "best val: 0.4 in epoch 2",
        "best val: 0.9 in epoch 2",
    ]
    ring = figure.axes[0].lines[-1]
    assert (list(ring.get_xdata()), list(ring.get_ydata()), ring.get_markerfacecolor()) == ([2], [0.4], "none")


def test_values_that_are_not_finite_are_left_out():
    series = {"loss": [0.5, math.nan, math.inf, 0.25]}
    line = drawn(curves(series, range(4), best={"loss": 1})).axes[0].lines[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 4], [0.5, 0.25])


def test_a_quantity_without_a_finite_value_says_so():
    axes = drawn(curves({"loss": [math.nan] * 2}, [0, 1], borders=[1])).axes[0]
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["no finite value", "fit 2"]
    assert axes.get_legend() is None


def test_fits_meet_at_a_line_before_the_first_epoch_of_the_next():
    figure = drawn(curves({"loss": [0.5] * 10, "accuracy": [0.5] * 10}, range(10), borders=[3, 6]))
    for axes in figure.axes:
        assert vertical_lines(axes) == [3.5, 6.5]
        assert [text.get_text() for text in axes.texts] == ["fit 2", "fit 3"]


def test_names_of_fits_that_would_overlap_are_left_out():
    axes = drawn(curves({"loss": [0.5] * 30}, range(30), borders=[3, 4, 20])).axes[0]
    assert vertical_lines(axes) == [3.5, 4.5, 20.5]
    assert [text.get_text() for text in axes.texts] == ["fit 2", "fit 4"]


def test_more_than_three_quantities_take_a_second_row():
    figure = drawn(curves({name: [0.5] for name in "abcd"}, [0]))
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in figure.axes] == [(2, 3)] * 4


def test_a_dollar_in_a_name_begins_no_formula():
    assert drawn(curves({"cost_$_a_$_b": [1.0]}, [0])).axes[0].get_ylabel() == "cost $ a $ b"


@pytest.mark.parametrize(("series", "epochs"), [({}, []), ({"loss": []}, []), ({}, [0])])
def test_curves_of_nothing_are_refused(series, epochs):
    with pytest.raises(ConfigError, match=f"{len(series)} series over {len(epochs)} epochs"):
        curves(series, epochs)


def test_series_of_another_length_than_the_epochs_are_named():
    with pytest.raises(ConfigError, match=r"2 epochs, and series of other lengths: \{'loss': 1\}"):
        curves({"loss": [0.5], "accuracy": [0.5, 0.6]}, [0, 1])


# Contact sheets


def pictures(count: int, height: int = 24, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_pictures_stand_in_reading_order_under_their_titles():
    images = pictures(5)
    figure = drawn(contact_sheet(images, list("abcde"), columns=3))
    assert [axes.get_title() for axes in figure.axes] == list("abcde")
    for axes, image in zip(figure.axes, images, strict=True):
        assert np.array_equal(axes.images[0].get_array(), image.permute(1, 2, 0))
    boxes = [axes.get_position() for axes in figure.axes]
    assert [len({round(box.x0, 6) for box in boxes}), len({round(box.y0, 6) for box in boxes})] == [3, 2]
    assert boxes[0].y0 == boxes[2].y0 > boxes[3].y0 > 0
    assert boxes[0].x0 == pytest.approx(boxes[3].x0)
    assert boxes[0].x0 < boxes[1].x0 < boxes[2].x0


def test_pictures_keep_their_proportions():
    figure = drawn(contact_sheet(pictures(4, height=20, width=50), ["a"] * 4, columns=2))
    box = figure.axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(20 / 50)


def test_floats_bytes_arrays_and_tensors_give_the_same_sheet():
    images = pictures(2)
    sheets = [images, images.numpy(), images / 255, (images / 255).double().numpy(), (images / 255).requires_grad_()]
    rendered = [np.asarray(drawn(contact_sheet(sheet, ["a", "b"])).canvas.buffer_rgba()).copy() for sheet in sheets]
    for other in rendered[1:]:
        assert np.abs(rendered[0].astype(int) - other).max() <= 1


def test_what_rounding_adds_to_a_picture_is_forgiven():
    assert contact_sheet(torch.tensor([-1e-6, 1 + 1e-6]).expand(1, 3, 4, 2), ["a"]).axes


def test_a_wrong_picture_has_a_red_frame_a_red_title_and_a_sign():
    good, bad = drawn(contact_sheet(pictures(2), ["ants", "bees"], marks=[True, False])).axes
    assert (good.get_title(), bad.get_title()) == ("ants", "✗ bees")
    assert to_hex(bad.title.get_color()) == WRONG != to_hex(good.title.get_color())
    assert {to_hex(spine.get_edgecolor()) for spine in bad.spines.values()} == {WRONG}
    assert WRONG not in {to_hex(spine.get_edgecolor()) for spine in good.spines.values()}
    assert bad.spines["left"].get_linewidth() > good.spines["left"].get_linewidth()


@pytest.mark.parametrize(
    "title",
    [
        "W" * 60,
        "a_very_long_class_name_with_underscores_that_goes_on_and_on 0.83",
        "German short-haired pointer\nlabelled: Greater Swiss Mountain dog",
        "n02099601/golden-retriever/ILSVRC2012_val_00000293.JPEG",
    ],
)
def test_no_title_reaches_over_another_title_or_picture(title):
    figure = drawn(contact_sheet(pictures(9), [title] * 9, columns=3, marks=[False] * 9, heading="What went wrong"))
    texts = [axes.title.get_window_extent() for axes in figure.axes] + [figure.texts[0].get_window_extent()]
    images = [axes.get_window_extent() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in combinations(texts, 2))
    assert not any(text.overlaps(image) for text in texts for image in images)
    assert all(figure.bbox.contains(*corner) for text in texts for corner in (text.p0, text.p1))


def test_a_long_title_breaks_at_a_word_and_is_cut_after_two_lines():
    (axes,) = contact_sheet(pictures(1), ["German short-haired pointer"]).axes
    assert axes.get_title() == "German short-haired\npointer"
    (axes,) = contact_sheet(pictures(1), ["x" * 100]).axes
    first, second = axes.get_title().split("\n")
    assert (first, second) == ("x" * len(first), "x" * (len(second) - 1) + "…")


def test_a_short_title_and_an_empty_one_stay_as_they_are():
    assert [axes.get_title() for axes in contact_sheet(pictures(4), ["", "a b", "$5 or $6", "a\n\nb"]).axes] == [
        "",
        "a b",
        "$5 or $6",
        "a\n\nb",
    ]


def test_a_heading_stands_above_all_and_fits_the_sheet():
    figure = drawn(
        contact_sheet(pictures(1), ["ants"], heading="A heading that is much longer than one picture is wide")
    )
    heading = figure.texts[0].get_window_extent()
    assert heading.y0 > figure.axes[0].title.get_window_extent().y1
    assert figure.bbox.x0 < heading.x0 < heading.x1 < figure.bbox.x1


@pytest.mark.parametrize(
    ("images", "arrived"),
    [
        (torch.zeros(3, 8, 8), r"shape \[3, 8, 8\]"),
        (torch.zeros(2, 1, 8, 8), r"shape \[2, 1, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"shape \[0, 3, 8, 8\]"),
        (torch.full((1, 3, 8, 8), -2.0), "values from -2 to -2"),
        (torch.full((1, 3, 8, 8), 255.0), "values from 255 to 255"),
        (torch.full((1, 3, 8, 8), math.nan), "values from nan to nan"),
    ],
)
def test_what_is_no_picture_is_refused(images, arrived):
    with pytest.raises(DataError, match=arrived):
        contact_sheet(images, ["a"] * len(images))


def test_all_counts_that_do_not_fit_are_told_at_once():
    with pytest.raises(ConfigError, match="number of titles=1, number of marks=3, columns=0"):
        contact_sheet(pictures(2), ["a"], marks=[True] * 3, columns=0)


# Figures


def test_figures_show_themselves_in_notebooks():
    assert curves({"loss": [0.5]}, [0])._repr_png_().startswith(b"\x89PNG")


def test_the_users_settings_are_neither_changed_nor_in_the_way():
    before = dict(mpl.rcParams)
    plain = np.asarray(drawn(curves(LOGS, [0, 1, 2])).canvas.buffer_rgba()).copy()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context(
        {"text.color": "white", "axes.facecolor": "black", "axes.grid": True, "axes.labelcolor": "white"}
    ):
        assert np.array_equal(plain, drawn(curves(LOGS, [0, 1, 2])).canvas.buffer_rgba())


def test_matplotlib_is_loaded_only_when_something_is_drawn_and_pyplot_never():
    code = (
        "import sys; from headstart.drawing import curves; assert 'matplotlib' not in sys.modules;"
        "curves({'loss': [0.5]}, [0]).canvas.draw(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603
