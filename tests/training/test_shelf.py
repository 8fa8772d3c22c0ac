"""Features on the disk: found by the next run, never where anything has changed, and never half a file."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import same, weights
from torch import Tensor, nn

from headstart import Cache, Head, ImageData, Learner
from headstart.training import features


class Counting(nn.Conv2d):
    pictures = 0

    def forward(self, images: Tensor) -> Tensor:
        type(self).pictures += len(images)
        return super().forward(images)


class Network(nn.Module):
    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Counting(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.fc = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.stage(self.stem(images) * self.factor).mean((2, 3)))
        return logits


@pytest.fixture
def folder(shapes_folder: Path, tmp_path: Path) -> Path:
    """Give pictures of one's own, to write into."""
    shutil.copytree(shapes_folder, tmp_path / "shapes")
    return tmp_path / "shapes"


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Any:
    """Give a run of a script: it makes a new Learner, fits, and tells how many pictures the frozen stages have seen."""

    def script(
        network: nn.Module | None = None, *, layer: str | None = None, views: Any = 1, seed: int = 0, **options: Any
    ) -> tuple[Learner, int]:
        settings = {"image_size": 32, "batch_size": 8, "workers": 0, "cache": Cache("disk", tmp_path / "kept")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = network or Network()
        data = ImageData.from_folder(folder, **{**settings, **options})
        learner = Learner(network, data, head=Head(init="xavier"), seed=seed, device="cpu")
        learner.freeze() if layer is None else learner.unfreeze(layer)
        Counting.pictures = 0
        learner.fit(3, lr=1e-2, cache_features=views, verbose=False)
        return learner, Counting.pictures

    return script


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept").glob("*.features"))


ALL = 72 + 27
FOUND = 8 + 8  # a batch of each part is asked about again, to be compared


@pytest.mark.parametrize("layer", [None, "stage"])
def test_the_next_run_asks_the_frozen_stages_about_the_first_batches_alone(run, tmp_path, layer):
    first, asked = run(layer=layer)
    again, asked_again = run(layer=layer)
    without, _ = run(layer=layer, cache=None)
    assert len(files(tmp_path)) == 2
    assert asked - asked_again == ALL - FOUND
    assert same(weights(first), weights(again))
    assert same(weights(first), weights(without))
    assert first.history.history == again.history.history


def test_views_are_kept_each_in_a_file(run, tmp_path):
    first, asked = run(views=2)
    again, asked_again = run(views=2)
    assert len(files(tmp_path)) == 3
    assert asked - asked_again == 2 * (72 - 8) + 27 - 8
    assert same(weights(first), weights(again))
    run(views=2, seed=1)  # other views of the train pictures, the same one of the val pictures
    assert len(files(tmp_path)) == 5


def test_another_head_finds_the_same(run, tmp_path):
    _, asked = run()
    _, asked_again = run(seed=1)
    assert len(files(tmp_path)) == 2
    assert asked - asked_again == ALL - FOUND


def changed_weights() -> nn.Module:
    network = Network()
    with torch.no_grad():
        network.stem[0].weight[0, 0, 0, 0] += 1
    return network


def changed_buffer() -> nn.Module:
    network = Network()
    network.stem[1].running_mean[0] += 1
    return network


@pytest.mark.parametrize("change", [changed_weights, changed_buffer])
def test_other_weights_find_nothing(run, tmp_path, change):
    _, asked = run()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = change()
    _, asked_again = run(network)
    assert asked_again == asked
    assert len(files(tmp_path)) == 4


@pytest.mark.parametrize("options", [{"image_size": 40}, {"batch_size": 9}])
def test_other_pictures_find_nothing(run, tmp_path, options):
    run()
    run(**options)
    assert len(files(tmp_path)) == 4


def test_another_decoder_finds_nothing(run, tmp_path, monkeypatch):
    run()
    monkeypatch.setattr("PIL.features.version", lambda feature: "another")
    run()
    assert len(files(tmp_path)) == 4


def test_a_picture_that_was_rewritten_is_seen(run, folder, tmp_path):
    run()
    shutil.copy(min((folder / "train" / "square").iterdir()), min((folder / "train" / "circle").iterdir()))
    changed, _ = run()
    without, _ = run(cache=None)
    assert len(files(tmp_path)) == 3  # another one for the train part
    assert same(weights(changed), weights(without))


def test_a_forward_that_was_changed_is_noticed(run, monkeypatch):
    run()
    monkeypatch.setattr(Network, "factor", 0.5)
    changed, _ = run()
    without, _ = run(cache=None)
    assert same(weights(changed), weights(without))


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_file_is_written_anew(run, tmp_path, harm):
    first, asked = run()
    whole = {path: path.read_bytes() for path in files(tmp_path)}
    for path, content in whole.items():
        damaged = bytearray(content)
        damaged[len(damaged) - 1000] ^= 1
        path.write_bytes({"flip": damaged, "cut": content[:-1000], "empty": b"", "foreign": b"PK\x03\x04" * 100}[harm])
    again, asked_again = run()
    assert asked_again == asked
    assert same(weights(first), weights(again))
    assert {path: path.read_bytes() for path in files(tmp_path)}.keys() == whole.keys()
    assert run()[1] == asked - (ALL - FOUND)


def test_a_folder_that_cannot_be_written_to_is_told_once(run, tmp_path, capsys):
    (tmp_path / "kept").write_text("no folder")
    learner, _ = run()
    said = capsys.readouterr().out
    assert said.count("features are not kept on the disk") == 1
    without, _ = run(cache=None)
    assert same(weights(learner), weights(without))


def test_more_than_the_budget_is_not_kept(run, tmp_path, capsys):
    run(cache=Cache("disk", tmp_path / "kept", budget=6_000))  # 5,184 for one part, 1,944 for the other
    assert len(files(tmp_path)) == 1
    assert "features are not kept on the disk: they take 1,944 bytes, and may take 816" in capsys.readouterr().out


def test_a_large_disk_is_no_reason_to_fill_the_memory(run, monkeypatch):
    monkeypatch.setattr("headstart.data.cache.free_memory", lambda: 1000)
    made, in_file = [], features._in_file
    monkeypatch.setattr(features, "_in_file", lambda count, found: made.append(count) or in_file(count, found))
    run()
    assert made == [72, 27]


def test_what_is_kept_in_memory_is_not_on_the_disk(run, tmp_path):
    run(cache="ram")
    assert not (tmp_path / "kept").exists()


def test_what_nobody_has_used_for_a_month_is_removed(run, tmp_path):
    run()
    old = files(tmp_path)
    for path in old:
        os.utime(path, (0, 0))
    run()  # used
    run(batch_size=9)
    assert all(path.exists() for path in old)
    for path in old:
        os.utime(path, (0, 0))
    run(batch_size=10)
    assert not any(path.exists() for path in old)
