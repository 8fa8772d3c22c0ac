"""Seeds that are derived from a position, never carried along.

Whoever needs chance asks for a seed made from where it stands (which fit, which epoch, which picture). So nothing that
happens in between, an evaluation, a plot or another number of loader workers, can change what training does.
The generators themselves are Python's, NumPy's and PyTorch's own.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

ORDER, AUGMENTATION, STEP, SPLIT, WEIGHTS = range(5)
"""What a seed is for; the first part of every position, so that no two purposes share a seed."""


def derive(*position: int) -> int:
    """Turn a position into a seed, in a way that scatters neighbouring positions.

    Each part is mixed in with the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).

    Args:
        position: whole numbers, the purpose first, from the widest part (the Learner's seed) to the narrowest.

    Returns:
        A seed in [0, 2**63), the same on every machine and in every process.

    Example:
        >>> derive(STEP, 0, 1) == derive(STEP, 0, 1), derive(STEP, 0, 1) == derive(STEP, 0, 2)
        (True, False)
    """
    word = 0
    for part in position:
        word = (word + _GOLDEN + part) & _WORD
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
        word ^= word >> 31
    return word >> 1


def seed_sample(seed: int) -> None:
    """Seed all that an augmentation, or a callback, may draw from: torch on the CPU, random, numpy.

    `torch.manual_seed` would do more (every device) and cost a hundred times as much for each picture.
    """
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


def seed_step(seed: int, device: torch.device) -> None:
    """Seed what a training step may draw from (dropout, callbacks): all that a picture may, and torch on `device`."""
    seed_sample(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def generator(seed: int) -> torch.Generator:
    """Make a CPU generator of its own, so that using it moves nobody else's numbers."""
    return torch.Generator().manual_seed(seed)


def standing(device: torch.device) -> int:
    """Give a number that changes when somebody draws: from torch on the CPU or on `device`, from random or numpy."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    _, keys, place, *gauss = np.random.get_state()
    drawn = [state.numpy().tobytes() for state in states]
    return hash((*drawn, random.getstate(), np.asarray(keys).tobytes(), place, *gauss))


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Give the user's generators (torch on the CPU, random, numpy) back as they were, whatever is seeded inside."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
