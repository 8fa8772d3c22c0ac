"""Schedules: exact values at exact places."""

import math

import pytest
import torch

from headstart import ConfigError, Progress, constant, cosine, linear, one_cycle, step_decay

PLACES = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]


def test_progress_is_a_share_that_knows_where_it_comes_from():
    progress = Progress(step=30, steps=120, epoch=2)
    assert progress == 0.25
    assert (progress.step, progress.steps, progress.epoch) == (30, 120, 2)
    assert Progress(step=0, steps=0, epoch=0) == 0.0
    assert Progress(step=7, steps=7, epoch=1) == 1.0


@pytest.mark.parametrize("place", PLACES)
def test_without_a_warmup_every_schedule_has_its_formula(place):
    assert constant()(place) == 1.0
    assert linear()(place) == 1.0 - place
    assert linear(end=0.2)(place) == pytest.approx(1 - 0.8 * place, rel=1e-15)
    assert cosine()(place) == pytest.approx(0.5 * (1 + math.cos(math.pi * place)), abs=1e-15)
    assert cosine(end=0.2)(place) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * place)), rel=1e-15)


@pytest.mark.parametrize("schedule", [constant, linear, cosine])
def test_a_warmup_rises_in_a_straight_line_from_a_25th_and_then_the_schedule_begins(schedule):
    warmed = schedule(warmup=0.2)
    assert [warmed(place) for place in (0.0, 0.05, 0.1, 0.2)] == pytest.approx([0.04, 0.28, 0.52, 1.0], rel=1e-12)
    for place in PLACES:
        assert warmed(0.2 + 0.8 * place) == pytest.approx(schedule()(place), abs=1e-12)


def test_one_cycle_rises_and_falls_along_half_cosines():
    schedule = one_cycle(warmup=0.25, start=0.1, end=0.01)
    assert [schedule(place) for place in (0.0, 0.125, 0.25, 0.625, 1.0)] == pytest.approx(
        [0.1, 0.55, 1.0, 0.505, 0.01], rel=1e-12
    )
    assert one_cycle(warmup=0.0)(0.0) == 1.0


def test_one_cycle_goes_the_way_of_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    steps = 101  # torch reaches the end with its last step, so shares are of one step fewer
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, pct_start=31 / 101, div_factor=25, final_div_factor=4000
    )
    ours = one_cycle(warmup=0.30, start=1 / 25, end=1e-5)
    for step in range(steps):
        assert ours(step / 100) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


@pytest.mark.parametrize(("every", "factor"), [(7, 0.1), (1, 0.5), (30, 0.1), (5, 1.5)])
def test_step_decay_over_25_epochs_equals_torch(every, factor):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, every, factor)
    schedule = step_decay(every, factor)
    for epoch in range(25):
        for step in range(3):
            progress = Progress(step=3 * epoch + step, steps=75, epoch=epoch)
            assert schedule(progress) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
            optimizer.step()
        scheduler.step()


def test_step_decay_counts_epochs_and_never_shares():
    schedule = step_decay(every_epochs=7)
    factors = [schedule(Progress(step=0, steps=1, epoch=epoch)) for epoch in (6, 7, 13, 14, 20, 21)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001], rel=1e-12)


@pytest.mark.parametrize("schedule", [constant, linear, cosine, one_cycle])
@pytest.mark.parametrize("warmup", [-0.1, 1.0, 1, 3, math.nan, "0.1", True, None])
def test_a_warmup_out_of_range_is_refused(schedule, warmup):
    with pytest.raises(ConfigError) as caught:
        schedule(warmup=warmup)
    assert caught.value.arrived == f"warmup={warmup!r}"
    assert caught.value.needed == "warmup: a share of the fit in [0, 1)"
    assert caught.value.todo == "For example cosine(warmup=0.1)."


def test_all_wrong_factors_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        one_cycle(warmup=2, start=-1, end=math.inf)
    assert caught.value.arrived == "warmup=2, start=-1, end=inf"
    for make in (linear, cosine):
        with pytest.raises(ConfigError, match="end=-1"):
            make(end=-1)


@pytest.mark.parametrize(
    ("arguments", "arrived"),
    [
        ({"every_epochs": 0}, "every_epochs=0"),
        ({"every_epochs": 1.5}, "every_epochs=1.5"),
        ({"factor": 0}, "factor=0"),
        ({"every_epochs": -1, "factor": -0.1}, "every_epochs=-1, factor=-0.1"),
    ],
)
def test_step_decay_refuses_what_is_out_of_range(arguments, arrived):
    with pytest.raises(ConfigError) as caught:
        step_decay(**arguments)
    assert caught.value.arrived == arrived
    assert caught.value.needed
    assert "step_decay(every_epochs=7, factor=0.1)" in caught.value.todo
