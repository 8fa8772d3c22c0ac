"""What a Learner does not do: every misuse is told at the door, in three parts, and several of them at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import At, Noting, made_learner, pairs, refusal, same, weights
from torch import nn

from headstart import ImageData, Learner
from headstart.errors import BackboneError, ConfigError, HeadstartError


@pytest.fixture
def data() -> ImageData:
    return ImageData.from_loaders(pairs(4, 4, side=32), classes=3)


@pytest.fixture
def learner() -> Learner:
    return made_learner()


# Made of


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("pretrained", None),
        ("pretrained", 1),
        ("loss", "cross_entropy"),
        ("loss", None),
        ("metrics", None),
        ("metrics", 5),
        ("metrics", [None]),
        ("weight_decay", -0.1),
        ("weight_decay", "none"),
        ("weight_decay", float("inf")),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", None),
        ("precision", "fp8"),
        ("precision", None),
        ("device", "tpu"),
        ("head", "linear"),
        ("head", (256, 0)),
    ],
)
def test_a_wrong_argument_is_told_by_name_and_value(data: ImageData, argument: str, value: Any) -> None:
    error = refusal(ConfigError, lambda: Learner("resnet18", data, **{argument: value}))
    named = "hidden=(256, 0)" if value == (256, 0) else f"{argument}={value!r}"
    assert named in error.arrived


def test_an_unknown_metric_gets_the_nearest_one(data: ImageData) -> None:
    error = refusal(ConfigError, lambda: Learner("resnet18", data, metrics=["acuracy"]))
    assert "'accuracy'" in error.todo


def test_all_wrong_arguments_are_told_at_once(data: ImageData) -> None:
    swapped = refusal(ConfigError, lambda: Learner(data, "resnet18", pretrained=None, weight_decay=-1, seed=-1))
    for name in ("model", "data", "pretrained", "weight_decay", "seed"):
        assert f"{name}=" in swapped.arrived
        assert f"{name}:" in swapped.needed


def test_nothing_is_built_before_the_arguments_are_right(monkeypatch: pytest.MonkeyPatch, data: ImageData) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a network has been built")

    monkeypatch.setattr("headstart.learner.open_network", fail)
    refusal(ConfigError, lambda: Learner("resnet18", data, device="tpu"))
    refusal(ConfigError, lambda: Learner("resnet18", data, metrics=["f2"]))
    refusal(ConfigError, lambda: Learner("resnet18", data, head=0.5))


def test_an_unknown_model_gets_the_nearest_names(data: ImageData) -> None:
    assert "'resnet18'" in refusal(BackboneError, lambda: Learner("resnet81", data)).todo


def test_an_optimizer_that_cannot_be_is_told_before_the_first_batch() -> None:
    learner = made_learner(optimizer=lambda parameters: "sgd")
    before = weights(learner)
    refusal(ConfigError, lambda: learner.fit(1, lr=0.1))
    assert same(weights(learner), before)


def test_an_optimizer_that_nobody_knows_is_told_when_the_learner_is_made() -> None:
    assert "Did you mean 'adam" in refusal(ConfigError, lambda: made_learner(optimizer="adamm")).todo
    assert refusal(ConfigError, lambda: made_learner(optimizer=5)).arrived == "optimizer=5"


# Fitted


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("epochs", value) for value in (0, -1, 1.5, None, True, "5")),
        *(("lr", value) for value in (0, -0.1, None, "0.1", float("nan"), float("inf"), True)),
        *(("head_lr_mult", value) for value in (0, -1.0, None)),
        *(("layer_lr_decay", value) for value in (0, 1.5, "0.9")),
        *(("accumulate", value) for value in (0, 2.5, None)),
        *(("clip_norm", value) for value in (0, -1.0, "1")),
        ("callbacks", None),
    ],
)
def test_a_wrong_argument_of_a_fit_is_told_by_name_and_value(learner: Learner, argument: str, value: Any) -> None:
    before = weights(learner)
    error = refusal(ConfigError, lambda: learner.fit(**{"epochs": 1, "lr": 0.1, "verbose": False, argument: value}))
    assert error.arrived == f"{argument}={value!r}"
    assert error.needed.startswith(f"{argument}: ")
    assert "learner.fit(5" in error.todo
    assert same(weights(learner), before)
    assert learner.history.epoch == []


def test_all_wrong_arguments_of_a_fit_are_told_at_once(learner: Learner) -> None:
    error = refusal(
        ConfigError, lambda: learner.fit(0, -1, 0, layer_lr_decay=2, accumulate=0, clip_norm=0, callbacks=1)
    )
    for name in ("epochs", "lr", "head_lr_mult", "layer_lr_decay", "accumulate", "clip_norm", "callbacks"):
        assert f"{name}=" in error.arrived
        assert f"{name}: " in error.needed


def test_what_is_no_callback_is_told(learner: Learner) -> None:
    for wrong in ([Noting], ["ProgressBar"], [None]):
        refusal(ConfigError, lambda wrong=wrong: learner.fit(1, lr=0.1, callbacks=wrong, verbose=False))
        refusal(ConfigError, lambda wrong=wrong: learner.evaluate("train", callbacks=wrong))
        refusal(ConfigError, lambda wrong=wrong: learner.predict(torch.zeros(3, 6, 6), callbacks=wrong))
    for act in (lambda: learner.evaluate("train", callbacks=5), lambda: learner.predict("x.jpg", callbacks=5)):
        assert "callbacks=" in refusal(ConfigError, act).arrived


def test_one_callback_needs_no_list(learner: Learner) -> None:
    noting = Noting()
    learner.fit(1, lr=0.1, callbacks=noting, verbose=False)
    learner.evaluate("train", callbacks=noting)
    learner.predict(torch.zeros(3, 6, 6), callbacks=noting)
    called = {note[0] for note in noting.notes}
    assert {"on_train_begin", "on_test_begin", "on_predict_begin"} <= called


def test_callbacks_may_come_from_anything_that_can_be_gone_through(learner: Learner) -> None:
    note = Noting()
    learner.fit(1, lr=0.1, callbacks=(one for one in [note]))
    assert note.names[0] == "on_train_begin"


def test_a_fit_with_everything_frozen_says_how_to_go_on(learner: Learner) -> None:
    learner.model.requires_grad_(False)
    error = refusal(ConfigError, lambda: learner.fit(1, lr=0.1))
    assert "learner.unfreeze()" in error.todo
    learner.unfreeze()
    learner.fit(1, lr=0.1, verbose=False)


def test_a_fit_inside_a_fit_is_refused_and_an_evaluation_is_not(learner: Learner) -> None:
    caught: list[HeadstartError] = []

    def again(callback: Any, epoch: int, logs: Any) -> None:
        caught.append(refusal(ConfigError, lambda: callback.learner.fit(1, lr=0.1)))
        callback.learner.evaluate("train")

    learner.fit(1, lr=0.1, callbacks=[At(on_epoch_end=again)], verbose=False)
    assert caught[0].arrived == "fit inside a fit"
    learner.fit(1, lr=0.1, verbose=False)


def test_a_fit_that_fails_leaves_a_learner_that_can_fit_again(learner: Learner) -> None:
    def fail(callback: Any, epoch: int, logs: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        learner.fit(1, lr=0.1, callbacks=[At(on_epoch_end=fail)], verbose=False)
    assert learner.stop_training is False
    learner.fit(1, lr=0.1, verbose=False)


def test_an_unknown_layer_gets_the_nearest_names_and_changes_nothing(tiny_network: Callable[..., nn.Module]) -> None:
    learner = made_learner(network=tiny_network())
    learner.unfreeze("stage1")
    rows = learner.layers
    assert "'stage2'" in refusal(BackboneError, lambda: learner.unfreeze("stage3")).todo
    assert "[-3, 2]" in refusal(BackboneError, lambda: learner.unfreeze(3)).needed
    refusal(ConfigError, lambda: learner.unfreeze(1.5))
    assert learner.layers == rows


# Looked at


def test_what_the_network_has_is_pointed_to(learner: Learner) -> None:
    for name in ("parameters", "state_dict", "train", "to"):
        with pytest.raises(AttributeError, match=f"learner.model.{name}, or self.run.network.{name} in a callback"):
            getattr(learner, name)


def test_what_nobody_has_is_plainly_missing(learner: Learner) -> None:
    with pytest.raises(AttributeError) as caught:
        learner.colour  # noqa: B018
    assert str(caught.value) == "'Learner' object has no attribute 'colour'"
    assert not hasattr(Learner.__new__(Learner), "parameters")


def test_training_is_stopped_only_where_there_is_some(learner: Learner) -> None:
    learner.stop_training = False  # asks for nothing, as in many scripts for Keras

    def act() -> None:
        learner.stop_training = True

    error = refusal(ConfigError, act)
    assert "outside a fit" in error.arrived
    assert "on_epoch_end" in error.todo


def test_loading_asks_for_a_file(tmp_path: Path) -> None:
    for act in (lambda: Learner.load(tmp_path), lambda: made_learner().load_weights(tmp_path)):
        assert str(tmp_path) in refusal(HeadstartError, act).arrived


def test_numbers_of_numpy_are_numbers_too(learner: Learner) -> None:
    lr, norm, epochs = np.float32(0.1), np.float32(5), np.int64(1)
    plan = {
        "head_lr_mult": np.float32(2),
        "layer_lr_decay": np.float64(0.5),
        "accumulate": np.int8(2),
        "clip_norm": norm,
    }
    history = learner.fit(epochs, lr, **plan, cache_features=False, verbose=False)  # type: ignore[arg-type]
    assert history.epoch == [0]
    assert {type(value) for value in history.params.values() if value is not None} == {int, float}
    seeded = made_learner(seed=np.int64(7), weight_decay=np.float32(0.1))
    assert same(weights(seeded), weights(made_learner(seed=7, weight_decay=0.1)))


def test_a_loss_that_cannot_serve_is_told_when_the_learner_is_made() -> None:
    error = refusal(ConfigError, lambda: made_learner(loss=nn.CrossEntropyLoss))
    assert "CrossEntropyLoss" in error.arrived

    class Margin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres = nn.Parameter(torch.zeros(3))

    assert (
        "Margin with parameters that train: centres"
        in refusal(ConfigError, lambda: made_learner(loss=Margin())).arrived
    )
    made_learner(loss=nn.CrossEntropyLoss(weight=torch.ones(3)))


def test_a_network_that_was_changed_by_hand_needs_a_learner_of_its_own() -> None:
    learner = made_learner()
    learner.model[4] = nn.Linear(8, 3)  # type: ignore[operator, index]
    error = refusal(ConfigError, lambda: learner.fit(1, lr=0.1))
    assert "4.weight, 4.bias" in error.arrived
    again = Learner(learner.model, learner.data, device="cpu")
    again.model[4].bias = None  # type: ignore[operator, index]  # what is gone needs no training
    assert len(again.fit(1, lr=0.1, verbose=False).epoch) == 1
    assert again.layers[-1].parameters == 24
