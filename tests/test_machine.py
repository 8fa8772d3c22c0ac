"""Free memory is that of the machine or of the container, whichever has less; what is freed is held or given back."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import At

from headstart import machine
from headstart.machine import cpu_is_fast_in_bf16, free_memory, memory_held


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    monkeypatch.setattr(machine, "_free_on_machine", lambda: 10_000)
    return tmp_path


@pytest.mark.parametrize(("most", "expected"), [("7000\n", 4000), ("90000\n", 10_000), ("max\n", 10_000)])
def test_a_container_may_have_less_than_its_machine(group: Path, most: str, expected: int) -> None:
    (group / "memory.max").write_text(most)
    (group / "memory.current").write_text("3000\n")
    assert free_memory() == expected


def test_pages_of_files_that_nobody_is_at_are_as_good_as_free(group: Path) -> None:
    (group / "memory.max").write_text("7000")
    (group / "memory.current").write_text("6900")
    (group / "memory.stat").write_text("anon 100\ninactive_file 5000\nactive_file 1800\n")
    assert free_memory() == 5100
    (group / "memory.stat").unlink()
    (group / "memory.current").write_text("8000")
    assert free_memory() == 0


def test_so_may_an_older_one(group: Path) -> None:
    (group / "memory").mkdir()
    (group / "memory" / "memory.limit_in_bytes").write_text("5000")
    (group / "memory" / "memory.usage_in_bytes").write_text("1000")
    assert free_memory() == 4000


def test_without_a_container_it_is_what_the_machine_has(group: Path) -> None:
    assert free_memory() == 10_000


def test_a_machine_has_some_and_less_than_all() -> None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        pytest.skip("needs a system that tells")
    total = int(meminfo.read_text().split()[1]) * 1024
    assert 0 < machine._free_on_machine() < total


# Memory that is held

WATCHED = """
import json, multiprocessing, os
from pathlib import Path

from headstart.machine import memory_held


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def left():
    before = resident()
    blocks = [b"x" * 300_000_000, b"y" * 300_000_000]
    del blocks
    return resident() - before


found = {"before": left()}
try:
    with memory_held():
        with memory_held():
            found["inside"] = left()
        held = resident()
        found["more"] = max(left() for _ in range(3))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found["in a forked process"] = pool.apply(resident) - held
        raise KeyError
except KeyError:
    found["afterwards"] = resident() - held
found["later"] = left()
print(json.dumps(found))
"""
"""Uses 600 MB in two blocks and frees them, again and again; tells how many megabytes more it has then than before."""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_what_is_freed_is_held_and_used_again_and_given_back_whatever_happens() -> None:
    # A process of its own, in whose memory nothing else has lain.
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", WATCHED]
    told = subprocess.run(command, env=usual, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["before"] < 100
    assert found["inside"] > 500
    assert found["more"] < 100, "the same pages were not used again"
    assert found["in a forked process"] < -400
    assert found["afterwards"] < -500
    assert found["later"] < 100


@pytest.fixture(params=["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def settings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    machine._c_library.cache_clear()
    monkeypatch.setenv(request.param, "2")
    yield
    machine._c_library.cache_clear()


@pytest.mark.usefixtures("settings")
def test_who_has_set_the_allocator_is_left_alone() -> None:
    assert machine._c_library() is None
    with memory_held():
        assert torch.ones(3).sum() == 3


@pytest.mark.parametrize(("pictures", "holders"), [(8, 0), (9, 1)])  # the batches are of 8
def test_to_predict_more_than_a_batch_holds_memory(make: Any, pictures: int, holders: int) -> None:
    held: list[int] = []
    look = At(on_predict_batch_end=lambda callback, batch, logs: held.append(len(machine._holders)))
    make().predict(torch.zeros(pictures, 3, 32, 32, dtype=torch.uint8), callbacks=look)
    assert set(held) == {holders}


def test_a_fit_and_what_is_asked_in_it_hold_memory_to_the_end(make: Any) -> None:
    learner, held = make(), []
    look = At(on_train_batch_end=lambda callback, batch, logs: held.append(len(machine._holders)))

    def ask(callback: At, epoch: int, logs: Any) -> None:
        learner.evaluate("val")
        held.append(len(machine._holders))

    learner.fit(1, 1e-3, callbacks=[look, At(on_epoch_end=ask)], verbose=False)
    assert set(held) == {1}
    assert not machine._holders


# bf16


@pytest.mark.parametrize(
    ("maker", "has_bf16", "has_amx", "is_fast"),
    [
        ("AuthenticAMD", True, False, True),  # Zen 4 and later
        ("AuthenticAMD", False, False, False),
        ("GenuineIntel", True, True, True),  # Sapphire Rapids and later
        ("GenuineIntel", True, False, False),  # the same in a virtual machine that hides AMX
        ("GenuineIntel", False, False, False),
    ],
)
@pytest.mark.parametrize("system", ["Linux", "Windows"])
def test_bf16_is_fast_on_intel_with_amx_alone(tmp_path, monkeypatch, system, maker, has_bf16, has_amx, is_fast) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if system == "Linux":
        cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {maker}\nmodel name\t: a processor\n")
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(machine.platform, "processor", lambda: f"Family 6 Model 207 Stepping 2, {maker}")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert cpu_is_fast_in_bf16() == is_fast
