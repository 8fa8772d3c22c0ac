"""What a History keeps, finds, joins, writes and draws."""

import csv
import json
import math

import pytest
import torch

from headstart.errors import CheckpointError, ConfigError
from headstart.training.history import History


def made(rows: list[dict[str, float]], **params: object) -> History:
    history = History(params)
    for epoch, logs in enumerate(rows):
        history.add(epoch, logs)
    return history


def test_it_begins_empty():
    history = History()
    assert (len(history), history.history, history.epoch, history.params, history.borders) == (0, {}, [], {}, [])


def test_each_key_has_a_value_an_epoch_in_the_order_of_appearance():
    history = made([{"loss": 0.5, "accuracy": 0.25}, {"accuracy": 0.75, "loss": 0.125}])
    assert history.history == {"loss": [0.5, 0.125], "accuracy": [0.25, 0.75]}
    assert list(history.history) == ["loss", "accuracy"]
    assert history.epoch == [0, 1]
    assert len(history) == 2


def test_epochs_that_did_not_log_a_key_have_nan():
    history = made([{"loss": 0.5}, {"loss": 0.25, "val_f1": 0.75}, {"val_f1": 0.5}])
    assert history.history["loss"] == pytest.approx([0.5, 0.25, math.nan], nan_ok=True)
    assert history.history["val_f1"] == pytest.approx([math.nan, 0.75, 0.5], nan_ok=True)


def test_a_tensor_is_read_when_it_arrives():
    loss = torch.tensor(0.5)
    history = made([{"loss": loss}])
    loss.fill_(9)
    assert history.history == {"loss": [0.5]}
    assert type(history.history["loss"][0]) is float


@pytest.mark.parametrize("value", [torch.ones(2), "high", None])
def test_what_is_not_one_number_is_refused_and_nothing_is_added(value):
    history = made([{"loss": 0.5}])
    with pytest.raises(ConfigError, match=r"logs\['val_f1'\] = "):
        history.add(1, {"loss": 0.25, "val_f1": value})
    assert history.history == {"loss": [0.5]}
    assert len(history) == 1


@pytest.mark.parametrize(("mode", "found"), [("min", (1, 0.25)), ("max", (3, 0.75))])
def test_best_is_the_first_of_equals_and_never_nan(mode, found):
    history = made([{"x": x} for x in (math.nan, 0.25, 0.25, 0.75, 0.75)])
    assert history.best("x", mode) == found


def test_best_speaks_of_epochs_as_they_were_numbered():
    history = History()
    history.add(5, {"loss": 0.5})
    history.add(6, {"loss": 0.25})
    assert history.best("loss", "min") == (6, 0.25)


def test_best_names_the_keys_there_are_and_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        made([{"loss": 0.5, "val_accuracy": 0.5}]).best("val_acuracy", "max")
    assert caught.value.arrived == "monitor='val_acuracy'"
    assert "loss, val_accuracy" in caught.value.needed
    assert "Did you mean 'val_accuracy'?" in caught.value.todo


def test_best_of_nothing_but_nan_is_refused():
    with pytest.raises(ConfigError, match="monitor='loss', which is nan in all 2 epochs"):
        made([{"loss": math.nan}] * 2).best("loss", "min")


def test_best_before_the_first_epoch_is_refused():
    with pytest.raises(ConfigError, match="none yet"):
        History().best("loss", "min")


def test_mode_is_never_guessed():
    with pytest.raises(ConfigError, match="mode='auto'"):
        made([{"loss": 0.5}]).best("loss", "auto")


def test_joined_fits_are_numbered_through_and_know_where_they_meet():
    first = made([{"loss": 0.5}, {"loss": 0.25}], epochs=2)
    second = made([{"loss": 0.125, "val_loss": 0.5}], epochs=1)
    joined = History.join([History(), first, History(), second])
    assert joined.epoch == [0, 1, 2]
    assert joined.history["loss"] == [0.5, 0.25, 0.125]
    assert joined.history["val_loss"] == pytest.approx([math.nan, math.nan, 0.5], nan_ok=True)
    assert joined.borders == [2]
    assert joined.params == {"fits": [{"epochs": 2}, {"epochs": 1}]}


def test_joining_what_was_joined_keeps_every_border():
    one, two = made([{"loss": 0.5}] * 2), made([{"loss": 0.5}] * 3)
    assert History.join([History.join([one, two]), one]).borders == [2, 5]
    assert History.join([one, History.join([two, one])]).borders == [2, 5]


def test_joining_changes_none_of_the_fits():
    fit = made([{"loss": 0.5}])
    History.join([fit, fit]).add(2, {"loss": 0.25})
    assert (fit.history, fit.epoch, fit.borders) == ({"loss": [0.5]}, [0], [])


def test_joining_nothing_is_an_empty_history():
    assert len(History.join([])) == 0


def test_state_survives_strict_json():
    history = History.join([made([{"loss": 0.1, "x": math.nan}], epochs=1), made([{"loss": math.inf, "y": -math.inf}])])
    state = json.loads(json.dumps(history.state_dict(), allow_nan=False))
    loaded = History()
    loaded.load_state_dict(state)
    assert loaded.state_dict() == history.state_dict()
    assert loaded.history["loss"] == [0.1, math.inf]
    assert math.isnan(loaded.history["x"][0])
    assert (loaded.epoch, loaded.params, loaded.borders) == (history.epoch, history.params, history.borders)


def test_a_state_is_not_moved_by_later_epochs():
    history = made([{"loss": 0.5}])
    state = history.state_dict()
    history.add(1, {"loss": 0.25})
    assert state["history"] == {"loss": [0.5]}
    loaded = History()
    loaded.load_state_dict(state)
    loaded.add(1, {"loss": 0.25})
    assert state["history"] == {"loss": [0.5]}
    assert loaded.state_dict() == history.state_dict()


def test_the_csv_file_gives_back_every_bit(tmp_path):
    history = made([{"loss": 0.1 + 0.2, "x, y": 1e-17}, {"loss": 1 / 3, "val_f1": math.inf}])
    path = history.to_csv(str(tmp_path / "new" / "history.csv"))
    assert path == tmp_path / "new" / "history.csv"
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["epoch", "loss", "x, y", "val_f1"]
    assert [row[0] for row in rows] == ["0", "1"]
    columns = zip(*[[float(value) for value in row[1:]] for row in rows], strict=True)
    for column, values in zip(columns, history.history.values(), strict=True):
        assert list(column) == pytest.approx(values, rel=0, abs=0, nan_ok=True)


def test_the_csv_file_of_no_epochs_is_a_header(tmp_path):
    assert History().to_csv(tmp_path / "history.csv").read_text() == "epoch\n"


def test_a_csv_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError):
        History().to_csv(tmp_path / "file" / "history.csv")


def test_the_plot_marks_the_best_epochs_and_where_fits_meet():
    fit = made([{"val_loss": 0.5, "val_accuracy": 0.5}, {"val_loss": 0.25, "val_accuracy": 0.25}])
    loss, accuracy = History.join([fit, fit]).plot().axes
    assert loss.get_legend().get_texts()[-1].get_text() == "best val: 0.25 in epoch 2"
    assert accuracy.get_legend().get_texts()[-1].get_text() == "best val: 0.5 in epoch 1"
    assert [text.get_text() for text in loss.texts] == ["fit 2"]


def test_the_plot_marks_what_it_is_asked_to_mark():
    (axes,) = made([{"val_f1": 0.5}, {"val_f1": 0.75}]).plot(best={"val_f1": "max"}).axes
    assert axes.get_legend().get_texts()[-1].get_text() == "best val: 0.75 in epoch 2"


def test_the_plot_of_bad_numbers_marks_nothing():
    (axes,) = made([{"val_loss": math.nan}]).plot().axes
    assert axes.get_legend() is None


def test_a_plot_before_the_first_epoch_is_refused():
    with pytest.raises(ConfigError, match="Draw the curves when the first epoch has ended"):
        History().plot()


def test_it_prints_as_a_table_of_its_last_epochs():
    history = made([{"loss": 1 / (epoch + 1)} for epoch in range(12)])
    lines = repr(history).splitlines()
    assert lines[0] == "12 epochs, the last 10:"
    assert lines[1].split() == ["epoch", "loss"]
    assert [line.split() for line in lines[3:]] == [[str(e), f"{1 / e:.4f}"] for e in range(3, 13)]
    assert str(history) == repr(history)


def test_it_prints_how_many_fits_it_joins():
    fit = made([{"loss": 0.5}])
    assert repr(fit).splitlines()[0] == "1 epoch"
    assert repr(History.join([fit, fit])).splitlines()[0] == "2 epochs in 2 fits"
    assert repr(History()) == "0 epochs"
