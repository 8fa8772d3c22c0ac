"""What Predictions give, by name, by row, as an array, as a file and in print."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from headstart.errors import ConfigError
from headstart.insight.predictions import Prediction, Predictions

CLASSES = ["ants", "bees", "wasps"]
TABLE = torch.tensor([[0.25, 0.5, 0.25], [0.75, 0.125, 0.125], [0.0, 0.25, 0.75]])
PATHS = ["a.jpg", Path("b.jpg"), None]


@pytest.fixture
def predictions() -> Predictions:
    return Predictions(TABLE, CLASSES, PATHS)


def test_labels_confidence_and_indices_are_those_of_the_most_probable_class(predictions):
    assert predictions.labels == ["bees", "ants", "wasps"]
    assert torch.equal(predictions.indices, torch.tensor([1, 0, 2]))
    assert torch.equal(predictions.confidence, torch.tensor([0.5, 0.75, 0.75]))
    assert predictions.confidence.dtype == torch.float32
    assert predictions.indices.dtype == torch.int64
    assert predictions.paths == (Path("a.jpg"), Path("b.jpg"), None)
    assert predictions.classes == ("ants", "bees", "wasps")


def test_equals_are_won_by_the_first_class_everywhere():
    predictions = Predictions(torch.full((1, 40), 1 / 40), [str(number) for number in range(40)])
    assert predictions.labels == ["0"]
    assert [label for label, _ in predictions.top(40)[0]] == [str(number) for number in range(40)]
    assert np.argmax(predictions, axis=1).tolist() == [0]


def test_probabilities_are_kept_as_float32_without_their_gradient():
    predictions = Predictions(TABLE.double().requires_grad_(), CLASSES)
    assert predictions.probabilities.dtype == torch.float32
    assert not predictions.probabilities.requires_grad
    assert torch.equal(predictions.probabilities, TABLE)


def test_pictures_from_elsewhere_have_no_paths():
    assert Predictions(TABLE, CLASSES).paths == (None, None, None)


def test_top_names_the_most_probable_classes_in_order(predictions):
    assert predictions.top(1) == [[("bees", 0.5)], [("ants", 0.75)], [("wasps", 0.75)]]
    assert predictions.top(2)[2] == [("wasps", 0.75), ("bees", 0.25)]
    assert predictions.top(3)[0] == [("bees", 0.5), ("ants", 0.25), ("wasps", 0.25)]


@pytest.mark.parametrize("k", [0, 4, -1, 1.0, True, "all"])
def test_top_of_no_or_too_many_classes_is_refused(predictions, k):
    with pytest.raises(ConfigError, match="from 1 to 3") as caught:
        predictions.top(k)
    assert caught.value.arrived == f"k={k!r}"


def test_an_index_gives_a_row(predictions):
    bees = {"ants": 0.25, "bees": 0.5, "wasps": 0.25}
    assert predictions[0] == Prediction(Path("a.jpg"), "bees", 0.5, bees)
    assert predictions[-1] == predictions[2] == predictions[np.int64(2)]
    with pytest.raises(IndexError):
        predictions[3]
    with pytest.raises(TypeError):
        predictions["a.jpg"]


@pytest.mark.parametrize(
    "part", [slice(1, 3), slice(None, None, -1), slice(0, 0), slice(None, None, 2), slice(-1, None)]
)
def test_a_slice_gives_the_predictions_of_a_list_sliced_alike(predictions, part):
    sliced = predictions[part]
    assert isinstance(sliced, Predictions)
    assert list(sliced) == list(predictions)[part]
    assert sliced.probabilities.shape == (len(sliced), 3)


def test_iteration_goes_by_row(predictions):
    assert [(row.path, row.label) for row in predictions] == [
        (Path("a.jpg"), "bees"),
        (Path("b.jpg"), "ants"),
        (None, "wasps"),
    ]
    assert len(predictions) == 3
    assert predictions[1] in predictions


def test_numpy_takes_them_for_their_probabilities(predictions):
    assert np.argmax(predictions, axis=1).tolist() == [1, 0, 2]
    assert np.array_equal(np.asarray(predictions), TABLE.numpy())
    assert np.asarray(predictions).dtype == np.float32
    assert np.asarray(predictions, dtype=np.float64).dtype == np.float64
    copied = np.array(predictions)
    copied[:] = 0
    assert torch.equal(predictions.probabilities, TABLE)
    assert np.shares_memory(np.asarray(predictions, copy=False), predictions.probabilities.numpy())


def test_numpy_is_told_when_another_type_needs_a_copy(predictions):
    with pytest.raises(ValueError, match="copy"):
        np.asarray(predictions, dtype=np.float64, copy=False)


def test_the_csv_file_gives_back_every_bit_of_a_float32(tmp_path):
    probabilities = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    predictions = Predictions(probabilities, ["a,b", 'c"d', "é"], [f"{number}.jpg" for number in range(49)] + [None])
    path = predictions.to_csv(str(tmp_path / "new" / "predictions.csv"))
    assert path == tmp_path / "new" / "predictions.csv"
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "confidence", "a,b", 'c"d', "é"]
    assert [row[0] for row in rows] == [f"{number}.jpg" for number in range(49)] + [""]
    assert [row[1] for row in rows] == predictions.labels
    numbers = torch.tensor([[float(value) for value in row[2:]] for row in rows])
    assert torch.equal(numbers[:, 0], predictions.confidence)
    assert torch.equal(numbers[:, 1:], probabilities)


def test_numbers_in_the_csv_file_are_as_short_as_they_can_be(tmp_path):
    path = Predictions(torch.tensor([[0.9, 0.1]]), ["ants", "bees"]).to_csv(tmp_path / "predictions.csv")
    assert path.read_text() == "path,label,confidence,ants,bees\n,ants,0.9,0.9,0.1\n"


def test_file_names_that_are_no_text_are_written_as_their_bytes(tmp_path):
    predictions = Predictions(TABLE[:1], CLASSES, ["caf\udce9.jpg"])
    assert b"\ncaf\xe9.jpg," in predictions.to_csv(tmp_path / "predictions.csv").read_bytes()
    assert "caf?.jpg" in repr(predictions)


@pytest.mark.parametrize(
    ("probabilities", "classes", "paths", "arrived"),
    [
        (TABLE, ["ants", "bees"], None, "shape of probabilities=[3, 3]"),
        (TABLE[0], CLASSES, None, "shape of probabilities=[3]"),
        (torch.tensor(0.5), CLASSES, None, "shape of probabilities=[]"),
        (torch.zeros(3, 0), [], None, "shape of probabilities=[3, 0]"),
        (TABLE, CLASSES, ["a.jpg"], "number of paths=1"),
        (TABLE, CLASSES, [], "number of paths=0"),
        (TABLE, ["ants"], ["a.jpg"], "shape of probabilities=[3, 3], number of paths=1"),
    ],
)
def test_what_does_not_fit_together_is_told_at_once(probabilities, classes, paths, arrived):
    with pytest.raises(ConfigError) as caught:
        Predictions(probabilities, classes, paths)
    assert caught.value.arrived == arrived


def test_no_pictures_are_fine(tmp_path):
    none = Predictions(torch.zeros(0, 3), CLASSES)
    assert (len(none), list(none), none.labels, none.top(2), repr(none)) == (0, [], [], [], "0 pictures")
    assert np.asarray(none).shape == (0, 3)
    assert none.to_csv(tmp_path / "none.csv").read_text() == "path,label,confidence,ants,bees,wasps\n"


def test_it_prints_as_a_table(predictions):
    assert str(predictions).splitlines() == [
        "3 pictures",
        "path   label  confidence  next",
        "-------------------------------------------------",
        "a.jpg  bees       0.5000  ants 0.250, wasps 0.250",
        "b.jpg  ants       0.7500  bees 0.125, wasps 0.125",
        "       wasps      0.7500  bees 0.250, ants 0.000",
    ]


def test_columns_with_nothing_in_them_are_not_printed():
    assert str(Predictions(torch.tensor([[0.5]]), ["ants"])).splitlines() == [
        "1 picture",
        "label  confidence",
        "-----------------",
        "ants       0.5000",
    ]


def test_a_long_table_is_cut_and_says_by_how_much():
    lines = str(Predictions(TABLE.repeat(9, 1), CLASSES)).splitlines()
    assert lines[0] == "27 pictures"
    assert len(lines) == 3 + 20 + 1
    assert lines[-1] == "... and 7 more"


def test_a_long_path_is_printed_by_its_end():
    path = "/".join(["folder"] * 20) + "/a.jpg"
    cell = str(Predictions(TABLE[:1], CLASSES, [path])).splitlines()[-1].split()[0]
    assert cell == "…" + path[-39:]


def test_nan_is_shown_and_not_hidden():
    predictions = Predictions(torch.tensor([[math.nan, math.nan]]), ["ants", "bees"])
    assert math.isnan(predictions.confidence[0])
    assert "nan" in str(predictions)
