"""Files of weights: what goes in comes out, every changed bit is noticed, and nothing is ever half-written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import refusal
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from headstart.errors import CheckpointError
from headstart.training import checkpoint
from headstart.training.checkpoint import demand_classes, demand_same, demand_size, is_ours, read_weights, write_weights

DESCRIPTION = {"classes": ["ant", "bee"], "preprocessing": {"mean": [0.5]}, "note": "Käfer"}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Write a file of a few hundred bytes."""
    path = tmp_path / "small.safetensors"
    write_weights(path, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}, {"classes": ["x", "y"]})
    return path


# What goes in comes out


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_weights(tmp_path / "weights.safetensors", {"a": torch.zeros(3)}, {})
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_tensors_of_every_kind_and_their_description_come_back_as_they_were(tmp_path: Path) -> None:
    state = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "truth": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(3, 4).T,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "not a number": torch.tensor([float("nan"), float("inf"), -0.0]).nan_to_num(nan=0.0),
        "trains": nn.Parameter(torch.randn(2)),
    }
    write_weights(tmp_path / "w.safetensors", state, DESCRIPTION)
    found, description = read_weights(tmp_path / "w.safetensors")
    assert equal(found, state)
    assert {name: description[name] for name in DESCRIPTION} == DESCRIPTION
    assert description["format"] == checkpoint.FORMAT
    assert not any(tensor.requires_grad for tensor in found.values())


def test_any_reader_of_safetensors_can_open_it_and_read_the_description(small: Path) -> None:
    with safe_open(small, framework="pt") as file:
        assert sorted(file.keys()) == ["a", "b"]
        assert json.loads(file.metadata()["headstart"])["classes"] == ["x", "y"]


def test_a_tensor_of_several_names_is_written_once(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    network[1].weight = network[0].weight
    write_weights(tmp_path / "w", network.state_dict(), DESCRIPTION)
    assert (tmp_path / "w").stat().st_size < 2 * 50 * 50 * 4
    assert equal(read_weights(tmp_path / "w")[0], dict(network.state_dict()))


def test_tensors_that_overlap_in_memory_are_written_each_for_itself(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    state = {"whole": whole, "first": whole[:6], "last": whole[6:], "grid": whole.view(3, 4)}
    write_weights(tmp_path / "w", state, DESCRIPTION)
    assert equal(read_weights(tmp_path / "w")[0], state)


# What is noticed


def test_not_one_bit_can_change_unnoticed(small: Path) -> None:
    content = small.read_bytes()
    for place in range(len(content)):
        for bit in (0, 3, 7):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            small.write_bytes(changed)
            assert str(small) in refusal(CheckpointError, lambda: read_weights(small)).arrived, (place, bit)
    small.write_bytes(content)
    read_weights(small)


def test_a_file_cut_short_anywhere_is_noticed(small: Path) -> None:
    content = small.read_bytes()
    for length in range(len(content)):
        small.write_bytes(content[:length])
        assert str(small) in refusal(CheckpointError, lambda: read_weights(small)).arrived, length


def test_a_changed_weight_is_told_from_a_broken_file(small: Path) -> None:
    content = bytearray(small.read_bytes())
    content[-1] ^= 1
    small.write_bytes(content)
    assert "digest" in refusal(CheckpointError, lambda: read_weights(small)).arrived


def test_a_file_of_a_later_format_asks_for_an_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    write_weights(tmp_path / "w", {"a": torch.ones(1)}, DESCRIPTION)
    monkeypatch.undo()
    error = refusal(CheckpointError, lambda: read_weights(tmp_path / "w"))
    assert "format 2" in error.arrived
    assert "format 1" in error.needed
    assert "pip install --upgrade headstart" in error.todo


def test_safetensors_of_others_are_pointed_to_pretrained(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors", metadata)
        error = refusal(CheckpointError, lambda: read_weights(tmp_path / "w.safetensors"))
        assert "headstart did not write" in error.arrived
        assert "pretrained=path" in error.todo


@pytest.mark.parametrize("content", [b"", b"these are no weights", b"\xff" * 100, b"PK\x03\x04"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    assert str(tmp_path) in refusal(CheckpointError, lambda: read_weights(tmp_path / "w.safetensors")).arrived


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path):
        assert str(path) in refusal(CheckpointError, lambda path=path: read_weights(path)).arrived


# Whose it is


def test_a_file_of_ours_is_known_whatever_it_is_called(tmp_path: Path, small: Path) -> None:
    assert is_ours(small)
    assert is_ours(small.rename(tmp_path / "weights.bin"))


def test_other_files_are_not_ours(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    (tmp_path / "empty").touch()
    for name in ("w.safetensors", "w.pth", "empty", "missing", "."):
        assert not is_ours(tmp_path / name)


def test_a_safetensors_file_that_is_cut_short_is_refused_rather_than_taken_for_somebody_elses(small: Path) -> None:
    small.write_bytes(small.read_bytes()[:-4])
    assert str(small) in refusal(CheckpointError, lambda: is_ours(small)).arrived


# What is demanded


def test_classes_must_be_the_same_in_the_same_order() -> None:
    demand_classes(["ant", "bee"], ("ant", "bee"), "w")
    for arrived in (["bee", "ant"], ["ant"], ["ant", "bee", "wasp"], []):
        error = refusal(CheckpointError, lambda arrived=arrived: demand_classes(arrived, ["ant", "bee"], "w"))
        assert "ant, bee" in error.needed
        assert "for w" in error.arrived


def test_the_image_size_must_be_the_files_where_one_is_asked_for() -> None:
    demand_size(None, [32, 48], "w")
    demand_size(32, (32, 32), "w")
    for size in (48, 64):
        error = refusal(CheckpointError, lambda size=size: demand_size(size, (32, 48), "w"))
        assert f"image_size={size}" in error.arrived
        assert "32 x 48" in error.needed


@pytest.mark.parametrize("change", [{"b": torch.ones(2)}, {"a": torch.ones(3)}, {"a": None}])
def test_tensors_must_be_the_networks_in_name_and_shape(change: dict[str, Any]) -> None:
    own = {"a": torch.ones(2)}
    demand_same(own, {"a": torch.zeros(2)}, "w")
    state = {name: value for name, value in {**own, **change}.items() if value is not None}
    assert f"1 tensors ({next(iter(change))})" in refusal(CheckpointError, lambda: demand_same(own, state, "w")).arrived


# Whole or not there


def test_folders_are_made_on_the_way(tmp_path: Path) -> None:
    write_weights(tmp_path / "a" / "b" / "w.safetensors", {"a": torch.ones(1)}, {})
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["w.safetensors"]


def test_a_place_that_cannot_be_written_to_is_told_and_nothing_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for target in (tmp_path / "file" / "w.safetensors", tmp_path / "folder"):
        error = refusal(CheckpointError, lambda target=target: write_weights(target, {"a": torch.ones(1)}, {}))
        assert str(target) in error.arrived
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inside"]


def test_a_full_disk_is_told_and_leaves_what_was_there_before(small: Path) -> None:
    resource = pytest.importorskip("resource")
    before = small.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # larger files end as they would on a full disk
    try:
        error = refusal(CheckpointError, lambda: write_weights(small, {"a": torch.ones(10_000)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(small) in error.arrived
    assert "untouched" in error.todo
    assert small.read_bytes() == before
    assert [path.name for path in small.parent.iterdir()] == [small.name]


def test_a_state_that_is_no_tensor_is_told_by_its_name(tmp_path: Path) -> None:
    error = refusal(
        CheckpointError, lambda: write_weights(tmp_path / "w", {"a": torch.ones(1), "_extra_state": {"b": 1}}, {})
    )
    assert "_extra_state" in error.arrived
    assert not list(tmp_path.iterdir())
