"""The state of a run: one writer for the rate, a stop that stays, changes that wait for the next step."""

import copy

import pytest
import torch
from handmade import At, made_learner, made_run, pairs

from headstart import Callback, ConfigError, LRSchedule, StopTraining, cosine
from headstart.training.callback import HOOKS, Hooks

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
    assert (run.status, run.stop_reason, run.resumed) == ("running", None, False)
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


def test_stop_training_carries_its_reason():
    assert str(StopTraining("enough")) == "enough"
    assert str(copy.copy(StopTraining("enough"))) == "enough"
