"""Every architecture of timm and torchvision is opened and does what headstart promises, and the page of them is true.

What opens and checks them is `docs/scripts/sweep.py`, what writes the page `docs/scripts/backbones.py`.
"""

import doctest
import faulthandler
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from headstart.model.stages import Stage, find_stages

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "docs" / "scripts"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Give the script that writes the page; it can be imported while the tests of this file run, by processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("backbones")


@pytest.fixture(scope="module")
def rows(script: ModuleType) -> list[Any]:
    """Open everything, which takes longer than a test may that hangs."""
    faulthandler.cancel_dump_traceback_later()
    return list(script.sweep(script.names()))


@pytest.fixture
def shown(script: ModuleType) -> str:
    """Give the page, if it is about the versions that are installed."""
    text: str = script.PAGE.read_text("utf-8")
    if script.libraries() not in text:
        pytest.skip(f"docs/reference/backbones.md is not about {script.libraries()}, which are installed here")
    return text


def listed() -> list[str]:
    """Give all names, as the libraries list them."""
    others = torchvision.models.list_models(module=torchvision.models)
    return [*timm.list_models(), *(f"torchvision/{name}" for name in others)]


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("broken")


def all_but_first(network: nn.Module, head: Iterable[nn.Parameter]) -> list[Stage]:
    return find_stages(network, head)[1:]


def other_form(old: nn.Linear, classes: int) -> nn.Module:
    return nn.Linear(old.in_features, classes, bias=False)


# The sweep


@pytest.mark.slow
def test_every_network_that_is_opened_is_as_it_should_be(rows: list[Any]) -> None:
    assert [f"{row.name}: {problem}" for row in rows for problem in row.problems] == []


@pytest.mark.slow
def test_every_name_is_either_opened_or_refused(rows: list[Any]) -> None:
    assert sorted(row.name for row in rows) == sorted(listed())
    passed = [row for row in rows if row.stages and not row.problems]
    refused = [row for row in rows if row.refusal is not None]
    assert len(passed) + len(refused) == len(listed())
    assert not any(row.stages for row in refused)


@pytest.mark.slow
def test_what_is_refused_is_an_encoder_without_a_classifier(rows: list[Any]) -> None:
    refused = [row for row in rows if row.refusal is not None]
    assert [row.name for row in refused if row.library != "timm"] == []
    for row in refused:
        assert row.refusal == f"{row.name}, an encoder without a classifier"
        with torch.device("meta"):
            network = timm.create_model(row.name)
        assert not hasattr(network, "get_classifier")
        assert network.pretrained_cfg.get("classifier") not in dict(network.named_modules())


@pytest.mark.slow
def test_the_page_is_what_the_script_writes_of_these_networks(script: ModuleType, rows: list[Any], shown: str) -> None:
    if f"torch {script.plain(torch.__version__)}" not in shown:
        pytest.skip(f"docs/reference/backbones.md is not about torch {torch.__version__}, which is installed here")
    assert script.page(rows) == shown


# The sweep itself, on a few


@pytest.fixture
def examine(script: ModuleType) -> Callable[[str], Any]:
    """Give what examines one network."""
    found: Callable[[str], Any] = importlib.import_module("sweep").examine
    return found


def test_what_is_found_out_about_a_network_is_in_its_row(examine: Callable[[str], Any]) -> None:
    row = examine("torchvision/resnet18")
    assert (row.library, row.family, row.refusal, row.problems, row.turned) == ("torchvision", "resnet", None, (), ())
    assert (row.head, row.kinds, row.layers) == (("fc",), ("Linear",), ("torch.nn.modules.linear.Linear",))
    assert row.stages == ("conv1", "layer1", "layer2", "layer3", "layer4")
    assert row.parameters == sum(p.numel() for p in torchvision.models.resnet18().parameters()) - 513 * 1000
    assert (row.preprocessing.image_size, row.fixed) == ((224, 224), False)
    assert examine("levit_128s").fixed


def test_a_stage_that_begins_before_one_further_up_is_noted(examine: Callable[[str], Any]) -> None:
    assert examine("coat_lite_tiny").turned == ("patch_embed2", "serial_blocks1")


def test_a_network_without_a_classifier_is_refused_with_the_reason(examine: Callable[[str], Any]) -> None:
    row = examine("mobilenetv5_300m_enc")
    assert row.refusal == "mobilenetv5_300m_enc, an encoder without a classifier"
    assert (row.problems, row.stages) == ((), ())


@pytest.mark.parametrize(
    ("target", "instead", "problem"),
    [
        ("headstart.model.zoo.open_network", fail, "RuntimeError('broken')"),
        ("headstart.model.backbone.find_stages", all_but_first, "conv1.weight is in 0 places"),
        ("headstart.model.backbone.locate", lambda *_: 0, "every_stage_is_found: 1 leads to stage 0 instead of 1"),
        ("headstart.model.stages._acts", lambda _: False, "all_stages_rest: layer4.1.bn2 follows statistics"),
        ("torchvision.models.ResNet.forward", lambda *_: (1, 2), "the_network_gives_classes_in_training: gives tuple"),
        ("torchvision.models.ResNet.forward", fail, "another_head_fits: RuntimeError('broken')"),
        ("headstart.model.backbone.Backbone.train_from", lambda *_: [], "rest: layer1.0.conv1.weight trains: True"),
        ("headstart.model.head._alike", other_form, "the_classifier_keeps_its_form: fc was Linear(in_features=512, "),
    ],
)
def test_what_is_wrong_with_a_network_is_in_its_row(
    examine: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, target: str, instead: Any, problem: str
) -> None:
    monkeypatch.setattr(target, instead)
    assert problem in " ".join(examine("torchvision/resnet18").problems)


# The page


def test_the_page_has_a_place_for_every_network_that_the_libraries_list(script: ModuleType, shown: str) -> None:
    families = importlib.import_module("sweep").families()
    assert sorted(families) == sorted(listed())
    refused = set(re.findall(r"`([^`]+)`", section(shown, "Refused"))) & set(listed())
    told = {
        (library, family): int(count)
        for library in ("timm", "torchvision")
        for family, count in re.findall(r"^\| (\w+) \| (\d+) \|", section(shown, library), re.MULTILINE)
    }
    assert told == Counter(families[name] for name in listed() if name not in refused)
    counts = Counter(library for library, _ in families.values())
    for library, all_of_it in counts.items():
        out = sum(families[name][0] == library for name in refused)
        kinds = len({family for family in families.values() if family[0] == library})
        assert f"| {library} | {kinds:,} | {all_of_it:,} | {all_of_it - out:,} | {out:,} |" in shown


def section(page: str, title: str) -> str:
    """Give what stands under a heading."""
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_examples_in_the_script_hold(script: ModuleType) -> None:
    tried = doctest.testmod(script)
    assert tried.attempted > 0
    assert tried.failed == 0
