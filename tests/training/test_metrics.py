"""Metrics by name, exact sums, and logs that are converted only when somebody reads them."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from handmade import CPU, refusal
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from headstart import ConfigError
from headstart.training.metrics import Logs, Tally, directions, make_metrics
from headstart.training.packing import pack, unpack

NAMED = [
    "accuracy",
    "top5_accuracy",
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "auroc",
    "average_precision",
    "cohen_kappa",
    "matthews",
    "calibration_error",
]


@pytest.fixture
def answers() -> tuple[Tensor, Tensor]:
    """Give logits `[23, 6]` that are right more often than not, and their class ids."""
    chance = torch.Generator().manual_seed(1)
    targets = torch.randint(6, (23,), generator=chance)
    return functional.one_hot(targets, 6) * 1.5 + torch.randn(23, 6, generator=chance), targets


def counted(metrics, logits, targets, sizes=(8, 8, 7)) -> dict[str, float]:
    """Let a tally add batches of these sizes."""
    tally = Tally(make_metrics(metrics, logits.shape[1]), CPU)
    for some, truths in zip(logits.split(sizes), targets.split(sizes), strict=True):
        tally.add(functional.cross_entropy(some, truths), some, truths)
    return dict(tally.logs())


def by_hand(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Compute every named metric from its definition, picture by picture."""
    pictures, classes = logits.shape
    shares = logits.double().softmax(1)
    said, truths = logits.argmax(1).tolist(), targets.tolist()
    pairs = list(zip(said, truths, strict=True))
    precision, recall, f1, auroc, average_precision = [], [], [], [], []
    for label in range(classes):
        hits = sum(a == label == b for a, b in pairs)
        precision.append(hits / max(1, said.count(label)))
        recall.append(hits / truths.count(label))
        f1.append(2 * hits / (said.count(label) + truths.count(label)))
        scores = shares[:, label].tolist()
        inside = [score for score, truth in zip(scores, truths, strict=True) if truth == label]
        outside = [score for score, truth in zip(scores, truths, strict=True) if truth != label]
        auroc.append(sum(a > b for a in inside for b in outside) / (len(inside) * len(outside)))
        ranked = [truth == label for _, truth in sorted(zip(scores, truths, strict=True), reverse=True)]
        average_precision.append(
            sum(sum(ranked[: place + 1]) / (place + 1) for place, hit in enumerate(ranked) if hit) / sum(ranked)
        )
    right = sum(a == b for a, b in pairs) / pictures
    chance = sum(said.count(label) * truths.count(label) for label in range(classes)) / pictures**2
    spread = [1 - sum((words.count(label) / pictures) ** 2 for label in range(classes)) for words in (said, truths)]
    top5 = sum(truth in row.topk(5).indices for row, truth in zip(shares, truths, strict=True)) / pictures
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, (a, b) in zip(shares.max(1).values.tolist(), pairs, strict=True):
        bins.setdefault(math.ceil(confidence * 15), []).append((confidence, a == b))
    gaps = [abs(sum(c for c, _ in rows) - sum(hit for _, hit in rows)) for rows in bins.values()]
    return {
        "loss": functional.cross_entropy(logits.double(), targets).item(),
        "accuracy": right,
        "top5_accuracy": top5,
        "balanced_accuracy": sum(recall) / classes,
        "f1": sum(f1) / classes,
        "precision": sum(precision) / classes,
        "recall": sum(recall) / classes,
        "auroc": sum(auroc) / classes,
        "average_precision": sum(average_precision) / classes,
        "cohen_kappa": (right - chance) / (1 - chance),
        "matthews": (right - chance) / math.sqrt(spread[0] * spread[1]),
        "calibration_error": sum(gaps) / pictures,
    }


def test_every_name_gives_what_its_definition_says(answers):
    found = counted(NAMED, *answers)
    assert found == pytest.approx(by_hand(*answers), rel=1e-5)
    assert list(found) == ["loss", *NAMED]


def test_the_cut_into_batches_changes_nothing(answers):
    found = [counted(NAMED, *answers, sizes) for sizes in ((23,), (22, 1), (5,) * 4 + (3,))]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-6)
        assert other["accuracy"] == found[0]["accuracy"]


def test_top5_of_three_classes_is_always_right():
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert counted(["top5_accuracy"], logits, targets, (4,))["top5_accuracy"] == 1


def test_a_metric_of_the_users_own_is_named_after_its_class_and_left_untouched(answers):
    own = MulticlassF1Score(num_classes=6, average="micro")
    found = counted([own, "f1", MulticlassAUROC(num_classes=6)], *answers)
    assert list(found) == ["loss", "multiclass_f1_score", "f1", "multiclass_auroc"]
    assert found["multiclass_f1_score"] == pytest.approx(by_hand(*answers)["accuracy"], rel=1e-6)
    assert own.update_count == 0


def test_one_name_needs_no_list():
    assert list(make_metrics("f1", 3)) == ["f1"]


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        make_metrics(["acuracy"], 3)
    assert caught.value.arrived == "the metric 'acuracy'"
    assert "accuracy, top5_accuracy, balanced_accuracy" in caught.value.needed
    assert "Did you mean 'accuracy'" in caught.value.todo


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        (MulticlassAccuracy(3, average=None), "gives [3]"),
        (MulticlassConfusionMatrix(3), "gives [3, 3]"),
        (MulticlassAccuracy(5), "fails: "),
        (BinaryAccuracy(), "fails: "),
    ],
)
def test_a_metric_that_gives_no_single_number_for_these_classes_is_refused(metric, told):
    error = refusal(ConfigError, lambda: make_metrics([metric], 3))
    assert f"the metric {type(metric).__name__}, which {told}" in error.arrived
    assert "num_classes=3" in error.todo
    assert metric.update_count == 0


class Share(Metric):
    """A metric of one's own that gives a plain number, and none for few pictures."""

    higher_is_better = True

    def __init__(self, least=0):
        super().__init__()
        self.least, self.seen = least, 0

    def update(self, logits, targets):
        self.seen += len(targets)

    def compute(self):
        if self.seen < self.least:
            raise ValueError("too few")
        return 0.5


@pytest.mark.parametrize("least", [0, 3])
def test_a_metric_of_ones_own_may_give_a_plain_number_and_need_more_pictures_than_two(least):
    assert list(make_metrics([Share(least)], 3)) == ["share"]


@pytest.mark.parametrize("twice", [["f1", "f1"], [MulticlassAccuracy(3), MulticlassAccuracy(3, top_k=2)]])
def test_the_same_metric_twice_is_refused(twice):
    with pytest.raises(ConfigError, match=r"twice[\s\S]*each metric once[\s\S]*Remove one"):
        make_metrics(twice, 3)


@pytest.mark.parametrize("wrong", [max, MulticlassF1Score, 3, None])
def test_what_is_no_metric_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"among the metrics[\s\S]*names[\s\S]*'accuracy', 'f1'"):
        make_metrics(["accuracy", wrong], 3)


def test_metrics_tell_which_way_is_better_and_nothing_else_does():
    class Silent(MulticlassF1Score):
        higher_is_better = None

    metrics = make_metrics(["accuracy", "f1", "calibration_error", Silent(3)], 3)
    assert directions(metrics) == {
        "loss": "min",
        "accuracy": "max",
        "f1": "max",
        "calibration_error": "min",
        "silent": None,
    }


def test_probabilities_as_targets_count_by_their_largest(answers):
    logits, targets = answers
    soft = torch.eye(6)[targets] * 0.6 + 0.4 / 6
    hard = counted(["accuracy", "f1"], logits, targets)
    found = counted(["accuracy", "f1"], logits, soft)
    assert (found["accuracy"], found["f1"]) == (hard["accuracy"], hard["f1"])


def test_the_loss_is_summed_in_double_precision():
    tally = Tally({}, CPU)
    logits, targets = torch.zeros(1, 3), torch.tensor([0])
    losses = [1e6, *[1e-3] * 1000]
    for loss in losses:
        tally.add(torch.tensor(loss), logits, targets)
    assert tally.logs()["loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-9)


def test_a_tally_without_accuracy_counts_none():
    assert counted([], torch.zeros(2, 3), torch.tensor([0, 1]), (2,)) == {"loss": pytest.approx(math.log(3))}


def test_a_tally_of_nothing_is_nan_and_resetting_forgets():
    tally = Tally(make_metrics(["accuracy", "f1"], 3), CPU)
    for _ in range(2):
        assert all(math.isnan(value) for value in tally.logs().values())
        tally.add(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 1]))
        assert tally.logs()["accuracy"] == pytest.approx(2 / 3)
        tally.reset()


def test_two_tallies_of_the_same_metrics_do_not_mix():
    metrics = make_metrics(["f1"], 3)
    first, second = Tally(metrics, CPU), Tally(metrics, CPU)
    first.add(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 2]))
    assert first.logs()["f1"] == 1
    assert math.isnan(second.logs()["f1"])


def test_nothing_keeps_the_graph_of_a_loss():
    logits = torch.randn(2, 3, requires_grad=True)
    tally = Tally(make_metrics(["accuracy", "f1"], 3), CPU)
    tally.add(functional.cross_entropy(logits, torch.tensor([0, 1])), logits, torch.tensor([0, 1]))
    assert not tally._loss.requires_grad


# Logs.


def test_logs_convert_when_they_are_read_and_not_before():
    reads = []

    def value():
        reads.append(1)
        return torch.tensor(len(reads))

    logs = Logs({"live": value})
    logs["mine"] = torch.tensor(2)
    assert list(logs) == ["live", "mine"]
    assert len(logs) == 2
    assert "live" in logs
    assert not reads
    assert logs["live"] == 1.0
    assert dict(logs) == {"live": 2.0, "mine": 2.0}
    assert list(logs.items()) == [("live", 3.0), ("mine", 2.0)]
    assert all(type(value) is float for value in logs.values())


def test_logs_are_a_mapping_that_can_be_changed():
    logs = Logs({"loss": 1})
    logs.update({"val_loss": 2})
    logs.setdefault("loss", 3)
    assert repr(logs) == "{'loss': 1.0, 'val_loss': 2.0}"
    del logs["loss"]
    assert logs.pop("val_loss") == 2.0
    assert len(logs) == 0
    assert logs.get("loss") is None


def test_a_key_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(KeyError, match=r"'val_loss'. Did you mean 'loss'\? There are loss, accuracy"):
        Logs({"loss": 1, "accuracy": 1})["val_loss"]
    with pytest.raises(KeyError, match="There are no logs here"):
        Logs()["loss"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.tensor([1.0, 2.0]), "logs['grad'] = tensor([1., 2.])"),
        (torch.tensor([]), "logs['grad'] = tensor([])"),
        (torch.tensor(1j), "logs['grad'] = tensor(0.+1.j)"),
        ("high", "logs['grad'] = 'high'"),
        (None, "logs['grad'] = None"),
        ([0.5], "logs['grad'] = [0.5]"),
        (np.ones(3), "logs['grad'] = array([1., 1., 1.])"),
        (lambda: "high", "logs['grad'] = 'high'"),
    ],
)
def test_a_value_that_is_no_number_is_told_with_its_key_when_it_is_read(value, told):
    logs = Logs({"loss": 1.0})
    logs["grad"] = value
    error = refusal(ConfigError, lambda: logs["grad"])
    assert error.arrived == told
    assert error.needed == "one number for each key"
    assert ".mean()" in error.todo
    assert logs["loss"] == 1.0


def test_a_large_value_that_is_no_number_is_told_shortly():
    error = refusal(ConfigError, lambda: Logs({"grad": "long " * 1000})["grad"])
    assert len(error.arrived) < 80


def test_an_error_while_a_value_is_computed_is_not_about_the_value():
    def fail():
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        Logs({"live": fail})["live"]


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), torch.tensor(2), torch.tensor([[2.0]])])
def test_whatever_is_one_number_is_read_as_a_float(value):
    found = Logs({"mine": value})["mine"]
    assert (found, type(found)) == (2.0, float)


@pytest.mark.parametrize("seen", [0, 1, 3, 70])
def test_a_tally_goes_on_from_its_state_to_the_bit(seen):
    names = ("accuracy", "f1", "auroc", "top5_accuracy")
    chance = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand((), generator=chance) * 10 ** -(number % 9), torch.randn(size, 3, generator=chance))
        for number, size in enumerate([5] * 60 + [2] + [5] * 20)
    ]

    def add(tally, some):
        for loss, logits in some:
            tally.add(loss, logits, torch.arange(len(logits)) % 3)

    whole, first, second = (Tally(make_metrics(names, 3), CPU) for _ in range(3))
    add(whole, batches)
    add(first, batches[:seen])
    words, tensors = pack(first.state_dict(), "tally")
    second.add(torch.tensor(9.0), torch.zeros(1, 3), torch.tensor([0]))  # what was in it does not matter
    second.load_state_dict(unpack(json.loads(json.dumps(words)), {name: t.clone() for name, t in tensors.items()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error" if seen else "ignore")
        assert repr(dict(second.logs())) == repr(dict(first.logs()))
    add(second, batches[seen:])
    assert dict(second.logs()) == dict(whole.logs())
