"""ModelCheckpoint: which files are there after which epoch, what is in them, and when it refuses."""

import math
import re

import pytest
import torch
from handmade import At, Noting, Script, made_learner, made_run, pairs, refusal, same, weights

from headstart import CheckpointError, ConfigError, EarlyStopping, ImageData, Learner, ModelCheckpoint
from headstart.training.checkpoint import read_weights

nan = math.nan


def fitted(checkpoint: ModelCheckpoint, values, *, val=True, key="val_loss", learner=None, callbacks=()):
    """Fit while these values are logged; give the Learner and a copy of the weights after each epoch."""
    learner = learner or made_learner(pairs(4), pairs(2) if val else None)
    kept = []
    keep = At(on_epoch_end=lambda c, epoch, logs: kept.append(weights(c.learner)))
    learner.fit(len(values), 0.1, callbacks=[Script(key, values), keep, checkpoint, *callbacks], verbose=False)
    return learner, kept


def contents(folder) -> list[str]:
    """List all files below a folder, hidden ones and leftovers included, but not the states of runs."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in files if not re.match("state-|finished", path.name))


def holds(path, expected) -> bool:
    return same(read_weights(path)[0], expected)


def test_the_best_and_the_last_model_of_each_fit_are_kept(tmp_path):
    learner = None
    for fit in (1, 2):
        checkpoint = ModelCheckpoint(tmp_path / "runs")
        learner, kept = fitted(checkpoint, [3, 1, 2], learner=learner)
        assert checkpoint.folder == tmp_path / "runs" / f"fit-{fit}"
        assert checkpoint.best == 1.0
        assert holds(checkpoint.folder / "best.safetensors", kept[1])
        assert holds(checkpoint.folder / "last.safetensors", kept[2])
        assert not same(kept[1], kept[2])
    assert contents(tmp_path / "runs") == [f"fit-{n}/{kind}.safetensors" for n in (1, 2) for kind in ("best", "last")]


def test_one_instance_serves_several_fits_and_compares_anew(tmp_path):
    checkpoint, learner = ModelCheckpoint(tmp_path), made_learner(pairs(4), pairs(2))
    for fit, values in ((1, [3, 1, 2]), (2, [9, 8])):
        learner, kept = fitted(checkpoint, values, learner=learner)
        assert checkpoint.folder == tmp_path / f"fit-{fit}"
        assert holds(checkpoint.folder / "best.safetensors", kept[1])
        assert checkpoint.best == min(values)


@pytest.mark.parametrize(
    ("settings", "key", "values", "best"),
    [
        ({"monitor": "val_accuracy"}, "val_accuracy", [0.1, 0.3, 0.2], 1),
        ({"monitor": "loss"}, "loss", [2, 3, 1], 2),
        ({"monitor": "val_loss", "mode": "max"}, "val_loss", [1, 3, 2], 1),
        ({"monitor": "mine"}, "mine", [1, 3, 2], 1),
        ({"mode": "max"}, "val_loss", [1, 3, 2], 1),
        ({}, "val_loss", [nan, 3, nan], 1),
        ({}, "val_loss", [3, 3, 3], 0),
    ],
)
def test_the_monitored_value_decides_which_is_best(tmp_path, settings, key, values, best):
    checkpoint = ModelCheckpoint(tmp_path, **settings)
    _, kept = fitted(checkpoint, values, key=key)
    assert holds(tmp_path / "fit-1" / "best.safetensors", kept[best])


def test_nan_alone_gives_no_best_model(tmp_path):
    fitted(ModelCheckpoint(tmp_path), [nan, nan])
    assert contents(tmp_path) == ["fit-1/last.safetensors"]


def test_without_a_val_part_only_the_last_model_is_kept(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path)
    _, kept = fitted(checkpoint, [1, 2], val=False, key="loss")
    assert contents(tmp_path) == ["fit-1/last.safetensors"]
    assert holds(tmp_path / "fit-1" / "last.safetensors", kept[1])
    assert math.isnan(checkpoint.best)
    assert checkpoint.state_dict()["best"] != checkpoint.state_dict()["best"]


def test_as_many_of_the_best_are_kept_as_asked_for(tmp_path):
    _, kept = fitted(ModelCheckpoint(tmp_path, keep=3), [5, 4, 6, 3, 2])
    folder = tmp_path / "fit-1"
    assert contents(folder) == [f"{name}.safetensors" for name in ("best-2", "best-3", "best", "last")]
    assert holds(folder / "best.safetensors", kept[4])
    assert holds(folder / "best-2.safetensors", kept[3])
    assert holds(folder / "best-3.safetensors", kept[1])


def test_every_epochs_model_is_kept_when_asked_for(tmp_path):
    _, kept = fitted(ModelCheckpoint(tmp_path, save_best_only=False), [3, 1, 2])
    folder = tmp_path / "fit-1"
    assert contents(folder) == [
        "best.safetensors",
        *(f"epoch-00{n}.safetensors" for n in (1, 2, 3)),
        "last.safetensors",
    ]
    for epoch in range(3):
        assert holds(folder / f"epoch-00{epoch + 1}.safetensors", kept[epoch])


@pytest.mark.parametrize(("epochs", "saved"), [(5, [1, 3, 4]), (4, [1, 3]), (1, [0])])
def test_the_last_model_is_saved_every_so_many_epochs_and_at_the_end(tmp_path, epochs, saved):
    changes = []

    class Look(ModelCheckpoint):
        def on_epoch_end(self, epoch, logs):
            path = self.folder / "last.safetensors"
            before = path.stat().st_mtime_ns if path.exists() else None
            super().on_epoch_end(epoch, logs)
            if path.exists() and path.stat().st_mtime_ns != before:
                changes.append(epoch)

    _, kept = fitted(Look(tmp_path, every_epochs=2), [1] * epochs)
    assert changes == saved
    assert holds(tmp_path / "fit-1" / "last.safetensors", kept[-1])


def test_the_last_model_is_that_of_the_epoch_in_which_training_stopped(tmp_path):
    checkpoint, stopping = ModelCheckpoint(tmp_path, every_epochs=10), EarlyStopping(patience=1)
    learner, kept = fitted(checkpoint, [1, 2, 3, 4], callbacks=[stopping])
    assert len(kept) == 2
    assert holds(tmp_path / "fit-1" / "last.safetensors", kept[1])
    assert holds(tmp_path / "fit-1" / "best.safetensors", kept[0])
    assert same(weights(learner), kept[0])


def test_what_it_keeps_can_be_opened_and_predicts_the_same_bits(tmp_path):
    data = ImageData.from_loaders(pairs(4, side=32), pairs(3, side=32), classes=["ant", "bee", "wasp"])
    learner = Learner("test_resnet", data, pretrained=False, device="cpu")
    images = torch.randn(5, 3, 32, 32)
    learner.fit(1, 1e-3, callbacks=[ModelCheckpoint(tmp_path)], verbose=False)
    for name in ("best", "last"):
        loaded = Learner.load(tmp_path / "fit-1" / f"{name}.safetensors", device="cpu")
        assert loaded.data.classes == ("ant", "bee", "wasp")
        assert torch.equal(loaded.predict(images).probabilities, learner.predict(images).probabilities)


def test_a_network_of_the_users_own_takes_the_weights_back(tmp_path):
    _, kept = fitted(ModelCheckpoint(tmp_path), [1, 2])
    other = made_learner()
    other.load_weights(tmp_path / "fit-1" / "best.safetensors")
    assert same(weights(other), kept[0])


# Refusals.


def test_a_folder_that_holds_another_run_is_refused_before_the_first_batch(tmp_path):
    fitted(ModelCheckpoint(tmp_path), [1])
    there = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    noting, learner = Noting(), made_learner(val=pairs(2))
    with pytest.raises(CheckpointError) as caught:
        learner.fit(1, 0.1, callbacks=[noting, ModelCheckpoint(tmp_path)], verbose=False)
    assert caught.value.arrived == f"{tmp_path / 'fit-1'}, which holds another run"
    assert caught.value.needed == "an empty or a new folder"
    assert "overwrite=True" in caught.value.todo
    assert "resume=True" in caught.value.todo
    assert noting.notes == []
    assert there == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_where_no_state_is_nobody_is_told_to_go_on(tmp_path):
    fitted(ModelCheckpoint(tmp_path), [1])
    for path in (tmp_path / "fit-1").iterdir():
        if path.name not in ("best.safetensors", "last.safetensors"):
            path.unlink()
    learner = made_learner(val=pairs(2))
    again = refusal(CheckpointError, lambda: learner.fit(1, 0.1, callbacks=[ModelCheckpoint(tmp_path)], verbose=False))
    assert "resume" not in again.todo


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "fit-1").mkdir()
    fitted(ModelCheckpoint(tmp_path), [1])
    assert contents(tmp_path) == ["fit-1/best.safetensors", "fit-1/last.safetensors"]


def test_overwriting_replaces_what_a_run_left_and_nothing_else(tmp_path):
    fitted(ModelCheckpoint(tmp_path, keep=2, save_best_only=False), [3, 2, 1])
    (tmp_path / "fit-1" / "notes.txt").write_text("mine")
    _, kept = fitted(ModelCheckpoint(tmp_path, overwrite=True), [1, 2], val=False, key="loss")
    assert contents(tmp_path) == ["fit-1/last.safetensors", "fit-1/notes.txt"]
    assert holds(tmp_path / "fit-1" / "last.safetensors", kept[1])


def test_overwriting_removes_only_the_names_that_it_writes_itself(tmp_path):
    folder = tmp_path / "fit-1"
    own = ["best", "best-2", "best-10", "last", "epoch-001", "epoch-1000"]
    others = [
        "best_of_alice",
        "best-",
        "best-1",
        "best-02",
        "best-of-all",
        "last-1",
        "epoch-notes",
        "epoch-1",
        "epoch-0001",
    ]
    (folder / "best-3.safetensors").mkdir(parents=True)
    for name in (*own, *others):
        (folder / f"{name}.safetensors").write_text("of an earlier run")
    ModelCheckpoint(tmp_path, overwrite=True).check(made_run())
    assert len(contents(folder)) == len(own) + len(others)
    fitted(ModelCheckpoint(tmp_path, overwrite=True), [1])
    assert contents(folder) == sorted(f"{name}.safetensors" for name in ("best", "last", *others))
    assert all((folder / f"{name}.safetensors").read_text() == "of an earlier run" for name in others)
    assert (folder / "best-3.safetensors").is_dir()


def test_an_overwriting_run_that_is_refused_leaves_the_old_one(tmp_path):
    fitted(ModelCheckpoint(tmp_path), [3, 2])
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="val_f1"):
        made_learner(val=pairs(2)).fit(
            1, 0.1, callbacks=[ModelCheckpoint(tmp_path, overwrite=True), EarlyStopping("val_f1")], verbose=False
        )
    assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "fit-1").write_text("mine")
    with pytest.raises(ConfigError, match=r"fit-1, which is a file[\s\S]*a folder[\s\S]*ModelCheckpoint another"):
        fitted(ModelCheckpoint(tmp_path), [1])
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(ConfigError, match=r"runs, which is a file[\s\S]*a folder[\s\S]*ModelCheckpoint another"):
        fitted(ModelCheckpoint(tmp_path / "runs"), [1])


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_first_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    noting = Noting()
    with pytest.raises(ConfigError, match=r"which cannot be written to[\s\S]*fit-1 to be made[\s\S]*another path"):
        fitted(ModelCheckpoint(tmp_path / "runs"), [1], callbacks=[noting])
    assert noting.notes == []


def test_a_folder_may_be_named_from_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted(ModelCheckpoint("runs"), [1])
    assert contents(tmp_path) == ["runs/fit-1/best.safetensors", "runs/fit-1/last.safetensors"]


def test_a_key_that_the_fit_will_not_have_is_refused_and_nothing_is_written(tmp_path):
    for key, val, words in (("val_f1", True, "loss, accuracy, val_loss"), ("val_loss", False, "without a val part")):
        with pytest.raises(ConfigError) as caught:
            fitted(ModelCheckpoint(tmp_path / "runs", monitor=key), [1], val=val, key="loss")
        assert f"ModelCheckpoint with monitor={key!r}" in caught.value.arrived
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_inside_a_fit_changes_nothing(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path)
    nest = At(on_epoch_begin=lambda c, epoch, logs: c.learner.evaluate(callbacks=[checkpoint]))
    _, kept = fitted(checkpoint, [3, 2, 1], callbacks=[nest])
    assert holds(tmp_path / "fit-1" / "best.safetensors", kept[2])
    assert checkpoint.best == 1.0


def test_the_folder_is_that_of_the_last_fit_and_before_the_first_there_is_none(tmp_path):
    checkpoint, learner = ModelCheckpoint(tmp_path), made_learner(val=pairs(2))
    for _ in range(2):
        error = refusal(ConfigError, lambda: checkpoint.folder)
        assert error.arrived == "the folder of a ModelCheckpoint that has been in no fit"
        assert error.needed == "a fit, whose number is in the folder's name"
        assert "callbacks=[checkpoint]" in error.todo
        learner.evaluate(callbacks=[checkpoint])
    learner.fit(1, 0.1, callbacks=[checkpoint], verbose=False)
    learner.evaluate(callbacks=[checkpoint])
    assert checkpoint.folder == tmp_path / "fit-1"


def test_what_comes_after_the_mode_is_given_by_name(tmp_path):
    with pytest.raises(TypeError, match="positional"):
        ModelCheckpoint(tmp_path, "val_loss", "min", True)


def test_all_wrong_arguments_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        ModelCheckpoint(None, keep=0, every_epochs=0)
    assert caught.value.arrived == "directory=None, keep=0, every_epochs=0"
    assert "ModelCheckpoint('runs/flowers'" in caught.value.todo
    for wrong in ({"mode": "up"}, {"monitor": 3}, {"monitor": "val_loss", "mode": "up"}):
        with pytest.raises(ConfigError):
            ModelCheckpoint(tmp_path, **wrong)


def test_a_disk_that_cannot_be_written_to_is_told_and_the_fit_has_failed(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    noting, learner = Noting(), made_learner(pairs(4), pairs(2))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        learner.fit(1, 0.1, callbacks=[noting, ModelCheckpoint(tmp_path)], verbose=False)
    assert noting.run.status == "failed"
    assert contents(tmp_path) == []


def test_it_takes_up_the_best_value_of_an_interrupted_run(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path)
    resume = At(on_epoch_begin=lambda c, epoch, logs: checkpoint.load_state_dict({"best": 1.5, "files": []}))
    fitted(checkpoint, [2], callbacks=[resume])
    assert contents(tmp_path) == ["fit-1/last.safetensors"]
    last_only = ModelCheckpoint(tmp_path / "other")
    resume = At(on_epoch_begin=lambda c, epoch, logs: last_only.load_state_dict({"best": nan, "files": []}))
    fitted(last_only, [2], val=False, key="loss", callbacks=[resume])
    assert math.isnan(last_only.best)
