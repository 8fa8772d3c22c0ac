"""Names of classes come in the order of the labels, from whatever says them, or are refused."""

from typing import Any

import numpy as np
import pytest
from handmade import refusal
from torch.utils.data import ConcatDataset, Subset

from headstart.data.classes import class_names, common_classes
from headstart.errors import ConfigError, DataError


class Telling:
    """A dataset that says something about its classes."""

    def __init__(self, **said: Any) -> None:
        vars(self).update(said)

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    "classes",
    [
        ["not_hotdog", "hotdog"],
        np.array(["not_hotdog", "hotdog"]),
        (name for name in ("not_hotdog", "hotdog")),
        {"hotdog": 1, "not_hotdog": 0},
        {"not_hotdog": np.int64(0), "hotdog": np.int64(1)},
        {1: "hotdog", 0: "not_hotdog"},
        {np.int64(1): "hotdog", np.int64(0): "not_hotdog"},
    ],
)
def test_names_stand_in_the_order_of_their_numbers(classes: Any) -> None:
    assert class_names(classes) == ("not_hotdog", "hotdog")


@pytest.mark.parametrize("classes", [3, np.int64(3), range(3), {"0": 0, "2": 2, "1": 1}])
def test_numbers_may_be_names(classes: Any) -> None:
    assert class_names(classes) == ("0", "1", "2")


@pytest.mark.parametrize(
    "classes",
    [
        {"ant", "bee"},
        frozenset({"ant", "bee"}),
        {"ant": 1, "bee": 2},
        {"ant": 0, "bee": 2},
        {"ant": 0, "bee": 0},
        {"ant": 0.0, "bee": 1.0},
        {"ant": False, "bee": True},
        {"ant": "0", "bee": "1"},
        {"0": "ant", "1": "bee"},
        {1: "ant", 2: "bee"},
        {0: 1, 1: 0},
        {0: "ant", 1: "ant"},
        {"ant": 0},
        {},
        "ants",
        b"ants",
        ["ant"],
        [1, "1"],
        True,
        2.0,
    ],
)
def test_what_has_no_order_or_no_names_is_refused(classes: Any) -> None:
    error = refusal(ConfigError, lambda: class_names(classes))
    assert error.arrived == f"classes={classes!r}"
    assert "list" in error.needed


@pytest.mark.parametrize(
    "said",
    [
        {"classes": ["b", "a"]},
        {"classes": {"a": 1, "b": 0}},
        {"class_to_idx": {"a": 1, "b": 0}},
        {"classes": None, "class_to_idx": {"b": 0, "a": 1}},
    ],
)
def test_datasets_are_asked_for_their_classes(said: dict[str, Any]) -> None:
    assert common_classes({"train": Telling(**said)}) == ("b", "a")
    assert common_classes({"train": Subset(Telling(**said), [0]), "val": Telling()}) == ("b", "a")  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [{}, {"classes": {"a", "b"}}, {"classes": {"a": 1, "b": 2}}, {"classes": "ab"}])
def test_a_train_dataset_that_does_not_tell_its_classes_is_named(said: dict[str, Any]) -> None:
    error = refusal(ConfigError, lambda: common_classes({"train": Telling(**said), "val": Telling(classes=["a", "b"])}))
    assert "train dataset of type Telling" in error.arrived
    error = refusal(ConfigError, lambda: common_classes({"train": ConcatDataset([Telling(classes=["a", "b"])])}))  # type: ignore[list-item]
    assert "train dataset of type ConcatDataset" in error.arrived
    assert "classes=" in error.todo


def test_another_order_in_val_is_refused_and_another_way_to_say_the_same_is_not() -> None:
    train = Telling(classes=["a", "b"])
    assert common_classes({"train": train, "val": Telling(classes={"b": 1, "a": 0})}) == ("a", "b")
    error = refusal(DataError, lambda: common_classes({"train": train, "val": Telling(classes={"b": 0, "a": 1})}))
    assert "val dataset with the classes b, a" in error.arrived
