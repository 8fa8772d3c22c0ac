"""What the machine has to give."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

_GROUP = Path("/sys/fs/cgroup")
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Where Linux says how much memory a container may have, and how much it has taken: in version 2, and in version 1."""

_SPARE = ("inactive_file", "total_inactive_file")

_CPUINFO = Path("/proc/cpuinfo")
"""Where Linux says who made the processor; Python says so itself on Windows."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""What `mallopt` of the GNU C library calls its parameters."""

_HELD = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 1 << 25, _TRIM_THRESHOLD: 1 << 26}
"""What large blocks bring the library to by itself, on a system of 64 bits; told, it does not change them any more."""

_holders: list[None] = []
"""One for each who has asked that memory is held."""

_UNKNOWN = 4_000_000_000


def free_memory() -> int:
    """Give the bytes of memory that are free, or can be made free at once; half of all where the system does not say.

    Example:
        >>> free_memory() > 0
        True
    """
    return min([_free_on_machine(), *_free_in_container()])


def _free_on_machine() -> int:
    about = Path("/proc/meminfo")
    if about.is_file():
        for line in about.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return _UNKNOWN


def _free_in_container() -> list[int]:
    pairs = [(_GROUP / most, _GROUP / taken) for most, taken in _LIMITS]
    found = [[path.read_text().strip() for path in pair] for pair in pairs if all(path.is_file() for path in pair)]
    about = [
        path.read_text().split() for path in (_GROUP / "memory.stat", _GROUP / "memory/memory.stat") if path.is_file()
    ]
    # Pages of files that nobody is at count as taken, and are given back when somebody needs them.
    spare = [int(words[words.index(key) + 1]) for words in about for key in _SPARE if key in words]
    return [max(0, int(most) - int(taken) + max(spare, default=0)) for most, taken in found if most.isdigit()]


@contextmanager
def memory_held() -> Iterator[None]:
    """Let this process hold the memory that it frees inside, to use it again; afterwards what is free is given back.

    The GNU C library (Linux) gives blocks above 32 MB back at once, and the system clears every page of the next one
    anew: a third of the time of asking a MobileNetV2 on two cores, a tenth of that of training it. Other systems stay
    as they are, and so do processes with settings of their own in the environment (`MALLOC_...`, `GLIBC_TUNABLES`).

    Example:
        >>> with memory_held():
        ...     total = sum(float(torch.ones(10_000_000).sum()) for _ in range(3))
    """
    _holders.append(None)
    _set_allocator(_HELD)
    try:
        yield
    finally:
        if _holders:  # else this is a process that was forked inside
            _holders.pop()
        if not _holders:
            _give_back()


def _give_back() -> None:
    """Give back what is free, and large blocks from now on at once."""
    if (library := _c_library()) is not None:
        _set_allocator(_USUAL)
        library.malloc_trim(0)


def _hold_nothing() -> None:
    """Hold nothing in a process that was forked: one of a loader would keep the room of its largest picture."""
    if _holders:
        _holders.clear()
        _give_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hold_nothing)


def _set_allocator(settings: Mapping[int, int]) -> None:
    if (library := _c_library()) is not None:
        for name, value in settings.items():
            library.mallopt(name, value)


@cache
def _c_library() -> ctypes.CDLL | None:
    """Give the C library of this process, if it is GNU's and nobody has set its allocator."""
    has_own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or has_own:
        return None
    return ctypes.CDLL(None)


def cores() -> int:
    """Give the number of processor cores that this process may use.

    Example:
        >>> cores() > 0
        True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_is_fast_in_bf16() -> bool:
    """Say whether the processor multiplies bf16 numbers faster than fp32 ones: Intel's with AMX, AMD's since Zen 4.

    torch computes in bf16 on others, too, and takes longer than in fp32. So do Intel's since Sapphire Rapids where a
    virtual machine hides AMX: of AVX-512 BF16, which is left, oneDNN's convolutions make 0.6 of their speed in fp32
    (measured on an Emerald Rapids). Processors other than x86 are left at fp32: nobody has measured them yet.

    Example:
        >>> cpu_is_fast_in_bf16() in (True, False)
        True
    """
    # torch 2.10 has no public way to ask.
    return torch.cpu._is_amx_tile_supported() or (  # noqa: SLF001
        torch.cpu._is_avx512_bf16_supported() and not _is_of_intel()  # noqa: SLF001
    )


def _is_of_intel() -> bool:
    about = _CPUINFO.read_text(errors="replace") if _CPUINFO.is_file() else platform.processor()
    return "GenuineIntel" in about
