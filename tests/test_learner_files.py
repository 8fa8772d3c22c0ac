"""What a Learner keeps: a saved one answers the same to the bit, and a file that is not right says what it is."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from handmade import CLASSES, made_learner, pairs, refusal, same, weights
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from headstart import CSVLogger, Head, ImageData, Learner, ModelCheckpoint
from headstart.errors import CheckpointError, ConfigError, DataError
from headstart.training.checkpoint import read_weights, write_weights

SMALL = "torchvision/shufflenet_v2_x0_5"
PLAIN = Head(init="xavier")  # the network's own form of head, with something to tell


def named_learner(model: str, size: int = 32, **options: Any) -> Learner:
    data = ImageData.from_loaders(pairs(3, 2, side=size), classes=CLASSES)
    return Learner(model, data, pretrained=False, device="cpu", **options)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Learner, Path]:
    """Train a small network of a library for a moment and save it."""
    learner = named_learner(SMALL)
    learner.fit(1, lr=0.01, verbose=False)
    return learner, learner.save(tmp_path / "saved.safetensors")


# It answers the same


@pytest.mark.parametrize(
    ("model", "size", "head"),
    [
        ("resnet18.a1_in1k", 32, PLAIN),
        ("torchvision/squeezenet1_1", 32, Head(hidden=(8,), dropout=0.1, init="xavier")),
        ("torchvision/mnasnet0_5", 32, PLAIN),
        ("torchvision/googlenet", 32, PLAIN),
        ("convnext_atto", 32, Head(hidden=(16, 8), init="small", at="head.fc")),
        ("levit_128s", 224, PLAIN),
        ("coat_tiny", 224, PLAIN),  # has tensors of several names
    ],
)
def test_a_loaded_learner_answers_the_same_to_the_bit(tmp_path: Path, model: str, size: int, head: Head) -> None:
    learner = named_learner(model, size, head=head)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    before = learner.predict(images)
    learner.save(tmp_path / "w.safetensors")
    loaded = Learner.load(tmp_path / "w.safetensors", device="cpu")
    found = loaded.predict(images)
    assert torch.equal(found.probabilities, before.probabilities)
    assert found.classes == before.classes == CLASSES
    assert same(weights(loaded), weights(learner))
    assert loaded.data.preprocessing == learner.data.preprocessing


def test_it_answers_the_same_after_training_and_on_pictures(shapes_folder: Path, tmp_path: Path) -> None:
    data = ImageData.from_folder(shapes_folder / "val", image_size=40, batch_size=7, workers=0)
    learner = Learner(SMALL, data, pretrained=False, head=8, device="cpu")
    learner.freeze()
    learner.fit(1, lr=0.01, verbose=False)
    before = learner.predict(shapes_folder / "val")
    loaded = Learner.load(learner.save(tmp_path / "w.safetensors"), device="cpu")
    assert loaded.data.batch_size == 7
    assert loaded.data.preprocessing.image_size == (40, 40)
    assert torch.equal(loaded.predict(shapes_folder / "val").probabilities, before.probabilities)
    again = Learner.load(tmp_path / "w.safetensors", data, device="cpu")
    assert again.evaluate() == learner.evaluate()
    again.fit(1, lr=0.01, verbose=False)
    assert all(layer.trainable for layer in again.layers)


def test_what_was_loaded_is_said_and_can_be_saved_again(
    saved: tuple[Learner, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = saved
    capsys.readouterr()
    loaded = Learner.load(path)
    opened = "opened torchvision shufflenet_v2_x0_5 (weights from saved.safetensors), fp32 on cpu\n"
    assert capsys.readouterr().out == opened
    again = loaded.save(path.parent / "again.safetensors")
    (one, about_one), (two, about_two) = read_weights(path), read_weights(again)
    assert same(one, two)
    assert about_one == about_two


def test_the_file_says_what_it_holds(saved: tuple[Learner, Path]) -> None:
    learner, path = saved
    _, description = read_weights(path)
    assert description["classes"] == list(CLASSES)
    assert description["architecture"]["name"] == "shufflenet_v2_x0_5.IMAGENET1K_V1"
    assert description["preprocessing"]["image_size"] == list(learner.data.preprocessing.image_size)


# Whose classes, whose pictures


@pytest.mark.parametrize("classes", [("circle", "triangle", "square"), ("a", "b", "c"), ("circle", "square")])
def test_data_of_other_classes_is_refused(saved: tuple[Learner, Path], classes: tuple[str, ...]) -> None:
    _, path = saved
    data = ImageData.from_loaders(pairs(2, side=32), classes=classes)
    error = refusal(CheckpointError, lambda: Learner.load(path, data))
    assert "circle, square, triangle" in error.needed
    assert ", ".join(classes) in error.arrived


def test_pictures_of_another_size_than_the_files_are_refused(shapes_folder: Path, tmp_path: Path) -> None:
    data = ImageData.from_folder(shapes_folder, image_size=32, workers=0)
    path = Learner(SMALL, data, pretrained=False).save(tmp_path / "w.safetensors")
    other = ImageData.from_folder(shapes_folder, image_size=48, workers=0)
    error = refusal(CheckpointError, lambda: Learner.load(path, other))
    assert "image_size=48" in error.arrived
    assert "32 x 32" in error.needed
    usual = ImageData.from_folder(shapes_folder, workers=0)
    assert Learner.load(path, usual).data.preprocessing.image_size == (32, 32)


def test_a_pipeline_of_ones_own_has_to_be_given_again(shapes_folder: Path, tmp_path: Path) -> None:
    pipeline = v2.Compose([v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    data = ImageData.from_folder(shapes_folder, eval_transform=pipeline, workers=0)
    learner = Learner(SMALL, data, pretrained=False, head=PLAIN, device="cpu")
    path = learner.save(tmp_path / "w.safetensors")
    picture = shapes_folder / "val" / "circle" / "24.jpg"
    before = learner.predict(picture).probabilities
    assert torch.equal(Learner.load(path, data, device="cpu").predict(picture).probabilities, before)
    alone = Learner.load(path, device="cpu")
    error = refusal(DataError, lambda: alone.predict(picture))
    assert "eval_transform" in error.arrived
    assert "Learner.load(file, data)" in error.todo


# What only its maker can build


def test_weights_of_a_saved_file_are_read_whatever_it_is_called(shapes_folder: Path, tmp_path: Path) -> None:
    data = ImageData.from_folder(shapes_folder, image_size=32, workers=0)
    learner = Learner(SMALL, data, pretrained=False, head=Head(init="small"), device="cpu")
    again = Learner(SMALL, data, pretrained=learner.save(tmp_path / "w.pth"), device="cpu")
    held, own = weights(again), weights(learner)
    assert all(torch.equal(held[name], own[name]) for name in own if not name.startswith("fc"))


def test_a_file_of_words_is_no_file_of_weights(shapes_folder: Path, tmp_path: Path) -> None:
    data = ImageData.from_folder(shapes_folder, image_size=32, workers=0)
    (tmp_path / "names.txt").write_text("circle")
    error = refusal(CheckpointError, lambda: Learner(SMALL, data, pretrained=tmp_path / "names.txt", device="cpu"))
    assert "names.txt, which is no file of weights" in error.arrived


def test_weights_of_a_saved_file_that_is_damaged_are_refused(shapes_folder: Path, tmp_path: Path) -> None:
    data = ImageData.from_folder(shapes_folder, image_size=32, workers=0)
    file = Learner(SMALL, data, pretrained=False, device="cpu").save(tmp_path / "w.safetensors")
    changed = bytearray(file.read_bytes())
    changed[-1000] ^= 1
    file.write_bytes(changed)
    error = refusal(CheckpointError, lambda: Learner(SMALL, data, pretrained=file, device="cpu"))
    assert "does not match its own digest" in error.arrived


def test_a_network_or_head_of_ones_own_takes_its_weights_back(
    tiny_network: Callable[..., nn.Module], tmp_path: Path
) -> None:
    own = made_learner(pairs(2, 2, side=32), network=tiny_network(seed=1))
    own.fit(1, lr=0.1, verbose=False)
    path = own.save(tmp_path / "own.safetensors")
    assert "load_weights" in refusal(CheckpointError, lambda: Learner.load(path)).todo
    again = made_learner(pairs(2, side=32), network=tiny_network(seed=2))
    again.load_weights(path)
    assert same(weights(again), weights(own))

    headed = named_learner(SMALL, head=nn.Linear)
    path = headed.save(tmp_path / "headed.safetensors")
    assert "load_weights" in refusal(CheckpointError, lambda: Learner.load(path)).todo
    again = named_learner(SMALL, head=nn.Linear(1024, 3), seed=1)
    again.load_weights(path)
    assert same(weights(again), weights(headed))


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    def network() -> nn.Module:
        made = nn.Sequential(nn.Flatten(), nn.Linear(108, 108), nn.Linear(108, 108), nn.Linear(108, 3))
        made[2].weight = made[1].weight
        return made

    learner = made_learner(network=network())
    learner.fit(1, lr=0.1, verbose=False)
    again = made_learner(network=network())
    again.load_weights(learner.save(tmp_path / "w.safetensors"))
    assert same(weights(again), weights(learner))
    assert again.model[2].weight is again.model[1].weight


# Weights alone


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in state.items()}


def old_style(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("form", ["plain", "checkpoint", "safetensors", "old style", "ours under another name"])
def test_weights_of_the_same_network_are_loaded_in_every_form(
    tiny_network: Callable[..., nn.Module], tmp_path: Path, form: str
) -> None:
    source = made_learner(network=tiny_network(seed=1))
    target = made_learner(network=tiny_network(seed=2))
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "ours under another name":
        source.save(path)
    elif form == "safetensors":
        save_file(plain(weights(source)), path)
    else:
        state = old_style(weights(source)) if form == "old style" else weights(source)
        torch.save({"state_dict": state, "epoch": 1} if form == "checkpoint" else state, path)
    target.load_weights(str(path))
    assert same(weights(target), weights(source))


def test_a_network_in_a_wrapper_takes_its_own_names(tiny_network: Callable[..., nn.Module], tmp_path: Path) -> None:
    source = made_learner(network=nn.Sequential(nn.Identity(), tiny_network(seed=1)))
    target = made_learner(network=nn.Sequential(nn.Identity(), tiny_network(seed=2)))
    torch.save(source.model.state_dict(), tmp_path / "w.pth")
    target.load_weights(tmp_path / "w.pth")
    assert same(weights(target), weights(source))


@pytest.mark.parametrize("form", ["ours", "theirs"])
def test_weights_of_another_network_or_other_classes_change_nothing(
    tiny_network: Callable[..., nn.Module], tmp_path: Path, form: str
) -> None:
    learner = made_learner(network=tiny_network())
    before = weights(learner)
    other = made_learner()
    path = tmp_path / "w.safetensors"
    if form == "ours":
        other.save(path)
    else:
        save_file(plain(weights(other)), path)
    error = refusal(CheckpointError, lambda: learner.load_weights(path))
    assert "differs in" in error.arrived
    assert same(weights(learner), before)
    renamed = ImageData.from_loaders(pairs(2, side=32), classes=("a", "b", "c"))
    Learner(tiny_network(), renamed, device="cpu").save(path)
    assert "a, b, c" in str(refusal(CheckpointError, lambda: learner.load_weights(path)))
    assert same(weights(learner), before)


def test_what_was_remembered_of_earlier_weights_is_forgotten(tmp_path: Path) -> None:
    learner = made_learner(network=timm.create_model("levit_128s", num_classes=3))
    torch.manual_seed(1)
    other = timm.create_model("levit_128s", num_classes=3).eval()
    for name, parameter in other.named_parameters():
        if name.endswith("attention_biases"):
            nn.init.normal_(parameter)
    images = torch.randn(1, 3, 224, 224)
    learner.model.eval()
    with torch.no_grad():
        learner.model(images)
        torch.save(other.state_dict(), tmp_path / "w.pth")
        learner.load_weights(tmp_path / "w.pth")
        assert torch.equal(learner.model(images), other(images))


# Files that are not right


def test_a_damaged_file_is_refused(saved: tuple[Learner, Path]) -> None:
    learner, path = saved
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 4
    for content in (whole[:-1], whole[:100], bytes(flipped), b"", b"no weights"):
        path.write_bytes(content)
        assert str(path) in refusal(CheckpointError, lambda: Learner.load(path)).arrived
        assert str(path) in refusal(CheckpointError, lambda: learner.load_weights(path)).arrived
    assert "missing" in refusal(CheckpointError, lambda: Learner.load(path.parent / "missing.safetensors")).arrived
    assert "missing" in refusal(CheckpointError, lambda: learner.load_weights(path.parent / "missing.pth")).arrived


def test_files_of_others_are_pointed_to_pretrained(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    assert "pretrained=path" in refusal(CheckpointError, lambda: Learner.load(tmp_path / "w.safetensors")).todo


def test_weights_that_do_not_fit_their_own_description_are_refused(saved: tuple[Learner, Path]) -> None:
    _, path = saved
    state, description = read_weights(path)
    state.pop("fc.bias")  # as when a library has changed the network since
    write_weights(path, state, description)
    assert "fc.bias" in refusal(CheckpointError, lambda: Learner.load(path)).arrived


def test_load_on_a_learner_that_exists_names_load_weights(saved: tuple[Learner, Path]) -> None:
    learner, path = saved
    error = refusal(ConfigError, lambda: learner.load(path))
    assert str(path) in error.arrived
    assert "learner.load_weights(file)" in error.todo


def test_a_place_that_cannot_be_written_to_is_told_and_nothing_is_left_behind(
    saved: tuple[Learner, Path], tmp_path: Path
) -> None:
    learner, path = saved
    before = path.read_bytes()
    (tmp_path / "folder").mkdir()
    for target in (path / "inside.safetensors", tmp_path / "folder"):
        error = refusal(CheckpointError, lambda target=target: learner.save(target))
        assert str(target) in error.arrived
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "saved.safetensors"]


def test_a_tilde_is_the_home_folder_at_every_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(away)
    learner = made_learner(val=pairs(3))
    history = learner.fit(1, 0.1, callbacks=[CSVLogger("~/log.csv"), ModelCheckpoint("~/runs")], verbose=False)
    history.to_csv("~/history.csv")
    assert learner.save("~/kept.safetensors") == home / "kept.safetensors"
    learner.load_weights("~/kept.safetensors")
    with pytest.raises(CheckpointError, match="user's own making"):
        Learner.load("~/kept.safetensors")
    learner.predict(torch.zeros(3, 6, 6)).to_csv("~/answers.csv")
    (home / "val").mkdir()
    with pytest.raises(DataError):  # an empty folder, and no misspelt part
        learner.evaluate("~/val")
    (home / "val").rmdir()
    names = {"log.csv", "runs", "history.csv", "kept.safetensors", "answers.csv"}
    assert {path.name for path in home.iterdir()} == names
    assert not list(away.iterdir())


def test_a_tilde_of_nobody_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert made_learner().save("~nobody-at-all.safetensors").is_file()


def test_a_learner_answers_in_the_precision_that_it_was_saved_with(tmp_path: Path) -> None:
    learner = named_learner(SMALL, precision="bf16", head=PLAIN)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = learner.predict(images).probabilities
    loaded = Learner.load(learner.save(tmp_path / "w.safetensors"), device="cpu")
    assert torch.equal(loaded.predict(images).probabilities, before)
    again = Learner.load(loaded.save(tmp_path / "again.safetensors"), device="cpu")
    assert torch.equal(again.predict(images).probabilities, before)


def test_data_without_the_own_transform_of_evaluation_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    pipeline = v2.Compose([v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    data = ImageData.from_folder(shapes_folder, eval_transform=pipeline, workers=0)
    file = Learner(SMALL, data, pretrained=False, device="cpu").save(tmp_path / "w.safetensors")
    bare = ImageData.from_folder(shapes_folder, workers=0)
    error = refusal(CheckpointError, lambda: Learner.load(file, bare))
    assert "without an eval_transform" in error.arrived
    for other in (data, ImageData.from_loaders(pairs(3, side=32), classes=data.classes)):
        Learner.load(file, other, device="cpu")


def test_loading_moves_nobodys_generator_and_gives_a_network_in_evaluation(saved: tuple[Learner, Path]) -> None:
    state = torch.get_rng_state()
    loaded = Learner.load(saved[1], device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in loaded.model.modules())


def test_a_loaded_learner_goes_on_with_the_loss_metrics_and_optimizer_it_is_given(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "metrics": ("accuracy", "f1"),
        "loss": nn.CrossEntropyLoss(label_smoothing=0.1),
        "optimizer": "sgd",
        "weight_decay": 0.1,
        "seed": 3,
    }
    data = ImageData.from_loaders(pairs(3, 2, side=32), pairs(4, side=32), classes=CLASSES)
    learner = Learner(SMALL, data, pretrained=False, head=Head(init="small"), device="cpu", **options)
    file = learner.save(tmp_path / "w.safetensors")
    loaded = Learner.load(file, data, "cpu", **options)
    assert loaded.evaluate() == learner.evaluate()
    ours, theirs = (one.fit(1, 0.01, verbose=False).history for one in (loaded, learner))
    assert ours == theirs
    assert "val_f1" in ours
    assert same(weights(loaded), weights(learner))
    error = refusal(ConfigError, lambda: Learner.load(file, data, metrics=("f1", 5), seed=-1))  # type: ignore[arg-type]
    assert error.arrived == "metrics=['f1', 5], seed=-1"
    assert "sgd" in refusal(ConfigError, lambda: Learner.load(file, data, optimizer="sgdd")).todo


# Without headstart

ALONE = """
import json, sys
sys.modules["headstart"] = None  # as where it is not installed
import torch
from safetensors import safe_open

for file in sys.argv[1:]:
    with safe_open(file, framework="pt") as opened:
        description = json.loads(opened.metadata()["headstart"])
    lines = description["without_headstart"].replace("this-file.safetensors", file)
    assert len(lines.splitlines()) == 5 or "set_submodule" in lines
    scope = {}
    exec(lines, scope)
    images = torch.load(file + ".images", weights_only=True)
    with torch.no_grad():
        torch.save(scope["network"](images), file + ".logits")
"""


FEW: list[tuple[str, int, Head]] = [
    ("resnet18.a1_in1k", 32, PLAIN),
    ("levit_128s", 224, Head(hidden=(8,), dropout=0.1, init="xavier")),
    ("torchvision/mobilenet_v2", 32, Head(at="classifier", init="xavier")),
]
MORE: list[tuple[str, int, Head]] = [
    ("torchvision/googlenet", 32, PLAIN),
    ("coat_tiny", 224, PLAIN),
    ("caformer_s18", 64, PLAIN),
    ("repvit_m0_9", 64, PLAIN),
    ("torchvision/squeezenet1_1", 32, Head(dropout=0.2, init="xavier")),
    ("torchvision/inception_v3", 96, PLAIN),
    ("torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1", 384, PLAIN),
    ("torchvision/maxvit_t", 224, PLAIN),
    ("torchvision/vgg11", 32, PLAIN),
]


@pytest.mark.parametrize("cases", [FEW, pytest.param(MORE, marks=pytest.mark.slow)])
def test_a_file_tells_how_the_libraries_alone_open_it(tmp_path: Path, cases: list[tuple[str, int, Head]]) -> None:
    files, wanted = [], []
    for number, (model, size, head) in enumerate(cases):
        learner = named_learner(model, size, head=head)
        files.append(str(learner.save(tmp_path / f"{number}.safetensors")))
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(number))
        torch.save(images, files[-1] + ".images")
        with torch.no_grad():
            # In the libraries' own memory format: in another one last bits differ.
            wanted.append(learner.model.eval().to(memory_format=torch.contiguous_format)(images))
    command = [sys.executable, "-c", ALONE, *files]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # noqa: S603 - our own words
    for (model, _, _), file, logits in zip(cases, files, wanted, strict=True):
        assert torch.equal(torch.load(file + ".logits", weights_only=True), logits), model


def test_a_file_with_code_of_the_users_own_tells_no_recipe(tmp_path: Path) -> None:
    for learner in (made_learner(), named_learner("resnet18", head=nn.Linear(512, 3))):
        _, description = read_weights(learner.save(tmp_path / "own.safetensors"))
        assert description["without_headstart"] == ""
