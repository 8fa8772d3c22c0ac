"""Every callback there is, held to the contract: what it may have, say, keep and refuse."""

import inspect
import io
import re
from pathlib import Path

import pytest
import torch
from handmade import made_learner, pairs, same, weights

import headstart
from headstart import Callback, ConfigError, Order
from headstart.training.callback import HOOKS

CLASSES = [
    value
    for value in vars(headstart).values()
    if inspect.isclass(value) and issubclass(value, Callback) and value is not Callback
]
SETTINGS = {
    "LRSchedule": lambda folder: {"schedule": headstart.cosine(warmup=0.1)},
    "LearningRateScheduler": lambda folder: {"schedule": lambda epoch, lr: lr * 0.9},
    "ModelCheckpoint": lambda folder: {"directory": folder / "runs"},
    "CSVLogger": lambda folder: {"path": folder / "log.csv"},
}
"""What those need that cannot be made without arguments."""
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


def test_there_are_callbacks_and_their_names_have_no_suffix():
    assert len(CLASSES) >= 7
    assert not [kind.__name__ for kind in CLASSES if kind.__name__.endswith("Callback")]


@every
def test_it_overrides_hooks_and_the_four_known_methods_with_their_arguments(kind):
    for name, value in vars(kind).items():
        plain = getattr(Callback, name, None)
        if inspect.isfunction(value) and not name.startswith("_"):
            assert name in {*HOOKS, "check", "state_dict", "load_state_dict"}
            assert list(inspect.signature(value).parameters) == list(inspect.signature(plain).parameters)
            assert value.__doc__, f"{name} has no docstring"


@every
def test_its_order_is_a_band_and_its_declarations_are_well_formed(kind):
    assert isinstance(kind.order, Order)
    assert isinstance(kind.sets_lr, bool)
    assert all(isinstance(key, str) and better in ("min", "max") for key, better in kind.adds.items())


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
    before = weights(learner)
    for _ in range(2):
        callback.check(run)
    assert list(tmp_path.iterdir()) == []
    assert same(weights(learner), before)
    assert {group["lr"] for group in run.optimizer.param_groups} == {0.1}


@every
def test_a_misspelt_hook_in_a_class_derived_from_it_is_refused(kind):
    with pytest.raises(ConfigError, match=r"Mine.on_epoch_ends[\s\S]*Did you mean 'on_epoch_end'"):
        type("Mine", (kind,), {"on_epoch_ends": lambda self, epoch, logs: None})


@every
def test_it_leaves_a_run_that_it_does_not_steer_as_it_is(kind, tmp_path):
    """Only those that say so set the rate, and none moves weights while training goes on."""
    callback = make(kind, tmp_path)
    plain = made_learner(pairs(4, 2), pairs(3))
    plain.fit(3, 0.1, verbose=False)
    if not kind.sets_lr:
        assert fitted(callback).history.history == plain.history.history
