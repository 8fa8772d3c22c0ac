"""Which device trains, and in which arithmetic."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from headstart.errors import ConfigError, nearest

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
_NAMES = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Precision:
    """The arithmetic of forward passes: full, or mixed through autocast.

    Args:
        name: `"fp32"`, `"bf16"` or `"fp16"`.
        device_type: `"cuda"`, `"cpu"` or `"mps"`.
    """

    name: str
    device_type: str

    def autocast(self) -> AbstractContextManager[object]:
        """Give the context in which forward pass and loss are computed."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, torch.bfloat16 if self.name == "bf16" else torch.float16)

    def scaler(self) -> torch.amp.GradScaler:
        """Give the scaler that keeps fp16 gradients from vanishing; for other precisions it does nothing."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def choose_device(device: str | torch.device) -> torch.device:
    """Find the device: a CUDA device when there is one, else the CPU; any other by name.

    Raises:
        ConfigError: the name means nothing, or the machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device={device!r}", "'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'", "Leave device= out."
        ) from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(chosen.type, False) or (chosen.index or 0) >= max(1, torch.cuda.device_count()):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ConfigError(f"device={str(device)!r}", f"a device this machine has: {there}", "Leave device= out.")
    return chosen


def choose_precision(precision: str, device: torch.device) -> Precision:
    """Settle the arithmetic: `"auto"` is bf16 on GPUs that have it, fp16 on older ones, fp32 elsewhere.

    Raises:
        ConfigError: an unknown name, or fp16 on a CPU, which only loses there.
    """
    if precision not in _NAMES:
        raise ConfigError(
            f"precision={precision!r}", f"one of {', '.join(_NAMES)}", f"{nearest(str(precision), _NAMES)}Leave it out."
        )
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "precision='fp16' on a CPU", "'fp32', or 'bf16' where the CPU has it", "Leave precision= out."
        )
    if precision != "auto":
        return Precision(precision, device.type)
    if device.type != "cuda":
        return Precision("fp32", device.type)
    return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16", "cuda")
