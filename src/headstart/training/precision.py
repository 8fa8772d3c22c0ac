"""Which device trains, and in which arithmetic."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from headstart.errors import ConfigError, nearest
from headstart.machine import cpu_is_fast_in_bf16

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

    def in_full(self, outputs: Tensor) -> Tensor:
        """Give a network's outputs for a loss: eight bits are too few for one that adds them up."""
        return outputs if self.name == "fp32" else outputs.float()

    def scaler(self) -> "Scaler":
        """Give the scaler that keeps fp16 gradients from vanishing; for other precisions it does nothing."""
        return Scaler(self.device_type, enabled=self.name == "fp16")


class Scaler(torch.amp.GradScaler):
    """Keep the gradients of fp16 from vanishing; count the steps passed over because a gradient was too large.

    Counting does not wait for the device.

    Args:
        device_type: `"cuda"`, `"cpu"` or `"mps"`.
        enabled: whether there is anything to scale.
        init_scale: the factor on the loss to begin with.
    """

    def __init__(self, device_type: str, *, enabled: bool, init_scale: float = 65536.0) -> None:
        super().__init__(device_type, init_scale=init_scale, enabled=enabled)
        self._passed: Tensor | int = 0
        self._steps = 0

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Count the step and fit the scale to whether it was taken."""
        for state in self._per_optimizer_states.values() if self.is_enabled() else ():
            self._passed = self._passed + torch.stack([*state["found_inf_per_device"].values()]).amax()
            self._steps += 1
        super().update(new_scale)

    def told(self) -> str:
        """Say how many steps were passed over, or nothing; waits for the device."""
        passed = int(self._passed)
        were = "was" if passed == 1 else "were"
        return f"{passed} of {self._steps} steps {were} passed over: gradients too large for fp16" if passed else ""

    def state_dict(self) -> dict[str, Any]:
        """Give the scale and the counts; waits for the device."""
        counts = {"passed": int(self._passed), "steps": self._steps}
        return {**super().state_dict(), **counts} if self.is_enabled() else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was."""
        super().load_state_dict(state_dict)
        self._passed, self._steps = state_dict.get("passed", 0), state_dict.get("steps", 0)


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
    """Settle the arithmetic.

    `"auto"` is bf16 on GPUs that have it and on CPUs that are faster in it, fp16 on older GPUs, fp32 elsewhere.

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
    if device.type == "cuda":
        return Precision("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16", "cuda")
    return Precision("bf16" if device.type == "cpu" and cpu_is_fast_in_bf16() else "fp32", device.type)
