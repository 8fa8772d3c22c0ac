"""States that are damaged, cut short, of a later version, or no states at all."""

import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import made_learner, pairs, refusal, same, weights
from safetensors import safe_open
from safetensors.torch import save_file

from headstart import CheckpointError, Learner, ModelCheckpoint
from headstart.training.checkpoint import DamagedError, read_weights
from headstart.training.run_folder import RunFolder


def fit(folder: Path, epochs: int = 2, **options: Any) -> Learner:
    learner = made_learner(pairs(4, 4), pairs(2), optimizer="adamw", **options)
    learner.fit(epochs, 0.01, callbacks=ModelCheckpoint(folder), resume=True, verbose=False)
    return learner


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give a state that is whole."""
    folder = tmp_path_factory.mktemp("run")
    fit(folder)
    return (folder / "fit-1" / "state-000002.safetensors").read_bytes()


def test_one_changed_bit_anywhere_is_noticed(tmp_path, whole):
    path, chance = tmp_path / "state-000001.safetensors", random.Random(0)  # noqa: S311 - places, not secrets
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    places = [*range(8), *range(8, header, 7), *(chance.randrange(len(whole)) for _ in range(200)), len(whole) - 1]
    unnoticed = []
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            read_weights(path)
            unnoticed.append(place)
        except CheckpointError:
            pass
    assert unnoticed == []
    assert len(places) > 400


def test_a_state_cut_short_anywhere_is_noticed(tmp_path, whole):
    path = tmp_path / "state-000001.safetensors"
    for part in range(64):
        path.write_bytes(whole[: len(whole) * part // 64])
        with pytest.raises(DamagedError):
            read_weights(path)
    path.write_bytes(whole)
    read_weights(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["state-000009.safetensors", "finished.safetensors"])
def test_code_in_a_state_is_not_run(tmp_path, name):
    canary = tmp_path / "canary"
    for number, content in enumerate((pickle.dumps(Bomb(canary)), pickle.dumps({"state": [Bomb(canary)]}, protocol=0))):
        folder = tmp_path / str(number)
        fit(folder, 1)
        (folder / "fit-1" / name).write_bytes(content)
        with pytest.warns(UserWarning, match=f"{name} .* damaged; going on from "):
            fit(folder, 2 if name.startswith("state") else 1)
        assert not canary.exists()
        pickle.loads(content)  # noqa: S301 - it would have gone off
        canary.rmdir()


def test_a_header_that_promises_too_much_is_no_state(tmp_path, whole):
    path = tmp_path / "state-000001.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + whole[8:])
    with pytest.raises(DamagedError):
        read_weights(path)


def test_a_state_of_a_later_version_is_refused_and_not_taken_for_damaged(tmp_path):
    fit(tmp_path, 1)
    for state in (tmp_path / "fit-1").glob("*.safetensors"):
        with safe_open(state, "pt") as file:
            tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        later = {**json.loads(header["headstart"]), "format": 99}
        write_as_headstart(state, tensors, later)
    error = refusal(CheckpointError, lambda: fit(tmp_path, 2))
    assert "in format 99" in error.arrived
    assert "upgrade" in error.todo


def write_as_headstart(path: Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    from headstart.model.weights import digest_of

    words = json.dumps(description)
    save_file(tensors, path, metadata={"headstart": words, "sha256": digest_of(tensors, words)})


def test_a_state_of_another_network_is_refused_and_changes_nothing(tmp_path):
    fit(tmp_path, 1)
    learner = made_learner(
        pairs(4, 4),
        pairs(2),
        optimizer="adamw",
        network=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 3)),
    )
    before = weights(learner)
    error = refusal(
        CheckpointError,
        lambda: learner.fit(2, 0.01, callbacks=ModelCheckpoint(tmp_path), resume=True, verbose=False),
    )
    assert "network: Sequential of 4 tensors" in error.arrived
    assert same(weights(learner), before)


def test_a_state_is_no_model(tmp_path):
    learner = fit(tmp_path, 1)
    for state in ("state-000001.safetensors", "finished.safetensors"):
        for load in (Learner.load, learner.load_weights):
            error = refusal(CheckpointError, lambda: load(tmp_path / "fit-1" / state))  # noqa: B023 - called at once
            assert "holds the state of a run" in error.arrived


def test_an_empty_folder_holds_nothing(tmp_path):
    assert RunFolder(tmp_path / "none").newest() is None
    assert RunFolder(tmp_path).newest() is None
