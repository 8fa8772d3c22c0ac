"""Stages: every backbone parameter in exactly one, named and ordered; and every way to say where training starts."""

from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
from handmade import refusal
from timm.layers import PatchDropout
from torch import nn
from torchvision.ops import StochasticDepth

from headstart.errors import BackboneError, ConfigError
from headstart.model.opened import Opened
from headstart.model.stages import Stage, find_stages, locate
from headstart.model.zoo import open_network

NUMBERED = {
    "resnet18": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "torchvision/resnet18": ["conv1", "layer1", "layer2", "layer3", "layer4"],
    "torchvision/mobilenet_v2": [f"features.{n}" for n in range(19)],
    "mobilenetv2_100": ["conv_stem", *(f"blocks.{n}" for n in range(7)), "conv_head"],
    "torchvision/squeezenet1_1": [f"features.{n}" for n in (0, 3, 4, 6, 7, 9, 10, 11, 12)],
    "vit_tiny_patch16_224": ["patch_embed", *(f"blocks.{n}" for n in range(12))],
    "torchvision/vit_b_16": ["conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in range(12))],
    "convnext_atto": ["stem", *(f"stages.{n}" for n in range(4))],
    "efficientnet_b0": ["conv_stem", *(f"blocks.{n}" for n in range(7)), "conv_head"],
    "swin_tiny_patch4_window7_224": ["patch_embed", *(f"layers.{n}" for n in range(4))],
    "levit_128s": ["stem", *(f"stages.{n}" for n in range(3))],
    "torchvision/vgg11": [f"features.{n}" for n in (0, 3, 6, 8, 11, 13, 16, 18)] + ["classifier.0", "classifier.3"],
    "densenet121": [
        "features.conv0",
        *(f"features.{kind}{n}" for n in (1, 2, 3) for kind in ("denseblock", "transition")),
        "features.denseblock4",
    ],
    "coat_tiny": [
        *(f"{kind}{n}" for kind in ("patch_embed", "cpe", "crpe", "serial_blocks") for n in (1, 2, 3, 4)),
        *(f"parallel_blocks.{n}" for n in range(6)),
        "aggregate",
    ],
    "torchvision/googlenet": [
        *("conv1", "conv2", "conv3", "inception3a", "inception3b"),
        *(f"inception4{letter}" for letter in "abcde"),
        *("inception5a", "inception5b"),
    ],
    "crossvit_tiny_240": ["patch_embed", "blocks.0", "blocks.1", "blocks.2"],
    "caformer_s18": ["stem", *(f"stages.{n}" for n in range(4))],
    "torchvision/maxvit_t": ["stem", *(f"blocks.{n}" for n in range(4)), "classifier"],
}


def opened_without_values(name: str) -> Opened:
    """Open a network on the meta device: all its modules and shapes, no numbers."""
    with torch.device("meta"):
        return open_network(name, 3, pretrained=False)


def cut(network: nn.Module, *head: str) -> list[Stage]:
    return find_stages(network, [p for path in head for p in network.get_submodule(path).parameters()])


def quiet_names(network: nn.Module, stages: list[Stage]) -> list[list[str]]:
    names = {id(module): name for name, module in network.named_modules()}
    return [[names[id(module)] for module in stage.quiet] for stage in stages]


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, list[Stage]]:
    network = opened_without_values("resnet18").network
    return network, cut(network, "fc")


# What they are


@pytest.mark.parametrize(("name", "names"), NUMBERED.items())
def test_stages_have_the_names_and_the_order_of_the_network_and_hold_all_of_it(name: str, names: list[str]) -> None:
    opened = opened_without_values(name)
    network, stages = opened.network, cut(opened.network, *opened.head)
    assert [stage.name for stage in stages] == names
    assert all(isinstance(network.get_submodule(name), nn.Module) for name in names)
    head = {id(parameter) for path in opened.head for parameter in network.get_submodule(path).parameters()}
    backbone = [id(parameter) for parameter in network.parameters() if id(parameter) not in head]
    held = [id(parameter) for stage in stages for parameter in stage.parameters]
    assert len(held) == len(set(held))
    assert set(held) == set(backbone)
    assert all(stage.parameters for stage in stages)


def test_tokens_go_with_what_follows_them_and_norms_with_what_precedes_them() -> None:
    network = opened_without_values("vit_tiny_patch16_224").network
    stages = {stage.name: {id(parameter) for parameter in stage.parameters} for stage in cut(network, "head")}
    assert {id(network.cls_token), id(network.pos_embed)} < stages["patch_embed"]
    assert {id(network.norm.weight), id(network.norm.bias)} < stages["blocks.11"]


def test_loose_parameters_beside_the_head_go_with_the_last_stage() -> None:
    tail = nn.Sequential(nn.Linear(4, 2))
    tail.scale = nn.Parameter(torch.ones(4, 4))
    network = nn.Sequential(OrderedDict(stem=nn.Linear(4, 4), neck=nn.Linear(4, 4), tail=tail))
    stages = cut(network, "tail.0")
    assert [stage.name for stage in stages] == ["stem", "neck"]
    assert any(parameter is tail.scale for parameter in stages[-1].parameters)


def test_a_backbone_of_loose_parameters_alone_is_one_stage() -> None:
    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt = nn.Parameter(torch.ones(4))
            self.fc = nn.Linear(4, 2)

    network = Prompt()
    (stage,) = cut(network, "fc")
    assert [id(parameter) for parameter in stage.parameters] == [id(network.prompt)]
    assert network.get_submodule(stage.name) is network


def test_a_network_that_is_all_head_has_no_stage() -> None:
    assert cut(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "1") == []


def test_a_tensor_that_two_modules_share_is_in_the_first_ones_stage_alone() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    network[1].weight = network[0].weight
    stages = cut(network, "2")
    assert [[parameter.ndim for parameter in stage.parameters] for stage in stages] == [[2, 1, 1]]


def test_a_tensor_that_the_head_shares_is_the_heads() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    stages = cut(network, "2")
    assert not any(parameter is network[0].weight for stage in stages for parameter in stage.parameters)


# What of them rests while they are frozen


def test_norms_with_statistics_and_every_kind_of_dropout_rest_with_the_stage_they_lie_in() -> None:
    network = timm.create_model("resnet18", num_classes=3, drop_rate=0.5, drop_path_rate=0.2, drop_block_rate=0.1)
    quiet = quiet_names(network, cut(network, "fc"))
    assert quiet[0] == ["bn1"]
    assert quiet[1] == [*(f"layer1.{n}.bn{m}" for n in (0, 1) for m in (1, 2)), "layer1.1.drop_path"]
    in_block = ("bn1", "drop_block", "bn2", "downsample.1", "drop_path")
    assert quiet[4] == [f"layer4.{n}.{name}" for n in (0, 1) for name in in_block if (n, name) != (1, "downsample.1")]


class DropPath(nn.Identity):
    """Stand for what many networks bring along under this name."""


@pytest.mark.parametrize(
    "noise", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), StochasticDepth(0.1, "row"), PatchDropout(), DropPath()]
)
def test_all_that_makes_noise_in_training_rests(noise: nn.Module) -> None:
    network = nn.Sequential(nn.Linear(4, 4), noise, nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    assert [stage.quiet for stage in cut(network, "4")] == [[noise], []]


def test_layer_norms_have_no_statistics_and_do_not_rest() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1, embed_dim=12)
    kinds = {type(module).__name__ for stage in cut(network, "head") for module in stage.quiet}
    assert kinds == {"Dropout"}


def test_a_dropout_between_two_stages_rests_with_the_one_before() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2, embed_dim=12, pos_drop_rate=0.1)
    assert "pos_drop" in quiet_names(network, cut(network, "head"))[0]


@pytest.mark.parametrize(
    ("name", "head", "dropout"),
    [
        ("torchvision/mobilenet_v2", "classifier.1", "classifier.0"),
        ("torchvision/squeezenet1_1", "classifier.1", "classifier.0"),
        ("torchvision/vgg11", "classifier.6", "classifier.5"),
        ("vit_tiny_patch16_224", "head", "head_drop"),
        ("convnext_atto", "head.fc", "head.drop"),
        ("swin_tiny_patch4_window7_224", "head.fc", "head.drop"),
    ],
)
def test_a_dropout_behind_the_last_backbone_parameter_is_the_heads(name: str, head: str, dropout: str) -> None:
    options = {} if name.startswith("torchvision/") else {"drop_rate": 0.5, "num_classes": 3}
    with torch.device("meta"):
        network = timm.create_model(name, **options) if options else opened_without_values(name).network
    assert isinstance(network.get_submodule(dropout), nn.Dropout)
    quiet = [name for names in quiet_names(network, cut(network, head)) for name in names]
    assert dropout not in quiet


def test_the_heads_own_norm_does_not_rest() -> None:
    opened = opened_without_values("levit_128s")
    quiet = [name for names in quiet_names(opened.network, cut(opened.network, *opened.head)) for name in names]
    assert "stages.2.blocks.3.mlp.ln2.bn" in quiet
    assert not any(name.startswith("head") for name in quiet)


@pytest.mark.parametrize("name", ["efficientvit_m0", "shvit_s1"])
def test_a_norm_of_the_backbone_rests_although_the_head_is_in_the_same_module(name: str) -> None:
    opened = opened_without_values(name)
    assert opened.head == ("head.linear" if name == "efficientvit_m0" else "head.l",)
    stages = cut(opened.network, *opened.head)
    assert quiet_names(opened.network, stages)[-1][-1] == "head.bn"


# Where training starts


@pytest.mark.parametrize(
    ("from_layer", "place"),
    [
        (None, 0),
        ("conv1", 0),
        ("layer3", 3),
        ("bn1", 0),
        ("layer2.1.conv2", 2),
        ("layer2.0.act1", 2),
        ("maxpool", 1),
        ("global_pool", 5),
        ("fc", 5),
        (0, 0),
        (4, 4),
        (-1, 4),
        (-5, 0),
    ],
)
def test_training_starts_at_a_stage_a_module_or_an_index(
    resnet: tuple[nn.Module, list[Stage]], from_layer: str | int | None, place: int
) -> None:
    network, stages = resnet
    assert locate(from_layer, network, stages) == place


def test_a_last_module_without_parameters_leaves_only_the_head() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Softmax(1))
    assert locate("2", network, cut(network, "1")) == 1


@pytest.mark.parametrize(
    ("from_layer", "hint"), [("layer5", "'layer4'"), ("layer4.1.con2", "'layer4.1.conv2'"), ("", "learner.layers")]
)
def test_an_unknown_layer_gets_the_nearest_names_and_how_to_list_them(
    resnet: tuple[nn.Module, list[Stage]], from_layer: str, hint: str
) -> None:
    error = refusal(BackboneError, lambda: locate(from_layer, *resnet))
    assert repr(from_layer) in error.arrived
    assert "conv1, layer1, layer2, layer3, layer4" in error.needed
    assert hint in error.todo
    assert "print(learner.layers)" in error.todo


@pytest.mark.parametrize("index", [5, -6, 100])
def test_an_index_out_of_range_is_told_the_range(resnet: tuple[nn.Module, list[Stage]], index: int) -> None:
    error = refusal(BackboneError, lambda: locate(index, *resnet))
    assert error.arrived == f"from_layer={index}"
    assert "[-5, 4]" in error.needed


@pytest.mark.parametrize("wrong", [1.0, True, ["layer4"], nn.ReLU()])
def test_anything_else_is_no_layer(resnet: tuple[nn.Module, list[Stage]], wrong: Any) -> None:
    assert f"from_layer={wrong!r}" in refusal(ConfigError, lambda: locate(wrong, *resnet)).arrived
