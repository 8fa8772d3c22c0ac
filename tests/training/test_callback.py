"""Callbacks: what a class may have, in which order they come, what they see, what is refused, and how they compare."""

import functools
import inspect
from pathlib import Path

import pytest
import torch
from handmade import At, Noting, made_learner, made_run, pairs, refusal

from headstart import (
    Callback,
    ConfigError,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    LRSchedule,
    ModelCheckpoint,
    Order,
    ReduceLROnPlateau,
    cosine,
)
from headstart.training.callback import HOOKS, Hooks, check_callbacks

# The class.


def test_a_keras_users_callback_works_as_it_is():
    class StopWhenGood(Callback):
        def on_epoch_end(self, epoch, logs):
            if logs["val_accuracy"] >= 0:
                self.model.stop_training = True

    history = made_learner(val=pairs(2)).fit(5, 0.1, callbacks=[StopWhenGood()], verbose=False)
    assert len(history) == 1


def test_the_hooks_are_keras_and_five_more_with_the_same_arguments():
    both = [f"on_{kind}_{when}" for kind in ("train", "test", "predict") for when in ("begin", "end")]
    batch = [f"on_{kind}_batch_{when}" for kind in ("train", "test", "predict") for when in ("begin", "end")]
    arguments = dict.fromkeys(both, ("logs",)) | dict.fromkeys(batch, ("batch", "logs"))
    arguments |= dict.fromkeys(("on_epoch_begin", "on_epoch_end"), ("epoch", "logs"))
    arguments |= dict.fromkeys(
        ("on_batch_ready", "on_loss_ready", "on_backward_end", "on_step_begin", "on_step_end"), ()
    )
    assert {hook: tuple(inspect.signature(getattr(Callback, hook)).parameters)[1:] for hook in HOOKS} == arguments


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("on_epoch_ends", "on_epoch_end"),
        ("on_batch_end", "on_train_batch_end"),
        ("on_train_epoch_end", "on_train_end"),
        ("on_batch_begin", "on_train_batch_begin"),
        ("on_gpu", None),
    ],
)
def test_an_unknown_hook_is_refused_while_the_class_is_made(misspelt, nearest):
    with pytest.raises(ConfigError) as caught:
        type("Mine", (Callback,), {misspelt: lambda self: None})
    assert caught.value.arrived == f"Mine.{misspelt}, which nobody would ever call"
    assert all(hook in caught.value.needed for hook in HOOKS)
    assert "without on_" in caught.value.todo
    if nearest:
        assert f"'{nearest}'" in caught.value.todo


def test_keras_short_names_of_hooks_lead_to_the_full_ones():
    error = refusal(ConfigError, lambda: type("Mine", (Callback,), {"on_batch_end": lambda self: None}))
    assert error.todo.startswith("Did you mean 'on_train_batch_end'?")


def test_an_unknown_hook_is_refused_also_when_it_comes_from_a_mixin():
    class Mixin:
        def on_epoch_ends(self, epoch, logs):
            """Nobody would ever call it."""

    with pytest.raises(ConfigError, match=r"Mine\.on_epoch_ends"):
        type("Mine", (Mixin, Callback), {})


@pytest.mark.parametrize("order", ["last", None, True])
def test_an_order_that_is_no_band_is_refused_in_words_at_once_and_else_before_the_first_batch(order):
    def act():
        mine = type("Mine", (Callback,), {"order": order})
        assert order != "last"
        made_learner().fit(1, 0.1, callbacks=[mine()], verbose=False)

    error = refusal(ConfigError, act)
    assert error.arrived == f"Mine.order = {order!r}"
    assert error.needed == "one of Order.DATA, Order.TRAIN, Order.USER, Order.WATCH, Order.REPORT, Order.SAVE"
    assert "order = Order.WATCH" in error.todo


@pytest.mark.parametrize(
    "ask", [lambda learner, c: learner.evaluate(callbacks=c), lambda learner, c: learner.fit(1, 0.1, callbacks=c)]
)
def test_an_order_of_one_object_that_is_no_band_is_refused_before_the_first_batch(ask):
    mine, noting = Callback(), Noting()
    mine.order = "last"
    error = refusal(ConfigError, lambda: ask(made_learner(val=pairs(2)), [noting, mine]))
    assert error.arrived == "Callback.order = 'last'"
    assert noting.notes == []


def test_a_whole_number_between_or_beyond_the_bands_is_an_order():
    called = []

    class Last(Callback):
        order = 9

        def on_epoch_end(self, epoch, logs):
            called.append("last")

    saving = At(on_epoch_end=lambda c, epoch, logs: called.append("saving"))
    saving.order = Order.SAVE
    made_learner().fit(1, 0.1, callbacks=[Last(), saving], verbose=False)
    assert called == ["saving", "last"]


def test_hooks_may_come_from_a_mixin_and_from_the_object_itself():
    class Mixin:
        def on_epoch_end(self, epoch, logs):
            called.append("mixin")

    called = []
    mixed = type("Mixed", (Mixin, Callback), {})()
    own = Callback()
    own.on_epoch_end = lambda epoch, logs: called.append(f"own {epoch}")
    made_learner().fit(1, 0.1, callbacks=[mixed, own], verbose=False)
    assert called == ["mixin", "own 0"]


def test_a_plain_callback_does_nothing_in_every_hook():
    learner, plain = made_learner(val=pairs(2)), Callback()
    learner.fit(1, 0.1, callbacks=[plain], verbose=False)
    for hook in HOOKS:
        assert getattr(plain, hook)(*[None] * len(inspect.signature(getattr(plain, hook)).parameters)) is None
    assert plain.check(None) is None
    assert plain.state_dict() == {}
    assert plain.load_state_dict({}) is None


# Order and dispatch.


def test_callbacks_come_by_band_and_inside_a_band_in_the_order_of_the_list():
    called = []

    class Named(Callback):
        def __init__(self, name, order):
            self.name, self.order = name, order

        def on_epoch_end(self, epoch, logs):
            called.append(self.name)

    bands = [Order.SAVE, Order.USER, Order.DATA, Order.WATCH, Order.USER, Order.REPORT, Order.TRAIN, Order.SAVE]
    callbacks = [Named(f"{order.name}{place}", order) for place, order in enumerate(bands)]
    made_learner().fit(1, 0.1, callbacks=callbacks, verbose=False)
    assert called == ["DATA2", "TRAIN6", "USER1", "USER4", "WATCH3", "REPORT5", "SAVE0", "SAVE7"]


def test_the_bands_stand_in_the_order_in_which_they_depend_on_each_other():
    assert list(Order) == [Order.DATA, Order.TRAIN, Order.USER, Order.WATCH, Order.REPORT, Order.SAVE]
    assert Callback.order is Order.USER


def test_a_hook_that_nobody_overrides_is_not_called():
    run, heard = made_run(), []
    hooks = Hooks([Callback(), At(on_step_end=lambda c: heard.append(run.hook))], run, None)
    run.hook = "untouched"
    for hook in HOOKS:
        if hook != "on_step_end":
            hooks.call(hook)
    assert run.hook == "untouched"
    hooks.call("on_step_end")
    assert heard == ["on_step_end"]
    assert run.hook == ""


def test_a_run_knows_in_which_hook_it_is_and_who_speaks():
    run, seen = made_run(), []
    callback = At(on_step_end=lambda c: seen.append((run.hook, run.speaker is c)))
    Hooks([callback], run, None).call("on_step_end")
    assert seen == [("on_step_end", True)]
    assert (run.hook, run.speaker) == ("", None)


def test_callbacks_see_the_run_the_learner_and_what_was_asked_for():
    learner, noting = made_learner(), Noting()
    learner.fit(2, 0.1, 5.0, accumulate=2, callbacks=[noting], verbose=False)
    assert noting.learner is noting.model is learner
    assert noting.run.network is learner.model
    assert noting.params is noting.run.params
    asked = {"epochs": 2, "lr": 0.1, "head_lr_mult": 5.0, "accumulate": 2, "steps": 3}
    assert asked.items() <= noting.params.items()


def test_after_a_nested_run_a_callback_sees_the_outer_one_again():
    learner, noting, seen = made_learner(val=pairs(2)), Noting(), []

    def nest(callback, epoch, logs):
        outer = noting.run
        learner.evaluate(callbacks=[noting])
        seen.append(noting.run is outer is callback.run)

    learner.fit(2, 0.1, callbacks=[noting, At(on_epoch_end=nest)], verbose=False)
    assert seen == [True, True]


def test_a_callback_used_for_an_evaluation_alone_sees_its_run():
    learner, seen = made_learner(val=pairs(2)), []
    learner.evaluate(callbacks=[At(on_test_end=lambda c, logs: seen.append((c.run.optimizer, c.run.fit, dict(logs))))])
    assert seen == [(None, 0, learner.evaluate())]


def test_keys_added_at_the_end_of_a_test_are_results():
    learner = made_learner(val=pairs(2))

    def add(callback, logs):
        logs["mine"] = 7

    adding = At(on_test_end=add)
    assert learner.evaluate(callbacks=[adding])["mine"] == 7.0
    assert learner.fit(1, 0.1, callbacks=[adding], verbose=False).history["val_mine"] == [7.0]


def test_logs_of_a_batch_go_on_with_the_epoch_and_a_copy_stays():
    kept, copies, told = [], [], []

    def keep(callback, batch, logs):
        kept.append(logs)
        copies.append(dict(logs))
        told.append(logs["loss"])

    made_learner(pairs(4, 4, 4)).fit(1, 0.1, callbacks=[At(on_train_batch_end=keep)], verbose=False)
    assert [logs["loss"] for logs in kept] == [told[-1]] * 3
    assert [logs["loss"] for logs in copies] == told
    assert len(set(told)) == 3


# What is refused before anything has happened.


@pytest.mark.parametrize(
    ("wrong", "todo"),
    [(EarlyStopping, "Call the class"), (object(), "Derive its class"), (print, "LRSchedule(cosine())")],
)
def test_what_is_no_callback_is_refused(wrong, todo):
    with pytest.raises(ConfigError) as caught:
        made_learner().fit(1, 0.1, callbacks=[wrong], verbose=False)
    assert f"{wrong!r} among the callbacks" in caught.value.arrived
    assert "headstart.Callback" in caught.value.needed
    assert todo in caught.value.todo


def test_two_callbacks_that_set_the_rate_are_refused_before_the_first_batch():
    noting, learner = Noting(), made_learner()
    two = [LRSchedule(cosine()), LearningRateScheduler(lambda epoch: 0.1)]
    with pytest.raises(ConfigError) as caught:
        learner.fit(1, 0.1, callbacks=[noting, *two], verbose=False)
    assert caught.value.arrived == "LRSchedule and LearningRateScheduler in one fit"
    assert caught.value.needed == "one callback that sets the rate"
    assert "combine them" in caught.value.todo
    assert noting.notes == []


@pytest.mark.parametrize("make", [ModelCheckpoint, CSVLogger])
def test_two_callbacks_that_write_to_the_same_place_are_refused_before_the_first_batch(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noting, learner = Noting(), made_learner(val=pairs(2))
    two = [make(tmp_path / "runs.d"), make(Path("x") / ".." / "runs.d")]
    error = refusal(ConfigError, lambda: learner.fit(1, 0.1, callbacks=[noting, *two], verbose=False))
    assert error.arrived == f"{make.__name__} and {make.__name__} in one fit, writing to {tmp_path / 'runs.d'}"
    assert error.needed == "a file or folder of its own for each"
    assert error.todo == f"Give one of them another, for example {str(tmp_path / 'runs-2.d')!r}."
    assert noting.notes == []
    assert list(tmp_path.iterdir()) == []


def test_one_callback_twice_in_the_list_is_refused_if_it_writes(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path)
    refusal(ConfigError, lambda: made_learner().fit(1, 0.1, callbacks=[checkpoint, checkpoint], verbose=False))


def test_a_callback_of_the_users_says_where_it_writes(tmp_path):
    mine = type("Mine", (Callback,), {"writes_to": tmp_path / "runs"})()
    two = [mine, ModelCheckpoint(tmp_path / "runs")]
    error = refusal(ConfigError, lambda: made_learner().fit(1, 0.1, callbacks=two, verbose=False))
    assert error.arrived.startswith("Mine and ModelCheckpoint in one fit")


def test_two_callbacks_that_write_to_places_of_their_own_keep_what_they_say(tmp_path):
    low, high = (ModelCheckpoint(tmp_path / mode, "val_loss", mode) for mode in ("min", "max"))
    made_learner(val=pairs(2)).fit(2, 0.1, callbacks=[low, high, CSVLogger(tmp_path / "log.csv")], verbose=False)
    assert low.best < high.best
    assert {path.name for path in tmp_path.iterdir()} == {"min", "max", "log.csv"}


def test_callbacks_of_a_fit_may_be_given_to_an_evaluation_and_a_prediction(tmp_path):
    learner = made_learner(val=pairs(2))
    given = [
        EarlyStopping("val_loss"),
        ReduceLROnPlateau("val_f1"),
        LRSchedule(cosine()),
        ModelCheckpoint(tmp_path),
        ModelCheckpoint(tmp_path),
    ]
    assert learner.evaluate(callbacks=given) == learner.evaluate()
    learner.predict(torch.zeros(2, 3, 6, 6), callbacks=given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"])
def test_a_declared_key_that_the_fit_has_itself_is_refused(key):
    declaring = type("Mine", (Callback,), {"adds": {"mine": "max", key: "max"}})()
    noting = Noting()
    error = refusal(
        ConfigError, lambda: made_learner(val=pairs(2)).fit(1, 0.1, callbacks=[noting, declaring], verbose=False)
    )
    assert error.arrived == f"Mine with adds={declaring.adds!r}, though the fit has {key!r} itself"
    assert error.needed == "keys that are new; the fit has loss, accuracy, val_loss, val_accuracy, learning_rate"
    assert f"'own_{key}'" in error.todo
    assert noting.notes == []


def test_a_declared_val_key_is_new_where_there_is_no_val_part():
    class Mine(Callback):
        def __init__(self):
            self.adds = {"val_loss": "max"}

        def on_epoch_end(self, epoch, logs):
            logs["val_loss"] = [3, 4, 1, 2][epoch]

    stopping = EarlyStopping("val_loss", patience=1)
    history = made_learner().fit(4, 0.1, callbacks=[Mine(), stopping], verbose=False)
    assert (history.history["val_loss"], stopping.best) == ([3.0, 4.0, 1.0], 4.0)


@pytest.mark.parametrize("adds", [["val_f1"], {"val_f1": "higher"}, {"val_f1": "Max"}, "val_f1", None, {3: "max"}])
def test_keys_that_are_declared_without_their_direction_are_refused(adds):
    class Mine(Callback):
        def __init__(self):
            self.adds = adds

    with pytest.raises(ConfigError) as caught:
        made_learner().fit(1, 0.1, callbacks=[Mine()], verbose=False)
    assert caught.value.arrived == f"Mine with adds={adds!r}"
    assert "'min' or 'max'" in caught.value.needed
    assert "adds = {'val_f1': 'max'}" in caught.value.todo


def test_every_callback_is_asked_whether_it_can_work():
    run, asked = made_run(), []

    class Asking(Callback):
        def check(self, run):
            asked.append(run)

    check_callbacks([Asking(), Asking()], run)
    assert asked == [run, run]


def test_an_evaluation_and_a_prediction_ask_nobody_whether_it_can_work():
    def fail(callback, run):
        raise ZeroDivisionError

    check_callbacks([At(check=fail)], made_run(fit=0))


@pytest.mark.parametrize(
    ("hook", "method", "right"),
    [
        ("on_epoch_end", lambda self, logs: None, "def on_epoch_end(self, epoch, logs):"),
        ("on_train_begin", lambda self: None, "def on_train_begin(self, logs):"),
        ("on_step_begin", lambda self, step: None, "def on_step_begin(self):"),
        ("on_epoch_end", lambda self, epoch, logs, *, more: None, "def on_epoch_end(self, epoch, logs):"),
    ],
)
def test_a_hook_with_other_arguments_is_refused_while_the_class_is_made(hook, method, right):
    error = refusal(ConfigError, lambda: type("Mine", (Callback,), {hook: method}))
    assert error.arrived.startswith(f"Mine.{hook}(self")
    assert right in error.todo


def test_a_hook_may_name_its_arguments_as_it_likes_and_take_more():
    type("Mine", (Callback,), {"on_epoch_end": lambda self, e, _=None, *rest, **more: None})
    type("Mine", (Callback,), {"on_epoch_end": lambda *everything: None})


def test_hooks_that_are_no_plain_methods_are_left_to_their_makers():
    def wrapped(method):
        @functools.wraps(method)
        def call(self, epoch, logs):
            return method(self)

        return call

    for hook in (
        staticmethod(lambda epoch, logs: None),
        classmethod(lambda cls, epoch, logs: None),
        functools.partial(lambda epoch, logs: None),
        wrapped(lambda self: None),
    ):
        made = type("Mine", (Callback,), {"on_epoch_end": hook})()
        made.on_epoch_end(0, {})
