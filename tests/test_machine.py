"""Free memory is that of the machine or of the container, whichever has less."""

from pathlib import Path

import pytest

from headstart import machine
from headstart.machine import free_memory


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
