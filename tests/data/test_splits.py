"""A split is fair to every class, complete, and moves nothing without need."""

from collections import Counter

import pytest

from headstart.data.splits import stratified

LABELS = [place % 3 for place in range(60)] + [3] * 5


def test_every_picture_is_in_exactly_one_part_in_ascending_order() -> None:
    train, val = stratified(LABELS, 0.2, seed=0)
    assert sorted(train + val) == list(range(65))
    assert (train, val) == (sorted(train), sorted(val))


def test_each_class_gives_its_share() -> None:
    _, val = stratified(LABELS, 0.2, seed=0)
    assert Counter(LABELS[place] for place in val) == {0: 4, 1: 4, 2: 4, 3: 1}


@pytest.mark.parametrize(
    ("pictures", "fraction", "expected"),
    [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (3, 0.99, 2), (10, 0.26, 3), (100, 0.001, 1)],
)
def test_small_classes_give_at_least_one_picture_to_either_side_and_single_ones_to_train(
    pictures: int, fraction: float, expected: int
) -> None:
    train, val = stratified([7] * pictures, fraction, seed=0)
    assert (len(train), len(val)) == (pictures - expected, expected)


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    assert stratified(LABELS, 0.2, seed=1) == stratified(LABELS, 0.2, seed=1)
    assert stratified(LABELS, 0.2, seed=1) != stratified(LABELS, 0.2, seed=2)


def test_the_split_stays_what_it_was_when_it_was_first_published() -> None:
    assert stratified([0, 1] * 10, 0.2, seed=0)[1] == [1, 6, 11, 16]


def test_another_class_moves_no_picture_of_the_others() -> None:
    _, before = stratified(LABELS, 0.2, seed=0)
    _, after = stratified(LABELS + [4] * 20, 0.2, seed=0)
    assert [place for place in after if place < len(LABELS)] == before


def test_classes_are_drawn_from_differently() -> None:
    _, val = stratified([0] * 100 + [1] * 100, 0.2, seed=0)
    assert [place for place in val if place < 100] != [place - 100 for place in val if place >= 100]


def test_nothing_splits_into_nothing() -> None:
    assert stratified([], 0.2, seed=0) == ([], [])
