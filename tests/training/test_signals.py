"""Ctrl-C and SIGTERM: the step is finished, the state saved, and the same script goes on."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import At, made_learner, pairs, same, weights

from headstart import Callback, ImageData, Learner, ModelCheckpoint, StopTraining
from headstart.training.callback import Order
from headstart.training.checkpoint import read_weights

SIGNALS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]


class Send(Callback):
    """Send this process a signal at the n-th call of a hook, and at the call after it again if asked to."""

    order = Order.REPORT

    def __init__(self, number: int, hook: str, call: int, times: int = 1) -> None:
        self.number, self.left, self.times = number, call, times
        self.statuses: list[str] = []
        setattr(self, hook, self.send)

    def send(self, *arguments: Any) -> None:
        self.left -= 1
        if -self.times <= self.left < 0:
            os.kill(os.getpid(), self.number)

    def on_train_end(self, logs: Any) -> None:
        self.statuses.append(self.run.status)


def trained(folder: Path | None, *more: Callback) -> Learner:
    learner = made_learner(pairs(4, 4, 4, 4), pairs(4, 4), optimizer="adamw")
    kept = [] if folder is None else [ModelCheckpoint(folder)]
    learner.fit(3, 1e-2, callbacks=[*kept, *more], resume=folder is not None, verbose=False)
    return learner


@pytest.fixture(autouse=True)
def handlers_come_back():
    """Begin with Python's own handlers, which a shell's background jobs do not have, and check that they come back."""
    before = {number: signal.getsignal(number) for number, _ in SIGNALS}
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for number, handler in own.items():
        signal.signal(number, handler)
    yield
    assert {number: signal.getsignal(number) for number in own} == own
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
@pytest.mark.parametrize(
    ("hook", "call", "place"),
    [
        ("on_test_batch_begin", 1, "the validation of epoch 1 of 3"),
        ("on_epoch_end", 1, "epoch 3 of 3"),
        ("on_epoch_end", 2, "its end"),
    ],
)
def test_the_step_is_finished_and_the_same_script_goes_on(tmp_path, capfd, number, raised, hook, call, place):
    send = Send(number, hook, call)
    with pytest.raises(raised) as ending:
        trained(tmp_path, send)
    assert number == signal.SIGINT or ending.value.code == 143
    assert send.statuses == ["interrupted"]
    said = capfd.readouterr()
    assert "finishing the step; once more leaves at once" in said.err
    assert f"interrupted; the same script goes on at {place} with fit(..., resume=True)" in said.out
    assert same(weights(trained(tmp_path)), weights(trained(None)))
    going_on = "had trained its last epoch" if place == "its end" else f"goes on at {place}"
    assert f"fit 1 {going_on}" in capfd.readouterr().out


def test_a_fit_without_a_checkpoint_ends_politely_too(capfd):
    batches: list[int] = []
    note = At(on_train_batch_end=lambda callback, batch, logs: batches.append(batch))
    with pytest.raises(KeyboardInterrupt):
        trained(None, Send(signal.SIGINT, "on_train_batch_begin", 1), note)
    assert batches == [0, 1]
    assert "resume" not in capfd.readouterr().out


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
def test_a_second_signal_leaves_at_once(tmp_path, number, raised):
    batches: list[int] = []
    note = At(on_train_batch_end=lambda callback, batch, logs: batches.append(batch))
    twice = At(on_backward_end=lambda callback: [os.kill(os.getpid(), number) for _ in range(2)])
    with pytest.raises(raised):
        trained(tmp_path, note, twice)
    assert batches == []


def stop_at_once(callback: Any, *arguments: Any) -> None:
    raise StopTraining("at once")


@pytest.mark.parametrize(("number", "raised"), SIGNALS)
@pytest.mark.parametrize(
    ("hook", "stop"),
    [("on_train_end", None), ("on_epoch_end", "on_epoch_end"), ("on_train_batch_begin", "on_loss_ready")],
)
def test_a_signal_for_which_no_step_is_left_ends_the_script_after_the_fit(tmp_path, number, raised, hook, stop):
    more = [] if stop is None else [At(**{stop: stop_at_once})]
    sent = Send(number, hook, 0)
    sent.order = Order.DATA
    with pytest.raises(raised):
        trained(tmp_path, sent, *more)
    assert (tmp_path / "fit-1" / "finished.safetensors").exists()


def test_a_signal_is_heeded_where_nobody_reads_what_is_told(tmp_path):
    """As with `python train.py 2>&1 | tee log`, of which the same Ctrl-C ends both."""
    read, write = os.pipe()
    os.close(read)
    before = os.dup(2)
    os.dup2(write, 2)
    try:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, Send(signal.SIGINT, "on_train_batch_begin", 3))
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(write)
    assert (tmp_path / "fit-1" / "state-000001.safetensors").exists()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_signal_that_the_loaders_processes_hear_too_is_heeded(shapes_folder, tmp_path, batch):
    """As where a scheduler tells every process of a job."""
    torch.manual_seed(0)
    data = ImageData.from_folder(shapes_folder, image_size=24, batch_size=8, workers=2)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 3))
    learner = Learner(network, data, device="cpu")

    def tell_all(callback, number, logs):
        if number == batch:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGTERM)
                child.join(10)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        learner.fit(
            2,
            1e-3,
            callbacks=[ModelCheckpoint(tmp_path), At(on_train_batch_begin=tell_all)],
            accumulate=2,
            resume=True,
            verbose=False,
        )
    assert left.value.code == 143
    assert not isinstance(left.value.__cause__, AssertionError)


def test_handlers_of_ones_own_are_left_alone():
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        trained(None, Send(signal.SIGTERM, "on_train_batch_begin", 1))
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_fit_in_another_thread_leaves_the_handlers_alone():
    seen: list[Any] = []
    look = At(on_train_batch_begin=lambda callback, batch, logs: seen.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=trained, args=(None, look))
    thread.start()
    thread.join()
    assert set(seen) == {signal.getsignal(signal.SIGINT)}
    assert len(seen) == 12


SCRIPT = """
import signal, sys, torch
from headstart import Callback, ImageData, Learner, ModelCheckpoint

class Tell(Callback):
    order = 4
    def on_train_batch_end(self, batch, logs):
        print("batch", batch, flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs do not have it
torch.set_num_threads(1)
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 3))
data = ImageData.from_folder(sys.argv[1], image_size=24, batch_size=4, workers=2)
learner = Learner(network, data, device="cpu")
learner.fit(3, 1e-3, callbacks=[ModelCheckpoint(sys.argv[2]), Tell()], resume=True, verbose=False)
learner.save(sys.argv[2] + ".safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_script_and_all_its_processes_end_and_go_on(shapes_folder, tmp_path, number, code):
    def start(name: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", SCRIPT, str(shapes_folder), str(tmp_path / name)]
        # In a session of its own, so that a signal to all reaches just these.
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603

    with start("cut") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "batch 5\n":
                os.killpg(process.pid, number)
                break
        said = process.stdout.read()
        assert process.wait(60) == code
    assert "interrupted; the same script goes on at batch" in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left
    for name in ("cut", "whole"):
        with start(name) as process:
            process.communicate(timeout=60)
        assert process.returncode == 0
    cut, whole = (read_weights(tmp_path / f"{name}.safetensors")[0] for name in ("cut", "whole"))
    assert same(cut, whole)
