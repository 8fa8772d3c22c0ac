"""How the rate moves: schedules, Keras's function, torch's schedulers, plateaus."""

import functools
import math

import numpy as np
import pytest
import torch
from handmade import At, Noting, Script, made_learner, made_run, pairs, plain_network, refusal
from torch.optim import lr_scheduler

from headstart import (
    ConfigError,
    LearningRateScheduler,
    LRSchedule,
    ReduceLROnPlateau,
    constant,
    cosine,
    linear,
    one_cycle,
    step_decay,
)
from headstart.training.schedules import Progress

nan = math.nan


def steps_of(callback, *, epochs=4, batches=3, lr=0.1, learner=None, **settings) -> list[list[float]]:
    """Fit, and give the rate of each group in every step."""
    rates = []
    look = At(on_step_end=lambda c: rates.append([group["lr"] for group in c.run.optimizer.param_groups]))
    learner = learner or made_learner(pairs(*[2] * batches), weight_decay=0.0)
    learner.fit(epochs, lr, callbacks=[callback, look], verbose=False, **settings)
    return rates


def torch_steps(factory, *, epochs=4, batches=3, lr=0.1, scales=(1.0,), every="epoch") -> list[list[float]]:
    """Give the rates that torch's own scheduler sets on a plain optimizer."""
    layers = [plain_network()[1].weight, plain_network()[4].weight]
    optimizer = torch.optim.SGD(
        [{"params": [layer], "lr": lr * scale} for layer, scale in zip(layers, scales, strict=False)], momentum=0.9
    )
    scheduler, rates = factory(optimizer), []
    for _ in range(epochs):
        for batch in range(batches):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            is_last = len(rates) == epochs * batches
            if (every == "step" or batch == batches - 1) and not is_last:
                scheduler.step()
    return rates


# Functions of progress.


@pytest.mark.parametrize(
    "schedule",
    [
        constant(),
        constant(warmup=0.3),
        linear(warmup=0.2),
        cosine(end=0.1),
        one_cycle(),
        lambda progress: 1 - progress / 2,
        lambda progress: 2,
        lambda progress: 0.5**progress.epoch,
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_has_the_rate_of_its_progress(schedule, accumulate):
    rates = steps_of(LRSchedule(schedule), accumulate=accumulate)
    per_epoch = {1: 3, 2: 2}[accumulate]
    total = 4 * per_epoch
    assert rates == [[0.1 * schedule(Progress(step, total, step // per_epoch))] for step in range(total)]


def test_step_decay_over_25_epochs_equals_torch():
    ours = steps_of(LRSchedule(step_decay(7, 0.1)), epochs=25, batches=2, lr=1e-3)
    theirs = torch_steps(lambda o: lr_scheduler.StepLR(o, 7, 0.1), epochs=25, batches=2, lr=1e-3)
    assert ours == [pytest.approx(rates, rel=1e-12) for rates in theirs]


def test_groups_keep_their_factors():
    rates = steps_of(LRSchedule(linear()), head_lr_mult=10.0)
    assert [head / body for body, head in rates] == pytest.approx([10.0] * 12)


# torch's schedulers.

FACTORIES = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.parametrize("every", ["epoch", "step"])
@pytest.mark.parametrize("name", FACTORIES)
def test_a_scheduler_of_torchs_moves_as_on_a_plain_optimizer(name, every):
    callback = LRSchedule(FACTORIES[name], every=every)
    found = steps_of(callback, head_lr_mult=10.0)
    assert found == [pytest.approx(rates) for rates in torch_steps(FACTORIES[name], scales=(1.0, 10.0), every=every)]


@pytest.mark.parametrize(("every", "total"), [("step", 12), ("epoch", 4)])
def test_one_cycle_of_torchs_goes_to_its_end(every, total):
    def factory(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, max_lr=[0.3, 3.0], total_steps=total)

    found = steps_of(LRSchedule(factory, every=every), head_lr_mult=10.0)
    assert found == [pytest.approx(rates) for rates in torch_steps(factory, scales=(1.0, 10.0), every=every)]
    assert found[-1][0] < 1e-4


@pytest.mark.parametrize(("every", "total"), [("epoch", 12), ("step", 4), ("step", 13)])
def test_one_cycle_made_for_another_number_of_steps_is_refused_before_the_first_batch(every, total):
    noting = Noting()
    with pytest.raises(ConfigError) as caught:
        made_learner(pairs(2, 2, 2)).fit(
            4,
            0.1,
            callbacks=[noting, LRSchedule(lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=total), every=every)],
            verbose=False,
        )
    moves = 12 if every == "step" else 4
    assert caught.value.arrived == f"a OneCycleLR made for {total} steps, moved {moves} times (every {every})"
    assert "12 steps with every='step', or for 4 with every='epoch'" in caught.value.needed
    assert "headstart.one_cycle()" in caught.value.todo
    assert noting.notes == []


def one_rate_for_all(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=12)


@pytest.mark.parametrize(
    ("factory", "settings", "name"),
    [
        (one_rate_for_all, {"head_lr_mult": 10.0}, "OneCycleLR"),
        (one_rate_for_all, {"layer_lr_decay": 0.5}, "OneCycleLR"),
        (
            lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=12, div_factor=math.inf),
            {"head_lr_mult": 10.0},
            "OneCycleLR",
        ),
        (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1), {"head_lr_mult": 10.0}, "CyclicLR"),
    ],
)
def test_a_scheduler_that_gives_all_groups_one_rate_is_refused_where_they_differ(factory, settings, name, tiny_network):
    noting, learner = Noting(), made_learner(pairs(2, 2, 2, side=32), network=tiny_network())
    schedule = LRSchedule(factory, every="step")
    error = refusal(ConfigError, lambda: learner.fit(4, 0.1, callbacks=[noting, schedule], verbose=False, **settings))
    asked = ", ".join(
        f"{name}={value}" for name, value in {"head_lr_mult": 1.0, "layer_lr_decay": None, **settings}.items()
    )
    assert error.arrived == f"a {name} that gives all groups the same rate, with {asked}"
    assert "a rate of its own for each group" in error.needed
    assert 'max_lr=[group["lr"] for group in optimizer.param_groups]' in error.todo
    assert "leave head_lr_mult and layer_lr_decay out" in error.todo
    assert noting.notes == []


@pytest.mark.parametrize(
    "factory",
    [
        *FACTORIES.values(),
        lambda o: lr_scheduler.OneCycleLR(o, [group["lr"] for group in o.param_groups], total_steps=12),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, [group["lr"] for group in o.param_groups]),
        lambda o: lr_scheduler.CyclicLR(o, [group["lr"] for group in o.param_groups], 0.5),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 5)),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: float(step >= 5)),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.0),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.01), lr_scheduler.StepLR(o, 3)], milestones=[2]
        ),
    ],
)
def test_a_scheduler_that_moves_each_group_from_its_own_rate_is_taken(factory):
    run = made_run(lr_scales=[1.0, 10.0], epochs=12, batches=1)
    for every in ("step", "epoch"):
        LRSchedule(factory, every=every).check(run)


def test_a_scheduler_that_gives_all_groups_one_rate_is_taken_where_they_have_one():
    found = steps_of(LRSchedule(one_rate_for_all, every="step"))
    assert found == [pytest.approx(rates) for rates in torch_steps(one_rate_for_all, every="step")]


def test_a_second_fit_begins_anew_at_its_own_rate():
    learner, callback = made_learner(pairs(2, 2), weight_decay=0.0), LRSchedule(FACTORIES["StepLR"])
    for lr in (0.1, 0.01):
        rates = steps_of(callback, learner=learner, lr=lr)
        assert rates == [pytest.approx([lr * factor]) for factor in (1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5)]
        assert [group["initial_lr"] for group in learner._session.optimizer.param_groups] == [lr]


def test_the_shadow_of_a_scheduler_touches_nothing_but_rates():
    learner = made_learner(pairs(2, 2), optimizer="sgd")
    factory = lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=4)  # noqa: E731
    steps_of(LRSchedule(factory), learner=learner)
    assert {group["momentum"] for group in learner._session.optimizer.param_groups} == {0.9}


def test_a_schedulers_state_goes_on_in_another_fit():
    first, second = LRSchedule(FACTORIES["ExponentialLR"]), LRSchedule(FACTORIES["ExponentialLR"])
    steps_of(first)
    resume = At(on_train_begin=lambda c, logs: second.load_state_dict(first.state_dict()))
    rates = []
    look = At(on_step_end=lambda c: rates.append(c.run.lr))
    learner = made_learner(pairs(2), weight_decay=0.0)
    learner.fit(2, 0.1, callbacks=[second, resume, look], verbose=False)
    assert second._scheduler.last_epoch == 6
    assert rates == pytest.approx([0.1 * 0.9**4, 0.1 * 0.9**5])
    pure = LRSchedule(cosine())
    assert pure.state_dict() == {"scheduler": None, "rates": []}
    pure.load_state_dict(pure.state_dict())


# Schedules that are none.


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (lr_scheduler.ReduceLROnPlateau, "makes ReduceLROnPlateau of an optimizer"),
        (lambda progress: "fast", "makes str of an optimizer"),
        (lambda progress: None, "makes NoneType of an optimizer"),
        (lambda progress: nan, "makes float of an optimizer"),
        (lr_scheduler.StepLR, "missing 1 required positional argument: 'step_size'"),
        (lambda: 1.0, "takes 0 positional arguments"),
        (lambda epoch, lr: lr, "missing 1 required positional argument: 'lr'"),
        (lambda progress: progress.share, "has no attribute 'share'"),
    ],
)
def test_what_is_no_schedule_is_refused_before_the_first_batch(schedule, words):
    noting = Noting()
    with pytest.raises(ConfigError) as caught:
        made_learner().fit(1, 0.1, callbacks=[noting, LRSchedule(schedule)], verbose=False)
    assert words in caught.value.arrived
    assert "a function of progress that gives a number, or of an optimizer" in caught.value.needed
    assert "LRSchedule(cosine())" in caught.value.todo
    assert noting.notes == []


def test_a_schedule_is_for_fits():
    with pytest.raises(ConfigError, match=r"where nothing is trained[\s\S]*Pass it to fit"):
        LRSchedule(FACTORIES["StepLR"]).check(made_run(optimizer=None))


@pytest.mark.parametrize(
    ("maker", "call"),
    [
        (constant, "constant()"),
        (linear, "linear()"),
        (cosine, "cosine()"),
        (one_cycle, "one_cycle()"),
        (step_decay, "step_decay(every_epochs=7)"),
    ],
)
def test_a_schedule_without_its_brackets_is_refused_when_it_is_given(maker, call):
    error = refusal(ConfigError, lambda: LRSchedule(maker))
    assert error.arrived == f"schedule={maker.__name__}, which makes a schedule when it is called"
    assert error.needed == "a schedule, or a function of an optimizer"
    assert error.todo == f"Call it: LRSchedule({call})."
    LRSchedule(eval(call))  # noqa: S307 - what the message says to type


def test_a_schedule_may_give_numbers_of_numpys():
    rates = steps_of(LRSchedule(lambda progress: np.float32(0.5)))
    assert rates == [[0.05]] * 12
    assert all(type(rate) is float for group in rates for rate in group)


@pytest.mark.parametrize("make", [LRSchedule, LearningRateScheduler])
def test_what_cannot_be_called_is_refused(make):
    with pytest.raises(ConfigError) as caught:
        make("cosine")
    assert caught.value.arrived == "schedule='cosine'"
    assert make.__name__ in caught.value.todo


def test_an_unknown_pace_is_refused():
    with pytest.raises(ConfigError, match=r"every='batch'[\s\S]*'step' or 'epoch'"):
        LRSchedule(cosine(), every="batch")


# LearningRateScheduler.


@pytest.mark.parametrize("function", [lambda epoch, lr: lr * 0.5 if epoch else lr, lambda epoch: 0.1 * 0.5**epoch])
def test_a_keras_function_gives_each_epochs_rate(function):
    rates = steps_of(LearningRateScheduler(function), head_lr_mult=10.0)
    assert rates == [pytest.approx([0.1 * 0.5**epoch, 0.5**epoch]) for epoch in range(4) for _ in range(3)]


def test_a_keras_function_may_have_further_arguments_of_its_own():
    rates = steps_of(LearningRateScheduler(lambda epoch, lr, factor=0.5: lr * factor), batches=1)
    assert rates == [[0.05], [0.025], [0.0125], [0.00625]]


@pytest.mark.parametrize("give", [np.float32, np.float64, np.int64, int])
def test_a_keras_function_may_give_numbers_of_numpys(give):
    rates = steps_of(LearningRateScheduler(lambda epoch: give(epoch + 1)), batches=1)
    assert rates == [[1.0], [2.0], [3.0], [4.0]]
    assert all(type(rate) is float for group in rates for rate in group)


@pytest.mark.parametrize(
    "function",
    [
        lambda *arguments: arguments[1] * 0.5,
        lambda epoch, *others: others[0] * 0.5,
        lambda epoch, lr, *, factor=0.5: lr * factor,
        functools.partial(lambda factor, epoch, lr: lr * factor, 0.5),
        lambda epoch, *, first=0.05: first * 0.5**epoch,
        lambda epoch, **settings: 0.05 * 0.5**epoch,
    ],
)
def test_a_keras_function_is_given_what_it_takes(function):
    assert steps_of(LearningRateScheduler(function), batches=1) == [[0.05], [0.025], [0.0125], [0.00625]]


def test_a_function_whose_arguments_nobody_can_see_is_refused_when_it_is_given():
    error = refusal(ConfigError, lambda: LearningRateScheduler(max))
    assert error.arrived == "schedule=<built-in function max>, which does not tell its arguments"
    assert error.needed == "a function of (epoch, lr), or of the epoch alone"
    assert error.todo == "Wrap it: LearningRateScheduler(lambda epoch, lr: max(epoch, lr))."


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda: 0.1, "()"),
        (lambda epoch, lr, factor: lr, "(epoch, lr, factor)"),
        (lambda epoch, *, factor: factor, "(epoch, *, factor)"),
    ],
)
def test_a_function_of_other_arguments_is_refused_when_it_is_given(function, arguments):
    error = refusal(ConfigError, lambda: LearningRateScheduler(function))
    assert error.arrived == f"schedule={function!r}, a function of {arguments}"
    assert error.needed == "a function of (epoch, lr), or of the epoch alone"
    assert error.todo == "For example LearningRateScheduler(lambda epoch, lr: lr * 0.9)."


@pytest.mark.parametrize("wrong", [None, "fast", -0.1, nan])
def test_a_keras_function_that_gives_no_rate_is_told(wrong):
    with pytest.raises(ConfigError) as caught:
        steps_of(LearningRateScheduler(lambda epoch: wrong if epoch == 1 else 0.1))
    assert caught.value.arrived == f"LearningRateScheduler's function giving {wrong!r} for epoch 1"
    assert caught.value.needed == "a rate, 0 or more"
    assert caught.value.todo


# ReduceLROnPlateau.


def plateau(values, *, key="val_loss", **settings) -> list[float]:
    """Give the logged rate of each epoch while these values are logged."""
    learner = made_learner(pairs(4), pairs(2))
    callbacks = [Script(key, values), ReduceLROnPlateau(key, **settings)]
    history = learner.fit(len(values), 1.0, callbacks=callbacks, verbose=False)
    return history.history["learning_rate"]


@pytest.mark.parametrize(
    ("settings", "values", "rates"),
    [
        ({"patience": 2}, [3, 2, 2, 2, 2, 2], [1, 1, 1, 1, 0.5, 0.5]),
        ({"patience": 2}, [3, 2, 2, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0.5]),
        ({"patience": 1}, [3, 3, 3, 3], [1, 1, 0.5, 0.25]),
        ({"patience": 0}, [3, 3, 3], [1, 1, 0.5]),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.6, 2.4, 2], [1, 1, 0.5, 0.5]),
        ({"patience": 1, "cooldown": 2}, [3, 3, 3, 3, 3, 3], [1, 1, 0.5, 0.5, 0.5, 0.25]),
        ({"patience": 1, "cooldown": 1}, [3, 3, 1, 1, 1], [1, 1, 0.5, 0.5, 0.25]),
        ({"patience": 1, "min_lr": 0.3}, [3, 3, 3, 3, 3], [1, 1, 0.5, 0.3, 0.3]),
        ({"patience": 1, "mode": "max"}, [3, 2, 4, 4], [1, 1, 0.5, 0.5]),
        ({"patience": 2}, [nan, nan, 3, nan, nan, 2], [1, 1, 0.5, 0.5, 0.5, 0.25]),
    ],
)
def test_the_rate_falls_when_nothing_has_improved(settings, values, rates):
    assert plateau(values, factor=0.5, **settings) == pytest.approx(rates)


def test_the_rate_falls_as_torch_would_let_it():
    values = [3, 2, 2.1, 2.2, 1.9, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    # torch waits for one epoch more than its `patience`, Keras and headstart for just so many
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, cooldown=1, threshold=1e-4, threshold_mode="abs"
    )
    expected = []
    for value in values:
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(value)
    assert plateau(values, factor=0.5, patience=2, cooldown=1) == pytest.approx(expected)


def test_a_plateau_knows_the_direction_of_its_key():
    assert plateau([0.1, 0.2, 0.3, 0.3, 0.3], key="val_accuracy", factor=0.5, patience=2) == [1] * 5
    assert plateau([0.3, 0.2, 0.1], key="val_accuracy", factor=0.5, patience=1) == [1, 1, 0.5]
    assert plateau([0.3, 0.2, 0.1], key="mine", factor=0.5, patience=1) == [1, 1, 0.5]


def test_one_plateau_serves_several_fits():
    learner, callback = made_learner(pairs(4), pairs(2)), ReduceLROnPlateau(factor=0.5, patience=2)
    for _ in range(2):
        history = learner.fit(4, 1.0, callbacks=[Script("val_loss", [1, 1, 1, 1]), callback], verbose=False)
        assert history.history["learning_rate"] == [1, 1, 1, 0.5]


def test_a_plateau_takes_its_counters_up_again():
    first, second = ReduceLROnPlateau(patience=2, cooldown=3), ReduceLROnPlateau(patience=2, cooldown=3)
    learner = made_learner(pairs(4), pairs(2))
    learner.fit(3, 1.0, callbacks=[Script("val_loss", [1, 1, 1]), first], verbose=False)
    assert first.state_dict() == {"best": 1.0, "waited": 0, "cooling": 3}
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()


def test_all_wrong_arguments_of_a_plateau_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        ReduceLROnPlateau(factor=1, patience=-1, min_delta=-1, cooldown=-1, min_lr=-1)
    assert caught.value.arrived == "factor=1, patience=-1, min_delta=-1, cooldown=-1, min_lr=-1"
    assert "patience=5" in caught.value.todo
    for wrong in (("val_loss", 0.1, 10, "up"), (None,)):
        with pytest.raises(ConfigError):
            ReduceLROnPlateau(*wrong)


def test_a_plateau_of_an_unknown_key_is_refused_before_the_first_batch():
    noting = Noting()
    with pytest.raises(ConfigError, match="ReduceLROnPlateau with monitor='val_loss' and data without a val part"):
        made_learner().fit(1, 0.1, callbacks=[noting, ReduceLROnPlateau()], verbose=False)
    assert noting.notes == []
