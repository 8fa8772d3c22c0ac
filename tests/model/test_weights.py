"""Files of weights: read without running what may be in them, and put into networks that may name things otherwise."""

import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from handmade import refusal
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.errors import BackboneError, CheckpointError
from headstart.model.weights import load_backbone, load_state, named_as, read_state, telling_failures


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def network() -> nn.Sequential:
    """Make a network with a norm; its head is the last layer."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {name: torch.rand_like(value, dtype=torch.float) for name, value in network().state_dict().items()}


# Reading


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict", "network"])
def test_weights_are_found_alone_and_inside_a_larger_checkpoint(
    tmp_path: Path, state: dict[str, Tensor], wrap: str | None
) -> None:
    torch.save(state if wrap is None else {"epoch": 3, wrap: state}, tmp_path / "weights.pth")
    assert equal(read_state(tmp_path / "weights.pth"), state)


def test_old_pickled_files_and_safetensors_are_read_as_well(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    assert equal(read_state(tmp_path / "old.pt"), state)
    assert equal(read_state(tmp_path / "new.safetensors"), state)


class Bomb:
    """Write a file as soon as somebody unpickles it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.canary, "boom")


@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch", "as safetensors"])
def test_a_pickle_that_would_run_code_does_not_go_off(tmp_path: Path, kind: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / ("w.safetensors" if kind == "as safetensors" else "w.pth")
    bomb = {"state_dict": {"0.weight": torch.ones(1), "bomb": Bomb(canary)}}
    if kind in ("pickle", "as safetensors"):
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=kind == "torch")
    error = refusal(CheckpointError, lambda: read_state(path))
    assert str(path) in error.arrived
    assert not canary.exists()
    pickle.loads(pickle.dumps(Bomb(canary)))  # noqa: S301 - it is a bomb, after all
    assert canary.exists()


def _cut_short(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-200])


def _cut_short_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1])


BROKEN: dict[str, Callable[[Path, dict[str, Tensor]], Any]] = {
    "cut.pth": _cut_short,
    "cut.safetensors": _cut_short_safetensors,
    "text.pth": lambda path, _: path.write_text("these are no weights"),
    "text.safetensors": lambda path, _: path.write_text("these are no weights"),
    "empty.pth": lambda path, _: path.touch(),
    "empty.safetensors": lambda path, _: path.touch(),
    "folder.pth": lambda path, _: path.mkdir(),
    "missing.pth": lambda path, _: None,
    "network.pth": lambda path, _: torch.save(network(), path),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_file_of_weights_is_refused_by_name(
    tmp_path: Path, state: dict[str, Tensor], name: str
) -> None:
    BROKEN[name](tmp_path / name, state)
    error = refusal(CheckpointError, lambda: read_state(tmp_path / name))
    assert str(tmp_path / name) in error.arrived
    assert ("Check the path" if name in ("folder.pth", "missing.pth") else "state_dict") in error.todo


@pytest.mark.parametrize("content", [[torch.ones(1)], {}, {"epoch": 3}, {"a": torch.ones(1), "b": 2}, torch.ones(1)])
def test_a_file_of_something_else_is_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pth")
    assert type(content).__name__ in refusal(CheckpointError, lambda: read_state(tmp_path / "other.pth")).arrived


# Names


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.net."])
def test_what_wrappers_put_in_front_of_names_is_taken_off(state: dict[str, Tensor], prefix: str) -> None:
    wrapped = {prefix + name: value for name, value in state.items()}
    assert equal(named_as(network().state_dict(), wrapped), state)


def test_a_prefix_that_the_network_has_itself_stays(state: dict[str, Tensor]) -> None:
    own = nn.DataParallel(network()).state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    assert equal(named_as(own, wrapped), wrapped)


def test_names_that_never_fit_are_left_as_they_were() -> None:
    strange = {"net.a.weight": torch.ones(1), "net.a.bias": torch.ones(1)}
    named = named_as(network().state_dict(), strange)
    assert strange.keys() <= named.keys()


def test_files_from_before_norms_counted_their_batches_are_complete(state: dict[str, Tensor]) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    net = network()
    named = named_as(net.state_dict(), old)
    assert named.keys() == state.keys()
    load_state(net, named)
    assert net[1].num_batches_tracked.item() == 0
    assert torch.equal(net[1].running_mean, state["1.running_mean"])


@pytest.mark.parametrize(
    ("name", "now", "once"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2."),
        ("vit_b_16", r"\.mlp\.0\.", ".mlp.linear_1."),
    ],
)
def test_torchvisions_files_with_their_earlier_names_fit(name: str, now: str, once: str) -> None:
    with torch.device("meta"):
        own = torchvision.models.get_model(name).state_dict()
    earlier = {re.sub(now, once, key).replace(".mlp.3.", ".mlp.linear_2."): value for key, value in own.items()}
    assert earlier.keys() != own.keys()
    assert named_as(own, earlier).keys() == own.keys()
    assert named_as(own, own).keys() == own.keys()


# Putting them in


def test_a_network_that_wants_to_know_its_version_is_loaded() -> None:
    torch.manual_seed(0)
    source, target = (torchvision.models.mnasnet0_5(num_classes=2) for _ in range(2))
    load_state(target, dict(source.state_dict()))
    assert equal(target.state_dict(), source.state_dict())


@torch.no_grad()
def test_loading_forgets_what_was_computed_from_earlier_weights() -> None:
    images = torch.rand(1, 3, 224, 224)
    torch.manual_seed(0)
    source, target = (timm.create_model("levit_128s", num_classes=2).eval() for _ in range(2))
    for name, parameter in source.named_parameters():
        if name.endswith("attention_biases"):
            parameter.normal_()
    target(images)  # keeps its attention biases
    load_state(target, source.state_dict())
    assert torch.equal(target(images), source(images))
    assert not any(module.training for module in target.modules())


def test_only_the_backbone_is_loaded(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "weights.pth")
    net = network()
    head = {name: value.clone() for name, value in net[3].state_dict().items()}
    load_backbone(net, ("3",), tmp_path / "weights.pth", "mine")
    loaded = net.state_dict()
    assert equal({name: loaded[name] for name in ("0.weight", "0.bias", "1.running_var")}, {
        name: state[name] for name in ("0.weight", "0.bias", "1.running_var")
    })  # fmt: skip
    assert equal(net[3].state_dict(), head)


def test_a_head_of_another_width_in_the_file_does_not_matter(tmp_path: Path, state: dict[str, Tensor]) -> None:
    other = {**state, "3.weight": torch.ones(1000, 4), "3.bias": torch.ones(1000)}
    torch.save(other, tmp_path / "weights.pth")
    net = network()
    load_backbone(net, ("3",), tmp_path / "weights.pth", "mine")
    assert torch.equal(net[0].weight, state["0.weight"])


def test_half_precision_becomes_the_networks_own(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "weights.pth")
    net = network()
    load_backbone(net, ("3",), tmp_path / "weights.pth", "mine")
    assert net[0].weight.dtype == torch.float32
    assert torch.equal(net[0].weight, state["0.weight"].half().float())


def test_weights_of_another_architecture_are_told_by_what_is_missing_surplus_and_misshapen(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    state["7.weight"] = state.pop("0.weight")
    state["0.bias"] = torch.ones(9)
    torch.save(state, tmp_path / "other.pth")
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    error = refusal(BackboneError, lambda: load_backbone(net, ("3",), tmp_path / "other.pth", "mine"))
    assert "1 missing (0.weight)" in error.arrived
    assert "1 not known to it (7.weight)" in error.arrived
    assert "1 of another shape (0.bias)" in error.arrived
    assert "other.pth with 9 tensors for mine, which has 9" in error.arrived
    assert "another copy of the file" in error.todo
    foreign = {f"blocks.{name}": value for name, value in state.items()}
    foreign["0.weight"] = torch.ones(1)
    torch.save(foreign, tmp_path / "other.pth")
    error = refusal(BackboneError, lambda: load_backbone(net, ("3",), tmp_path / "other.pth", "mine"))
    assert "Check the model name" in error.todo
    assert equal(net.state_dict(), before)


def as_its_authors_wrote_it(name: str) -> str:
    """Give the name that Facebook's ConvNeXt has for a tensor of timm's."""
    for pattern, theirs in (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ):
        name = re.sub(pattern, theirs, name)
    return name


def test_a_file_in_the_format_of_its_authors_is_read_as_timm_does(tmp_path: Path) -> None:
    source, target = (timm.create_model("convnext_atto", num_classes=classes) for classes in (5, 3))
    state = source.state_dict()
    theirs = {as_its_authors_wrote_it(name): value for name, value in state.items()}
    assert len(theirs) == len(state)
    assert not theirs.keys() & {"stem.0.weight", "head.norm.weight", "stages.0.blocks.0.conv_dw.weight"}
    torch.save({"model": theirs}, tmp_path / "facebook.pth")
    rows = load_backbone(target, ("head.fc",), tmp_path / "facebook.pth", "timm convnext_atto")
    found = target.state_dict()
    assert equal({name: found[name] for name in found if not name.startswith("head.fc")}, {
        name: value for name, value in state.items() if not name.startswith("head.fc")
    })  # fmt: skip
    assert equal(rows, {name: state[name] for name in ("head.fc.weight", "head.fc.bias")})
    theirs.pop("downsample_layers.0.0.weight")
    torch.save(theirs, tmp_path / "facebook.pth")
    error = refusal(BackboneError, lambda: load_backbone(target, ("head.fc",), tmp_path / "facebook.pth", "mine"))
    assert "missing" in error.arrived
    assert equal(target.state_dict(), found)


def test_a_file_that_fits_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("convnext_atto", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    asked: list[object] = []
    monkeypatch.setattr(
        sys.modules[type(network).__module__], "checkpoint_filter_fn", lambda *given: asked.append(given)
    )
    load_backbone(network, ("head.fc",), tmp_path / "own.pth", "mine")
    assert not asked


def test_a_network_whose_module_is_nowhere_is_refused_like_any_other(tmp_path: Path) -> None:
    elsewhere = type("Elsewhere", (nn.Linear,), {"__module__": "nowhere"})(2, 3)
    torch.save({"weight": torch.zeros(9, 9), "bias": torch.zeros(3)}, tmp_path / "other.pth")
    error = refusal(BackboneError, lambda: load_backbone(elsewhere, (), tmp_path / "other.pth", "mine"))
    assert "1 of another shape (weight)" in error.arrived


def test_a_file_of_one_tensor_without_a_dot_is_read() -> None:
    assert list(named_as({"fc.weight": torch.zeros(1)}, {"prompt": torch.ones(1)})) == ["prompt"]


# What libraries raise


@pytest.mark.parametrize("raised", [OSError("no route"), RuntimeError("wrong size"), TypeError("odd"), KeyError("tag")])
def test_whatever_a_library_raises_while_it_builds_gets_three_parts(raised: Exception) -> None:
    def act() -> None:
        with telling_failures("resnet18"):
            raise raised

    error = refusal(BackboneError, act)
    assert str(raised) in error.arrived
    assert error.__cause__ is raised


def test_an_error_of_our_own_passes_unchanged() -> None:
    mine = CheckpointError("a", "b", "c")

    def act() -> None:
        with telling_failures("resnet18"):
            raise mine

    assert refusal(CheckpointError, act) is mine
