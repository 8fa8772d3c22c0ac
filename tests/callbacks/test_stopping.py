"""EarlyStopping: when it stops, and which weights it leaves."""

import math
from dataclasses import replace

import pytest
import torch
from handmade import At, Noting, Script, made_learner, pairs, same, weights
from torch.nn import functional

from headstart import (
    Callback,
    ConfigError,
    EarlyStopping,
    ImageData,
    Learner,
    ModelCheckpoint,
    Order,
    StopTraining,
    TerminateOnNaN,
)
from headstart.training.checkpoint import read_weights

nan, inf = math.nan, math.inf


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


# TerminateOnNaN


def broken(batch: int, bad: float = nan):
    """Give a loss that is not finite the so-maniest time it is asked."""
    asked = iter(range(10**6))
    return lambda logits, targets: functional.cross_entropy(logits, targets) + (bad if next(asked) == batch else 0.0)


def after(steps: int, tiny_network, **options):
    """Give a Learner that has taken just so many steps, of the first batches."""
    learner = made_learner(pairs(*[4] * steps, side=32), network=tiny_network(), **options)
    learner.fit(1, 0.1, verbose=False)
    return learner


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", torch.optim.Adagrad])
def test_a_loss_that_is_not_finite_ends_the_fit_with_the_weights_as_they_were(tiny_network, bad, optimizer):
    noting, options = Noting(), {"optimizer": optimizer}
    learner = made_learner(pairs(4, 4, 4, 4, side=32), network=tiny_network(), loss=broken(2, bad), **options)
    learner.fit(3, 0.1, callbacks=[TerminateOnNaN(), noting], verbose=False)
    assert noting.run.status == "stopped"
    assert noting.run.stop_reason == "the loss of epoch 1, batch 3, is not finite"
    assert len(learner.history) == 1
    assert same(weights(learner), weights(after(2, tiny_network, **options)))


def test_so_does_a_gradient(tiny_network):
    noting = Noting()
    learner = made_learner(pairs(4, 4, 4, side=32), network=tiny_network(), optimizer="adamw")
    seen = iter(range(10**6))
    learner.model.stem[0].weight.register_hook(lambda gradient: gradient * (nan if next(seen) == 1 else 1))
    learner.fit(2, 0.1, callbacks=[TerminateOnNaN(), noting], clip_norm=1.0, verbose=False)
    assert noting.run.stop_reason == "a gradient of epoch 1, batch 2, is not finite"
    straight = made_learner(pairs(4, side=32), network=tiny_network(), optimizer="adamw")
    straight.fit(1, 0.1, clip_norm=1.0, verbose=False)
    assert same(weights(learner), weights(straight))


def test_a_step_of_several_batches_is_not_taken_as_a_whole(tiny_network):
    noting = Noting()
    learner = made_learner(pairs(4, 4, 4, 4, side=32), network=tiny_network(), loss=broken(2), optimizer="adamw")
    learner.fit(2, 0.1, accumulate=2, callbacks=[TerminateOnNaN(), noting], verbose=False)
    assert noting.run.stop_reason == "the loss of epoch 1, batches 3 to 4, is not finite"
    straight = made_learner(pairs(4, 4, side=32), network=tiny_network(), optimizer="adamw")
    straight.fit(1, 0.1, accumulate=2, verbose=False)
    assert same(weights(learner), weights(straight))


def test_the_pictures_that_made_it_so_are_named(make):
    class Spoil(Callback):
        order = Order.DATA

        def on_batch_ready(self):
            if self.run.epoch == 1 and self.run.batches_done == 2:
                images = self.run.batch.images.clone()
                images[3] = nan
                self.run.batch = replace(self.run.batch, images=images)

    learner, noting = make(), Noting()
    learner.model.eval()
    learner.unfreeze(-1)  # norms in front of it use their running statistics: one picture does not spoil the others
    learner.freeze()
    learner.fit(3, 0.01, callbacks=[Spoil(), TerminateOnNaN(), noting], verbose=False)
    source = learner.data.train_batches(0)
    (name,) = source.pictures(1, 1, 2)[3:4]
    assert noting.run.stop_reason == f"the loss of epoch 2, batch 3, is not finite: {name}"
    assert all(value.isfinite().all() for value in weights(learner).values())


class Late(TerminateOnNaN):
    """Reads one step late, as where a GPU has not come to it yet."""

    @staticmethod
    def _is_known(finite):
        return False


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_what_is_read_a_step_late_is_known_by_the_end_of_the_epoch(tiny_network, bad):
    noting, batches = Noting(), pairs(4, 4, 4, 4, side=32)
    learner = made_learner(batches, network=tiny_network(), loss=broken(bad), optimizer="adamw")
    learner.fit(2, 0.1, callbacks=[Late(), noting], verbose=False)
    assert noting.run.stop_reason == f"the loss of epoch 1, batch {bad + 1}, is not finite"
    assert len(learner.history) == 1
    left_out = noting.run.step - (1 if bad == 3 else 2)
    assert left_out == bad
    assert all(value.isfinite().all() for value in weights(learner).values())
    if bad == 3:
        assert same(weights(learner), weights(after(3, tiny_network, optimizer="adamw")))


def test_a_state_that_is_saved_before_it_is_known_is_whole(make, tmp_path):
    def held(state: int, die: At, **options) -> dict[str, torch.Tensor]:
        folder = tmp_path / str(state)
        callbacks = [Late(), ModelCheckpoint(folder, every_seconds=1e-9), die]
        with pytest.raises(ZeroDivisionError):
            make(**options).fit(2, 0.1, callbacks=callbacks, verbose=False)
        tensors, _ = read_weights(folder / "fit-1" / f"state-00000{state}.safetensors")
        return {name: value for name, value in tensors.items() if name.startswith("state.network.")}

    spoiled = held(2, At(on_epoch_end=lambda c, epoch, logs: 1 / 0), loss=broken(1))
    assert same(spoiled, held(1, At(on_train_batch_end=lambda c, batch, logs: 1 / (1 - batch))))


def test_a_fit_in_which_all_is_finite_is_as_it_was(tiny_network):
    fits = []
    for callbacks in ([], [TerminateOnNaN()]):
        learner = made_learner(pairs(4, 4, 3, side=32), pairs(2, side=32), network=tiny_network(), optimizer="adamw")
        learner.fit(2, 0.01, callbacks=callbacks, accumulate=2, verbose=False)
        fits.append(weights(learner))
    assert same(*fits)
