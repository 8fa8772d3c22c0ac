"""Arguments beside pictures are checked all at once, and kept as plain numbers."""

from typing import Any

import numpy as np
import pytest
from handmade import refusal

from headstart.data.settings import demand, settings
from headstart.errors import ConfigError

RIGHT: dict[str, Any] = {
    "batch_size": 4,
    "image_size": None,
    "augment": "light",
    "eval_transform": None,
    "workers": "auto",
    "on_error": "skip",
}


def test_what_is_right_comes_back() -> None:
    assert settings(**RIGHT, root="flowers", val_fraction=0.2, seed=0) == RIGHT


def test_numbers_of_numpy_come_back_as_pythons() -> None:
    given = {**RIGHT, "batch_size": np.int64(4), "image_size": np.int32(32), "workers": np.uint8(0)}
    found = settings(**given)
    assert found == {**RIGHT, "batch_size": 4, "image_size": 32, "workers": 0}
    assert [type(found[name]) for name in ("batch_size", "image_size", "workers")] == [int, int, int]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    error = refusal(ConfigError, lambda: settings(**{**RIGHT, "batch_size": 0, "workers": "all"}, seed=-1))
    assert error.arrived == "seed=-1, batch_size=0, workers='all'"
    assert [word in error.needed for word in ("seed:", "batch_size:", "workers:")] == [True] * 3


def test_an_unknown_augmentation_is_refused() -> None:
    assert "'flip'" in refusal(ConfigError, lambda: settings(**{**RIGHT, "augment": "filp"})).todo


@pytest.mark.parametrize("pictures", [0, True, 1.0, np.float64(2)])
def test_each_argument_may_be_checked_alone(pictures: Any) -> None:
    assert refusal(ConfigError, lambda: demand("Pass 12.", pictures=pictures)).todo == "Pass 12."
