"""Processes that are killed, at any moment and inside a write: the run goes on and ends with the same bits."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from interrupted import differences, fit, left

from headstart import Callback, files
from headstart.training import checkpoint
from headstart.training.callback import Order

FORK = multiprocessing.get_context("fork")  # a child that need not import torch again


class Trace(Callback):
    """Write each batch into a file as it ends, so that it is known after the process has gone."""

    order = Order.REPORT

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, logs: Any) -> None:
        self.note(f"begins {self.run.epoch} {self.run.batches_done}")

    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        self.note(f"{self.run.epoch} {batch}")

    def note(self, words: str) -> None:
        with self.path.open("a") as file:
            file.write(words + "\n")


def in_a_child(work: Callable[[], object], until: Callable[[], bool] = lambda: False) -> int | None:
    """Do something in a child, which is killed when `until` says so; give its exit code."""
    child = FORK.Process(target=work)
    child.start()
    while child.is_alive():
        if until():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    child.join(60)
    return child.exitcode


def batches(trace: Path) -> list[list[tuple[int, int]]]:
    """Read what each process trained: where it began, then its batches."""
    processes: list[list[tuple[int, int]]] = []
    for line in trace.read_text().splitlines() if trace.exists() else ():
        *begins, epoch, batch = line.split()
        if begins:
            processes.append([])
        processes[-1].append((int(epoch), int(batch)))
    return processes


@pytest.mark.parametrize(("workers", "times"), [(0, 6), (2, 3)])
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(make, tmp_path, workers, times):
    whole = make()
    fit(whole, tmp_path / "whole", epochs=4)
    trace, chance, kills = tmp_path / "trace", random.Random(workers), 0  # noqa: S311 - moments, not secrets

    def work() -> None:
        fit(make(workers=workers), tmp_path / "cut", Trace(trace), epochs=4)

    def after(lines: int) -> Callable[[], bool]:
        most = lines + (trace.read_text().count("\n") if trace.exists() else 0)

        def until() -> bool:
            if not trace.exists() or trace.read_text().count("\n") < most:
                return False
            time.sleep(chance.uniform(0, 0.02))  # anywhere in a batch, or in a write
            return True

        return until

    for _ in range(times):
        kills += in_a_child(work, after(chance.randint(1, 5))) == -signal.SIGKILL
    assert in_a_child(work) == 0
    again = make()
    fit(again, tmp_path / "cut", Trace(trace), epochs=4)  # has ended before: its end is loaded
    assert kills >= times - 2
    assert differences(left(again), left(whole)) == []
    processes = batches(trace)
    assert len({process[0] for process in processes}) >= times // 2
    for earlier, later in pairwise(processes):
        begun, reached = later[0], earlier[-1] if len(earlier) > 1 else (earlier[0][0], earlier[0][1] - 1)
        assert begun <= (reached[0], reached[1] + 1) or begun == (reached[0] + 1, 0)  # none is missing
        assert later[1:2] in ([], [begun], [(begun[0] + 1, 0)])  # none before the state is trained again


STATE = "state-000003.safetensors"
"""The state in whose writing the process is killed; two others are there."""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def struck(plain: Callable[..., Any], *, before: bool, name: str = STATE) -> Callable[..., Any]:
    """Let a function end this process before or after it does something with a file of this name."""

    def act(*arguments: Any, **options: Any) -> Any:
        is_it = any(name in str(argument) and not Path(str(argument)).is_dir() for argument in arguments)
        if is_it and before:
            kill()
        made = plain(*arguments, **options)
        if is_it:
            kill()
        return made

    return act


def halved(save: Callable[..., None]) -> Callable[..., None]:
    def act(tensors: Any, path: Path, header: Any) -> None:
        save(tensors, path, header)
        if STATE in str(path):
            os.truncate(path, path.stat().st_size // 2)
            kill()

    return act


FAILPOINTS = {
    "when the file has been made": (os, "open", lambda plain: struck(plain, before=False)),
    "when half is written": (checkpoint, "_save", halved),
    "before it is flushed": (files, "_flush", lambda plain: struck(plain, before=True)),
    "before it has its name": (Path, "replace", lambda plain: struck(plain, before=True)),
    "when it has its name": (Path, "replace", lambda plain: struck(plain, before=False)),
    "before the older one goes": (
        Path,
        "unlink",
        lambda plain: struck(plain, before=True, name="/state-000001.safetensors"),
    ),
}


@pytest.mark.parametrize("moment", FAILPOINTS)
def test_killed_inside_a_write_the_last_whole_state_is_gone_on_with(make, tmp_path, monkeypatch, moment):
    whole = make()
    fit(whole, tmp_path / "whole")
    place, name, change = FAILPOINTS[moment]

    def work() -> None:
        monkeypatch.setattr(place, name, change(getattr(place, name)))
        fit(make(), tmp_path / "cut")

    assert in_a_child(work) == -signal.SIGKILL
    folder = tmp_path / "cut" / "fit-1"
    is_whole = moment in ("when it has its name", "before the older one goes")
    states = sorted(path.name for path in folder.glob("state-*"))
    assert states == [f"state-00000{n}.safetensors" for n in ((1, 2, 3) if is_whole else (1, 2))]
    again = make()
    fit(again, tmp_path / "cut")
    assert differences(left(again), left(whole)) == []
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
