"""One optimizer for all parameters: groups, rates, weight decay, and what survives from fit to fit."""

import pytest
import timm
import torch
from handmade import CLASSES, CPU, At, made_learner, made_run, pairs, plain_network, refusal, same, weights
from torch import nn

from headstart import ConfigError
from headstart.model.backbone import Backbone
from headstart.model.zoo import open_network
from headstart.training.optimizer import (
    carry_over,
    demand_known,
    demand_trainable,
    forget,
    lr_scales,
    make_optimizer,
    parameter_groups,
)


def backbone_of(network: nn.Module, scales=None) -> Backbone:
    backbone = Backbone(open_network(network, len(CLASSES)))
    backbone.lr_scales = scales or backbone.lr_scales
    return backbone


def named(network: nn.Module, group: dict) -> set[str]:
    """Name the parameters of a group."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


# Rates.


def test_the_head_has_its_factor_and_stages_decay_towards_the_first():
    assert lr_scales(3, 10, None) == [1.0, 1.0, 1.0, 10.0]
    assert lr_scales(3, 2.0, 0.5) == [0.25, 0.5, 1.0, 2.0]
    assert lr_scales(0, 10, 0.5) == [10.0]


def test_each_group_starts_with_the_rate_times_its_factor(tiny_network):
    backbone = backbone_of(tiny_network(), lr_scales(3, 10, 0.5))
    optimizer = make_optimizer("sgd", backbone, 0.1, None, CPU)
    for group in optimizer.param_groups:
        assert group["lr"] == group["initial_lr"] == 0.1 * group["lr_scale"]
    found = {tuple(sorted(named(backbone.network, group))): group["lr_scale"] for group in optimizer.param_groups}
    assert {names[0].partition(".")[0]: scale for names, scale in found.items()} == {
        "stem": 0.25,
        "stage1": 0.5,
        "stage2": 1.0,
        "fc": 10.0,
    }


# Groups.


def test_there_is_one_group_for_each_factor_and_decay(tiny_network):
    network = tiny_network()
    groups = parameter_groups(backbone_of(network, [1.0, 1.0, 1.0, 10.0]))
    assert [(group["lr_scale"], group["decayed"]) for group in groups] == [
        (1.0, True),
        (1.0, False),
        (10.0, True),
        (10.0, False),
    ]
    assert named(network, groups[0]) == {"stem.0.weight", "stage1.0.weight", "stage2.0.weight"}
    assert named(network, groups[1]) == {f"{s}.1.{w}" for s in ("stem", "stage1", "stage2") for w in ("weight", "bias")}
    assert [named(network, group) for group in groups[2:]] == [{"fc.weight"}, {"fc.bias"}]


def test_without_decay_nobody_is_spared_and_there_are_fewer_groups(tiny_network):
    groups = parameter_groups(backbone_of(tiny_network(), [1.0, 1.0, 1.0, 10.0]), decays=False)
    assert [(group["lr_scale"], group["decayed"]) for group in groups] == [(1.0, False), (10.0, False)]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_byobnet", "test_efficientnet"])
def test_every_parameter_is_in_exactly_one_group(name):
    network = timm.create_model(name, num_classes=3)
    groups = parameter_groups(backbone_of(network))
    members = [parameter for group in groups for parameter in group["params"]]
    assert len(members) == len({id(p) for p in members}) == len(list(network.parameters()))


def test_what_a_network_names_itself_is_spared_from_decay():
    network = timm.create_model("test_vit", num_classes=3)
    groups = parameter_groups(backbone_of(network))
    spared = {name for group in groups if not group["decayed"] for name in named(network, group)}
    assert {"pos_embed", "cls_token"} <= spared
    assert network.pos_embed.ndim == 3
    one_dimensional = {name for name, parameter in network.named_parameters() if parameter.ndim == 1}
    assert spared == one_dimensional | {"pos_embed", "cls_token"}


def test_a_frozen_parameter_is_in_the_optimizer_too(tiny_network):
    backbone = backbone_of(tiny_network())
    backbone.train_from(3)
    optimizer = make_optimizer("adamw", backbone, 0.1, None, CPU)
    members = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert members == {id(parameter) for parameter in backbone.network.parameters()}


# Which optimizer, and its weight decay.


@pytest.mark.parametrize(
    ("choice", "kind", "decay"),
    [
        ("adamw", torch.optim.AdamW, 0.01),
        ("sgd", torch.optim.SGD, 0.0),
        ("lamb", timm.optim.Lamb, 0.01),
        (torch.optim.AdamW, torch.optim.AdamW, 0.01),
        (torch.optim.SGD, torch.optim.SGD, 0.0),
        (lambda parameters: torch.optim.SGD(parameters, lr=7, weight_decay=0.3), torch.optim.SGD, 0.3),
    ],
)
def test_weight_decay_is_the_usual_one_unless_given(choice, kind, decay):
    backbone = backbone_of(plain_network())
    optimizer = make_optimizer(choice, backbone, 0.1, None, CPU)
    assert type(optimizer) is kind
    decays = {name: g["weight_decay"] for g in optimizer.param_groups for name in named(backbone.network, g)}
    assert decays == {"1.weight": decay, "1.bias": 0.0, "4.weight": decay, "4.bias": 0.0}
    given = make_optimizer(choice, backbone, 0.1, 0.2, CPU)
    decays = {name: g["weight_decay"] for g in given.param_groups for name in named(backbone.network, g)}
    assert decays == {"1.weight": 0.2, "1.bias": 0.0, "4.weight": 0.2, "4.bias": 0.0}


def test_no_weight_decay_takes_a_factorys_own_away():
    choice = lambda parameters: torch.optim.SGD(parameters, weight_decay=0.3)  # noqa: E731
    optimizer = make_optimizer(choice, backbone_of(plain_network()), 0.1, 0.0, CPU)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


def test_the_rate_that_a_factory_sets_is_ignored():
    optimizer = make_optimizer(
        lambda parameters: torch.optim.SGD(parameters, lr=7), backbone_of(plain_network()), 0.1, None, CPU
    )
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}


def test_sgd_by_name_has_momentum_and_named_optimizers_are_fused():
    for name in ("sgd", "adamw"):
        optimizer = make_optimizer(name, backbone_of(plain_network()), 0.1, None, CPU)
        assert all(group["fused"] for group in optimizer.param_groups)
        assert all(group.get("momentum", 0.9) == 0.9 for group in optimizer.param_groups)
    on_mps = make_optimizer("adamw", backbone_of(plain_network()), 0.1, None, torch.device("mps"))
    assert not any(group["fused"] for group in on_mps.param_groups)


def test_an_optimizer_whose_groups_know_no_decay_is_taken():
    class Plain(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 1.0})

        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(parameter.grad, alpha=-group["lr"])

    own, usual = made_learner(optimizer=Plain), made_learner()
    for learner in (own, usual):
        learner.fit(1, 0.1, verbose=False)
    assert same(weights(own), weights(usual))


def refused(choice) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make_optimizer(choice, backbone_of(plain_network()), 0.1, None, CPU)
    assert caught.value.needed
    return caught.value


def test_names_and_functions_are_known_and_others_refused_with_the_nearest():
    for choice in ("adamw", "sgd", "lamb", torch.optim.SGD):
        demand_known(choice)
    error = refusal(ConfigError, lambda: demand_known("adamm"))
    assert error.arrived == "optimizer='adamm'"
    assert "Did you mean 'adam" in error.todo
    assert "'adamw', 'sgd'" in refusal(ConfigError, lambda: demand_known(3)).needed


def test_an_optimizer_that_exists_already_is_refused():
    error = refusal(ConfigError, lambda: demand_known(torch.optim.SGD(plain_network().parameters())))
    assert "a function of parameters" in error.needed


@pytest.mark.parametrize("choice", [torch.optim.LBFGS, "adahessian"])
def test_an_optimizer_that_needs_more_than_gradients_is_refused_with_the_reason(choice):
    if choice is torch.optim.LBFGS:
        choice = lambda groups: torch.optim.LBFGS([p for group in groups for p in group["params"]])  # noqa: E731
    error = refused(choice)
    assert "LBFGS, whose step needs a closure" in error.arrived or "second derivatives" in error.arrived
    assert "steps once for each gradient" in error.needed
    assert "adamw, sgd" in error.todo


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_name_that_cannot_be_had_on_this_machine_is_refused_with_the_reason():
    error = refused("fusedadam")
    assert "optimizer='fusedadam'" in error.arrived
    assert "CUDA required" in error.arrived
    assert "Take another one" in error.todo


def test_a_factory_that_gives_something_else_is_refused():
    error = refused(lambda parameters: "sgd")
    assert error.arrived == "an optimizer factory that gives str"
    assert "momentum=0.9" in error.todo


def test_a_factory_that_makes_groups_of_its_own_is_refused():
    error = refused(lambda groups: torch.optim.SGD([p for group in groups for p in group["params"]]))
    assert "groups" in error.arrived
    assert "parameters as they came" in error.needed
    assert error.todo


# What survives.


def test_the_step_count_of_adamw_goes_on_from_fit_to_fit():
    learner = made_learner(optimizer="adamw")
    for fit in (1, 2, 3):
        learner.fit(2, 1e-3, head_lr_mult=fit, verbose=False)
        steps = {int(state["step"]) for state in learner._session.optimizer.state.values()}
        assert steps == {6 * fit}


@pytest.mark.parametrize("choice", ["sgd", "adamw", torch.optim.RMSprop, "lamb", "adan"])
def test_several_fits_at_one_rate_are_one_long_fit(choice):
    pieces, whole = (made_learner(optimizer=choice) for _ in range(2))
    for _ in range(3):
        pieces.fit(1, 1e-2, verbose=False)
    whole.fit(3, 1e-2, verbose=False)
    assert same(weights(pieces), weights(whole))


def test_an_optimizer_of_another_kind_starts_anew():
    backbone = backbone_of(plain_network())
    old, new = (make_optimizer(name, backbone, 0.1, None, CPU) for name in ("sgd", "adamw"))
    old.state[next(backbone.network.parameters())]["momentum_buffer"] = torch.zeros(1)
    carry_over(old, new)
    carry_over(None, new)
    assert not new.state


def test_forgetting_drops_the_state_of_some_parameters_and_of_no_others():
    run = made_run()
    first, *others = run.network.parameters()
    for parameter in run.network.parameters():
        run.optimizer.state[parameter]["momentum_buffer"] = torch.zeros(1)
    forget(run.optimizer, [first, nn.Parameter(torch.zeros(1))])
    assert set(run.optimizer.state) == set(others)


def test_a_parameter_that_thaws_is_not_moved_by_old_momentum():
    learner = made_learner(optimizer="sgd")
    learner.fit(2, 0.1, verbose=False)
    learner.freeze()
    learner.fit(1, 0.1, verbose=False)
    learner.unfreeze()
    before = weights(learner)
    still = At(on_step_begin=lambda c: c.run.network[1].weight.grad.zero_())
    learner.fit(1, 0.1, callbacks=[still], verbose=False)
    assert torch.equal(weights(learner)["1.weight"], before["1.weight"])
    assert not torch.equal(weights(learner)["4.weight"], before["4.weight"])


@pytest.mark.parametrize("choice", ["sgd", "adamw", torch.optim.Adam, "lamb", "nesterovw", "lion"])
def test_a_head_that_has_trained_alone_and_a_backbone_that_joins_it_step_together(choice):
    """A fused SGD of torch's takes momenta for all parameters or for none."""
    learner = made_learner(optimizer=choice)
    learner.freeze()
    learner.fit(1, 1e-3, verbose=False)
    learner.unfreeze()
    before = weights(learner)
    learner.fit(1, 1e-3, verbose=False)
    assert not any(torch.equal(weights(learner)[name], tensor) for name, tensor in before.items())


def test_a_momentum_that_is_completed_is_one_that_starts_by_itself():
    fused, plain = (
        made_learner(optimizer=lambda groups, fused=fused: torch.optim.SGD(groups, momentum=0.9, fused=fused))
        for fused in (True, False)
    )
    for learner in (fused, plain):
        learner.freeze()
        learner.fit(2, 0.1, verbose=False)
        learner.unfreeze()
        learner.fit(2, 0.1, verbose=False)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(fused.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-8)


def test_a_step_leaves_no_gradients_and_asks_an_optimizer_that_drops_them_in_its_own_way():
    class Counting(torch.optim.SGD):
        dropped = 0

        def zero_grad(self, set_to_none=False):
            Counting.dropped += 1
            super().zero_grad(set_to_none)

    for choice in ("adamw", lambda parameters: Counting(parameters, lr=0.1)):
        learner = made_learner(optimizer=choice)
        learner.fit(1, lr=0.1, verbose=False)
        assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert Counting.dropped > 1


def test_a_fit_writes_rates_and_initial_rates_anew():
    learner = made_learner(pairs(4))
    for lr in (0.1, 0.01):
        learner.fit(1, lr, head_lr_mult=10, verbose=False)
        groups = learner._session.optimizer.param_groups
        assert [group["initial_lr"] for group in groups] == [lr * group["lr_scale"] for group in groups]


def test_a_network_that_is_all_frozen_is_refused():
    learner = made_learner()
    learner.model.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"every parameter frozen[\s\S]*at least one[\s\S]*learner.unfreeze"):
        learner.fit(1, 0.1, verbose=False)
    learner.model[1].bias.requires_grad_(True)
    demand_trainable(learner._session.backbone)
