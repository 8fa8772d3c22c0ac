"""Errors say what arrived, what is needed and what to do; the words for it are gathered in one place."""

import pickle
import re
from fractions import Fraction

import numpy as np
import pytest

from headstart import errors
from headstart.errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    DataError,
    Demands,
    HeadstartError,
    is_count,
    is_number,
    listing,
    nearest,
)

KINDS = (ConfigError, BackboneError, DataError, CheckpointError)


def test_the_tree_is_the_one_that_is_drawn() -> None:
    drawn = re.findall(r"\b\w+Error\b", errors.__doc__ or "")
    assert drawn == ["HeadstartError", "ConfigError", "ValueError", "BackboneError", "DataError", "CheckpointError"]
    assert set(HeadstartError.__subclasses__()) == set(KINDS)
    assert [kind for kind in KINDS if issubclass(kind, ValueError)] == [ConfigError]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_carries_and_prints_its_three_parts(kind: type[HeadstartError]) -> None:
    error = kind("epochs=0", "1 or more", "Pass epochs=5.")
    assert (error.arrived, error.needed, error.todo) == ("epochs=0", "1 or more", "Pass epochs=5.")
    assert str(error) == "Arrived: epochs=0\nNeeded:  1 or more\nTo do:   Pass epochs=5."


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_back_whole_from_a_loader_worker(kind: type[HeadstartError]) -> None:
    error = pickle.loads(pickle.dumps(kind("a", "b", "c")))  # noqa: S301 - bytes made on the same line
    assert (type(error), error.arrived, error.needed, error.todo) == (kind, "a", "b", "c")


def test_demands_that_are_met_say_nothing() -> None:
    demands = Demands("Do it right.")
    demands.check("epochs", 1, True, "1 or more")
    demands.settle()


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_the_arguments() -> None:
    demands = Demands("Pass fit(5, lr=1e-3).")
    demands.check("epochs", "5", False, "a whole number")
    demands.check("clip", 1.0, True, "a norm")
    demands.check("lr", -1, False, "a rate above 0")
    with pytest.raises(ConfigError) as caught:
        demands.settle()
    assert caught.value.arrived == "epochs='5', lr=-1"
    assert caught.value.needed == "epochs: a whole number; lr: a rate above 0"
    assert caught.value.todo == "Pass fit(5, lr=1e-3)."


@pytest.mark.parametrize(
    ("value", "least", "expected"),
    [
        (1, 1, True),
        (0, 1, False),
        (0, 0, True),
        (-1, 0, False),
        (8, 8, True),
        (True, 0, False),
        (1.0, 1, False),
        ("1", 1, False),
        (None, 0, False),
        (np.int64(8), 8, True),
        (np.uint8(7), 8, False),
        (np.bool_(True), 0, False),
        (np.float64(1.0), 1, False),
        (np.ones((), int), 1, False),
    ],
)
def test_counts_are_whole_numbers_from_a_least_one_on(value: object, least: int, expected: bool) -> None:
    assert is_count(value, least) is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, True),
        (-1.5, True),
        (10**400, True),
        (float("inf"), False),
        (float("-inf"), False),
        (float("nan"), False),
        (False, False),
        ("1", False),
        (None, False),
        (1j, False),
        (np.float32(0.001), True),
        (np.float16(-1), True),
        (np.int32(0), True),
        (Fraction(1, 3), True),
        (np.float32("nan"), False),
        (np.float64("inf"), False),
        (np.bool_(False), False),
        (np.ones(()), False),
    ],
)
def test_numbers_are_finite_and_real(value: object, expected: bool) -> None:
    assert is_number(value) is expected


def test_the_nearest_words_are_named_best_first_and_once() -> None:
    assert nearest("layer1", ["layers1x", "layer1", "stem", "layer1"]) == "Did you mean 'layer1' or 'layers1x'? "
    assert nearest("flovers", ["stem", "flower", "flowers"], most=1) == "Did you mean 'flowers'? "


def test_where_nothing_is_near_nothing_is_suggested() -> None:
    assert nearest("zebra", ["resnet18", "vgg16"]) == ""
    assert nearest("zebra", []) == ""


@pytest.mark.parametrize(
    ("count", "expected"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more"), (9, "0, 1, 2 and 6 more")]
)
def test_long_lists_are_cut_and_the_rest_is_counted(count: int, expected: str) -> None:
    assert listing(range(count), most=3) == expected
