"""The state of a run: one writer for the rate, a stop that stays, changes that wait for the next step."""

import copy
import inspect

import pytest
import torch
from handmade import At, Noting, made_learner, made_run, pairs

from headstart import Callback, ConfigError, EarlyStopping, Learner, LRSchedule, Order, StopTraining, cosine
from headstart.training.callback import HOOKS, Hooks
from headstart.training.run import LearnerLike, Run

RATE_HOOKS = ("on_epoch_begin", "on_epoch_end", "on_step_begin")


def rates(run) -> list[float]:
    return [group["lr"] for group in run.optimizer.param_groups]


def call(run, callback: Callback, hook: str) -> None:
    """Call a hook as the loop does."""
    arguments = () if hook in ("on_batch_ready", "on_step_begin", "on_step_end") else (0, run.logs)
    Hooks([callback], run, None).call(hook, *arguments)


def setting(run, lr: float, hook: str) -> None:
    """Set the rate in a hook."""
    call(run, At(**{hook: lambda c, *_: setattr(run, "lr", lr)}), hook)


def test_a_run_begins_at_the_rate_it_was_asked_for():
    run = made_run(lr=0.25, epochs=3, batches=7, accumulate=3)
    assert (run.lr, run.epoch, run.step, run.steps) == (0.25, 0, 0, 9)
    assert (run.status, run.stop_reason) == ("running", None)
    assert run.network is run.backbone.network


def test_progress_is_the_share_of_steps():
    run = made_run(epochs=2, batches=4)
    run.step, run.epoch = 6, 1
    assert run.progress == 0.75
    assert (run.progress.step, run.progress.steps, run.progress.epoch) == (6, 8, 1)


def test_what_exists_only_during_a_batch_is_not_there_before():
    run = made_run()
    for name in ("batch", "outputs", "loss"):
        with pytest.raises(AttributeError):
            getattr(run, name)
    assert "epoch=0" in repr(run)


@pytest.mark.parametrize("hook", RATE_HOOKS)
def test_setting_the_rate_gives_each_group_its_part(hook):
    run = made_run(lr_scales=[0.5, 10.0])
    setting(run, 0.01, hook)
    assert run.lr == 0.01
    assert rates(run) == [0.01 * group["lr_scale"] for group in run.optimizer.param_groups]
    assert {group["lr_scale"] for group in run.optimizer.param_groups} == {0.5, 10.0}
    assert [group["initial_lr"] for group in run.optimizer.param_groups] == [0.05, 0.05, 1.0, 1.0]


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if "epoch" not in hook and hook != "on_step_begin"])
def test_the_rate_may_not_be_set_in_another_hook(hook):
    run = made_run()
    run.hook = hook
    with pytest.raises(ConfigError) as caught:
        run.lr = 0.5
    assert caught.value.arrived == f"run.lr set in {hook}"
    assert all(allowed in caught.value.needed for allowed in RATE_HOOKS)
    assert caught.value.todo
    assert (run.lr, rates(run)) == (0.1, [0.1, 0.1])


def test_the_rate_may_not_be_set_outside_a_fit():
    run = made_run()
    with pytest.raises(ConfigError, match=r"run\.lr set in no hook"):
        run.lr = 0.5
    asked = made_run(optimizer=None)
    asked.hook = "on_step_begin"
    with pytest.raises(ConfigError, match="of a fit"):
        asked.lr = 0.5


def test_a_second_writer_of_the_rate_is_refused_with_both_names():
    class Mine(Callback):
        def on_step_begin(self):
            self.run.lr = 0.01

    learner = made_learner()
    with pytest.raises(ConfigError) as caught:
        learner.fit(1, 0.1, callbacks=[Mine(), LRSchedule(cosine())], verbose=False)
    assert caught.value.arrived == "run.lr set by LRSchedule and by Mine"
    assert caught.value.needed == "one callback that sets the rate"
    assert "combine them" in caught.value.todo


def test_one_writer_may_write_in_several_hooks_and_the_next_fit_may_have_another():
    seen = []

    def write(callback, *_):
        callback.run.lr = callback.run.lr / 2

    learner = made_learner(pairs(4))
    look = At(on_step_end=lambda c: seen.append(c.run.lr))
    for _ in range(2):
        writer = At(on_epoch_begin=write, on_step_begin=write, on_epoch_end=write)
        learner.fit(1, 0.8, callbacks=[writer, look], verbose=False)
    assert seen == [0.2, 0.2]


def test_rates_may_be_set_group_by_group():
    run = made_run(lr_scales=[0.5, 10.0])
    run.hook = "on_epoch_begin"
    run.set_rates([0.02, 0.02, 0.3, 0.3])
    assert rates(run) == [0.02, 0.02, 0.3, 0.3]
    assert run.lr == 0.04
    with pytest.raises(ConfigError, match=r"2 rates[\s\S]*4 groups"):
        run.set_rates([0.1, 0.1])
    assert rates(run) == [0.02, 0.02, 0.3, 0.3]
    run.hook = "on_batch_ready"
    with pytest.raises(ConfigError, match="on_batch_ready"):
        run.set_rates([0.1] * 4)


def test_what_is_no_rate_is_refused_and_the_groups_keep_theirs():
    run = made_run()
    run.hook = "on_step_begin"
    before = rates(run)
    for wrong in (-0.1, float("nan"), float("inf"), None, "fast"):
        with pytest.raises(ConfigError, match=r"run.lr = [\s\S]*0 or more"):
            run.lr = wrong
    assert rates(run) == before
    run.lr = torch.tensor(0.5)
    assert type(run.lr) is float


def test_the_logged_rate_is_that_of_the_epochs_last_step():
    def write(callback):
        callback.run.lr = 1 / (1 + callback.run.step)

    history = made_learner().fit(2, 0.1, callbacks=[At(on_step_begin=write)], verbose=False)
    assert history.history["learning_rate"] == [1 / 3, 1 / 6]


def test_a_stop_keeps_its_first_reason():
    run = made_run()
    run.stop("first")
    run.stop("second")
    assert run.stop_reason == "first"


def test_changes_wait_until_they_are_applied_and_come_in_order_once():
    run, made = made_run(), []
    run.defer(lambda: made.append("first"))
    run.defer(lambda: made.append("second"))
    assert made == []
    run.apply_deferred()
    run.apply_deferred()
    assert made == ["first", "second"]


# An immediate stop, and what it leaves.


def stopping(hook: str, epoch: int = 1, order: int | None = None) -> Callback:
    """Raise StopTraining in a hook of an epoch."""

    def stop(callback, *_):
        if callback.run.epoch == epoch:
            raise StopTraining("now")

    callback = At(**{hook: stop})
    callback.order = callback.order if order is None else order
    return callback


@pytest.mark.parametrize("order", Order)
def test_a_stop_at_once_at_the_end_of_an_epoch_keeps_the_epoch_once(order):
    noting, plain = Noting(), made_learner(val=pairs(2))
    expected = plain.fit(2, 0.1, verbose=False)
    history = made_learner(val=pairs(2)).fit(
        5, 0.1, callbacks=[stopping("on_epoch_end", order=order), noting], verbose=False
    )
    assert history.epoch == [0, 1]
    assert history.history == expected.history
    assert (noting.run.status, noting.run.stop_reason) == ("stopped", "now")


def test_a_stop_at_once_in_the_first_epochs_end_keeps_it():
    stop = stopping("on_epoch_end", epoch=0)
    assert made_learner().fit(5, 0.1, callbacks=[stop], verbose=False).epoch == [0]


def test_the_epoch_has_the_keys_that_were_added_before_the_stop():
    def add(callback, epoch, logs):
        logs["mine"] = epoch

    history = made_learner().fit(5, 0.1, callbacks=[At(on_epoch_end=add), stopping("on_epoch_end")], verbose=False)
    assert history.history["mine"] == [0.0, 1.0]


@pytest.mark.parametrize(
    "hook", [hook for hook in HOOKS if "predict" not in hook and hook not in ("on_train_begin", "on_train_end")]
)
def test_a_stop_at_once_anywhere_else_keeps_only_the_epochs_before(hook):
    def meddle(callback, batch, logs):
        logs["learning_rate"] = 1.0  # a batch's logs that look like an epoch's

    history = made_learner(val=pairs(2)).fit(
        5, 0.1, callbacks=[At(on_train_batch_begin=meddle), stopping(hook)], verbose=False
    )
    assert history.epoch == ([0, 1] if hook == "on_epoch_end" else [0])


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin"])
def test_a_stop_at_once_before_the_first_batch_keeps_nothing(hook):
    def meddle(callback, *arguments):
        arguments[-1]["loss"] = arguments[-1]["learning_rate"] = 1.0
        raise StopTraining("now")

    history = made_learner().fit(5, 0.1, callbacks=[At(**{hook: meddle})], verbose=False)
    assert history.epoch == []


def test_a_stop_at_once_after_a_polite_one_adds_no_epoch_twice():
    def stop(callback, epoch, logs):
        callback.run.stop("politely")
        raise StopTraining("now")

    noting = Noting()
    history = made_learner().fit(5, 0.1, callbacks=[At(on_epoch_end=stop), noting], verbose=False)
    assert history.epoch == [0]
    assert noting.run.stop_reason == "politely"


@pytest.mark.parametrize("problem", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_at_the_end_of_an_epoch_keeps_only_the_epochs_before(problem):
    def fail(callback, epoch, logs):
        if epoch == 1:
            raise problem

    learner = made_learner()
    with pytest.raises(problem):
        learner.fit(5, 0.1, callbacks=[At(on_epoch_end=fail)], verbose=False)
    assert learner.history.epoch == [0]


def test_a_stop_at_once_skips_the_callbacks_after_it():
    watching = EarlyStopping("loss")
    made_learner().fit(5, 0.1, callbacks=[stopping("on_epoch_end", epoch=0), watching], verbose=False)
    assert watching.best_epoch is None


def test_a_run_remembers_the_hook_that_was_never_finished():
    run = made_run()

    def fail(callback, *_):
        raise ZeroDivisionError

    hooks = Hooks([At(on_epoch_end=fail, on_train_end=lambda c, logs: None)], run, None)
    hooks.call("on_train_end", run.logs)
    assert run.unfinished_hook == ""
    with pytest.raises(ZeroDivisionError):
        hooks.call("on_epoch_end", 0, run.logs)
    hooks.call("on_train_end", run.logs)
    assert (run.hook, run.unfinished_hook) == ("", "on_epoch_end")


def test_stop_training_carries_its_reason():
    assert str(StopTraining("enough")) == "enough"
    assert str(copy.copy(StopTraining("enough"))) == "enough"


# What callbacks may ask of the Learner.

OUTSIDE = {"fit", "load"}
"""What a callback has no use for: a fit inside a fit is refused, and `load` makes another Learner."""


def public(kind: type) -> set[str]:
    return {name for name in {*vars(kind), *vars(kind).get("__annotations__", {})} if not name.startswith("_")}


def test_a_callback_may_ask_for_all_that_makes_sense_in_one():
    assert public(LearnerLike) == public(Learner) - OUTSIDE


@pytest.mark.parametrize("name", sorted(public(Learner) - OUTSIDE - {"stop_training"}))
def test_what_a_callback_may_ask_for_takes_the_arguments_of_the_learners(name):
    asked, real = inspect.getattr_static(LearnerLike, name), inspect.getattr_static(Learner, name)
    assert type(asked) is type(real)
    if not isinstance(real, property):
        found, expected = (inspect.signature(method).parameters.values() for method in (asked, real))
        assert [(p.name, p.kind, p.default) for p in found] == [(p.name, p.kind, p.default) for p in expected]


@pytest.mark.parametrize("kind", [LearnerLike, Run, StopTraining])
def test_it_explains_all_that_callbacks_see(kind):
    text = inspect.getdoc(kind)
    for name in ("lr", "status", "progress", "step", "stop_reason") if kind is Run else ():
        assert f"\n    {name}: " in text
    for name in public(kind) & set(vars(kind)):
        value = inspect.getattr_static(kind, name)
        assert not (inspect.isfunction(value) or isinstance(value, property)) or inspect.getdoc(value)
