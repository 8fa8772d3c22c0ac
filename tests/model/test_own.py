"""Networks brought along: what stays as it is, which layer is the head, and what a file or a new head changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from handmade import refusal, same
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from headstart.data.preprocessing import Preprocessing
from headstart.errors import BackboneError, CheckpointError
from headstart.model.head import Head
from headstart.model.zoo import open_network


def values(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_a_network_of_ones_own_is_left_alone_when_its_width_is_that_of_the_classes(
    tiny_network: Callable[..., nn.Module],
) -> None:
    network = tiny_network(3)
    network.stem.requires_grad_(False)
    network.stage1.eval()
    before, fc = values(network), network.fc
    modes = [module.training for module in network.modules()]
    trains = [parameter.requires_grad for parameter in network.parameters()]
    opened = open_network(network, 3)
    assert opened.network is network
    assert network.fc is fc
    assert opened.head == ("fc",)
    assert same(values(network), before)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == trains
    assert opened.preprocessing == Preprocessing()
    assert opened.description == "your TinyNetwork (224 pixels, ImageNet's mean and std)"
    assert opened.architecture == {}
    assert open_network(network, 3, image_size=32).preprocessing == Preprocessing().at_size(32)


def test_a_network_of_another_width_needs_word_on_its_head(tiny_network: Callable[..., nn.Module]) -> None:
    network = tiny_network(10)
    error = refusal(BackboneError, lambda: open_network(network, 3))
    assert "TinyNetwork whose last layer 'fc' gives 10 numbers, for 3 classes" in error.arrived
    assert "head=Head()" in error.todo
    assert network.fc.out_features == 10


@pytest.mark.parametrize("head", [Head(), Head(hidden=(6,)), nn.Linear(32, 3), nn.Linear, Head(at="fc")])
def test_a_head_in_any_form_replaces_that_of_ones_own_network(
    tiny_network: Callable[..., nn.Module], head: Any
) -> None:
    network = tiny_network(10)
    stem = values(network.stem)
    opened = open_network(network, 3, head=head)
    assert opened.network is network
    assert opened.head == ("fc",)
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert same(values(network.stem), stem)


def test_a_head_may_replace_any_module_of_ones_own_network(tiny_network: Callable[..., nn.Module]) -> None:
    network = tiny_network(10)
    network.fc = nn.Identity()
    network.last = nn.Identity()
    network.stage2 = network.stage2[:1]
    opened = open_network(network, 3, head=Head(at="stage2.0"))
    assert opened.head == ("stage2.0",)
    error = refusal(BackboneError, lambda: open_network(tiny_network(10), 3, head=Head(at="fcc")))
    assert "'fc'" in error.todo


def test_a_network_without_a_layer_that_tells_its_width_is_told_to_name_its_head() -> None:
    network = nn.Sequential(nn.Flatten(), nn.PReLU(4), nn.ReLU())
    assert "at=" in refusal(BackboneError, lambda: open_network(network, 4)).todo
    assert "head=nn.Sequential" in refusal(BackboneError, lambda: open_network(network, 4, head=Head(at="2"))).todo


def test_a_timm_network_of_ones_own_brings_its_preprocessing_and_its_heads() -> None:
    network = timm.create_model("levit_128s", num_classes=3)
    opened = open_network(network, 3)
    assert opened.head == ("head", "head_dist")
    assert opened.preprocessing == Preprocessing.from_timm(resolve_model_data_config(network))
    assert opened.description == "your LevitDistilled (preprocessing as its pretrained_cfg says)"
    error = refusal(BackboneError, lambda: open_network(timm.create_model("levit_128s"), 3))
    assert "'head' gives 1000 numbers" in error.arrived


def test_a_timm_network_of_ones_own_takes_another_size_if_it_can() -> None:
    network = timm.create_model("resnet18", num_classes=3)
    assert open_network(network, 3, image_size=64).preprocessing.image_size == (64, 64)
    fixed = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)
    error = refusal(BackboneError, lambda: open_network(fixed, 3, image_size=64))
    assert "image_size=64 for your VisionTransformer, which fails" in error.arrived
    other = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1, img_size=64)
    assert open_network(other, 3, image_size=64).preprocessing.image_size == (64, 64)


class Prototypes(nn.Module):
    """A last layer of one's own: how near the features are to one point for each class."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(classes, features))

    def forward(self, features: Tensor) -> Tensor:
        return -torch.cdist(features, self.points)


class Branching(nn.Module):
    """A network whose answer is not its last module: a decoder, of no use here, stands behind it."""

    def __init__(self, head: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = head
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.fc(self.features(images))
        return answer


@pytest.mark.parametrize("decoder", [nn.Linear(3, 7), nn.Identity()])
@pytest.mark.parametrize(
    ("head", "path"),
    [
        (nn.Linear(6, 3), "fc"),
        (Prototypes(6, 3), "fc"),
        (nn.Sequential(nn.Linear(6, 3), nn.Dropout()), "fc.0"),
        (nn.Sequential(nn.Linear(6, 3), nn.PReLU(3)), "fc.0"),
    ],
)
def test_the_head_is_the_layer_that_is_seen_to_answer_where_another_one_may_be_meant(
    head: nn.Module, path: str, decoder: nn.Module
) -> None:
    network = Branching(head, decoder)
    before, modes = values(network), [module.training for module in network.modules()]
    opened = open_network(network, 3)
    assert network.fc is head
    assert same(values(network), before)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert opened.head == (path,)


def test_of_two_layers_of_the_right_width_the_one_that_answers_is_the_head() -> None:
    assert open_network(Branching(nn.Linear(6, 3), nn.Linear(7, 3)), 3).head == ("fc",)


def test_a_network_that_answers_for_other_classes_or_cannot_be_run_is_refused() -> None:
    for network in (Branching(nn.Linear(6, 5), nn.Linear(3, 7)), Branching(nn.Linear(8, 3), nn.Linear(3, 7))):
        error = refusal(BackboneError, lambda network=network: open_network(network, 3))
        assert "'decoder' gives 7 numbers, for 3 classes" in error.arrived
        assert "Head(at=" in error.todo


@pytest.mark.parametrize("head", [None, Head()])
def test_a_file_of_weights_goes_into_ones_own_network_without_the_head_that_is_replaced(
    tiny_network: Callable[..., nn.Module], tmp_path: Path, head: Head | None
) -> None:
    source, network = tiny_network(3), tiny_network(3)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    opened = open_network(network, 3, pretrained=tmp_path / "own.pth", head=head)
    given, found = values(source), values(network)
    assert same({**given, **{key: found[key] for key in found if head and key.startswith("fc")}}, found)
    assert torch.equal(given["fc.weight"], found["fc.weight"]) == (head is None)
    assert opened.description == "your TinyNetwork (weights from own.pth, 224 pixels, ImageNet's mean and std)"


def test_a_file_that_is_missing_or_of_another_network_is_refused_and_changes_nothing(
    tiny_network: Callable[..., nn.Module], tmp_path: Path
) -> None:
    network = tiny_network(3)
    before = values(network)
    torch.save(nn.Sequential(nn.Linear(3, 3)).state_dict(), tmp_path / "other.pth")
    (tmp_path / "words.pth").write_text("no weights")
    missing = refusal(BackboneError, lambda: open_network(network, 3, pretrained=tmp_path / "none.pth"))
    assert "which is no file" in missing.arrived
    other = refusal(BackboneError, lambda: open_network(network, 3, pretrained=tmp_path / "other.pth"))
    assert "not known to it" in other.arrived
    refusal(CheckpointError, lambda: open_network(network, 3, pretrained=tmp_path / "words.pth"))
    assert same(values(network), before)


@pytest.mark.parametrize("make", [torchvision.models.googlenet, torchvision.models.inception_v3])
def test_the_side_branches_of_ones_own_network_are_taken_off(make: Callable[..., nn.Module]) -> None:
    network = make(weights=None, aux_logits=True, init_weights=False, num_classes=3)
    open_network(network, 3)
    network.train()
    assert isinstance(network(torch.zeros(2, 3, 96, 96)), Tensor)


class Gated(nn.Module):
    """A network whose classifier is registered before what acts before it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(6, classes)
        self.gate = nn.Linear(6, 6)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        answer: Tensor = self.classifier(features * torch.sigmoid(self.gate(features)))
        return answer


@pytest.mark.parametrize("head", [Head(), Head(hidden=(4,)), nn.Linear(6, 3), nn.Linear])
def test_a_new_head_stands_where_the_network_answers(head: Any) -> None:
    network = Gated(1000)
    gate = network.gate
    assert open_network(network, 3, head=head).head == ("classifier",)
    assert network.gate is gate
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_a_head_that_does_not_fit_where_it_is_put_is_refused_at_the_door() -> None:
    error = refusal(BackboneError, lambda: open_network(Gated(1000), 3, head=Head(at="gate")))
    assert "fails at 224 x 224 pixels" in error.arrived


def test_a_network_that_cannot_be_run_here_gets_its_head_where_the_last_layer_is() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 10))
    assert open_network(network, 3, head=Head()).head == ("3",)


def test_a_refusal_leaves_ones_own_network_with_its_head(tiny_network: Callable[..., nn.Module]) -> None:
    network = tiny_network(4)
    fc, before = network.fc, values(network)
    wrong = Head(reuse="auto", source_classes=["a", "b", "c"])
    assert (
        "4 classes, and 3 names"
        in refusal(BackboneError, lambda: open_network(network, ("a", "b"), head=wrong)).arrived
    )
    refusal(BackboneError, lambda: open_network(network, ("a", "b"), head=Head(at="stage2.0")))
    assert network.fc is fc
    assert same(values(network), before)


def test_a_network_of_other_channels_or_precision_gets_its_head_unrehearsed() -> None:
    grey = timm.create_model("test_resnet", in_chans=1)
    assert open_network(grey, 3, head=Head(hidden=(8,))).head == ("fc",)
    half = timm.create_model("test_resnet").bfloat16()
    assert open_network(half, 3, head=Head(hidden=(8,))).head == ("fc",)


def test_a_head_that_is_replaced_twice_is_replaced_whole() -> None:
    network = open_network("test_resnet", 8, pretrained=False, head=Head(hidden=(6,))).network
    opened = open_network(network, 5, head=Head())
    assert opened.network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_a_head_of_timms_keeps_its_norms_in_ones_own_network_too() -> None:
    network = timm.create_model("levit_128s")
    norm = network.head.bn
    opened = open_network(network, 3, head=Head())
    assert opened.head == ("head", "head_dist")
    assert network.head.bn is norm
    assert (network.head.linear.out_features, network.head_dist.linear.out_features) == (3, 3)
    assert network.num_classes == 3


class Convolutional(nn.Module):
    """A network that answers with a convolution, and what its forward makes of it."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.body, self.end = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3), end

    def forward(self, images: Tensor) -> Any:
        return self.end(self.body(self.stem(images)))


@pytest.mark.parametrize("init", ["default", "zero"])
def test_a_new_head_learns_although_a_relu_follows_in_forward(init: Any) -> None:
    network = Convolutional(lambda maps: maps.relu().mean((2, 3)))
    modes = [module.training for module in network.modules()]
    opened = open_network(network, 2, head=Head(init=init), image_size=32)
    assert [module.training for module in network.modules()] == modes
    logits = network(torch.randn(4, 3, 32, 32))
    assert torch.equal(logits, torch.ones(4, 2))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 1])).backward()
    assert opened.head == ("body",)
    assert network.body.weight.grad is not None
    assert network.body.weight.grad.any()


def test_a_new_head_with_nothing_behind_it_begins_at_zero() -> None:
    network = Convolutional(lambda maps: maps.mean((2, 3)))
    open_network(network, 2, head=Head(), image_size=32)
    assert not network.body.bias.any()


@pytest.mark.parametrize(("end", "told"), [(lambda maps: {"logits": maps.mean((2, 3))}, "a dict"), (tuple, "a tuple")])
def test_a_network_that_gives_no_tensor_is_told_when_it_is_opened_with_a_head(end: Any, told: str) -> None:
    error = refusal(BackboneError, lambda: open_network(Convolutional(end), 2, head=Head(), image_size=32))
    assert f"which gives {told} for one picture" in error.arrived
