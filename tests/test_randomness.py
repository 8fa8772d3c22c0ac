"""Seeds follow from a position alone, scatter well, and leave other people's generators as they were."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headstart.randomness import (
    AUGMENTATION,
    ORDER,
    SPLIT,
    STEP,
    WEIGHTS,
    derive,
    generator,
    preserved,
    seed_sample,
    seed_step,
)

DRAWS: list[Callable[[], Any]] = [lambda: torch.rand(()).item(), random.random, np.random.random]
"""One number from each generator that an augmentation may draw from."""


def drawn() -> list[float]:
    """Draw from torch, random and numpy."""
    return [draw() for draw in DRAWS]


# Deriving


@pytest.mark.parametrize(("state", "first"), [(0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)])
def test_a_single_part_gives_what_splitmix64_publishes(state: int, first: int) -> None:
    assert derive(state) == first >> 1


def test_seeds_stay_what_they_were_when_they_were_first_published() -> None:
    assert [derive(ORDER, 0, 1, 0), derive(AUGMENTATION, 0, 1, 0, 7)] == [3554033486235516013, 3137687456126523263]


def test_every_position_has_a_seed_of_its_own() -> None:
    purposes = (ORDER, AUGMENTATION, STEP, SPLIT, WEIGHTS)
    positions = [(purpose, a, b, c) for purpose in purposes for a in range(4) for b in range(20) for c in range(20)]
    positions += [position[:length] for position in positions[:1] for length in range(4)]
    assert len({derive(*position) for position in positions}) == len(positions)


def test_the_order_of_the_parts_counts() -> None:
    assert derive(STEP, 1, 2) != derive(STEP, 2, 1)


def test_seeds_are_never_negative_and_fit_into_63_bits_whatever_the_parts() -> None:
    for part in (0, -1, 2**63, 2**64, 10**30, -(10**30)):
        assert 0 <= derive(STEP, part) < 2**63


def test_neighbouring_positions_differ_in_about_half_of_their_bits() -> None:
    flipped = [(derive(STEP, 0, step) ^ derive(STEP, 0, step + 1)).bit_count() for step in range(1000)]
    assert 31 < np.mean(flipped) < 32
    assert min(flipped) > 12


# Seeding


def test_a_sample_seed_sets_torch_random_and_numpy() -> None:
    with preserved():
        seed_sample(derive(AUGMENTATION, 0))
        first, second = drawn(), drawn()
        seed_sample(derive(AUGMENTATION, 0))
        assert drawn() == first
        seed_sample(derive(AUGMENTATION, 1))
        third = drawn()
    assert all(len({a, b, c}) == 3 for a, b, c in zip(first, second, third, strict=True))


def test_a_step_seed_sets_torch_as_manual_seed_does() -> None:
    with preserved():
        seed_step(17, torch.device("cpu"))
        found = torch.rand(3)
        torch.manual_seed(17)
        assert torch.equal(found, torch.rand(3))


@pytest.mark.parametrize(("device", "seeded"), [("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_step_seed_sets_the_generator_of_the_gpu_that_is_used(
    monkeypatch: pytest.MonkeyPatch, device: str, seeded: int
) -> None:
    generators = (generator(0), generator(0))
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with preserved():
        seed_step(17, torch.device(device))
    assert [g.initial_seed() for g in generators] == [17 if place == seeded else 0 for place in (0, 1)]


def test_a_step_seed_sets_the_generator_of_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    with preserved():
        seed_step(17, torch.device("mps"))
    assert seeds == [17]


# Leaving others alone


def test_a_generator_of_its_own_moves_nobody_elses_numbers() -> None:
    before = torch.get_rng_state()
    mine = generator(5)
    assert torch.equal(torch.rand(3, generator=mine), torch.rand(3, generator=generator(5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_come_back_as_they_were() -> None:
    with preserved():
        expected = drawn()
    with preserved():
        seed_sample(99)
        with preserved():
            drawn()
        drawn()
    assert drawn() == expected


def test_generators_come_back_also_when_something_fails() -> None:
    with preserved():
        expected = drawn()

    def fail() -> None:
        with preserved():
            seed_sample(99)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert drawn() == expected
