"""Heads: described, found, built and put in place; and what is refused before anything is changed."""

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from handmade import refusal
from torch import nn

from headstart.errors import BackboneError, ConfigError
from headstart.model.head import Head, as_head, class_layers, demand_module, initialise, last_layer, replace_head, width

# What a Head describes


def test_a_plain_head_is_one_linear_layer() -> None:
    head = Head().build(8, 3)
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (8, 3)


def test_hidden_widths_and_dropout_stand_in_the_order_of_the_docstring() -> None:
    head = Head(hidden=(6, 5), dropout=0.2).build(8, 3)
    assert [type(module).__name__ for module in head] == ["Linear", "ReLU", "Linear", "ReLU", "Dropout", "Linear"]
    assert [tuple(module.weight.shape) for module in head if isinstance(module, nn.Linear)] == [(6, 8), (5, 6), (3, 5)]
    assert head(torch.zeros(2, 8)).shape == (2, 3)


def test_a_head_on_feature_maps_is_made_of_convolutions_and_drops_whole_maps() -> None:
    head = Head(hidden=(6,), dropout=0.5).build(8, 3, convolutional=True)
    assert [type(module).__name__ for module in head] == ["Conv2d", "ReLU", "Dropout2d", "Conv2d"]
    assert head(torch.zeros(2, 8, 4, 4)).shape == (2, 3, 4, 4)


def test_a_list_of_widths_is_kept_as_a_tuple() -> None:
    assert Head(hidden=[6, 5]) == Head(hidden=(6, 5))


@pytest.mark.parametrize("convolutional", [False, True])
def test_zero_makes_all_classes_equally_probable(convolutional: bool) -> None:
    last = Head(init="zero").build(8, 3, convolutional=convolutional)
    assert not last.weight.any()
    assert not last.bias.any()


def test_small_and_xavier_have_their_spread_and_no_bias() -> None:
    torch.manual_seed(0)
    small, xavier = (Head(init=init).build(400, 100) for init in ("small", "xavier"))
    assert small.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert xavier.weight.abs().max().item() == pytest.approx((6 / 500) ** 0.5, rel=0.01)
    assert not small.bias.any()
    assert not xavier.bias.any()


def test_the_init_is_the_last_layers_alone() -> None:
    head = Head(hidden=(6,), init="zero").build(8, 3)
    assert head[0].weight.any()
    assert not head[-1].weight.any()


def test_initialise_knows_layers_without_bias_and_leaves_other_modules_alone() -> None:
    layer, norm = nn.Linear(4, 2, bias=False), nn.BatchNorm1d(4)
    initialise(layer, "zero")
    initialise(norm, "zero")
    assert not layer.weight.any()
    assert norm.weight.all()


def test_all_that_is_wrong_with_a_head_is_told_at_once() -> None:
    error = refusal(ConfigError, lambda: Head(hidden=(0,), dropout=1.0, init="random"))
    for words in ("hidden=(0,)", "dropout=1.0", "init='random'"):
        assert words in error.arrived
    assert "default, zero, small, xavier" in error.needed


@pytest.mark.parametrize("hidden", [256, (256, 0), (256, 1.5), (True,), "wide", None])
def test_hidden_widths_are_whole_numbers_above_zero(hidden: Any) -> None:
    assert f"hidden={hidden!r}" in refusal(ConfigError, lambda: Head(hidden=hidden)).arrived


@pytest.mark.parametrize("dropout", [-0.1, 1, float("nan"), None, "0.5", True])
def test_dropout_is_a_share_below_one(dropout: Any) -> None:
    assert f"dropout={dropout!r}" in refusal(ConfigError, lambda: Head(dropout=dropout)).arrived


# Shorthands


def test_numbers_are_the_widths_of_hidden_layers() -> None:
    assert as_head(256) == Head(hidden=(256,))
    assert as_head((256, 120)) == as_head([256, 120]) == Head(hidden=(256, 120))


def test_what_is_a_head_already_stays_what_it_is() -> None:
    described, module = Head(dropout=0.5), nn.Linear(2, 2)
    assert as_head(described) is described
    assert as_head(module) is module
    assert as_head(nn.Linear) is nn.Linear
    assert as_head(None) is None


@pytest.mark.parametrize("head", ["linear", 0.5, True, {"hidden": 3}])
def test_what_cannot_be_a_head_is_refused(head: Any) -> None:
    assert f"head={head!r}" in refusal(ConfigError, lambda: as_head(head)).arrived


def test_a_head_class_without_its_brackets_is_refused_with_the_brackets() -> None:
    assert "Head()" in refusal(ConfigError, lambda: as_head(Head)).todo


# Where it goes


def network() -> nn.Sequential:
    """Make a network whose head is the layer `head.last`."""
    head = nn.Sequential(OrderedDict(drop=nn.Dropout(0.5), last=nn.Linear(8, 10)))
    return nn.Sequential(
        OrderedDict(body=nn.Conv2d(3, 8, 1), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=head)
    )


def test_the_last_linear_or_convolution_is_the_head() -> None:
    assert last_layer(network()) == ("head.last",)
    assert last_layer(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 2, 1), nn.ReLU())) == ("1",)
    assert last_layer(nn.Sequential(nn.Flatten(), nn.ReLU())) == ()


def test_width_is_told_by_linear_layers_and_convolutions_and_by_containers_that_end_in_one() -> None:
    net = network()
    assert width(net, "head.last") == 10
    assert width(net, "body") == 8
    assert width(net, "head") == 10
    assert width(net, "pool") is None


def test_only_the_head_is_replaced() -> None:
    net = network()
    before = net.body.weight.clone()
    drop = net.head.drop
    replace_head(net, "head.last", Head(hidden=(6,)), 3)
    assert net(torch.zeros(2, 3, 4, 4)).shape == (2, 3)
    assert net.head.drop is drop
    assert torch.equal(net.body.weight, before)


def test_a_convolution_is_replaced_by_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    replace_head(net, "1", Head(hidden=(6,)), 3)
    assert net(torch.zeros(2, 3, 4, 4)).shape == (2, 3)


def test_a_finished_module_is_put_in_as_it_is() -> None:
    net, own = network(), nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))
    values = [parameter.clone() for parameter in own.parameters()]
    replace_head(net, "head.last", own, 3)
    assert net.head.last is own
    assert all(torch.equal(new, old) for new, old in zip(own.parameters(), values, strict=True))


@pytest.mark.parametrize("head", [Head(), Head(hidden=(6,)), Head(dropout=0.5)])
def test_a_head_that_a_relu_follows_learns_and_begins_undecided(head: Head) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    replace_head(net, "1", head, 3)
    loss = nn.functional.cross_entropy(net(torch.randn(6, 3, 4, 4)), torch.arange(6) % 3)
    assert loss.item() == pytest.approx(math.log(3))
    loss.backward()
    last = net[1] if isinstance(net[1], nn.Conv2d) else net[1][-1]
    assert last.weight.grad.any()


def test_a_new_head_goes_to_the_device_of_the_old_one() -> None:
    net = network().to("meta")
    replace_head(net, "head.last", Head(hidden=(6,)), 3)
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}


def test_a_factory_is_told_features_and_classes() -> None:
    net, told = network(), []

    def factory(features: int, classes: int) -> nn.Module:
        told.append((features, classes))
        return nn.Linear(features, classes)

    replace_head(net, "head.last", factory, 3)
    assert told == [(8, 3)]
    assert net(torch.zeros(2, 3, 4, 4)).shape == (2, 3)


def test_a_whole_container_is_replaced_and_its_first_layer_tells_the_features() -> None:
    net = network()
    replace_head(net, "head", Head(), 3)
    assert isinstance(net.head, nn.Linear)
    assert (net.head.in_features, net.head.out_features) == (8, 3)


def test_a_place_that_tells_no_features_takes_only_finished_modules() -> None:
    net = network()
    error = refusal(BackboneError, lambda: replace_head(net, "flat", Head(), 3))
    assert "'flat'" in error.arrived
    assert "head=nn.Sequential" in error.todo
    assert isinstance(net.flat, nn.Flatten)


@pytest.mark.parametrize("own", [nn.Linear(8, 4), nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 4)), nn.Linear])
def test_a_head_of_another_width_is_refused_before_it_is_put_in(own: Any) -> None:
    net = network()
    head = (lambda features, _: nn.Linear(features, 4)) if own is nn.Linear else own
    error = refusal(BackboneError, lambda: replace_head(net, "head.last", head, 3))
    assert "4 numbers" in error.arrived
    assert "3 classes" in error.needed
    assert net.head.last.out_features == 10


def test_a_head_that_does_not_tell_its_width_is_believed() -> None:
    net = network()
    replace_head(net, "head.last", nn.Identity(), 3)
    assert isinstance(net.head.last, nn.Identity)


def test_a_factory_that_gives_no_module_is_refused() -> None:
    net = network()
    error = refusal(ConfigError, lambda: replace_head(net, "head.last", lambda features, classes: classes, 3))
    assert "int" in error.arrived
    assert net.head.last.out_features == 10


def test_a_misspelt_path_gets_the_nearest_ones() -> None:
    net = network()
    demand_module(net, "head.last")
    assert "'head.last'" in refusal(BackboneError, lambda: demand_module(net, "head.lats")).todo
    assert "named_modules" in refusal(BackboneError, lambda: demand_module(net, "")).todo


def test_by_default_every_class_is_equally_probable_whatever_the_features() -> None:
    for last in (Head().build(400, 10), Head(hidden=(6,)).build(400, 10)):
        logits = last(1e8 * torch.randn(5, 400))
        assert nn.functional.cross_entropy(logits, torch.arange(5)).item() == pytest.approx(math.log(10))


def test_the_same_form_is_kept_without_hidden_layers_and_dropout() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1))
    replace_head(net, "1", Head(init="zero"), 3)
    assert str(net[1]) == "Conv2d(8, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)"
    assert not net[1].weight.any()


def test_the_layers_that_give_classes_are_found_inside_a_head() -> None:
    net = nn.ModuleDict(
        {"body": nn.Linear(4, 3), "head": nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), "aux": nn.Linear(4, 3)}
    )
    assert class_layers(net, ("head", "aux"), 3) == ("head.1", "aux")
    assert class_layers(net, ("head", "aux"), 4) == ()


@pytest.mark.parametrize(
    ("options", "arrived"),
    [
        ({"reuse": "yes"}, "reuse='yes'"),
        ({"reuse": {"hotdog": 934}}, "reuse={'hotdog': 934}"),
        ({"reuse": 934}, "reuse=934"),
        ({"reuse": "auto", "hidden": (6,)}, "hidden=(6,)"),
        ({"reuse": "auto", "source_classes": [1, 2]}, "source_classes='1, 2'"),
        ({"source_classes": ["a"]}, "source_classes='a'"),
    ],
)
def test_reuse_is_by_name_and_of_the_last_layer_alone(options: dict[str, Any], arrived: str) -> None:
    assert arrived in refusal(ConfigError, lambda: Head(**options)).arrived


def test_a_head_shows_what_is_not_as_usual_and_of_many_names_the_first() -> None:
    assert repr(Head()) == "Head()"
    assert repr(Head(hidden=(6,), dropout=0.2)) == "Head(hidden=(6,), dropout=0.2)"
    many = Head(reuse="auto", source_classes=[f"class {n}" for n in range(1000)])
    assert repr(many) == "Head(reuse='auto', source_classes=['class 0', 'class 1', 'class 2' and 997 more])"
    assert repr(Head(reuse="auto", source_classes="names.txt")) == "Head(reuse='auto', source_classes='names.txt')"


@pytest.mark.parametrize("function", [lambda features: nn.Linear(features, 2), lambda: nn.Linear(8, 2)])
def test_a_function_that_does_not_take_features_and_classes_is_no_head(function):
    assert "(features, classes) -> module" in refusal(ConfigError, lambda: as_head(function)).needed
