"""A network is entered behind its frozen beginning, and nobody can tell the difference by a single bit."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from headstart.model.backbone import Backbone
from headstart.model.cut import Arithmetic, Cut, NoCutError, find_cut
from headstart.model.head import Head
from headstart.model.zoo import open_network
from headstart.randomness import preserved, seed_step

CPU = torch.device("cpu")
CLASSES = ("ants", "bees", "wasps")
FAMILIES = {
    # name: (pixels, where it is entered with a frozen backbone, and with all but its last stage frozen)
    "resnet18": (64, ["fc"], ["layer4.0"]),
    "torchvision/mobilenet_v2": (64, ["classifier.0"], ["features.18.0"]),
    "convnext_atto": (64, ["head.fc"], ["stages.3.downsample.0"]),
    "torchvision/squeezenet1_1": (64, ["classifier.0"], ["features.12.squeeze"]),
    "efficientnet_b0": (64, ["classifier"], ["conv_head"]),
    "torchvision/googlenet": (64, ["dropout"], ["inception5b"]),
    "levit_128s": (None, ["head.bn", "head_dist.bn"], ["stages.2.downsample.attn_downsample"]),
    "deit_tiny_distilled_patch16_224": (None, ["head", "head_dist"], ["blocks.11"]),
    "hrnet_w18_small": (64, ["classifier"], ["final_layer.0"]),
}
LARGE = {
    "densenet121": (64, ["classifier"], ["features.denseblock4"]),
    "torchvision/vgg11": (64, ["classifier.5"], ["classifier.3"]),
    "vit_tiny_patch16_224": (None, ["head"], ["blocks.11"]),
    "swin_tiny_patch4_window7_224": (None, ["head.fc"], ["layers.3.downsample.norm"]),
    "volo_d1_224": (None, ["head", "aux_head"], ["post_network.1"]),
    "crossvit_tiny_240": (None, ["head.0", "head.1"], None),
}


def opened(name: str, pixels: int | None) -> Backbone:
    with preserved():
        torch.manual_seed(0)
        return Backbone(
            open_network(name, CLASSES, pretrained=False, head=Head(init="xavier"), image_size=pixels)  # type: ignore[arg-type]
        )


def own(network: nn.Module) -> Backbone:
    return Backbone(open_network(network, CLASSES, pretrained=False))


def pictures(backbone: Backbone, *counts: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(counts))
    return [torch.randn(count, 3, *backbone.preprocessing.image_size, generator=generator) for count in counts]


def entrance(backbone: Backbone, *counts: int, arithmetic: Arithmetic = nullcontext) -> Cut:
    with preserved():
        return find_cut(
            backbone, pictures(backbone, *(counts or (3, 2))), arithmetic, lambda seed: seed_step(seed, CPU)
        )


def step(backbone: Backbone, ask: Callable[[Tensor], Tensor], given: Tensor) -> dict[str, Tensor]:
    """Give what a training step leaves: logits, gradients, buffers."""
    with preserved():
        seed_step(9, CPU)
        logits = ask(given)
        functional.cross_entropy(logits, torch.arange(len(given)) % 3).backward()
    left = {"logits": logits.detach()}
    left |= {n: p.grad.clone() for n, p in backbone.network.named_parameters() if p.grad is not None}
    backbone.network.zero_grad(set_to_none=True)
    return left | {name: buffer.clone() for name, buffer in backbone.network.named_buffers()}


def check(name: str, pixels: int | None, expected: list[str] | None, from_end: int) -> None:
    backbone = opened(name, pixels)
    backbone.train_from(len(backbone.stages) - from_end)
    backbone.train()
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}
    if expected is None:
        with pytest.raises(NoCutError, match="more of what comes before"):
            entrance(backbone)
        return
    cut = entrance(backbone)
    assert list(cut.places) == expected
    assert all(torch.equal(value, before[key]) for key, value in backbone.network.state_dict().items())
    for images in pictures(backbone, 4, 2):
        features = cut.features(images)
        assert not features.requires_grad
        assert all(torch.equal(value, before[key]) for key, value in backbone.network.state_dict().items())
        live = step(backbone, backbone.network, images)
        backbone.network.load_state_dict(before)
        known = step(backbone, cut, features)
        backbone.network.load_state_dict(before)
        assert live.keys() == known.keys()
        assert all(torch.equal(value, known[key]) for key, value in live.items())
        with backbone.evaluating(), torch.no_grad():
            assert torch.equal(cut(cut.features(images)), backbone.network(images))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("from_end", [0, 1])
def test_a_step_from_features_is_the_step_from_pictures(name: str, from_end: int) -> None:
    pixels, *expected = FAMILIES[name]
    check(name, pixels, expected[from_end], from_end)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("from_end", [0, 1])
def test_a_step_of_a_larger_network_likewise(name: str, from_end: int) -> None:
    pixels, *expected = LARGE[name]
    check(name, pixels, expected[from_end], from_end)


class Body(nn.Module):
    """A network of the user's own, with whatever its forward may do in between."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor] = lambda self, maps: maps) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.stage = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.between = between
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.between(self, self.stage(self.stem(images))).mean((2, 3)))
        return logits


def frozen(network: nn.Module) -> Backbone:
    backbone = own(network)
    backbone.train_from(len(backbone.stages))
    backbone.train()
    return backbone


def seldom(body: Any, maps: Tensor) -> Tensor:
    return maps * 2 if body.training and torch.rand(()) < 0 else maps


def counting(body: Any, maps: Tensor) -> Tensor:
    if body.training:
        body.calls.add_(1)
    return maps + body.calls


def either_way(body: Any, maps: Tensor) -> Tensor:
    return body.stage(maps[:, :8]) if random.random() < 0.5 else maps  # noqa: S311


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda body, maps: functional.dropout(maps, 0.5, body.training), "draws random numbers outside of modules"),
        (seldom, "draws random numbers outside of modules"),
        (lambda body, maps: maps * random.choice([1]), "draws random numbers outside of modules"),  # noqa: S311
        (lambda body, maps: maps + 0 * np.random.random(), "draws random numbers outside of modules"),
        (either_way, "another way each time"),
        (lambda body, maps: maps - maps.mean(0), "more of what comes before"),
        (lambda body, maps: maps + 0.1 * maps.mean(0), "more of what comes before"),
        (lambda body, maps: functional.batch_norm(maps, None, None, training=True), "more of what comes before"),
        (counting, "more of what comes before"),
        (lambda body, maps: maps + body.stem.weight.sum(), None),
        (lambda body, maps: maps.flatten(2).unsqueeze(3), None),
    ],
)
def test_what_a_forward_does_in_between_is_seen(between: Any, reason: str | None) -> None:
    network = Body(between)
    network.register_buffer("calls", torch.zeros(()))
    backbone = frozen(network)
    if reason is None:
        assert list(entrance(backbone).places) == ["fc"]
    else:
        with pytest.raises(NoCutError, match=reason):
            entrance(backbone)


@pytest.mark.parametrize("arithmetic", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_little_mixing_shows_in_half_precision_too(arithmetic: Any) -> None:
    with pytest.raises(NoCutError, match="more of what comes before"):
        entrance(frozen(Body(lambda body, maps: maps + 0.04 * maps.mean(0))), arithmetic=arithmetic)
    assert entrance(frozen(Body()), arithmetic=arithmetic).places


def test_a_module_that_draws_seldom_is_one_that_draws() -> None:
    class Seldom(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return seldom(self, maps)

    network = Body()
    network.stage.append(Seldom())
    assert list(entrance(frozen(network)).places) == ["stage.3"]


def test_buffers_that_stay_as_they_are_are_known() -> None:
    network = Body(lambda body, maps: maps * body.factor)
    network.register_buffer("factor", torch.ones(()))
    network.head = nn.Sequential(nn.Identity(), nn.BatchNorm1d(8), network.fc)
    network.fc = network.head
    backbone = own(network)
    backbone.train_from(len(backbone.stages))
    backbone.train()
    assert [buffer is network.factor for buffer in entrance(backbone).still] == [True]


def test_what_is_needed_again_later_on_is_seen() -> None:
    class Twice(Body):
        def forward(self, images: Tensor) -> Tensor:
            maps = self.stage(self.stem(images)).mean((2, 3))
            logits: Tensor = self.fc(maps) + maps[:, :3]
            return logits

    with pytest.raises(NoCutError, match="more of what comes before"):
        entrance(frozen(Twice()))


def test_a_head_that_says_the_same_of_everything_does_not_hide_it() -> None:
    class Weighed(Body):
        def forward(self, images: Tensor) -> Tensor:
            maps = self.stage(self.stem(images)).mean((2, 3))
            logits: Tensor = self.fc(maps) * maps.mean()
            return logits

    backbone = frozen(Weighed())
    nn.init.zeros_(backbone.network.fc.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(backbone.network.fc.bias)  # type: ignore[union-attr, arg-type]
    with pytest.raises(NoCutError, match="more of what comes before"):
        entrance(backbone)
    assert not any(p.any() for p in backbone.network.fc.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["resnet18", "torchvision/mobilenet_v2", "convnext_atto"])
def test_a_new_head_is_entered_where_a_trained_one_is(name: str) -> None:
    backbone = Backbone(open_network(name, CLASSES, pretrained=False, image_size=64))
    backbone.train_from(len(backbone.stages) - 1)
    backbone.train()
    assert list(entrance(backbone).places) == FAMILIES[name][2]


def test_a_module_that_is_called_again_behind_the_cut_works_there() -> None:
    class Shared(Body):
        def forward(self, images: Tensor) -> Tensor:
            maps = self.relu(self.stage(self.stem(images)).mean((2, 3)))
            logits: Tensor = self.relu(self.fc(maps))
            return logits

    network = Shared()
    network.relu = nn.ReLU()
    backbone = frozen(network)
    cut = entrance(backbone)
    images = pictures(backbone, 6)[0]
    assert torch.equal(cut(cut.features(images)), network(images))
    assert network(images).min() >= 0
    assert "forward" not in vars(network.stem)


def test_a_network_with_hooks_is_left_alone() -> None:
    backbone = frozen(Body())
    seen: list[Any] = []
    backbone.network.stage.register_forward_hook(lambda module, given, result: seen.append(result))  # type: ignore[union-attr]
    with pytest.raises(NoCutError, match="have hooks"):
        entrance(backbone)
    assert not seen


def test_a_compiled_network_is_left_alone() -> None:
    network = Body()
    network.compile()
    with pytest.raises(NoCutError, match="the network is compiled"):
        entrance(frozen(network))


def test_where_all_trains_there_is_nothing_to_know() -> None:
    backbone = own(Body())
    backbone.train()
    with pytest.raises(NoCutError):
        entrance(backbone)


def test_an_error_behind_the_cut_leaves_the_network_whole() -> None:
    backbone = frozen(Body())
    cut = entrance(backbone)
    with pytest.raises(RuntimeError):
        cut(torch.zeros(2, 5))
    images = pictures(backbone, 2)[0]
    assert torch.equal(cut(cut.features(images)), backbone.network(images))
