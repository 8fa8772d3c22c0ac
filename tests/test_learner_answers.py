"""What a Learner answers: predictions in the order of the pictures, exact figures, and nothing changed by asking."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from handmade import At, made_learner, pairs, refusal, same, weights
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor

from headstart import Head, ImageData, Learner
from headstart.errors import BackboneError, ConfigError, DataError


@pytest.fixture
def learner(tiny_network: Callable[..., nn.Module], shapes_folder: Path) -> Learner:
    """Make a Learner over pictures of three shapes; no two of its answers are the same."""
    data = ImageData.from_folder(shapes_folder, image_size=32, batch_size=10, workers=0)
    return Learner(tiny_network(), data, device="cpu")


@pytest.fixture
def paths(shapes_folder: Path) -> list[Path]:
    return [shapes_folder / "val" / f"{kind}/{n}.jpg" for n, kind in ((30, "square"), (24, "circle"), (32, "triangle"))]


def answer(learner: Learner, path: Path) -> Tensor:
    """Give the probabilities of a picture as a hand-written script would."""
    preprocessing = learner.data.preprocessing
    with Image.open(path) as picture:
        pixels = pil_to_tensor(preprocessing.geometry()(picture.convert("RGB")))[None]
    images = preprocessing.normaliser(torch.device("cpu"))(pixels)
    with torch.no_grad():
        return learner.model.eval()(images).softmax(1)[0]


# Predictions


def test_predictions_are_the_networks_softmax_with_names_and_paths(learner: Learner, paths: list[Path]) -> None:
    predictions = learner.predict(paths)
    assert predictions.classes == ("circle", "square", "triangle")
    assert predictions.paths == tuple(paths)
    assert predictions.probabilities.dtype == torch.float32
    for row, path in zip(predictions.probabilities, paths, strict=True):
        assert torch.allclose(row, answer(learner, path), atol=1e-6)
    assert predictions.labels == [predictions.classes[index] for index in predictions.probabilities.argmax(1)]


def test_every_way_to_give_a_picture_gives_the_same_answer(learner: Learner, paths: list[Path]) -> None:
    (expected,) = learner.predict(paths[0]).probabilities
    with Image.open(paths[0]) as picture:
        pixels = pil_to_tensor(picture)
        given = [str(paths[0]), [paths[0]], picture, [picture], pixels, pixels[None], [pixels]]
        answers = [learner.predict(one).probabilities for one in given]
    view = learner.data.eval_view(pixels)[None]
    final = learner.data.preprocessing.normaliser(torch.device("cpu"))(view)
    answers += [learner.predict(final).probabilities, learner.predict(final[0].double()).probabilities]
    for found in answers:
        assert found.shape == (1, 3)
        assert torch.allclose(found[0], expected, atol=1e-6)


def test_answers_come_in_the_order_of_the_pictures(learner: Learner, paths: list[Path]) -> None:
    forth, back = learner.predict(paths), learner.predict(paths[::-1])
    assert back.paths == forth.paths[::-1]
    assert torch.allclose(back.probabilities.flip(0), forth.probabilities, atol=1e-6)
    assert len({tuple(row.tolist()) for row in forth.probabilities}) == 3


def test_a_folder_is_all_its_pictures_sorted(learner: Learner, shapes_folder: Path) -> None:
    predictions = learner.predict(shapes_folder / "val")
    assert predictions.paths == tuple(sorted((shapes_folder / "val").rglob("*.jpg")))
    assert len(predictions) == 27
    assert torch.equal(learner.predict(str(shapes_folder / "val")).probabilities, predictions.probabilities)


def test_a_list_may_hold_pictures_of_every_kind(learner: Learner, paths: list[Path]) -> None:
    with Image.open(paths[1]) as picture:
        predictions = learner.predict([paths[0], picture, pil_to_tensor(picture), [paths[2]]])
    assert predictions.paths == (paths[0], None, None, paths[2])
    rows = learner.predict([paths[n] for n in (0, 1, 1, 2)]).probabilities
    assert torch.allclose(predictions.probabilities, rows, atol=1e-6)


def test_the_batch_size_makes_no_difference_to_speak_of(
    tiny_network: Callable[..., nn.Module], shapes_folder: Path
) -> None:
    found = []
    for batch_size in (1, 4, 100):
        data = ImageData.from_folder(shapes_folder, image_size=32, batch_size=batch_size, workers=0)
        found.append(Learner(tiny_network(), data, device="cpu").predict(shapes_folder / "val").probabilities)
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(found[0], found[2], atol=1e-6)


@pytest.mark.parametrize("wrong", [None, 5, {"a": 1}, torch.zeros(3, 4, dtype=torch.int64), np.zeros((4, 4, 3)), b"x"])
def test_what_is_no_picture_is_refused(learner: Learner, wrong: Any) -> None:
    refusal(DataError, lambda: learner.predict(wrong))


def test_nothing_to_predict_and_files_that_are_no_pictures_are_told(
    learner: Learner, paths: list[Path], tmp_path: Path
) -> None:
    assert str(tmp_path) in refusal(DataError, lambda: learner.predict(tmp_path)).arrived
    assert "no picture" in refusal(DataError, lambda: learner.predict([])).arrived
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes(paths[0].read_bytes()[:300])
    error = refusal(DataError, lambda: learner.predict([paths[0], tmp_path / "text.jpg", tmp_path / "cut.jpg"]))
    assert "text.jpg" in error.arrived
    assert "cut.jpg" in error.arrived
    assert "2 of 3" in error.arrived
    assert "missing.jpg" in refusal(DataError, lambda: learner.predict(tmp_path / "missing.jpg")).arrived


# Figures


def by_hand(learner: Learner, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    images, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    with torch.no_grad():
        logits = learner.model.eval()(images)
    accuracy = (logits.argmax(1) == targets).float().mean().item()
    return {"loss": functional.cross_entropy(logits, targets).item(), "accuracy": accuracy}


def test_figures_are_exact_for_every_picture_whatever_the_batches() -> None:
    train, val, other = pairs(4, 4), pairs(5, 5, 1, seed=1), pairs(3, 2, seed=2)
    learner = made_learner(train, val)
    for asked, batches in ((None, val), ("val", val), ("train", train), (other, other)):
        assert learner.evaluate(asked) == pytest.approx(by_hand(learner, batches))


def test_folders_and_other_data_are_evaluated_as_well(learner: Learner, shapes_folder: Path) -> None:
    usual = learner.evaluate()
    assert usual.keys() == {"loss", "accuracy"}
    assert learner.evaluate(shapes_folder / "val") == usual
    assert learner.evaluate(str(shapes_folder / "val")) == usual
    assert learner.evaluate(ImageData.from_folder(shapes_folder, batch_size=10, workers=0)) == usual
    alone = ImageData.from_datasets(torchvision.datasets.ImageFolder(shapes_folder / "val"), batch_size=10, workers=0)
    assert learner.evaluate(alone) == usual
    assert learner.evaluate(shapes_folder / "train") == learner.evaluate("train") != usual


def test_a_part_that_is_not_there_is_refused_with_those_that_are() -> None:
    learner = made_learner(pairs(4))
    for part in (None, "val", "test"):
        error = refusal(ConfigError, lambda part=part: learner.evaluate(part))
        assert "train" in error.needed


def test_data_that_cannot_be_evaluated_is_refused(learner: Learner, shapes_folder: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path / "missing", "somewhere", 5, [], ImageData.from_loaders(pairs(4), classes=4)):
        refusal(DataError, lambda wrong=wrong: learner.evaluate(wrong))
    (tmp_path / "pentagon").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pentagon" / "1.png")
    assert "pentagon" in refusal(DataError, lambda: learner.evaluate(tmp_path)).arrived


# Nothing is changed by asking


@pytest.mark.parametrize("ask", ["evaluate", "train", "predict", "show"])
@pytest.mark.parametrize("mode", [True, False])
def test_asking_leaves_modes_gradients_weights_and_chance_as_they_were(
    learner: Learner, paths: list[Path], ask: str, mode: bool
) -> None:
    learner.unfreeze("stage2")
    learner.model.train(mode)
    learner.model.stage1.train(not mode)
    random.seed(1)
    before = (
        [module.training for module in learner.model.modules()],
        [parameter.requires_grad for parameter in learner.model.parameters()],
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )
    state, chance = weights(learner), torch.get_rng_state()
    if ask == "predict":
        learner.predict(paths)
    elif ask == "show":
        learner.show_predictions(4)
    else:
        learner.evaluate("val" if ask == "evaluate" else ask)
    assert same(weights(learner), state)
    assert torch.equal(torch.get_rng_state(), chance)
    assert before == (
        [module.training for module in learner.model.modules()],
        [parameter.requires_grad for parameter in learner.model.parameters()],
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_asking_in_the_middle_of_a_fit_does_not_change_what_is_learned(
    tiny_network: Callable[..., nn.Module], shapes_folder: Path
) -> None:
    data = ImageData.from_folder(shapes_folder, image_size=32, batch_size=30, workers=0)
    plain, asked = (Learner(tiny_network(), data, device="cpu") for _ in range(2))

    def ask(callback: Any, batch: int, logs: Any) -> None:
        callback.learner.evaluate("train")
        callback.learner.predict(shapes_folder / "val" / "circle")

    plain.fit(1, lr=0.01, verbose=False)
    asked.fit(1, lr=0.01, callbacks=[At(on_train_batch_end=ask)], verbose=False)
    assert same(weights(plain), weights(asked))


def test_hooks_are_called_on_the_callbacks_that_are_given(learner: Learner, paths: list[Path]) -> None:
    called: list[str] = []
    note = At(
        on_test_end=lambda callback, logs: called.append(f"test {sorted(logs)}"),
        on_predict_end=lambda callback, logs: called.append("predict"),
    )
    learner.evaluate(callbacks=[note])
    learner.predict(paths, callbacks=(one for one in [note]))
    assert called == ["test ['accuracy', 'loss']", "predict"]


def test_right_and_wrong_answers_are_drawn(learner: Learner) -> None:
    figure = learner.show_predictions(6)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 6
    assert all(title.endswith("%") for title in titles)
    refusal(ConfigError, lambda: learner.show_predictions(part="test"))


# Real pictures and real weights


def test_both_libraries_files_of_one_network_answer_alike(assets: Path) -> None:
    ant = next((assets / "hymenoptera_data" / "val" / "ants").glob("*.jpg"))
    data = ImageData.from_loaders(pairs(1, side=224), classes=1000)
    files = {"torchvision/mobilenet_v2": "mobilenet_v2-torchvision.pth", "mobilenetv2_100": "mobilenetv2_100-timm.pth"}
    preset = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    with Image.open(ant) as picture:
        images = preset(picture.convert("RGB"))[None]
    found = []
    for name, file in files.items():
        path = assets / "weights" / file
        learner = Learner(f"{name}.IMAGENET1K_V1" if "/" in name else name, data, pretrained=path, device="cpu")
        learner.load_weights(path)  # and the head too
        found.append(learner.predict(images).probabilities)
        with torch.no_grad():
            assert torch.equal(found[-1], learner.model.eval()(images).softmax(1))
        if "/" in name:
            assert torch.equal(learner.predict(ant).probabilities, found[-1])
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert found[0].argmax() == found[1].argmax()


def test_one_file_of_half_precision_serves_both_libraries_resnet(assets: Path) -> None:
    path = assets / "weights" / "resnet18-food101.pth"
    classes = (assets / "weights" / "resnet18-food101.classes.txt").read_text().split()
    pictures = sorted((assets / "hotdog_tiny" / "test").rglob("*.jpg"))[::60][:8]
    data = ImageData.from_loaders(pairs(1, side=80), classes=classes)
    images = torch.stack([pil_to_tensor(Image.open(one).convert("RGB").resize((80, 80))) for one in pictures])
    normalised = (images / 255 - 0.45) / 0.225
    found = []
    for name in ("resnet18", "torchvision/resnet18"):
        learner = Learner(name, data, pretrained=path, device="cpu")
        learner.load_weights(path)
        found.append(learner.predict(normalised))
    assert torch.equal(found[0].probabilities, found[1].probabilities)
    assert len(set(found[0].labels)) > 1


@pytest.mark.parametrize("model", ["resnet18", "torchvision/resnet18"])
def test_without_a_network_the_error_comes_before_a_picture_is_read(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    import huggingface_hub

    nowhere = "http://127.0.0.1:9"  # the port that discards what it is sent; nobody listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(torchvision.models.ResNet18_Weights.DEFAULT.value, "url", f"{nowhere}/resnet18-12345678.pth")

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a picture has been opened")

    monkeypatch.setattr(Image, "open", fail)
    data = ImageData.from_folder(shapes_folder)
    error = refusal(BackboneError, lambda: Learner(model, data))
    assert "resnet18" in error.arrived
    assert "pretrained='path/to/weights.pth'" in error.todo
    assert "pretrained=False" in error.todo


def test_several_threads_may_ask_at_once() -> None:
    data = ImageData.from_loaders(pairs(4, side=32), classes=3)
    learner = Learner("test_resnet", data, pretrained=False, head=Head(init="xavier"), device="cpu")
    images = [torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    alone = [learner.predict(one).probabilities for one in images]
    before = weights(learner)
    with ThreadPoolExecutor(4) as threads:
        rounds = list(threads.map(lambda place: learner.predict(images[place % 4]).probabilities, range(80)))
    assert all(torch.equal(found, alone[place % 4]) for place, found in enumerate(rounds))
    assert same(weights(learner), before)
