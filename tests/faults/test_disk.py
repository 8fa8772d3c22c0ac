"""A disk that is full, and folders that cannot be written to."""

import io
import multiprocessing
import resource
import shutil
import signal
import subprocess
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
import torch
from handmade import At, made_learner, pairs, refusal, same, weights

from headstart import CheckpointError, ConfigError, ImageData, Learner, ModelCheckpoint
from headstart.data.cache import Cache

FORK = multiprocessing.get_context("fork")


def fit(folder: Path, *more, seconds: float | None = None) -> Learner:
    learner = made_learner(pairs(4, 4), pairs(2), optimizer="adamw")
    learner.fit(3, 0.01, callbacks=[ModelCheckpoint(folder, every_seconds=seconds), *more], resume=True, verbose=False)
    return learner


def test_a_full_disk_is_told_and_the_last_good_state_stays(tmp_path):
    told = tmp_path / "told"

    def full(callback, epoch, logs) -> None:
        if epoch == 1:  # from now on no file may have more than 100 bytes
            while not (tmp_path / "cut" / "fit-1" / "best.safetensors").exists():
                time.sleep(0.001)  # the first state is being written
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))

    def work() -> None:
        try:
            with redirect_stdout(io.StringIO()):  # what is captured goes to a file as well
                fit(tmp_path / "cut", At(on_epoch_begin=full))
        except CheckpointError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            told.write_text(str(error))

    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert "could not be written" in told.read_text()
    assert "Free some space" in told.read_text()
    folder = tmp_path / "cut" / "fit-1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "state-000001.safetensors",
    ]
    Learner.load_weights(made_learner(), folder / "best.safetensors")
    assert same(weights(fit(tmp_path / "cut", At())), weights(fit(tmp_path / "whole", At())))


@pytest.fixture
def disk(tmp_path):
    """Give a maker of small disks of their own, where this process may mount any."""
    mounted = []

    def make(size: str, options: str = "rw") -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = [shutil.which("mount") or "false", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", place]
        done = subprocess.run(command, check=False)  # noqa: S603
        if done.returncode:
            pytest.skip("needs the right to mount a disk")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run([shutil.which("umount"), "-l", place], check=True)  # noqa: S603


def test_a_disk_that_fills_up_is_told_and_the_run_goes_on_when_there_is_space(disk, tmp_path):
    small = disk("256k")

    def fill(callback, epoch, logs) -> None:
        if epoch == 1 and not callback.run.resumed:
            while not (small / "run/fit-1/best.safetensors").exists():
                time.sleep(0.001)  # the first state is being written
            with (small / "filler").open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(512))

    with pytest.raises(CheckpointError, match="No space left on device"):
        fit(small / "run", At(on_epoch_begin=fill))
    (small / "filler").unlink()
    resumed = fit(small / "run", At(on_epoch_begin=fill))
    assert same(weights(resumed), weights(fit(tmp_path / "whole", At())))
    assert resumed.history.epoch == [0, 1, 2]


def test_a_disk_that_is_too_full_from_the_start_is_refused_before_training(disk):
    small, seen = disk("16k"), []
    (small / "filler").write_bytes(bytes(10_000))
    note = At(on_train_begin=lambda callback, logs: seen.append(1))
    error = refusal(CheckpointError, lambda: fit(small / "run", note))
    assert "MB free" in error.arrived
    assert "three states of the run" in error.needed
    assert seen == []


def test_a_disk_that_is_read_only_is_refused_before_training(disk):
    seen: list[int] = []
    note = At(on_train_begin=lambda callback, logs: seen.append(1))
    assert "cannot be written to" in refusal(ConfigError, lambda: fit(disk("1m", "ro") / "run", note)).arrived
    assert seen == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path, place):
    (tmp_path / "file").write_text("")
    seen: list[int] = []
    note = At(on_train_batch_begin=lambda callback, batch, logs: seen.append(batch))
    refusal(ConfigError, lambda: fit(tmp_path / place, note))
    assert seen == []


@pytest.mark.parametrize(("size", "options"), [("8k", "rw"), ("4m", "ro")])
def test_a_disk_that_does_not_take_the_pixels_costs_only_time(disk, shapes_folder, capsys, size, options):
    def pixels(data: ImageData) -> list:
        data.prepare()
        return [images for epoch in range(2) for images, _ in data.train_batches(0).epoch(1, epoch)]

    place = disk(size, options)
    settings = {"image_size": 32, "workers": 0}
    kept = pixels(ImageData.from_folder(shapes_folder, cache=Cache("disk", place, budget=10**9), **settings))
    plain = pixels(ImageData.from_folder(shapes_folder, cache=None, **settings))
    assert all(torch.equal(one, other) for one, other in zip(kept, plain, strict=True))
    (told,) = capsys.readouterr().out.splitlines()
    assert str(place) in told
    assert told.endswith("pictures are decoded in every epoch")
    assert not [*place.iterdir()]
