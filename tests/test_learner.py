"""A Learner while it trains: what moves and what does not by a bit, at which rates, and what it tells of itself."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import At, made_learner, pairs, same, weights
from torch import Tensor, nn

from headstart import Head, ImageData, Learner, Preprocessing
from headstart.errors import ConfigError
from headstart.training.checkpoint import read_weights


def tiny_learner(network: nn.Module, **options: Any) -> Learner:
    """Make a Learner of a network for pictures of 32 pixels, over four batches of noise."""
    return made_learner(pairs(4, 4, 4, 4, side=32), network=network, **options)


def head_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("fc.")}


def backbone_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# What does not move


@pytest.mark.parametrize(
    ("name", "size", "from_layer", "frozen"),
    [
        ("resnet18", 32, "layer4", ("conv1", "bn1", "layer1", "layer2", "layer3")),
        ("torchvision/mobilenet_v2", 32, "features.16", tuple(f"features.{n}." for n in range(16))),
        ("vit_tiny_patch16_224", 224, -1, ("cls_token", "pos_embed", "patch_embed", "blocks.0.", "blocks.10.")),
        ("levit_128s", 224, "stages.2", ("stem", "stages.0", "stages.1")),
        ("efficientnet_b0", 32, "blocks.6", ("conv_stem", "bn1", *(f"blocks.{n}" for n in range(6)))),
    ],
)
def test_what_is_frozen_stays_the_same_to_the_bit(
    name: str, size: int, from_layer: str | int, frozen: tuple[str, ...]
) -> None:
    data = ImageData.from_loaders(pairs(2, 2, 3, side=size), classes=3)
    learner = Learner(name, data, pretrained=False, optimizer="adamw", weight_decay=0.1, device="cpu")
    heads = tuple(path for path in learner.layers[-1].name.split(" + "))

    learner.freeze()
    learner.model.train()
    before = weights(learner)
    learner.fit(1, lr=0.01, verbose=False)
    moved = changed(before, weights(learner))
    assert moved
    assert all(name.startswith(heads) for name in moved)

    learner.unfreeze(from_layer)
    learner.model.train()
    before = weights(learner)
    learner.fit(1, lr=0.01, verbose=False)
    moved = changed(before, weights(learner))
    assert any(not name.startswith(heads) for name in moved)
    assert not any(name.startswith(frozen) for name in moved)


@pytest.mark.parametrize("model", ["torchvision/mobilenet_v2", "efficientnet_b0"])
def test_while_the_backbone_is_frozen_only_the_heads_dropout_is_live(model: str) -> None:
    data = ImageData.from_loaders(pairs(2, side=32), classes=3)
    learner = Learner(model, data, pretrained=False, head=None if "/" in model else Head(dropout=0.5), device="cpu")
    awake: list[set[str]] = []

    def note(callback: Any) -> None:
        kinds = (nn.BatchNorm2d, nn.Dropout, nn.Identity)
        modules = learner.model.named_modules()
        awake.append({name for name, module in modules if isinstance(module, kinds[:2]) and module.training})

    learner.freeze()
    learner.fit(1, lr=0.01, callbacks=[At(on_loss_ready=note)], verbose=False)
    assert awake == [{"classifier.0"}]


def test_freezing_in_a_callback_takes_effect_at_the_next_step(
    tiny_network: Callable[..., nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    learner = tiny_learner(tiny_network())
    states = [weights(learner)]

    def freeze(callback: Any, batch: int, logs: Any) -> None:
        if batch == 0:  # in the middle of a group of two batches
            callback.learner.freeze()

    note = At(on_train_batch_end=freeze, on_step_end=lambda callback: states.append(weights(learner)))
    capsys.readouterr()
    learner.fit(1, lr=0.1, accumulate=2, callbacks=[note], verbose=False)
    assert capsys.readouterr().out == "frozen: the whole backbone; training: the head\n"
    start, first, second = states
    assert {"stem.0.weight", "stage2.0.weight", "fc.weight"} <= changed(start, first)
    assert same(backbone_of(first), backbone_of(second))
    assert not same(head_of(first), head_of(second))


def test_unfreezing_in_a_callback_takes_effect_at_the_next_step(tiny_network: Callable[..., nn.Module]) -> None:
    learner = tiny_learner(tiny_network())
    learner.freeze()
    states = [weights(learner)]
    thaw = At(
        on_train_batch_end=lambda callback, batch, logs: learner.unfreeze() if batch == 1 else None,
        on_step_end=lambda callback: states.append(weights(learner)),
    )
    learner.fit(1, lr=0.1, callbacks=[thaw], verbose=False)
    moved = [not same(backbone_of(a), backbone_of(b)) for a, b in itertools.pairwise(states)]
    assert moved == [False, False, True, True]


def test_freezing_in_the_last_callback_of_a_fit_is_not_lost(tiny_network: Callable[..., nn.Module]) -> None:
    learner = tiny_learner(tiny_network())
    learner.fit(1, lr=0.1, callbacks=[At(on_train_end=lambda callback, logs: learner.freeze())], verbose=False)
    assert [layer.trainable for layer in learner.layers] == [False, False, False, True]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_begins_to_train_has_no_momentum_from_earlier(
    tiny_network: Callable[..., nn.Module], optimizer: str
) -> None:
    gradient = {"scale": 1.0}
    learner = tiny_learner(
        tiny_network(),
        optimizer=optimizer,
        weight_decay=0.0,
        loss=lambda logits, targets: nn.functional.cross_entropy(logits, targets) * gradient["scale"],
    )
    learner.fit(1, lr=0.1, verbose=False)
    learner.freeze()
    learner.unfreeze("stage2")
    gradient["scale"] = 0.0
    before = {name: value.clone() for name, value in learner.model.named_parameters()}
    learner.fit(1, lr=0.1, verbose=False)
    moved = changed(before, dict(learner.model.named_parameters()))
    assert moved == {"fc.weight", "fc.bias"}  # only the head has trained all along, and goes on rolling


def test_what_has_trained_all_along_keeps_its_momentum_from_fit_to_fit(tiny_network: Callable[..., nn.Module]) -> None:
    batches = pairs(4, 4, side=32)
    once = made_learner(batches * 2, network=tiny_network(), optimizer="sgd")
    twice = made_learner(batches, network=tiny_network(), optimizer="sgd")
    once.fit(1, lr=0.1, verbose=False)
    twice.fit(1, lr=0.1, verbose=False)
    twice.fit(1, lr=0.1, verbose=False)
    assert same(weights(once), weights(twice))


# What it says


def test_freeze_and_unfreeze_say_in_one_line_what_trains(
    tiny_network: Callable[..., nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    learner = tiny_learner(tiny_network())
    capsys.readouterr()
    learner.freeze()
    for from_layer in ("stage2", 1, "pool", None, "stem.0", "fc"):
        learner.unfreeze(from_layer)
    assert capsys.readouterr().out.splitlines() == [
        "frozen: the whole backbone; training: the head",
        "frozen: stem ... stage1 (2 stages); training: stage2 and the head",
        "frozen: stem (1 stage); training: stage1 ... stage2 and the head",
        "frozen: the whole backbone; training: the head",
        "training: all 3 stages and the head",
        "training: all 3 stages and the head",
        "frozen: the whole backbone; training: the head",
    ]


def test_a_network_that_is_all_head_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    learner = made_learner(pairs(2), network=nn.Sequential(nn.Flatten(), nn.Linear(108, 3)))
    capsys.readouterr()
    learner.freeze()
    learner.unfreeze()
    assert capsys.readouterr().out.splitlines() == ["training: the head, which is all there is"] * 2


def test_layers_show_the_rates_of_the_last_fit(tiny_network: Callable[..., nn.Module]) -> None:
    learner = tiny_learner(tiny_network())
    assert [layer.lr_scale for layer in learner.layers] == [1, 1, 1, 1]
    rates: list[set[float]] = []
    note = At(
        on_train_begin=lambda callback, logs: rates.append({g["lr"] for g in callback.run.optimizer.param_groups})
    )
    learner.fit(1, 0.1, 10, layer_lr_decay=0.5, callbacks=[note], verbose=False)
    assert [layer.lr_scale for layer in learner.layers] == [0.25, 0.5, 1.0, 10.0]
    assert rates == [{0.025, 0.05, 0.1, 1.0}]
    learner.fit(1, lr=0.1, verbose=False)
    assert [layer.lr_scale for layer in learner.layers] == [1, 1, 1, 1]
    assert sum(layer.parameters for layer in learner.layers) == sum(p.numel() for p in learner.model.parameters())


def test_the_summary_tells_network_arithmetic_layers_and_rate(
    tiny_network: Callable[..., nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    learner = tiny_learner(tiny_network())
    learner.freeze()
    capsys.readouterr()
    learner.summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "your TinyNetwork (224 pixels, ImageNet's mean and std), fp32 on cpu"
    assert lines[1:-1] == str(learner.layers).splitlines()
    assert lines[-1] == "99 of 6,187 parameters train; rate: the rate given to fit x lr scale"
    learner.fit(1, lr=0.05, verbose=False)
    learner.summary()
    assert capsys.readouterr().out.splitlines()[-1] == "99 of 6,187 parameters train; rate: 0.05 x lr scale"


def test_opening_is_told_and_the_learner_prints_what_it_is(
    tiny_network: Callable[..., nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    learner = tiny_learner(tiny_network())
    assert capsys.readouterr().out == "opened your TinyNetwork (224 pixels, ImageNet's mean and std), fp32 on cpu\n"
    assert repr(learner) == (
        "Learner(your TinyNetwork (224 pixels, ImageNet's mean and std), fp32 on cpu; "
        "ImageData: 3 classes (circle, square, triangle), 4 train batches)"
    )


def test_the_history_joins_all_fits(tiny_network: Callable[..., nn.Module]) -> None:
    learner = tiny_learner(tiny_network())
    assert learner.history.epoch == []
    first, second = learner.fit(2, lr=0.1, verbose=False), learner.fit(1, lr=0.1, verbose=False)
    assert learner.history.history["loss"] == first.history["loss"] + second.history["loss"]


def test_progress_is_shown_unless_it_is_not_wanted(
    tiny_network: Callable[..., nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    learner = tiny_learner(tiny_network())
    capsys.readouterr()
    learner.fit(1, lr=0.1, verbose=False)
    assert capsys.readouterr() == ("", "")
    learner.fit(1, lr=0.1)
    shown = capsys.readouterr()
    assert "loss" in shown.out + shown.err


# What it is made of


def test_the_data_stays_as_it_is_and_serves_two_networks(tiny_network: Callable[..., nn.Module]) -> None:
    data = ImageData.from_datasets([(torch.zeros(3, 32, 32), 0)] * 2, classes=3, image_size=32)
    one, two = Learner(tiny_network(), data), Learner("resnet18", data, pretrained=False)
    assert data.preprocessing is None
    assert one.data.preprocessing != two.data.preprocessing
    assert one.data.preprocessing.image_size == two.data.preprocessing.image_size == (32, 32)


def test_the_same_seed_gives_the_same_head_and_leaves_chance_to_the_user() -> None:
    data = ImageData.from_loaders(pairs(2, side=32), classes=3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    xavier = Head(init="xavier")
    heads = [Learner("resnet18", data, pretrained=False, head=xavier, seed=seed).model.fc.weight for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_network_of_ones_own_keeps_its_trained_head(tiny_network: Callable[..., nn.Module]) -> None:
    network = tiny_network()
    network.stem.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learner = tiny_learner(network)
    assert learner.model is network
    assert same(weights(learner), before)
    assert [layer.trainable for layer in learner.layers] == [False, True, True, True]


@pytest.mark.parametrize(
    ("head", "layers"),
    [
        (16, 2),
        ((16, 8), 3),
        (Head(hidden=(16,)), 2),
        (lambda features, classes: nn.Sequential(nn.Dropout(), nn.Linear(features, classes)), 1),
        (nn.Linear(32, 3), 1),
    ],
)
def test_a_head_in_any_form_gives_an_answer_for_each_class(
    tiny_network: Callable[..., nn.Module], head: Any, layers: int
) -> None:
    learner = tiny_learner(tiny_network(10), head=head)
    assert sum(isinstance(module, nn.Linear) for module in learner.model.modules()) == layers
    learner.freeze()
    learner.fit(1, lr=0.1, verbose=False)
    assert learner.predict(torch.zeros(3, 32, 32)).probabilities.shape == (1, 3)


@pytest.mark.slow
def test_names_stay_the_librarys_own_when_it_is_compiled(tiny_network: Callable[..., nn.Module]) -> None:
    plain, compiled = tiny_learner(tiny_network()), tiny_learner(tiny_network(), compile=True)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


# Stopping


def test_a_callback_stops_training_as_in_keras(tiny_network: Callable[..., nn.Module]) -> None:
    learner = tiny_learner(tiny_network())
    seen = []

    def stop(callback: Any, epoch: int, logs: Any) -> None:
        callback.model.stop_training = False  # asks for nothing
        seen.append(callback.model.stop_training)
        callback.model.stop_training = True
        seen.append(callback.model.stop_training)
        with pytest.raises(ConfigError, match="cannot be taken back"):
            callback.model.stop_training = False

    history = learner.fit(5, lr=0.1, callbacks=[At(on_epoch_end=stop)], verbose=False)
    assert len(history.epoch) == 1
    assert seen == [False, True]
    assert learner.stop_training is False


def test_a_preprocessing_that_loaders_bring_is_used_for_pictures_and_travels_with_the_weights(
    tiny_network: Callable[..., nn.Module], tmp_path: Path
) -> None:
    own = Preprocessing(image_size=(32, 32), resize=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    batches = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))]
    learner = Learner(tiny_network(), ImageData.from_loaders(batches, classes=3, preprocessing=own))
    pixels = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(learner.predict(pixels).probabilities, learner.predict(pixels / 255).probabilities)
    description = read_weights(learner.save(tmp_path / "own.safetensors"))[1]
    assert Preprocessing.from_json(description["preprocessing"]) == own
