"""Values taken apart for a file, and put together again."""

import datetime
import json
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from handmade import refusal

from headstart.errors import CheckpointError
from headstart.training.packing import pack, unpack

PLAIN = [
    None,
    True,
    3,
    -0.0,
    0.1,
    5e-324,
    "words: ünïcode",
    [],
    (),
    {},
    [1, (2, [3.5, ()]), None],
    {"a": {"b": (1,)}},
    {1: "one", (2, 3): "pair", None: []},
    {"$tensor": "is a word like any other"},
    {"$dict": [[1, 2]], "two": 2},
    {"$float": {"$tuple": []}},
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_come_back_as_they_were_through_strict_json(value):
    words, tensors = pack(value, "state")
    again = unpack(json.loads(json.dumps(words, allow_nan=False)), tensors)
    assert again == value
    assert repr(again) == repr(value)
    assert tensors == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_comes_back(value):
    words, _ = pack([value], "state")
    assert repr(unpack(json.loads(json.dumps(words, allow_nan=False)), {})) == repr([value])


def test_tensors_are_named_after_their_place_and_come_back_themselves():
    value = {"first": torch.ones(2), "rest": (torch.zeros(()), {7: torch.arange(3)})}
    words, tensors = pack(value, "callback")
    assert set(tensors) == {"callback.first", "callback.rest.0", "callback.rest.1.7"}
    json.dumps(words, allow_nan=False)
    again = unpack(words, tensors)
    assert again["first"] is value["first"]
    assert again["rest"][1][7] is value["rest"][1][7]


def test_numbers_of_numpy_and_other_mappings_become_plain_ones():
    words, _ = pack(OrderedDict(a=np.float64(0.5), b=np.int64(3), c=np.bool_(True)), "state")
    assert words == {"a": 0.5, "b": 3, "c": True}
    assert [type(value) for value in words.values()] == [float, int, bool]


def test_what_a_file_cannot_hold_is_refused_with_its_place():
    error = refusal(CheckpointError, lambda: pack({"seen": [1, {"when": datetime.date(2026, 1, 1)}]}, "callback"))
    assert error.arrived == "callback.seen.1.when, of type date"
    assert refusal(CheckpointError, lambda: pack([np.zeros(2)], "x")).arrived == "x.0, of type ndarray"


def test_types_of_numbers_come_back():
    words, tensors = pack({"momentum": torch.bfloat16}, "state")
    assert unpack(json.loads(json.dumps(words)), tensors) == {"momentum": torch.bfloat16}


def test_keys_that_read_alike_do_not_share_a_tensor():
    value = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1), 1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}
    words, tensors = pack(value, "state")
    again = unpack(words, tensors)
    assert [float(tensor) for tensor in (again["a"]["b"], again["a.b"], again[1], again["1"])] == [0, 1, 2, 3]
