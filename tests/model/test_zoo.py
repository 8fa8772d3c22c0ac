"""Networks opened by name or brought along: which library, which weights, which head, which preprocessing."""

import threading
from collections.abc import Callable, Iterator
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
from headstart.model.zoo import open_network, parse_name, rebuild


@pytest.fixture
def without_values() -> Iterator[None]:
    """Let networks be built on the meta device: all their modules and shapes, no numbers, no time."""
    with torch.device("meta"):
        yield


def values(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


# Names


@pytest.mark.parametrize(
    ("model", "parsed"),
    [
        ("resnet18", ("timm", "resnet18", "")),
        ("timm/resnet18", ("timm", "resnet18", "")),
        ("resnet18.a1_in1k", ("timm", "resnet18", "a1_in1k")),
        ("timm/resnet18.a1_in1k", ("timm", "resnet18", "a1_in1k")),
        ("vit_base_patch16_224.augreg_in21k", ("timm", "vit_base_patch16_224", "augreg_in21k")),
        ("torchvision/resnet18", ("torchvision", "resnet18", "")),
        ("torchvision/mobilenet_v2.IMAGENET1K_V2", ("torchvision", "mobilenet_v2", "IMAGENET1K_V2")),
        ("torchvision/mobilenet_v2.DEFAULT", ("torchvision", "mobilenet_v2", "DEFAULT")),
        ("mobilenet_v3_small", ("torchvision", "mobilenet_v3_small", "")),
        ("squeezenet1_1.IMAGENET1K_V1", ("torchvision", "squeezenet1_1", "IMAGENET1K_V1")),
    ],
)
def test_a_name_tells_the_library_the_architecture_and_the_weights(model: str, parsed: tuple[str, str, str]) -> None:
    assert parse_name(model) == parsed


def test_a_name_that_both_libraries_have_is_timms() -> None:
    shared = [name for name in torchvision.models.list_models(module=torchvision.models) if timm.is_model(name)]
    assert len(shared) >= 35
    assert {parse_name(name)[0] for name in shared} == {"timm"}
    assert {parse_name(f"torchvision/{name}")[0] for name in shared} == {"torchvision"}


def test_a_name_that_timm_has_given_up_is_opened_under_its_present_one() -> None:
    assert parse_name("vit_base_patch16_224_in21k") == ("timm", "vit_base_patch16_224", "augreg_in21k")


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("resnet81", "'resnet18'"),
        ("torchvision/resnet81", "'torchvision/resnet18'"),
        ("timm/mobilenet_v2", "'mobilenet_v2'"),
        ("torchvision/convnext_atto", "'torchvision/convnext_"),
        ("elsewhere/resnet18", "Did you mean 'resnet18'"),
        ("quantized_resnet18", "resnet18"),
        ("", "timm.list_models"),
        ("zzz", "torchvision.models.list_models()"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(model: str, hint: str) -> None:
    error = refusal(BackboneError, lambda: parse_name(model))
    assert repr(model) in error.arrived
    assert hint in error.todo


@pytest.mark.parametrize(
    ("model", "hint"),
    [("resnet18.a1_in1", "'a1_in1k'"), ("torchvision/mobilenet_v2.IMAGENET1K_V3", "'IMAGENET1K_V")],
)
def test_an_unknown_tag_gets_the_nearest_ones(model: str, hint: str) -> None:
    error = refusal(BackboneError, lambda: parse_name(model))
    assert repr(model.partition(".")[2]) in error.arrived
    assert hint in error.todo


def test_a_network_without_weights_has_no_tags_and_says_so() -> None:
    assert "it has none" in refusal(BackboneError, lambda: parse_name("mnasnet_140.in1k")).needed
    error = refusal(BackboneError, lambda: open_network("mnasnet_140", 3))
    assert error.arrived == "mnasnet_140 with pretrained=True"
    assert "pretrained=False" in error.todo


# Opened by name


@pytest.mark.parametrize(
    ("model", "description"),
    [
        ("resnet18", "timm resnet18 (random weights)"),
        ("torchvision/resnet18", "torchvision resnet18 (random weights)"),
        ("squeezenet1_1", "torchvision squeezenet1_1 (random weights)"),
    ],
)
def test_what_was_opened_is_said(model: str, description: str) -> None:
    opened = open_network(model, 3, pretrained=False)
    assert opened.description == description
    assert opened.name == description.removesuffix(" (random weights)")


@pytest.mark.usefixtures("without_values")
def test_preprocessing_is_the_tags() -> None:
    usual, tagged = (open_network(name, 3, pretrained=False) for name in ("resnet34", "resnet34.gluon_in1k"))
    for opened, name in ((usual, "resnet34"), (tagged, "resnet34.gluon_in1k")):
        config = resolve_model_data_config(timm.create_model(name))
        assert opened.preprocessing == Preprocessing.from_timm(config)
    assert usual.preprocessing != tagged.preprocessing
    one, two = (open_network(f"torchvision/mobilenet_v2.IMAGENET1K_V{n}", 3, pretrained=False) for n in (1, 2))
    assert (one.preprocessing.resize, two.preprocessing.resize) == ((256, 256), (232, 232))


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_side_branches_are_taken_off_and_the_networks_own_normalisation_stays(name: str) -> None:
    network = open_network(f"torchvision/{name}", 3, pretrained=False).network
    assert network.transform_input
    assert not network.aux_logits
    assert not any("aux" in key.lower() for key in network.state_dict())


@pytest.mark.usefixtures("without_values")
def test_a_vision_transformer_is_built_for_the_size_of_its_tag() -> None:
    opened = open_network("torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1", 3, pretrained=False)
    assert opened.network.image_size == 384
    assert opened.preprocessing.image_size == (384, 384)


def test_weights_without_a_classifier_are_refused() -> None:
    error = refusal(BackboneError, lambda: open_network("torchvision/vgg16.IMAGENET1K_FEATURES", 3, pretrained=False))
    assert "vgg16.IMAGENET1K_FEATURES" in error.arrived


@pytest.mark.usefixtures("without_values")
def test_an_encoder_without_a_classifier_is_refused() -> None:
    error = refusal(BackboneError, lambda: open_network("mobilenetv5_300m_enc", 3, pretrained=False))
    assert "encoder" in error.arrived
    error = refusal(BackboneError, lambda: open_network(timm.create_model("resnet18", num_classes=0), 3))
    assert "ResNet" in error.arrived


def test_a_path_that_is_no_file_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pth", str(tmp_path), "imagenet"):
        error = refusal(BackboneError, lambda path=path: open_network("resnet18", 3, pretrained=path))
        assert repr(str(path)) in error.arrived


# Weights from files


@pytest.mark.parametrize(
    ("model", "file", "classes", "head"),
    [
        ("torchvision/squeezenet1_1", "squeezenet1_1-torchvision.pth", 1000, "classifier.1"),
        ("torchvision/mobilenet_v2", "mobilenet_v2-torchvision.pth", 1000, "classifier.1"),
        ("mobilenetv2_100", "mobilenetv2_100-timm.pth", 1000, "classifier"),
        ("resnet18", "resnet18-food101.pth", 101, "fc"),
        ("torchvision/resnet18", "resnet18-food101.pth", 101, "fc"),
        ("resnet18", "resnet18-food101.pth", 2, "fc"),
    ],
)
def test_the_backbone_is_the_files_and_the_head_is_new_whatever_the_number_of_classes(
    assets: Path, model: str, file: str, classes: int, head: str
) -> None:
    path = assets / "weights" / file
    opened = open_network(model, classes, pretrained=path)
    wanted, own = torch.load(path, weights_only=True), opened.network.state_dict()
    assert opened.description.endswith(f"(weights from {file})")
    assert opened.head == (head,)
    assert all(torch.equal(own[name], wanted[name].to(own[name].dtype)) for name in own if not name.startswith(head))
    assert own[f"{head}.weight"].shape[0] == classes
    if classes == wanted[f"{head}.weight"].shape[0]:
        assert not torch.isclose(own[f"{head}.weight"], wanted[f"{head}.weight"].float()).flatten(1).all(1).any()


def test_the_tag_decides_the_preprocessing_of_a_file(assets: Path) -> None:
    path = str(assets / "weights" / "mobilenet_v2-torchvision.pth")
    one, two = (open_network(f"torchvision/mobilenet_v2.IMAGENET1K_V{n}", 3, pretrained=path) for n in (1, 2))
    assert (one.preprocessing.resize, two.preprocessing.resize) == ((256, 256), (232, 232))


@pytest.mark.parametrize("model", ["resnet18", "torchvision/squeezenet1_1", "mobilenetv2_100"])
def test_a_file_of_another_architecture_is_refused(assets: Path, model: str) -> None:
    path = assets / "weights" / "mobilenet_v2-torchvision.pth"
    error = refusal(BackboneError, lambda: open_network(model, 3, pretrained=path))
    assert str(path) in error.arrived
    assert model.rpartition("/")[2] in error.arrived
    assert "missing" in error.arrived


# Heads

LAST = {"resnet18": "Linear", "torchvision/squeezenet1_1": "Conv2d", "convnext_atto": "Linear"}


SEVERAL = {
    "levit_128s": ("head.linear", "head_dist.linear"),
    "crossvit_tiny_240": ("head.0", "head.1"),
    "volo_d1_224": ("head", "aux_head"),
    "repvit_m1": ("head.head.l", "head.head_dist.l"),
    "deit_tiny_distilled_patch16_224": ("head", "head_dist"),
}


def made(factory: Callable[[int, int], nn.Module], told: list[int]) -> Callable[[int, int], nn.Module]:
    def make(features: int, classes: int) -> nn.Module:
        told.append(features)
        return factory(features, classes)

    return make


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize(("name", "layers"), SEVERAL.items())
def test_each_of_several_classifiers_gets_the_head_that_is_asked_for(name: str, layers: tuple[str, ...]) -> None:
    plain = open_network(name, 7, pretrained=False)
    headed = open_network(name, 7, pretrained=False, head=Head(hidden=(6,), dropout=0.1))
    told: list[int] = []
    given = open_network(name, 7, pretrained=False, head=made(nn.Linear, told))
    for path in layers:
        old = timm.create_model(name).get_submodule(path)
        assert plain.network.get_submodule(path).weight.shape == (7, *old.weight.shape[1:])
        kinds = [type(module).__name__ for module in headed.network.get_submodule(path)]
        assert kinds == ["Linear", "ReLU", "Dropout", "Linear"]
        assert given.network.get_submodule(path).in_features == old.in_features
    assert plain.head == headed.head == given.head
    assert len(told) == len(layers)
    images = torch.zeros(2, 3, *plain.preprocessing.image_size)
    for opened in (plain, headed, given):
        assert opened.network.train()(images).shape == opened.network.eval()(images).shape == (2, 7)


def test_classifiers_beside_the_one_that_is_named_become_new_in_the_same_way(tmp_path: Path) -> None:
    old = timm.create_model("levit_128s", num_classes=7)
    torch.save(old.state_dict(), tmp_path / "old.pth")
    head = Head(at="head_dist", init="xavier")
    network = open_network("levit_128s", 7, pretrained=tmp_path / "old.pth", head=head).network
    assert isinstance(network.head_dist, nn.Linear)
    assert network.head.linear.weight.any()
    assert not torch.isclose(network.head.linear.weight, old.head.linear.weight).all(1).any()


@pytest.mark.usefixtures("without_values")
def test_one_finished_module_cannot_stand_in_several_places() -> None:
    error = refusal(BackboneError, lambda: open_network("levit_128s", 7, pretrained=False, head=nn.Linear(384, 7)))
    assert "2 classifiers (head.linear, head_dist.linear)" in error.arrived
    assert "a function" in error.needed


def test_a_file_that_was_saved_with_a_head_elsewhere_fits_the_same_head_again(tmp_path: Path) -> None:
    head = Head(at="classifier", init="xavier")
    state = open_network("torchvision/mobilenet_v2", 3, pretrained=False, head=head).network.state_dict()
    torch.save(state, tmp_path / "saved.pth")
    again = open_network("torchvision/mobilenet_v2", 3, pretrained=tmp_path / "saved.pth", head=head)
    assert torch.equal(again.network.features[0][0].weight, state["features.0.0.weight"])


def test_a_file_of_another_patch_size_is_another_architecture(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224", depth=1, patch_size=32).state_dict(), tmp_path / "32.pth")
    network = timm.create_model("vit_tiny_patch16_224", depth=1)
    error = refusal(BackboneError, lambda: open_network(network, 3, pretrained=tmp_path / "32.pth", head=Head()))
    assert "of another shape" in error.arrived


@pytest.mark.usefixtures("without_values")
def test_a_layer_of_the_head_that_only_happens_to_be_as_wide_stays_what_it_is() -> None:
    network = open_network("caformer_s18", 2048, pretrained=False, head=Head(hidden=(6,))).network
    assert isinstance(network.head.fc.fc1, nn.Linear)
    assert isinstance(network.head.fc.fc2, nn.Sequential)


@pytest.mark.usefixtures("without_values")
def test_one_of_several_classifiers_may_be_replaced_and_the_others_still_belong_to_the_head() -> None:
    opened = open_network("levit_128s", 7, pretrained=False, head=Head(hidden=(6,), at="head_dist"))
    assert opened.head == ("head_dist", "head")
    assert isinstance(opened.network.head_dist, nn.Sequential)
    assert rebuild(opened.architecture).head == opened.head


@pytest.mark.parametrize("model", ["resnet18", "torchvision/squeezenet1_1", "convnext_atto"])
def test_a_described_head_stands_where_the_classifier_stood(model: str) -> None:
    opened = open_network(model, 3, pretrained=False, head=Head(hidden=(6,), dropout=0.1), image_size=64)
    (path,) = opened.head
    assert [type(module).__name__ for module in opened.network.get_submodule(path)][1::2] == ["ReLU", LAST[model]]
    assert opened.network.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_a_head_may_stand_elsewhere() -> None:
    opened = open_network("torchvision/mobilenet_v2", 3, pretrained=False, head=Head(at="classifier"))
    assert opened.head == ("classifier",)
    assert isinstance(opened.network.classifier, nn.Linear)
    error = refusal(BackboneError, lambda: open_network("resnet18", 3, pretrained=False, head=Head(at="fcc")))
    assert "'fc'" in error.todo


@pytest.mark.parametrize(
    ("model", "head", "word"),
    [
        ("torchvision/squeezenet1_1", Head(at="classifier"), "fails at 224 x 224 pixels"),
        ("convnext_atto", Head(at="head"), "fails at 224 x 224 pixels"),
        ("resnet18", nn.Sequential(nn.ReLU(), nn.Linear(100, 3)), "fails at 224 x 224 pixels"),
        ("resnet18", nn.Identity(), "gives [1, 512] for one picture"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_at_the_door(model: str, head: Any, word: str) -> None:
    error = refusal(BackboneError, lambda: open_network(model, 3, pretrained=False, head=head))
    assert word in error.arrived
    assert "head=" in error.arrived


@pytest.mark.parametrize(
    ("model", "options", "arrived"),
    [
        ("resnet18", {"head": nn.Linear(512, 4)}, "a head that gives 4 numbers"),
        ("resnet18", {"head": nn.Linear(100, 3)}, "begins with Linear(in_features=100, out_features=3"),
        ("torchvision/resnet18", {"head": nn.Sequential(nn.Linear(100, 3))}, "begins with Linear(in_features=100"),
        ("torchvision/squeezenet1_1", {"head": nn.Linear(512, 3)}, "begins with Linear(in_features=512"),
        ("resnet18", {"head": Head(at="fcc")}, "the module path 'fcc'"),
        ("torchvision/resnet18", {"head": Head(at="layer4.bn3")}, "the module path 'layer4.bn3'"),
        ("resnet18", {"head": Head(at="bn1")}, "'bn1', a BatchNorm2d that does not say"),
        ("dla34", {"image_size": 20}, "fails at 20 x 20 pixels"),
        ("vit_tiny_patch16_224", {"image_size": 96}, "image_size=96"),
        ("mobilenetv5_300m_enc", {}, "an encoder without a classifier"),
        ("resnet18", {"head": Head(reuse={"cat": "tabyy"})}, "no class of imagenet-1k"),
        ("torchvision/resnet18", {"head": Head(reuse={"cat": "tabyy"})}, "no class of torchvision's IMAGENET1K_V1"),
        ("resnet81", {}, "the model 'resnet81'"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, model: str, options: dict[str, Any], arrived: str
) -> None:
    def fail(*arguments: Any, **_: Any) -> None:
        raise AssertionError("asked for weights")

    monkeypatch.setattr("headstart.model.zoo.fetch", fail)
    monkeypatch.setattr("headstart.model.zoo.timm_source", fail)
    error = refusal(BackboneError, lambda: open_network(model, ("cat", "dog", "owl"), **options))
    assert arrived in error.arrived


def test_a_network_that_cannot_be_tried_without_values_is_tried_with_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(torchvision.models.regnet_x_400mf().state_dict(), tmp_path / "regnet.pth")
    monkeypatch.setattr("headstart.model.zoo.fetch", lambda url, name: tmp_path / "regnet.pth")
    opened = open_network("torchvision/regnet_x_400mf", 3, head=Head(hidden=(6,)))
    assert isinstance(opened.network.fc, nn.Sequential)
    error = refusal(BackboneError, lambda: open_network("torchvision/regnet_x_400mf", 3, head=Head(at="trunk_output")))
    assert "fails at 224 x 224 pixels" in error.arrived


class Scaled(nn.Module):
    """A head with a tensor that is no parameter, a look at values, and something that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(512)
        self.lock = threading.Lock()
        self.squeeze, self.excite = nn.Linear(512, 8), nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        if features.abs().max() > 1e9:
            raise ValueError
        answer: Tensor = self.excite(self.squeeze(features * self.scale))
        return answer


@pytest.mark.parametrize("as_factory", [False, True])
def test_a_head_of_ones_own_code_is_neither_copied_nor_moved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_factory: bool
) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    monkeypatch.setattr("headstart.model.zoo.fetch", lambda url, name: tmp_path / "resnet18.pth")
    head, told = Scaled(), []
    before = values(head)
    opened = open_network("torchvision/resnet18", 3, head=made(lambda *_: head, told) if as_factory else head)
    assert opened.network.fc is head
    assert same(values(head), before)
    assert told == [512] * as_factory


def test_a_network_of_timms_that_looks_at_values_while_it_is_built_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def create(name: str, **options: Any) -> nn.Module:
        torch.linspace(0, 1, 3)[1].item()
        return real(name, **{**options, "pretrained": False})

    monkeypatch.setattr("headstart.model.zoo.timm_source", lambda full, config: {})
    monkeypatch.setattr(timm, "create_model", create)
    assert open_network("test_resnet", 3, head=Head(hidden=(6,))).head == ("fc",)


def test_a_head_of_ones_own_is_put_in_as_it_is_after_it_was_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    monkeypatch.setattr("headstart.model.zoo.fetch", lambda url, name: tmp_path / "resnet18.pth")
    head = nn.Linear(512, 3)
    opened = open_network("torchvision/resnet18", 3, head=head)
    assert opened.network.fc is head
    assert head.weight.device.type == "cpu"


# Sizes


@pytest.mark.usefixtures("without_values")
def test_another_size_changes_the_preprocessing_and_keeps_the_share_of_the_crop() -> None:
    usual, small = (open_network("torchvision/resnet18", 3, pretrained=False, image_size=n) for n in (None, 96))
    assert small.preprocessing == usual.preprocessing.at_size(96)
    opened = open_network("resnet18", 3, pretrained=False, image_size=96)
    config = resolve_model_data_config(timm.create_model("resnet18"), {"img_size": 96})
    assert opened.preprocessing == Preprocessing.from_timm(config)
    assert opened.preprocessing.image_size == (96, 96)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "levit_128s"])
def test_a_network_of_one_size_takes_no_other(model: str) -> None:
    error = refusal(BackboneError, lambda: open_network(model, 3, pretrained=False, image_size=96))
    assert "image_size=96" in error.arrived
    assert "image_size=224" in error.needed
    assert open_network(model, 3, pretrained=False, image_size=224).preprocessing.image_size == (224, 224)


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize(("model", "size"), [("torchvision/vit_b_32", 96), ("torchvision/alexnet", 32), ("dla34", 20)])
def test_a_size_that_a_network_fails_at_is_refused_at_the_door(model: str, size: int) -> None:
    error = refusal(BackboneError, lambda: open_network(model, 3, pretrained=False, image_size=size))
    assert f"image_size={size}" in error.arrived
    assert f"fails at {size} x {size} pixels" in error.arrived
    assert "Leave image_size out" in error.todo


def test_the_rehearsal_leaves_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    plain = open_network("resnet18", 3, pretrained=False)
    torch.manual_seed(0)
    rehearsed = open_network("resnet18", 3, pretrained=False, image_size=64)
    assert same(values(plain.network), values(rehearsed.network))
    assert all(module.training for module in rehearsed.network.modules())


# Built again


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize("head", [None, Head(hidden=(6,), dropout=0.2, init="zero"), Head(at="fc")])
@pytest.mark.parametrize("model", ["resnet18.a1_in1k", "torchvision/resnet18"])
def test_an_architecture_is_built_again_from_its_plain_values(model: str, head: Head | None) -> None:
    opened = open_network(model, 3, pretrained=False, head=head, image_size=64)
    again = rebuild(opened.architecture)
    assert again.network.state_dict().keys() == opened.network.state_dict().keys()
    assert str(again.network) == str(opened.network)
    assert (again.head, again.preprocessing) == (opened.head, opened.preprocessing)
    assert again.architecture == opened.architecture


def test_what_only_its_maker_can_build_is_not_built_again(tiny_network: Callable[..., nn.Module]) -> None:
    whole = refusal(CheckpointError, lambda: rebuild(open_network(tiny_network(3), 3).architecture))
    assert "is of the user's own making" in whole.arrived
    headed = open_network("resnet18", 3, pretrained=False, head=nn.Linear(512, 3))
    part = refusal(CheckpointError, lambda: rebuild(headed.architecture))
    assert "has a head of the user's own making" in part.arrived
    assert "load_weights" in whole.todo
    assert "load_weights" in part.todo
