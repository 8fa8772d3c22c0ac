"""EarlyStopping: when it stops, and which weights it leaves."""

import math

import pytest
import torch
from handmade import At, Noting, Script, made_learner, pairs, same, weights

from headstart import ConfigError, EarlyStopping, ImageData, Learner, StopTraining

nan = math.nan


def fitted(stopping: EarlyStopping, values, *callbacks, key="val_loss", learner=None, epochs=None):
    """Fit while these values are logged; give the Learner, its history, and a copy of the weights after each epoch."""
    learner = learner or made_learner(pairs(4), pairs(2))
    kept = []
    keep = At(on_epoch_end=lambda c, epoch, logs: kept.append(weights(c.learner)))
    script = [] if values is None else [Script(key, values)]
    history = learner.fit(epochs or len(values), 0.1, callbacks=[*script, keep, stopping, *callbacks], verbose=False)
    return learner, history, kept


@pytest.mark.parametrize(
    ("settings", "values", "epochs", "best_epoch"),
    [
        ({"patience": 2}, [3, 2, 2.5, 2, 1], 4, 1),
        ({"patience": 2}, [3, 2, 2.5, 1, 0], 5, 4),
        ({"patience": 0}, [3, 2, 2.5, 1], 3, 1),
        ({"patience": 1}, [3, 2, 2.5, 1], 3, 1),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.6, 1], 2, 0),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.4, 2.2, 2.1, 0], 5, 2),
        ({"patience": 2, "baseline": 2.0}, [3, 2.5, 1], 2, None),
        ({"patience": 2, "baseline": 2.0}, [3, 1.5, 1.6, 1.7, 0], 4, 1),
        ({"patience": 1, "start_from_epoch": 2}, [1, 2, 3, 2.5, 4, 0], 5, 3),
        ({"patience": 1, "mode": "max"}, [1, 2, 1.5, 3], 3, 1),
        ({"patience": 2}, [nan, 3, nan, 2, nan, nan, 1], 6, 3),
        ({"patience": 3}, [nan, nan, nan, 1], 3, None),
        ({"patience": 9}, [5, 4, 3], 3, 2),
    ],
)
def test_it_stops_after_so_many_epochs_without_an_improvement(settings, values, epochs, best_epoch):
    stopping = EarlyStopping(**settings)
    _, history, _ = fitted(stopping, values)
    assert len(history) == epochs
    assert stopping.best_epoch == best_epoch


def test_the_reason_names_the_key_and_the_epochs():
    noting = Noting()
    for patience, words in ((1, "1 epoch"), (2, "2 epochs")):
        fitted(EarlyStopping(patience=patience), [1, 1, 1, 1], noting)
        assert noting.run.stop_reason == f"val_loss has not improved for {words}"
        assert noting.run.status == "stopped"


def test_the_direction_is_the_metrics_own():
    stopping = EarlyStopping("val_accuracy", patience=1)
    _, history, _ = fitted(stopping, [0.1, 0.2, 0.15, 0.3], key="val_accuracy")
    assert (len(history), stopping.best) == (3, 0.2)


def test_it_may_watch_a_key_that_another_callback_adds():
    stopping = EarlyStopping("mine", patience=1)
    _, history, _ = fitted(stopping, [0.1, 0.2, 0.15, 0.3], key="mine")
    assert (len(history), stopping.best) == (3, 0.2)
    assert history.history["mine"] == [0.1, 0.2, 0.15]


@pytest.mark.parametrize(
    ("values", "patience", "best"),
    [([3, 1, 2, 2], 2, 1), ([3, 1, 2, 2], 9, 1), ([3, 2, 1], 9, 2), ([1, 2, 3], 9, 0)],
    ids=["stopped", "ran to its end", "best at the end", "best at the beginning"],
)
def test_the_best_weights_come_back_however_the_fit_ended(values, patience, best):
    learner, _, kept = fitted(EarlyStopping(patience=patience), values)
    assert same(weights(learner), kept[best])
    assert not same(kept[0], kept[-1])


def test_buffers_come_back_too(tiny_network):
    learner = made_learner(pairs(4, side=32), pairs(2, side=32), network=tiny_network())
    learner, _, kept = fitted(EarlyStopping(patience=9), [1, 2, 3], learner=learner)
    assert "stem.1.running_mean" in kept[0]
    assert same(weights(learner), kept[0])


def test_the_last_weights_stay_when_the_best_are_not_wanted():
    learner, _, kept = fitted(EarlyStopping(patience=9, restore_best_weights=False), [1, 2, 3])
    assert same(weights(learner), kept[-1])


def test_the_last_weights_stay_when_nothing_was_ever_best():
    learner, _, kept = fitted(EarlyStopping(patience=9), [nan, nan])
    assert same(weights(learner), kept[-1])


def test_an_immediate_stop_of_somebody_else_brings_the_best_weights_back():
    def stop(callback, epoch, logs):
        if epoch == 2:
            raise StopTraining("enough")

    learner, _, kept = fitted(EarlyStopping(patience=9), [1, 2, 3, 4], At(on_epoch_begin=stop))
    assert same(weights(learner), kept[0])


@pytest.mark.parametrize("problem", [ZeroDivisionError, KeyboardInterrupt])
def test_nothing_comes_back_when_the_fit_failed_or_was_interrupted(problem):
    def fail(callback, batch, logs):
        if callback.run.epoch == 2:
            raise problem

    learner, kept = made_learner(pairs(4), pairs(2)), []
    keep = At(on_step_end=lambda c: kept.append(weights(c.learner)))
    with pytest.raises(problem):
        learner.fit(
            4,
            0.1,
            callbacks=[Script("val_loss", [1, 2, 3]), keep, EarlyStopping(), At(on_train_batch_end=fail)],
            verbose=False,
        )
    assert len(kept) == 3
    assert same(weights(learner), kept[-1])


def test_a_weight_that_moves_later_does_not_move_what_is_kept():
    stopping = EarlyStopping(patience=9)
    seen = []

    def look(callback, epoch, logs):
        if epoch:
            seen.append({name: tensor.clone() for name, tensor in stopping._best_weights.items()})

    fitted(stopping, [1, 2, 3], At(on_epoch_begin=look))
    assert same(seen[0], seen[1])


def test_one_instance_serves_several_fits_and_counts_anew():
    stopping, learner = EarlyStopping(patience=2), made_learner(pairs(4), pairs(2))
    for values, epochs, best in (([1, 2, 3, 4], 3, 1), ([9, 8, 7, 8, 8, 8], 5, 7), ([9, 9, 9, 9], 3, 9)):
        learner, history, _ = fitted(stopping, values, learner=learner)
        assert (len(history), stopping.best) == (epochs, best)
    assert stopping._best_weights is None


def test_it_takes_up_what_an_interrupted_run_had_counted():
    first, second = EarlyStopping(patience=3), EarlyStopping(patience=3)
    states = []
    remember = At(on_epoch_begin=lambda c, epoch, logs: epoch == 2 and states.append(first.state_dict()))
    _, _, kept = fitted(first, [1, 2, 3, 3], remember)
    resume = At(on_epoch_begin=lambda c, epoch, logs: epoch or second.load_state_dict(states[0]))
    resumed, history, _ = fitted(second, [2, 2, 2, 2, 2], resume)
    assert len(history) == 2
    assert (second.best, second.best_epoch) == (1.0, 0)
    assert same(weights(resumed), kept[0])


@pytest.mark.parametrize(
    ("key", "val", "words"),
    [
        ("val_loss", None, "data without a val part"),
        ("val_acuracy", pairs(2), "Did you mean 'val_accuracy'"),
        ("learning_rate", pairs(2), "mode='min' or mode='max'"),
    ],
)
def test_a_key_that_cannot_be_watched_is_refused_before_the_first_batch(key, val, words):
    noting, learner = Noting(), made_learner(pairs(4), val)
    before = weights(learner)
    with pytest.raises(ConfigError) as caught:
        learner.fit(1, 0.1, callbacks=[noting, EarlyStopping(key)], verbose=False)
    assert words in str(caught.value)
    assert f"EarlyStopping with monitor={key!r}" in caught.value.arrived
    assert noting.notes == []
    assert same(weights(learner), before)


def test_all_wrong_arguments_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        EarlyStopping(min_delta=-1, patience=-1, baseline="low", start_from_epoch=1.5)
    assert caught.value.arrived == "min_delta=-1, patience=-1, baseline='low', start_from_epoch=1.5"
    assert caught.value.needed.count(";") == 3
    assert "EarlyStopping(monitor='val_loss', patience=3)" in caught.value.todo
    with pytest.raises(ConfigError, match="monitor=None"):
        EarlyStopping(None)
    with pytest.raises(ConfigError, match="mode='up'"):
        EarlyStopping(mode="up")


def test_weights_are_kept_off_the_device():
    stopping, places = EarlyStopping(), []
    look = At(on_epoch_begin=lambda c, e, g: e and places.append({t.device for t in stopping._best_weights.values()}))
    fitted(stopping, [1, 2], look)
    assert places == [{torch.device("cpu")}]


def test_the_best_weights_of_a_network_that_looks_at_their_version_come_back():
    train = [(images.repeat(1, 1, 6, 6), targets) for images, targets in pairs(4, 4)]
    data = ImageData.from_loaders(train, train, classes=3)
    learner = Learner("torchvision/mnasnet0_5", data, pretrained=False, device="cpu")
    learner.fit(1, 1e-3, callbacks=[EarlyStopping()], verbose=False)
    assert learner.history.epoch == [0]
