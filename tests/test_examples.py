"""Every example runs, on a few drawn pictures and without a connection; as users start it, where that is quick."""

import doctest
import importlib
import importlib.metadata
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def examples_importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the examples find each other, and write into a folder of the test's own."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def cloth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw four classes of cloth, three pictures of each to train on and one for val. Do not write into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        make_pictures = importlib.import_module("generated_pictures").make_pictures
        return make_pictures(tmp_path_factory.mktemp("drawn") / "cloth", per_class=4)


@pytest.fixture
def run(tmp_path: Path):
    """Give a runner of examples, `run("three_lines.py")`, that gives what they print and fails when they do."""

    def start(example: str, *arguments: object) -> str:
        alone = {"HF_HOME": "hub", "TORCH_HOME": "torch", "HF_ENDPOINT": "http://127.0.0.1:9"}  # nobody answers there
        done = subprocess.run(  # noqa: S603 - these are our own files
            [sys.executable, EXAMPLES / example, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **alone},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        print(done.stdout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return start


def test_three_lines_fine_tune_a_network_whose_weights_are_there(run, cloth, tmp_path):
    (tmp_path / "flowers").symlink_to(cloth)
    stored = tmp_path / "hub" / "hub" / "models--timm--resnet18.a1_in1k"
    (stored / "refs").mkdir(parents=True)
    (stored / "snapshots" / "0").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0")
    save_file(timm.create_model("resnet18").state_dict(), stored / "snapshots" / "0" / "model.safetensors")
    assert "epoch 5/5" in run("three_lines.py")


def test_the_quickstart_takes_pictures_of_any_suffix_and_weights_from_a_file(run, cloth, tmp_path):
    for number, path in enumerate(sorted(cloth.rglob("*.jpg"))):
        target = (tmp_path / "mine" / path.relative_to(cloth)).with_suffix(".png" if number % 2 else ".JPEG")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as picture:
            picture.save(target)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "mine.pth")
    printed = run("quickstart.py", "--data", "mine", "--weights", "mine.pth", "--size", 32, "--epochs", 1)
    assert "(weights from mine.pth)" in printed
    assert "3 epochs in 2 fits" in printed
    assert "val/checks/000.JPEG" in printed
    assert "answers as the trained one did" in printed


def test_the_quickstart_says_why_it_trains_from_scratch_and_takes_pictures_that_are_not_split(run, cloth):
    printed = run("quickstart.py", "--data", cloth / "train", "--size", 32, "--epochs", 1, "--out", "there")
    assert "trained from scratch, because its weights cannot be had:\nArrived: no way to the weights" in printed
    assert "answers as the trained one did" in printed
    assert Path("there/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("example", "arguments", "told"),
    [
        ("quickstart.py", ["--data", "nowhere"], "nowhere"),
        ("quickstart.py", ["--data", "cloth", "--weights", "nowhere.pth"], "nowhere.pth"),
        ("quickstart.py", ["--data", "cloth", "--model", "resnet81"], "Did you mean 'resnet18'"),
        ("quickstart.py", ["--data", "cloth", "--epochs", "0"], "epochs=0"),
        ("quickstart.py", ["--out", "full"], "holds something else"),
        ("ants_bees.py", ["--data", "nowhere"], "nowhere"),
        ("ants_bees.py", ["--data", "cloth", "--ways", "fixed", "--weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_what_cannot_work_is_told_in_words_and_not_in_a_traceback(
    example, arguments, told, cloth, tmp_path, monkeypatch
):
    (tmp_path / "cloth").symlink_to(cloth)
    (tmp_path / "full" / "pictures" / "mine").mkdir(parents=True)
    monkeypatch.setattr("headstart.model.weights.reachable", lambda address: "nobody answers")
    monkeypatch.setattr(sys, "argv", [example, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    assert told in str(end.value.code)


def test_a_callback_of_ones_own_watches_the_weakest_class(cloth, monkeypatch, capsys):
    example = importlib.import_module("custom_callback")
    monkeypatch.setattr(example, "make_pictures", lambda folder, per_class: cloth)  # it would draw many more
    example.main()
    assert "best for the weakest class: epoch" in capsys.readouterr().out
    assert Path("runs/custom_callback/curves.png").is_file()


def test_ants_and_bees_are_trained_in_three_ways(run, cloth, tmp_path):
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1.pth")
    options = ["--model", "torchvision/squeezenet1_1", "--weights", "squeezenet1_1.pth", "--epochs", 1]
    printed = run("ants_bees.py", "--data", cloth, *options)
    assert all(f"\n{way} " in printed for way in ("random", "finetuned", "fixed"))
    assert Path("runs/ants_bees/curves.png").is_file()


def test_reuse_is_compared_with_a_head_that_begins_at_zero(run, cloth, tmp_path):
    torch.save(timm.create_model("resnet18", num_classes=2).state_dict(), tmp_path / "zoo.pth")
    classes = sorted(path.name for path in (cloth / "train").iterdir())
    (tmp_path / "zoo.txt").write_text(f"zebra\n{classes[0]}\n")
    options = ["--weights", "zoo.pth", "--source-classes", "zoo.txt", "--image-size", 32, "--seeds", 0]
    printed = run("reuse.py", "--data", cloth, *options, "--epochs", 0, 1)
    assert f"{classes[0]}" in printed
    assert "begins as" in printed
    assert printed.count("head alone  ") == printed.count("fine-tuned  ") == 2


def test_the_loop_by_hand_trains(run, cloth, tmp_path):
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1.pth")
    options = ["--model", "squeezenet1_1", "--weights", "squeezenet1_1.pth", "--epochs", 1]
    assert "best val accuracy by hand" in run("benchmarks/by_hand.py", "--data", cloth, *options)


def test_the_cost_of_a_step_is_measured(run):
    assert "median ratio" in run("benchmarks/overhead.py", "--steps", 20, "--rounds", 1)


def test_the_path_of_a_picture_is_measured(run, cloth):
    said = run("benchmarks/input_pipeline.py", "--data", cloth / "train", "--rounds", 1)
    assert all(f"headstart, {way} " in said for way in ("no cache", "cache in memory", "cache on disk"))


@pytest.mark.parametrize("work", ["fixed features, 1 view", "last stage, 4 views"])
def test_whole_trainings_are_measured_beside_the_loop_by_hand(run, cloth, tmp_path, work):
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1.pth")
    options = ["--model", "squeezenet1_1", "--layers", "features.12", "--weights", "squeezenet1_1.pth"]
    said = run("benchmarks/speed.py", "--data", cloth, *options, "--works", work, "--epochs", 1, "--rounds", 1,
               "--hand-epochs", 1)  # fmt: skip
    assert work in said.splitlines()[-1]
    assert "MB" in said.splitlines()[-1]


@pytest.mark.parametrize("choice", ["bf16", "progressive"])
def test_a_choice_is_measured_in_accuracy_and_time(run, cloth, tmp_path, choice):
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1.pth")
    options = ["--model", "torchvision/squeezenet1_1", "--weights", "squeezenet1_1.pth", "--image-size", 64]
    said = run("benchmarks/choices.py", "--choice", choice, "--data", cloth, *options, "--epochs", 1,
               "--whole-epochs", 2, "--start", 32, "--seeds", 0)  # fmt: skip
    assert (f"{cloth.name}, fixed: " in said) == (choice == "bf16")
    assert "time ratio" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("package", "contender"),
    [
        ("headstart", "with_headstart.py"),
        ("fastai", "with_fastai.py"),
        ("lightning", "with_lightning.py"),
        ("keras", "with_keras.py"),
        ("transformers", "with_transformers.py"),
        ("pytorch-accelerated", "with_pytorch_accelerated.py"),
    ],
)
@pytest.mark.parametrize("work", ["fixed", "whole"])
def test_a_contender_does_its_work(run, cloth, tmp_path, package, contender, work):
    if not list(importlib.metadata.distributions(name=package)):
        pytest.skip(f"{package} comes with the extra bench, which is not installed")
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), tmp_path / "resnet18.pth")
    options = ["--model", "resnet18", "--weights", "resnet18.pth", "--work", work, "--epochs", 2]
    told = json.loads(run(f"benchmarks/peers/{contender}", "--data", cloth, *options).splitlines()[-1])
    assert sorted(told) == ["accuracy", "best", "seconds"]
    assert 0 <= told["accuracy"] <= told["best"] <= 1


def test_contenders_share_the_network_and_the_rates(tmp_path):
    common = runpy.run_path(str(EXAMPLES / "benchmarks" / "peers" / "common.py"))
    network = torchvision.models.mobilenet_v2(num_classes=7).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone, head = common["open_network"]("mobilenet_v2", tmp_path / "weights.pth", 3)
    pictures = torch.rand(2, 3, 64, 64)
    features = backbone.eval()(pictures)
    assert torch.equal(network.classifier(features), network(pictures))
    assert head(features).shape == (2, 3)
    assert [common["lr_at"](epoch) for epoch in (0, 6, 7, 14)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])


def test_contenders_are_compared_and_the_missing_ones_named(run, cloth, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    options = ["--model", "resnet18", "--weights", "resnet18.pth", "--work", "fixed", "--epochs", 1, "--rounds", 1]
    said = run("benchmarks/peers/compare.py", "--data", cloth, *options, "--contenders", "headstart, 1 view", "Keras")
    missing = not list(importlib.metadata.distributions(name="keras"))
    assert ("Keras is left out" in said) == missing
    rows = said[said.index("the head alone:") :].splitlines()[2:]
    assert [row.split("  ")[0] for row in rows] == ["headstart", "headstart, 1 view", "Keras"][: 3 - missing]
    assert all(row.endswith(" MB") for row in rows)


def test_growth_is_measured_and_drawn(run, tmp_path):
    options = ["--axes", "pictures", "--share", 0.02, "--plot", tmp_path / "growth.png"]
    said = run("benchmarks/growth.py", *options).splitlines()[-3:]
    assert [line.partition(" pictures, 10 classes: head ")[0].split()[-1] for line in said] == ["20", "50", "500"]
    assert (tmp_path / "growth.png").stat().st_size > 5_000


def test_the_examples_in_the_docstrings_of_generated_pictures_hold():
    tried = doctest.testmod(importlib.import_module("generated_pictures"))
    assert tried.attempted
    assert not tried.failed


def test_no_example_is_forgotten_here():
    tested = Path(__file__).read_text("utf-8")
    assert [path.name for path in EXAMPLES.rglob("*.py") if path.stem not in tested] == []


def test_a_training_that_is_killed_loses_nothing(run, cloth):
    said = run("benchmarks/kill_resume.py", "--data", cloth, "--kills", 1, "--epochs", 6, "--every", 0.1)
    assert "missing: 0" in said
    assert "final weights identical, bit for bit: yes; training changed them: True" in said


def test_the_cost_of_a_state_is_measured(run):
    assert "1 state of 283 MB" in run("benchmarks/state_cost.py", "--states", 1)
