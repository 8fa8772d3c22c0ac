"""Reuse: classes that the weights know by name begin as they have learned them, the others at the same scale."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from handmade import pairs, refusal
from torch import nn

from headstart import Head, ImageData, Learner
from headstart.errors import BackboneError, ConfigError
from headstart.model.names import imagenet_classes, torchvision_classes
from headstart.model.reuse import Reuse, Rows, Source, begin_as_known, given_source, matched, plan_reuse
from headstart.model.zoo import open_network

SOURCE = Source.of_descriptions(
    ["hotdog, hot dog, red hot", "ant, emmet, pismire", "crane", "crane", "cherry", "bus", "daisy"], "a source"
)


# Names


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("hotdog", 0),
        ("hot_dog", 0),
        ("Hot-Dog", 0),
        ("RED  HOT", 0),
        ("hotdog, hot dog, red hot", 0),
        ("hot dogs", 0),
        ("ants", 1),
        ("cherries", 4),
        ("bus", 5),
        ("buses", 5),
        ("daisies", 6),
        ("crane", None),
        ("wasp", None),
        ("s", None),
        ("hot", None),
    ],
)
def test_names_are_alike_whatever_their_capitals_hyphens_and_plurals(name: str, place: int | None) -> None:
    assert matched([name], SOURCE, "auto") == ({} if place is None else {name: place})


def test_a_name_of_one_class_that_is_a_synonym_of_another_says_nothing() -> None:
    source = Source.of_descriptions(["cardigan, corgi", "cardigan"], "a source")
    assert matched(["cardigan", "corgi"], source, "auto") == {"corgi": 0}
    torchvisions = torchvision_classes(torchvision.models.ResNet18_Weights.DEFAULT)
    assert matched(["crane", "crane_bird"], torchvisions, "auto") == {"crane_bird": 134}


def test_accents_are_the_same_however_their_letters_are_encoded() -> None:
    source = Source.of_descriptions(["cr\u00e8me"], "a source")
    assert matched(["cre\u0300me"], source, "auto") == {"cre\u0300me": 0}


def test_a_mapping_takes_what_it_names_and_nothing_else() -> None:
    assert matched(["ants", "snack"], SOURCE, {"snack": "red hot"}) == {"snack": 0}


def test_a_mapping_reads_names_as_auto_does() -> None:
    assert matched(["snack"], SOURCE, {"snack": "Hot-Dogs"}) == {"snack": 0}


def test_a_name_of_several_classes_is_told_apart_by_what_only_one_goes_by() -> None:
    source = imagenet_classes(1000)
    assert source is not None
    error = refusal(BackboneError, lambda: matched(["bird"], source, {"bird": "crane"}))
    assert error.needed == "a name that only one of them has: 'n02012849', 'n03126707'"
    assert matched(["bird"], source, {"bird": "n02012849"}) == {"bird": 134}


@pytest.mark.parametrize(
    ("kind", "reuse", "arrived", "todo"),
    [
        (BackboneError, {"snack": "hotdig"}, "no class of a source", "'hotdog'"),
        (BackboneError, {"snack": "crane"}, "a name of 2 classes of a source", "only the one you mean"),
        (ConfigError, {"snak": "hotdog"}, "reuse for snak", "'snack'"),
    ],
)
def test_a_name_that_is_not_there_gets_the_nearest_ones(kind: Any, reuse: Any, arrived: str, todo: str) -> None:
    error = refusal(kind, lambda: matched(["ants", "snack"], SOURCE, reuse))
    assert arrived in error.arrived
    assert todo in error.todo


def test_the_hot_dog_is_where_both_libraries_have_it_and_not_where_tutorials_look_for_it() -> None:
    timms = imagenet_classes(1000)
    torchvisions = torchvision_classes(torchvision.models.ResNet18_Weights.DEFAULT)
    assert timms is not None
    for source in (timms, torchvisions):
        assert len(source.names) == 1000
        assert matched(["hotdog", "n07697537"], source, "auto") == {"hotdog": 934, "n07697537": 934}
        assert matched(["hotdog"], source, {"hotdog": "hotdog, hot dog, red hot"}) == {"hotdog": 934}
        assert "photocopier" in source.names[713]
        assert matched(["ants", "bees"], source, "auto") == {"ants": 310, "bees": 309}


def test_every_imagenet_that_timm_has_weights_for_is_known_by_its_count() -> None:
    for count in (1000, 11221, 11821, 21841, 21842, 21843):
        source = imagenet_classes(count)
        assert source is not None
        assert len(source.names) == count
    assert imagenet_classes(512) is None


def test_torchvisions_names_stand_at_the_places_that_timm_gives_them() -> None:
    timms, torchvisions = imagenet_classes(1000), torchvision_classes(torchvision.models.ResNet18_Weights.DEFAULT)
    assert timms is not None
    told_apart = {"crane bird", "maillot tank suit"}  # torchvision's words for two names that are there twice
    assert {t[0] for t, names in zip(torchvisions.names, timms.names, strict=True) if t[0] not in names} <= told_apart


# Names that the user brings


def test_names_come_from_a_list_or_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("hot_dog\n\n apple pie \n", encoding="utf-8")
    names = (("hot_dog",), ("apple pie",))
    assert given_source(["hot_dog", "apple pie"]).names == names
    assert given_source(tmp_path / "names.txt").names == given_source(str(tmp_path / "names.txt")).names == names


def test_a_mark_at_the_beginning_of_a_file_is_no_letter(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("hot_dog\n", encoding="utf-8-sig")
    assert given_source(tmp_path / "names.txt").names == (("hot_dog",),)


def test_imagenets_own_list_with_its_two_cranes_is_taken() -> None:
    source = imagenet_classes(1000)
    assert source is not None
    names = [each[0] for each in source.names]
    assert names.count("crane") == 2
    assert len(given_source(names).names) == 1000


def test_names_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.txt").touch()
    for names in (tmp_path / "none.txt", tmp_path, tmp_path / "bytes.txt", tmp_path / "empty.txt", []):
        refusal(ConfigError, lambda names=names: given_source(names))


# Rows


def rows(classes: int, features: int = 4, bias: bool = True) -> Rows:
    chance = torch.Generator().manual_seed(classes)
    weight = 2 + torch.randn(classes, features, generator=chance)
    return Rows(weight, torch.randn(classes, generator=chance) if bias else None)


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(4, 3, 1), nn.Linear(4, 3, bias=False)])
def test_known_classes_get_their_rows_bit_for_bit_and_others_are_of_the_same_scale(layer: Any) -> None:
    torch.manual_seed(0)
    old = rows(7)
    if isinstance(layer, nn.Conv2d):
        old = old._replace(weight=old.weight[..., None, None])
    begin_as_known(layer, old, Reuse(SOURCE, {"c": 5, "a": 0}, ("a", "b", "c")), alike=True)
    assert torch.equal(layer.weight[0], old.weight[0])
    assert torch.equal(layer.weight[2], old.weight[5])
    if layer.bias is not None:
        assert old.bias is not None
        assert torch.equal(layer.bias[[0, 2]], old.bias[[0, 5]])


def test_other_classes_begin_alike_with_what_the_old_ones_have_in_common() -> None:
    old, layer = rows(7), nn.Linear(4, 3)
    begin_as_known(layer, old, Reuse(SOURCE, {"b": 2}, ("a", "b", "c")), alike=True)
    assert torch.equal(layer.weight[0], layer.weight[2])
    assert torch.allclose(layer.weight[0].norm(), old.weight.norm(dim=1).mean())
    common = old.weight.mean(0)
    assert torch.allclose(layer.weight[0] / layer.weight[0].norm(), common / common.norm())
    assert old.bias is not None
    assert torch.equal(layer.bias[0], old.bias.mean())


def test_old_classes_that_have_nothing_in_common_leave_the_others_at_zero() -> None:
    source = Source((("one",), ("other",)), "a source")
    old, layer = Rows(torch.tensor([[1.0, -2.0], [-1.0, 2.0]]), None), nn.Linear(2, 2)
    begin_as_known(layer, old, Reuse(source, {"a": 0}, ("a", "b")), alike=True)
    assert layer.weight.tolist() == [[1.0, -2.0], [0.0, 0.0]]


def test_rows_of_half_precision_become_the_layers_own() -> None:
    layer = nn.Linear(4, 2)
    old = Rows(*(tensor.half() for tensor in rows(7)))
    begin_as_known(layer, old, Reuse(SOURCE, {"a": 1}, ("a", "b")), alike=False)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight[0], old.weight[1].float())


def test_an_old_layer_of_other_classes_or_features_is_refused_and_nothing_is_changed() -> None:
    layer = nn.Linear(4, 2)
    before = layer.weight.clone()
    reuse = Reuse(SOURCE, {"a": 1}, ("a", "b"))
    error = refusal(BackboneError, lambda: begin_as_known(layer, rows(9), reuse, alike=True))
    assert error.arrived == "weights with 9 classes, and 7 names from a source"
    assert "source_classes" in error.todo
    refusal(BackboneError, lambda: begin_as_known(layer, rows(7, features=5), reuse, alike=True))
    assert torch.equal(layer.weight, before)


def test_what_begins_as_what_is_told() -> None:
    reuse = plan_reuse(Head(reuse="auto"), ["ants", "wasp"], SOURCE)
    assert str(reuse) == "reuse, from a source:\n  ants  begins as 'ant, emmet, pismire'\n  wasp  new"
    nothing = plan_reuse(Head(reuse="auto"), ["wasp"], SOURCE)
    assert str(nothing) == (
        "reuse: a source has none of the classes, the whole head is new; "
        "it has hotdog, hot dog, red hot, ant, emmet, pismire, crane and 4 more"
    )
    error = refusal(ConfigError, lambda: plan_reuse(Head(reuse="auto"), ["wasp"], None))
    assert "source_classes" in error.todo


# Networks


def bits(network: nn.Module, path: str, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    layer: Any = network.get_submodule(path)
    return layer.weight[place], layer.bias[place]


def alike(left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("library", ["", "torchvision/"])
def test_a_file_brings_its_classifier_and_the_user_its_names(assets: Path, library: str) -> None:
    file = assets / "weights" / "resnet18-food101.pth"
    names = (assets / "weights" / "resnet18-food101.classes.txt").read_text().split()
    state = torch.load(file, weights_only=True)
    for head in (Head(reuse="auto", source_classes=names), Head(reuse={"hot_dog": "hot_dog"}, source_classes=names)):
        opened = open_network(f"{library}resnet18", ("hot_dog", "not_hot_dog"), pretrained=file, head=head)
        place = names.index("hot_dog")
        assert alike(
            bits(opened.network, "fc", 0), (state["fc.weight"][place].float(), state["fc.bias"][place].float())
        )
        norms = opened.network.fc.weight.norm(dim=1)
        assert 0.7 < (norms[1] / norms[0]).item() < 1.4


@pytest.mark.parametrize(
    ("model", "file", "path"),
    [
        ("mobilenetv2_100", "mobilenetv2_100-timm.pth", "classifier"),
        ("torchvision/mobilenet_v2", "mobilenet_v2-torchvision.pth", "classifier.1"),
        ("torchvision/squeezenet1_1", "squeezenet1_1-torchvision.pth", "classifier.1"),
    ],
)
def test_a_file_with_as_many_classes_as_the_tag_has_names_needs_no_others(
    assets: Path, model: str, file: str, path: str
) -> None:
    opened = open_network(model, ("hotdog", "wasp"), pretrained=assets / "weights" / file, head=Head(reuse="auto"))
    state = torch.load(assets / "weights" / file, weights_only=True)
    assert opened.reuse is not None
    assert opened.reuse.rows == {"hotdog": 934}
    assert alike(bits(opened.network, path, 0), (state[f"{path}.weight"][934], state[f"{path}.bias"][934]))


def test_a_file_with_other_classes_than_the_tags_names_needs_names(assets: Path) -> None:
    file = assets / "weights" / "resnet18-food101.pth"
    error = refusal(
        BackboneError, lambda: open_network("resnet18", ("hotdog", "x"), pretrained=file, head=Head(reuse="auto"))
    )
    assert "weights with 101 classes, and 1000 names from imagenet-1k" in error.arrived
    assert "source_classes" in error.todo


def test_dropout_may_stand_before_the_rows_and_an_init_rules_the_others(assets: Path) -> None:
    file = assets / "weights" / "resnet18-food101.pth"
    names = assets / "weights" / "resnet18-food101.classes.txt"
    head = Head(dropout=0.3, init="zero", reuse="auto", source_classes=names)
    network = open_network("resnet18", ("hot_dog", "wasp"), pretrained=file, head=head).network
    place = names.read_text().split().index("hot_dog")
    assert [type(module).__name__ for module in network.fc] == ["Dropout", "Linear"]
    assert torch.equal(network.fc[1].weight[0], torch.load(file, weights_only=True)["fc.weight"][place].float())
    assert not network.fc[1].weight[1].any()


@pytest.mark.parametrize("name", ["levit_128s", "repvit_m1", "caformer_s18", "crossvit_tiny_240"])
def test_each_of_several_classifiers_begins_with_its_own_rows(name: str, tmp_path: Path) -> None:
    old = timm.create_model(name)
    for module in old.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
    torch.save(old.state_dict(), tmp_path / "old.pth")
    opened = open_network(name, ("bees", "wasp"), pretrained=tmp_path / "old.pth", head=Head(reuse="auto"))
    state, new = old.state_dict(), opened.network.state_dict()
    for key, value in state.items():
        known = new[key][0] if new[key].shape != value.shape else new[key]
        assert torch.equal(known, value[309] if new[key].shape != value.shape else value), key
    with torch.no_grad():
        images = torch.randn(2, 3, *opened.preprocessing.image_size, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(opened.network.eval()(images)[:, 0], old.eval()(images)[:, 309], atol=1e-5)


def test_ones_own_network_still_has_its_head_and_its_names_are_given(assets: Path) -> None:
    names = (assets / "weights" / "resnet18-food101.classes.txt").read_text().split()
    network = torchvision.models.resnet18(num_classes=101)
    network.load_state_dict(torch.load(assets / "weights" / "resnet18-food101.pth", weights_only=True))
    row = network.fc.weight[names.index("sushi")].clone()
    head = Head(reuse={"raw": "sushi"}, source_classes=names, at="fc")
    assert torch.equal(open_network(network, ("cooked", "raw"), head=head).network.fc.weight[1], row)


def test_a_timm_network_of_ones_own_that_has_imagenets_head_knows_its_names() -> None:
    network = timm.create_model("test_resnet")
    row = network.fc.weight[309].clone()
    opened = open_network(network, ("bees", "wasp"), head=Head(reuse="auto"))
    assert torch.equal(opened.network.fc.weight[0], row)
    error = refusal(
        ConfigError,
        lambda: open_network(timm.create_model("test_resnet", num_classes=7), ("bees",), head=Head(reuse="auto")),
    )
    assert "nobody has named" in error.arrived


def test_what_headstart_saved_brings_its_own_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ImageData.from_loaders(pairs(2, side=32), classes=("ant", "bee", "wasp"))
    first = Learner("test_resnet", data, pretrained=False, head=Head(init="xavier"))
    first.save(tmp_path / "insects.safetensors")
    other = ImageData.from_loaders(pairs(2, side=32), classes=("fly", "moth", "wasps"))
    capsys.readouterr()
    second = Learner("test_resnet", other, pretrained=tmp_path / "insects.safetensors", head=Head(reuse="auto"))
    assert torch.equal(second.model.fc.weight[2], first.model.fc.weight[2])
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"reuse, from {tmp_path / 'insects.safetensors'}:",
        "  fly    new",
        "  moth   new",
        "  wasps  begins as 'wasp'",
    ]
    again = Learner.load(second.save(tmp_path / "second.safetensors"))
    assert torch.equal(again.model.fc.weight, second.model.fc.weight)


def test_random_weights_have_nothing_to_reuse() -> None:
    error = refusal(ConfigError, lambda: open_network("resnet18", ("bees",), pretrained=False, head=Head(reuse="auto")))
    assert "random weights" in error.arrived


def test_weights_of_other_classes_than_those_that_are_named_are_told_before_they_are_asked_for() -> None:
    error = refusal(
        BackboneError,
        lambda: open_network("resnet18", ("bees",), head=Head(reuse="auto", source_classes=["a", "bees"])),
    )
    assert error.arrived == "weights with 1000 classes, and 2 names from source_classes"
    error = refusal(
        BackboneError,
        lambda: open_network("vit_small_patch14_dinov2", ("a",), head=Head(reuse="auto", source_classes=["a"])),
    )
    assert "without a classifier" in error.arrived


def test_a_file_names_its_classes_for_ones_own_network_too(tmp_path: Path) -> None:
    data = ImageData.from_loaders(pairs(2, side=32), classes=("ant", "bee", "wasp"))
    first = Learner("test_resnet", data, pretrained=False, head=Head(init="xavier"))
    first.save(tmp_path / "insects.safetensors")
    network = timm.create_model("test_resnet", num_classes=3)
    opened = open_network(
        network, ("fly", "wasp"), pretrained=tmp_path / "insects.safetensors", head=Head(reuse="auto")
    )
    assert torch.equal(opened.network.fc.weight[1], first.model.fc.weight[2])


def test_a_name_that_the_weights_do_not_have_is_told_before_they_are_asked_for() -> None:
    error = refusal(BackboneError, lambda: open_network("resnet18", ("snack",), head=Head(reuse={"snack": "hotdig"})))
    assert "'hotdog'" in error.todo


def test_a_file_without_a_classifier_has_nothing_to_reuse(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("fc.")}, tmp_path / "body.pth")
    error = refusal(
        BackboneError,
        lambda: open_network("test_resnet", ("bees",), pretrained=tmp_path / "body.pth", head=Head(reuse="auto")),
    )
    assert "no single layer of classes" in error.arrived


def test_a_head_elsewhere_reuses_what_it_replaces_and_nothing_else(tmp_path: Path) -> None:
    old = timm.create_model("levit_128s")
    torch.save(old.state_dict(), tmp_path / "old.pth")
    opened = open_network(
        "levit_128s", ("bees",), pretrained=tmp_path / "old.pth", head=Head(reuse="auto", at="head.linear")
    )
    assert torch.equal(opened.network.head.linear.weight[0], old.head.linear.weight[309])
    assert torch.equal(opened.network.head_dist.linear.weight[0], old.head_dist.linear.weight[309])
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "small.pth")
    elsewhere = Head(reuse="auto", at="layer4.0.conv1")
    error = refusal(
        BackboneError,
        lambda: open_network("test_resnet", ("bees",), pretrained=tmp_path / "small.pth", head=elsewhere),
    )
    assert "no single layer of classes" in error.arrived


def test_a_file_that_headstart_saved_with_dropout_in_its_head_is_reused_too(tmp_path: Path) -> None:
    data = ImageData.from_loaders(pairs(2, side=32), classes=("ant", "bee", "wasp"))
    first = Learner("test_resnet", data, pretrained=False, head=Head(dropout=0.1, init="xavier"))
    first.save(tmp_path / "insects.safetensors")
    second = Learner("test_resnet", data, pretrained=tmp_path / "insects.safetensors", head=Head(reuse="auto"))
    assert torch.equal(second.model.fc.weight, first.model.fc[1].weight)
    hidden = Learner("test_resnet", data, pretrained=False, head=first.model.fc[1].in_features)
    hidden.save(tmp_path / "hidden.safetensors")
    error = refusal(
        BackboneError,
        lambda: Learner("test_resnet", data, pretrained=tmp_path / "hidden.safetensors", head=Head(reuse="auto")),
    )
    assert "hidden layers" in error.needed
