"""Which of two values is better, and which keys can be followed."""

import math

import pytest
from handmade import made_learner, made_run, pairs, refusal

from headstart import Callback, ConfigError, EarlyStopping
from headstart.training.monitor import Monitor

nan = math.nan


def checked(key="val_loss", mode="auto", **settings) -> Monitor:
    monitor = Monitor(key, mode, **settings)
    monitor.check(made_run(), "Mine")
    monitor.begin(made_run())
    return monitor


@pytest.mark.parametrize(
    ("key", "mode"), [("loss", "min"), ("val_loss", "min"), ("accuracy", "max"), ("val_accuracy", "max")]
)
def test_the_direction_is_the_metrics_own(key, mode):
    assert checked(key).mode == mode
    assert checked(key, "min").mode == "min"
    assert checked(key, "max").mode == "max"


@pytest.mark.parametrize("direction", ["min", "max"])
def test_the_direction_is_never_guessed_from_a_name(direction):
    run = made_run()
    run.directions["val_loss"] = run.directions["accuracy_error"] = direction
    for key in ("val_loss", "accuracy_error"):
        monitor = Monitor(key)
        monitor.begin(run)
        assert monitor.mode == direction


def test_one_monitor_serves_fits_of_two_directions():
    monitor, run = Monitor("mine"), made_run()
    for direction in ("min", "max", "min"):
        run.directions["mine"] = direction
        monitor.begin(run)
        assert monitor.mode == direction


def test_asking_a_monitor_whether_it_can_work_changes_nothing():
    monitor = Monitor("val_accuracy")
    before = dict(vars(monitor))
    monitor.check(made_run(), "Mine")
    assert vars(monitor) == before


def test_a_key_without_a_direction_needs_a_mode():
    with pytest.raises(ConfigError) as caught:
        checked("learning_rate")
    assert caught.value.arrived == "Mine with monitor='learning_rate' and mode='auto'"
    assert "mode='min' or mode='max'" in caught.value.todo
    assert checked("learning_rate", "max").mode == "max"


def test_an_unknown_key_is_refused_with_those_there_are():
    with pytest.raises(ConfigError) as caught:
        checked("val_acuracy")
    assert caught.value.arrived == "Mine with monitor='val_acuracy'"
    assert caught.value.needed.endswith("loss, accuracy, val_loss, val_accuracy, learning_rate")
    assert "Did you mean 'val_accuracy'" in caught.value.todo
    assert "adds" in caught.value.todo


@pytest.mark.parametrize(
    ("key", "instead"), [("val_loss", "loss"), ("val_accuracy", "accuracy"), ("val_f1", "loss"), ("val_los", "loss")]
)
def test_a_val_key_without_a_val_part_is_refused_with_the_reason_and_both_cures(key, instead):
    run = made_run(val=False)
    run.directions["val_gap"] = "min"  # declared by a callback
    error = refusal(ConfigError, lambda: Monitor(key).check(run, "EarlyStopping"))
    assert error.arrived == f"EarlyStopping with monitor={key!r} and data without a val part"
    assert error.needed == "one of the keys this fit will have: loss, accuracy, learning_rate, val_gap"
    assert error.todo == (
        "Give the data a val part, for example val= of ImageData.from_datasets or ImageData.from_loaders, "
        f"or pass monitor={instead!r}."
    )


@pytest.mark.parametrize("mode", ["MAX", "", None, "higher"])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ConfigError, match=r"'auto', 'min' or 'max'[\s\S]*Leave mode= out"):
        Monitor("val_loss", mode)


@pytest.mark.parametrize("key", [None, 3, ["val_loss"]])
def test_a_key_that_is_no_name_is_refused(key):
    with pytest.raises(ConfigError, match=r"monitor=[\s\S]*'val_loss'"):
        Monitor(key)


@pytest.mark.parametrize(
    ("mode", "values", "better"),
    [
        ("min", [3, 2, 2, 1], [True, True, False, True]),
        ("max", [3, 2, 3, 4], [True, False, False, True]),
        ("min", [nan, 3, nan, 2], [False, True, False, True]),
        ("max", [nan, nan, -1], [False, False, True]),
        ("min", [math.inf, 1, -math.inf, 0], [True, True, True, False]),
    ],
)
def test_only_a_better_number_improves_and_nan_never_does(mode, values, better):
    monitor = checked(mode=mode)
    assert [monitor.improves(value) for value in values] == better
    real = [value for value in values if not math.isnan(value)]
    assert monitor.best == (min if mode == "min" else max)(real)


def test_better_is_more_than_min_delta():
    monitor = checked(mode="min", min_delta=0.25)
    assert [monitor.improves(value) for value in (1.0, 0.75, 0.5, 0.26, 0.24)] == [True, False, True, False, True]


def test_a_monitor_may_start_from_a_value():
    monitor = checked(mode="max")
    monitor.begin(made_run(), 0.5)
    assert [monitor.improves(value) for value in (0.4, 0.5, 0.6)] == [False, False, True]
    monitor.begin(made_run())
    assert math.isnan(monitor.best)
    assert monitor.improves(0.1)


def test_a_declared_key_that_nobody_adds_is_told():
    declaring = type("Mine", (Callback,), {"adds": {"val_f1": "max"}})()
    with pytest.raises(ConfigError) as caught:
        made_learner(val=pairs(2)).fit(1, 0.1, callbacks=[declaring, EarlyStopping("val_f1")], verbose=False)
    assert "'val_f1'" in caught.value.arrived
    assert "on_epoch_end" in caught.value.needed
    assert "order" in caught.value.todo
