"""A network that knows its head and its stages: what trains, what rests, and what it says of itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from headstart.model.backbone import Backbone, Layer, bits_of
from headstart.model.head import Head
from headstart.model.zoo import open_network


def wrapped(network: nn.Module) -> Backbone:
    return Backbone(open_network(network, 3))


@pytest.fixture
def tiny(tiny_network: Callable[..., nn.Module]) -> Backbone:
    """Wrap a network of three stages with batch norm, and one dropout inside and one behind the last of them."""
    network = tiny_network(3)
    network.stage2.append(nn.Dropout(0.5))
    network.pool.append(nn.Dropout(0.5))
    return wrapped(network)


def trainable(backbone: Backbone) -> set[str]:
    return {name for name, parameter in backbone.network.named_parameters() if parameter.requires_grad}


def in_training(backbone: Backbone) -> set[str]:
    kinds = (nn.BatchNorm2d, nn.Dropout)
    return {name for name, module in backbone.network.named_modules() if isinstance(module, kinds) and module.training}


def names_below(backbone: Backbone, *paths: str) -> set[str]:
    return {name for name, _ in backbone.network.named_parameters() if name.startswith(tuple(f"{p}." for p in paths))}


# What trains


@pytest.mark.parametrize(
    ("boundary", "parts"),
    [
        (0, ("stem", "stage1", "stage2", "fc")),
        (1, ("stage1", "stage2", "fc")),
        (2, ("stage2", "fc")),
        (3, ("fc",)),
    ],
)
def test_exactly_the_stages_from_the_boundary_on_and_the_head_train(
    tiny: Backbone, boundary: int, parts: tuple[str, ...]
) -> None:
    tiny.train_from(3)
    tiny.train_from(boundary)
    assert trainable(tiny) == names_below(tiny, *parts)
    assert [layer.trainable for layer in tiny.layers] == [place >= boundary for place in range(4)]


def test_the_parameters_that_begin_to_train_are_given_back(tiny: Backbone) -> None:
    assert tiny.train_from(3) == []
    thawed = {id(parameter) for parameter in tiny.train_from(1)}
    names = {name for name, parameter in tiny.network.named_parameters() if id(parameter) in thawed}
    assert names == names_below(tiny, "stage1", "stage2")
    assert tiny.train_from(1) == []


def test_what_is_frozen_loses_its_gradient(tiny: Backbone) -> None:
    tiny.network(torch.rand(2, 3, 32, 32)).sum().backward()
    tiny.train_from(2)
    with_gradient = {name for name, parameter in tiny.network.named_parameters() if parameter.grad is not None}
    assert with_gradient == names_below(tiny, "stage2", "fc")


def test_parameters_that_are_no_floats_never_train() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    network[0].table = nn.Parameter(torch.zeros(4, dtype=torch.int64), requires_grad=False)
    backbone = wrapped(network)
    backbone.train_from(0)
    assert trainable(backbone) == {"0.weight", "0.bias", "1.weight", "1.bias"}


# What rests


def test_frozen_norms_and_dropout_rest_and_a_dropout_behind_the_backbone_stays_live(tiny: Backbone) -> None:
    tiny.train_from(3)
    tiny.train()
    assert in_training(tiny) == {"pool.2"}
    tiny.train_from(2)
    tiny.train()
    assert in_training(tiny) == {"stage2.1", "stage2.3", "pool.2"}
    tiny.train_from(0)
    tiny.train()
    assert in_training(tiny) == {"stem.1", "stage1.1", "stage2.1", "stage2.3", "pool.2"}


def test_what_somebody_else_has_woken_up_is_put_to_rest_again(tiny: Backbone) -> None:
    tiny.train_from(3)
    tiny.network.train()
    assert "stem.1" in in_training(tiny)
    tiny.keep_resting()
    assert in_training(tiny) == {"pool.2"}


def test_only_norms_and_dropout_rest_and_not_whole_stages(tiny: Backbone) -> None:
    tiny.train_from(3)
    tiny.train()
    assert tiny.network.stem.training
    assert tiny.network.stem[0].training


def test_what_was_frozen_before_the_network_came_here_rests_too(tiny_network: Callable[..., nn.Module]) -> None:
    network = tiny_network(3)
    network.stem.requires_grad_(False)
    backbone = wrapped(network)
    backbone.train()
    assert in_training(backbone) == {"stage1.1", "stage2.1"}
    assert [layer.trainable for layer in backbone.layers] == [False, True, True, True]


def test_evaluation_puts_every_module_back_as_it_was(tiny: Backbone) -> None:
    tiny.train_from(2)
    tiny.train()
    tiny.network.stage1.eval()
    before = [module.training for module in tiny.network.modules()]

    def fail() -> None:
        with tiny.evaluating():
            assert not any(module.training for module in tiny.network.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [module.training for module in tiny.network.modules()] == before


class Remembering(nn.Module):
    """Keep what it computes from its weights until it trains again, as LeViT of earlier timms does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> "Remembering":
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = self.weight.detach() * 2
        return images * self.kept


@torch.no_grad()
def test_evaluation_sees_the_weights_of_now_where_a_network_remembers_those_of_before() -> None:
    backbone = wrapped(nn.Sequential(Remembering(), nn.Flatten(), nn.Linear(1, 3)))
    images = torch.ones(1, 1)
    with backbone.evaluating():
        backbone.network(images)
    backbone.network[0].weight.fill_(5)
    with backbone.evaluating():
        assert torch.equal(backbone.network[0](images), torch.full((1, 1), 10.0))


def test_for_one_picture_the_norms_use_what_they_have_learned(tiny: Backbone) -> None:
    tiny.train_from(1)
    tiny.train()
    before = {name: buffer.clone() for name, buffer in tiny.network.named_buffers()}
    with tiny.norms_resting():
        assert not any(name.endswith(".1") for name in in_training(tiny))
        tiny.network(torch.rand(1, 3, 32, 32))
    assert in_training(tiny) == {"stage1.1", "stage2.1", "stage2.3", "pool.2"}
    assert all(torch.equal(buffer, before[name]) for name, buffer in tiny.network.named_buffers())


# What it says of itself


def test_layers_are_the_stages_and_the_head_and_their_counts_add_up(tiny: Backbone) -> None:
    tiny.train_from(1)
    assert tiny.layers[0] == Layer("stem", 3 * 8 * 9 + 2 * 8, False, 1.0)
    assert [layer.name for layer in tiny.layers] == ["stem", "stage1", "stage2", "fc"]
    assert sum(layer.parameters for layer in tiny.layers) == sum(p.numel() for p in tiny.network.parameters())


def test_layers_print_as_a_table(tiny: Backbone) -> None:
    tiny.train_from(2)
    tiny.lr_scales = [0.0625, 0.25, 1.0, 10.0]
    assert str(tiny.layers) == repr(tiny.layers)
    assert [line.split() for line in str(tiny.layers).splitlines()] == [
        ["index", "stage", "parameters", "trains", "lr", "scale"],
        ["-" * len(str(tiny.layers).splitlines()[1])],
        ["0", "stem", "232", "frozen", "0.0625"],
        ["1", "stage1", "1,184", "frozen", "0.25"],
        ["2", "stage2", "4,672", "yes", "1"],
        ["fc", "(head)", "99", "yes", "10"],
    ]


def test_several_classifiers_are_one_row() -> None:
    with torch.device("meta"):
        backbone = Backbone(open_network("levit_128s", 3, pretrained=False))
    assert backbone.layers[-1].name == "head + head_dist"
    assert len(backbone.head) == 8
    assert backbone.locate("head_dist") == backbone.locate("head") == len(backbone.stages)
    assert backbone.locate(-1) == len(backbone.stages) - 1


def test_a_network_that_is_all_head_has_one_row() -> None:
    backbone = wrapped(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    assert [layer.name for layer in backbone.layers] == ["1"]
    backbone.train_from(0)
    assert trainable(backbone) == {"1.weight", "1.bias"}


def test_weights_that_were_changed_by_hand_between_two_evaluations_are_seen() -> None:
    opened = open_network("levit_128s", 2, pretrained=False, head=Head(init="xavier"))
    network, backbone = opened.network.eval(), Backbone(opened)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in state.items():
        if "biases" in name:
            value.normal_()

    def ask() -> torch.Tensor:
        with backbone.evaluating(), torch.no_grad():
            answer: torch.Tensor = network(images)
            return answer

    before = ask()
    network.load_state_dict(state)
    after = ask()
    assert not torch.equal(after, before)
    for module in network.modules():
        module.training = True
    assert torch.equal(ask(), after)


def test_an_attention_with_a_dropout_of_its_own_kind_is_cut_into_stages() -> None:
    class Attention(nn.MultiheadAttention):
        def __init__(self) -> None:
            super().__init__(8, 2)
            self.dropout = nn.Dropout(0.1)  # type: ignore[assignment]

    network = nn.Sequential(nn.Linear(8, 8), Attention(), nn.Linear(8, 3))
    assert network[1].dropout in Backbone(open_network(network, 3)).stages[-1].quiet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (64, 32, 3, 3)])
def test_no_two_numbers_change_places_unnoticed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensor = (100 * torch.randn(shape)).to(dtype)
    before = bits_of(tensor)
    assert bits_of(tensor.clone()) == before
    for number in range(0, tensor.numel() - 1, 17):
        moved = tensor.clone()
        moved.view(-1)[[number, number + 1]] = moved.view(-1)[[number + 1, number]]
        assert (bits_of(moved) == before) is torch.equal(moved, tensor)
