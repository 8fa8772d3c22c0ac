"""Every callback there is, held to the contract: what it may have, say, keep and refuse."""

import inspect
import io
import re
from pathlib import Path

import pytest
import torch
from handmade import At, made_learner, pairs, same, weights

import headstart
from headstart import Callback, ConfigError, Order
from headstart.training.callback import HOOKS
from headstart.training.monitor import Monitor

CLASSES = [
    value
    for value in vars(headstart).values()
    if inspect.isclass(value) and issubclass(value, Callback) and value is not Callback
]
SETTINGS = {
    "LRSchedule": lambda folder: {"schedule": headstart.cosine(warmup=0.1)},
    "LearningRateScheduler": lambda folder: {"schedule": lambda epoch, lr: lr * 0.9},
    "ReduceLROnPlateau": lambda folder: {"patience": 0, "min_delta": 100.0},
    "ModelCheckpoint": lambda folder: {"directory": folder / "runs"},
    "CSVLogger": lambda folder: {"path": folder / "log.csv"},
}
"""What those need that cannot be made without arguments, or would do nothing in a short fit."""
FLAGS = {"save_best_only", "overwrite", "restore_best_weights"}
WRONG = object()

every = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def settings(kind: type[Callback], folder: Path) -> dict[str, object]:
    return SETTINGS.get(kind.__name__, lambda folder: {})(folder)


def make(kind: type[Callback], folder: Path) -> Callback:
    return kind(**settings(kind, folder))


def fitted(callback: Callback, learner=None):
    learner = learner or made_learner(pairs(4, 2), pairs(3))
    learner.fit(3, 0.1, callbacks=[callback], verbose=False)
    return learner


def remembered(callback: Callback) -> dict[str, object]:
    """Give all that a callback holds, and what its monitor holds."""
    return {name: dict(vars(held)) if isinstance(held, Monitor) else held for name, held in vars(callback).items()}


def test_there_are_callbacks_and_their_names_have_no_suffix():
    assert len(CLASSES) >= 7
    assert not [kind.__name__ for kind in CLASSES if kind.__name__.endswith("Callback")]


@every
def test_it_overrides_hooks_and_the_known_methods_with_their_arguments(kind):
    for name, value in vars(kind).items():
        plain = getattr(Callback, name, None)
        if inspect.isfunction(value) and not name.startswith("_"):
            assert name in {*HOOKS, "check", "state_dict", "load_state_dict", "states_folder"}
            assert list(inspect.signature(value).parameters) == list(inspect.signature(plain).parameters)
            assert value.__doc__, f"{name} has no docstring"


@every
def test_its_order_is_a_band_and_its_declarations_are_well_formed(kind):
    assert isinstance(kind.order, Order)
    assert isinstance(kind.sets_lr, bool)
    assert all(isinstance(key, str) and better in ("min", "max") for key, better in kind.adds.items())


@every
def test_it_says_where_it_writes_and_writes_nowhere_else(kind, tmp_path):
    callback = make(kind, tmp_path)
    fitted(callback)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert bool(written) == (callback.writes_to is not None)
    assert all(path.is_relative_to(callback.writes_to) for path in written)


@every
def test_its_docstring_explains_every_argument_and_shows_an_example(kind):
    text = inspect.getdoc(kind)
    assert "\nExample:\n    >>> " in text
    names = list(inspect.signature(kind).parameters)
    if names:
        section = re.search(r"\nArgs:\n(.*?)\n\n(?=\S)", text, re.DOTALL)[1]
        assert re.findall(r"^    (\w+): ", section, re.MULTILINE) == names


@every
def test_wrong_arguments_raise_an_error_in_three_parts(kind, tmp_path):
    parameters = inspect.signature(kind).parameters.values()
    needed = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
    numbers = {parameter.name for parameter in parameters if isinstance(parameter.default, int | float)}
    checked = sorted(needed | {"monitor", "mode"} & {p.name for p in parameters} | numbers - FLAGS)
    for name in checked:
        with pytest.raises(ConfigError) as caught:
            kind(**{**settings(kind, tmp_path), name: WRONG})
        assert f"{name}={WRONG!r}" in caught.value.arrived
        assert caught.value.needed
        assert caught.value.todo
    assert checked or not parameters


@every
def test_its_state_is_plain_values_that_a_safe_file_takes_and_gives_back(kind, tmp_path):
    callback = make(kind, tmp_path)
    fitted(callback)
    state = callback.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    read = torch.load(buffer, weights_only=True)
    other = make(kind, tmp_path / "other")
    fitted(other)
    other.load_state_dict(read)
    again = io.BytesIO()
    torch.save(other.state_dict(), again)
    assert again.getvalue() == buffer.getvalue()


@every
def test_one_instance_serves_two_fits_as_two_instances_would(kind, tmp_path):
    callback = make(kind, tmp_path / "one")
    one = fitted(callback, fitted(callback))
    two = fitted(make(kind, tmp_path / "first"))
    fitted(make(kind, tmp_path / "second"), two)
    assert same(weights(one), weights(two))
    assert one.history.history == two.history.history
    assert callback.run.fit == 2


@every
def test_checking_whether_it_can_work_writes_and_changes_nothing(kind, tmp_path):
    callback = make(kind, tmp_path)
    learner = made_learner(pairs(4, 2), pairs(3))
    run = learner._session._fit_run(headstart.training.session.FitPlan(2, 0.1), 2, [callback])
    before, state = weights(learner), remembered(callback)
    for _ in range(2):
        callback.check(run)
    assert list(tmp_path.iterdir()) == []
    assert remembered(callback) == state
    assert same(weights(learner), before)
    assert {group["lr"] for group in run.optimizer.param_groups} == {0.1}


@every
def test_a_misspelt_hook_in_a_class_derived_from_it_is_refused(kind):
    with pytest.raises(ConfigError, match=r"Mine.on_epoch_ends[\s\S]*Did you mean 'on_epoch_end'"):
        type("Mine", (kind,), {"on_epoch_ends": lambda self, epoch, logs: None})


@every
def test_a_fit_with_it_is_a_fit_without_it_at_the_rates_that_it_sets(kind, tmp_path):
    """Only those that say so set the rate, and none changes anything else while training goes on."""
    rates, ends = [], []
    note = At(
        on_step_end=lambda c: rates.append(c.run.lr),
        on_epoch_end=lambda c, epoch, logs: ends.append(weights(c.learner)),
    )
    learner = made_learner(pairs(4, 2), pairs(3))
    learner.fit(3, 0.1, callbacks=[note, make(kind, tmp_path)], verbose=False)
    assert (len(set(rates)) > 1) == kind.sets_lr
    play = At(on_step_begin=lambda c: setattr(c.run, "lr", rates[c.run.step]))
    plain = made_learner(pairs(4, 2), pairs(3))
    plain.fit(3, 0.1, callbacks=[play, note] if kind.sets_lr else [note], verbose=False)
    assert learner.history.history == plain.history.history
    assert all(same(*both) for both in zip(ends[:3], ends[3:], strict=True))
