"""Processes of a loader that die or hang: an error with the picture, and a state that is whole."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from handmade import refusal
from interrupted import differences, fit, left
from PIL import Image
from torch import Tensor

from headstart import DataError, ImageData
from headstart.data import loading
from headstart.data.augment import eval_view
from headstart.data.decode import open_picture
from headstart.data.folders import scan_classes
from headstart.data.preprocessing import Preprocessing, to_pixels

HERE = os.getpid()


class Trap:
    """A pipeline that does something bad with the widest picture, if another process prepares it."""

    def __init__(self, width: int, deed: Any) -> None:
        self.width, self.deed = width, deed

    def __call__(self, picture: Image.Image) -> Tensor:
        if picture.width == self.width and os.getpid() != HERE:
            self.deed()
        return to_pixels(picture.resize((32, 32)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(600)


@pytest.fixture
def pictures(shapes_folder: Path) -> tuple[Any, Path, int]:
    """Give twelve pictures, and one that is wider than all others."""
    source = scan_classes(shapes_folder / "train").part(range(0, 72, 6))
    width, path = max((open_picture(path).width, path) for path in source.paths)
    return source, path, width


@pytest.mark.parametrize(
    ("deed", "told", "workers"),
    [(die, "DataLoader worker", 1), (die, "DataLoader worker", 2), (hang, "no new picture for 2 s", 2)],
)
def test_the_picture_at_which_a_process_was_is_named(pictures, monkeypatch, deed, told, workers):
    monkeypatch.setattr(loading, "SILENCE", 2.0)
    source, path, width = pictures
    batches = loading.SourceBatches(source, Trap(width, deed), 3, workers=workers)
    began = time.monotonic()

    def go() -> None:
        with loading.accounting(batches):
            list(batches.epoch(0, 0))

    error = refusal(DataError, go)
    assert error.arrived.startswith(told)
    assert str(path) in error.arrived
    assert time.monotonic() - began < 30


def test_slow_pictures_are_waited_for_as_long_as_others_begin(pictures, monkeypatch):
    monkeypatch.setattr(loading, "SILENCE", 2.0)
    source, _, _ = pictures

    def view(picture: Image.Image) -> Tensor:
        time.sleep(0.3)
        return eval_view(Preprocessing(image_size=(32, 32), resize=(36, 36)))(picture)

    slow = loading.SourceBatches(source, view, 12, workers=1)  # its one batch takes 3.6 s
    assert [len(labels) for _, labels in slow.epoch(0, 0)] == [12]


def test_a_fit_whose_worker_is_killed_names_the_picture_and_goes_on_without_it(make, shapes_folder, tmp_path):
    data = {"image_size": 32, "batch_size": 8}
    width = max(open_picture(path).width for path in (shapes_folder / "train").rglob("*.jpg"))
    marker = tmp_path / "marker"

    def once() -> None:
        if not marker.exists():
            marker.touch()
            die()

    def learner(workers: int) -> Any:
        bad = ImageData.from_folder(shapes_folder, augment=Trap(width, once), workers=workers, **data)
        return make(data=bad)

    broken = learner(2)
    error = refusal(DataError, lambda: fit(broken, tmp_path / "cut"))
    assert ".jpg" in error.arrived
    again, whole = learner(2), learner(0)
    fit(again, tmp_path / "cut")
    fit(whole, tmp_path / "whole")
    assert differences(left(again), left(whole)) == []


SCARCE = """
import sys, torch, torchvision
from headstart import DataError, ImageData, Learner
from headstart.data import loading
loading.SILENCE = 2.0
torch.set_num_threads(1)
pictures = torchvision.datasets.FakeData(24, (3, 224, 224), 3)
network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
for workers in (2, "auto"):
    data = ImageData.from_datasets(pictures, classes=3, batch_size=12, workers=workers, augment=None)
    try:
        Learner(network, data, device="cpu").fit(1, lr=0.1, verbose=False)
        print("trained")
    except DataError as error:
        print(error)
"""


@pytest.mark.slow
def test_shared_memory_that_is_full_is_named(tmp_path):
    unshare = shutil.which("unshare") or "false"
    command = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} {tmp_path / 'script.py'}"
    (tmp_path / "script.py").write_text(SCARCE)
    if subprocess.run([unshare, "-m", "mount", "-t", "tmpfs", "tmpfs", tmp_path], check=False).returncode:  # noqa: S603
        pytest.skip("needs the right to mount a disk")
    done = subprocess.run([unshare, "-m", "sh", "-c", command], capture_output=True, text=True, timeout=90, check=True)  # noqa: S603
    assert "/dev/shm, where processes hand their batches over, has " in done.stdout  # noqa: S108
    assert "workers=0" in done.stdout
    assert done.stdout.splitlines()[-1] == "trained"
