"""Features are a memo of the frozen stages: with them and without them a fit ends at the same numbers."""

import multiprocessing
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import refusal, same, weights
from PIL import Image
from torch import Tensor, nn

from headstart import Cache, Callback, ConfigError, Head, ImageData, Learner, ModelCheckpoint, Order
from headstart.data.sources import FolderSource
from headstart.model.cut import find_cut
from headstart.training import features as module


class Counted(nn.Module):
    """A network that counts the pictures each stage has seen, in training and in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2))
        self.fc = nn.Linear(16, 3)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.stage(self.stem(images)).mean((2, 3)))
        return logits


class Counting(nn.Conv2d):
    pictures = 0

    def forward(self, images: Tensor) -> Tensor:
        type(self).pictures += len(images)
        return super().forward(images)


def data(folder: Path, **settings: Any) -> ImageData:
    return ImageData.from_folder(folder, **{"image_size": 32, "batch_size": 8, "workers": 0, **settings})


def learner(pictures: ImageData, frozen: str | None = "head", **options: Any) -> Learner:
    torch.manual_seed(0)
    network = Counted()
    network.stem[0] = Counting(3, 8, 3, stride=2)
    made = Learner(network, pictures, **{"head": Head(hidden=(8,), dropout=0.3), **options})
    if frozen == "head":
        made.freeze()
    elif frozen is not None:
        made.unfreeze(frozen)
    Counting.pictures = 0
    return made


def fitted(made: Learner, epochs: int = 3, **options: Any) -> dict[str, list[float]]:
    return made.fit(epochs, lr=1e-2, verbose=False, **options).history


def close(one: dict[str, list[float]], other: dict[str, list[float]]) -> bool:
    assert one.keys() == other.keys()
    return all(values == pytest.approx(other[name], rel=1e-5) for name, values in one.items())


# The same numbers


@pytest.mark.parametrize("frozen", ["head", "stage"])
@pytest.mark.parametrize("augment", [None, "default"])
def test_what_is_kept_unasked_changes_no_number(shapes_folder: Path, frozen: str, augment: Any) -> None:
    live, known = (learner(data(shapes_folder, augment=augment), frozen) for _ in range(2))
    assert close(fitted(live, cache_features=False), fitted(known))
    assert all(torch.allclose(value, weights(known)[name], rtol=1e-5) for name, value in weights(live).items())
    assert live.evaluate() == pytest.approx(known.evaluate(), rel=1e-5)


@pytest.mark.parametrize("model", ["test_efficientnet", "test_convnext", "torchvision/squeezenet1_1"])
def test_in_bf16_they_differ_no_more_than_pictures_do_in_other_batches(shapes_folder: Path, model: str) -> None:
    losses = {}
    for batch_size, kept in ((8, False), (5, False), (8, 1), (5, 1)):
        pictures = data(shapes_folder, image_size=64, augment=None, batch_size=batch_size)
        made = Learner(model, pictures, pretrained=False, precision="bf16", head=Head(init="xavier"), device="cpu")
        made.freeze()
        losses[batch_size, kept] = fitted(made, 1, cache_features=kept)["val_loss"][0]
    in_other_batches = abs(losses[8, False] - losses[5, False])
    for batch_size in (8, 5):
        assert abs(losses[batch_size, 1] - losses[batch_size, False]) <= in_other_batches + 1e-6


@pytest.mark.parametrize(("epochs", "looks"), [(1, False), (2, False), (3, True)])
def test_unasked_a_way_in_is_only_looked_for_where_that_pays(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, looks: bool
) -> None:
    looked = []
    monkeypatch.setattr(module, "find_cut", lambda *given: looked.append(given) or find_cut(*given))
    fitted(learner(data(shapes_folder)), epochs)  # 27 val pictures
    assert bool(looked) is looks
    fitted(learner(data(shapes_folder)), 1, cache_features=1)
    assert looked


def test_as_many_views_as_epochs_are_what_there_is_without_them(shapes_folder: Path) -> None:
    live, known = (learner(data(shapes_folder)) for _ in range(2))
    assert close(fitted(live, cache_features=False), fitted(known, cache_features=3))


def test_views_take_turns(shapes_folder: Path) -> None:
    made = learner(data(shapes_folder))
    fitted(made, 5, cache_features=2)
    train, val = (len(part) for part in (made.data.train, made.data.val))  # type: ignore[arg-type]
    tried = Counting.pictures - 2 * train - val
    assert 0 < tried < 30


def test_one_view_is_that_of_evaluation(shapes_folder: Path) -> None:
    plain, known = learner(data(shapes_folder, augment=None)), learner(data(shapes_folder))
    assert close(fitted(plain), fitted(known, cache_features=1))


def test_unasked_each_val_picture_goes_through_the_frozen_stages_once(shapes_folder: Path) -> None:
    made = learner(data(shapes_folder))
    fitted(made, 4)
    train, val = (len(part) for part in (made.data.train, made.data.val))  # type: ignore[arg-type]
    assert 0 < Counting.pictures - 4 * train - val < 30


@pytest.mark.parametrize("frozen", ["head", "stage"])
def test_a_named_network_learns_the_same(shapes_folder: Path, frozen: str) -> None:
    def made() -> Learner:
        found = Learner("resnet18", data(shapes_folder, augment=None), pretrained=False)
        found.freeze() if frozen == "head" else found.unfreeze("layer4")
        return found

    live, known = made(), made()
    assert close(fitted(live, 2, cache_features=False), fitted(known, 2))


# What changes in between


class Unfreezing(Callback):
    def __init__(self, at: int, layer: str) -> None:
        self.at, self.layer = at, layer

    def on_epoch_end(self, epoch: int, logs: Any) -> None:
        if epoch == self.at:
            self.learner.unfreeze(self.layer)


@pytest.mark.parametrize("layer", ["stage", "stem"])
def test_a_callback_may_unfreeze(shapes_folder: Path, layer: str) -> None:
    live, known = (learner(data(shapes_folder, augment=None)) for _ in range(2))
    histories = [
        fitted(made, 4, cache_features=kept, callbacks=[Unfreezing(1, layer)])
        for made, kept in ((live, False), (known, 1))
    ]
    assert close(*histories)


class UnfreezingInside(Callback):
    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        if self.run.epoch == 1 and batch == 3:
            self.learner.unfreeze("stage")


def test_also_in_the_middle_of_an_epoch(shapes_folder: Path) -> None:
    live, known = (learner(data(shapes_folder, augment=None)) for _ in range(2))
    histories = [
        fitted(made, 3, cache_features=kept, callbacks=[UnfreezingInside()])
        for made, kept in ((live, False), (known, 1))
    ]
    assert close(*histories)


def test_frozen_weights_that_are_loaded_are_used(shapes_folder: Path, tmp_path: Path) -> None:
    other = learner(data(shapes_folder))
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.5)
    other.save(tmp_path / "other.safetensors")

    class Loading(Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            if epoch == 0:
                self.learner.load_weights(tmp_path / "other.safetensors")

    live, known = (learner(data(shapes_folder, augment=None)) for _ in range(2))
    histories = [
        fitted(made, 3, cache_features=kept, callbacks=[Loading()]) for made, kept in ((live, False), (known, 1))
    ]
    assert close(*histories)


def test_a_picture_that_is_rewritten_is_seen(shapes_folder: Path, tmp_path: Path) -> None:
    class Rewriting(Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            if epoch == 0:
                for path in (self.learner.data.train.paths[3], self.learner.data.val.paths[1]):  # type: ignore[union-attr]
                    Image.new("RGB", (40, 40), "red").save(path)

    histories = []
    for kept in (False, 1):
        folder = tmp_path / str(kept)
        for path in sorted(shapes_folder.rglob("*.jpg")):
            target = folder / path.relative_to(shapes_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        made = learner(data(folder, augment=None))
        histories.append(fitted(made, 3, cache_features=kept, callbacks=[Rewriting()]))
    assert close(*histories)


@pytest.mark.parametrize("is_of_class", [True, False])
def test_a_callback_that_looks_at_batches_sees_pictures(shapes_folder: Path, is_of_class: bool) -> None:
    shapes: set[tuple[int, ...]] = set()

    class Looking(Callback):
        def on_test_batch_end(self, batch: int, logs: Any) -> None:
            shapes.add(tuple(self.run.batch.images.shape[1:]))

    class Bare(Callback):
        pass

    looking: Any = Looking() if is_of_class else Bare()
    if not is_of_class:
        looking.on_test_batch_end = lambda batch, logs: Looking.on_test_batch_end(looking, batch, logs)
    fitted(learner(data(shapes_folder, augment=None)), 4, callbacks=[looking])
    assert shapes == {(3, 32, 32)}


class TwoWays(Counted):
    """A network that does something else in evaluation."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.training else (logits + super().forward(images.flip(-1))) / 4


def test_a_network_that_evaluates_otherwise_is_evaluated_on_pictures(shapes_folder: Path) -> None:
    histories = []
    for kept in (False, "auto", 4):
        torch.manual_seed(0)
        made = Learner(TwoWays(), data(shapes_folder, augment=None), head=Head(init="xavier"))
        made.freeze()
        histories.append(fitted(made, 4, cache_features=kept))
        assert made.evaluate()["loss"] == pytest.approx(histories[-1]["val_loss"][-1], rel=1e-5)
    assert close(histories[0], histories[1])
    assert close(histories[0], histories[2])


class Change(Callback):
    def __init__(self, change: Any) -> None:
        self.change = change

    def on_epoch_begin(self, epoch: int, logs: Any) -> None:
        if epoch == 2:
            self.change(self.run.network)


def through_data(network: Any) -> None:
    network.stem[0].weight.data.mul_(2)


def buffer(network: Any) -> None:
    network.stem[1].running_mean += 1


def module_itself(network: Any) -> None:
    torch.manual_seed(5)
    network.stem[2] = nn.Sigmoid()


def hook(network: Any) -> None:
    network.stem.register_forward_hook(lambda module, given, made: made * 2)


def rolled(network: Any) -> None:
    with torch.no_grad():  # the same numbers in other places
        weight = network.stem[0].weight
        weight.copy_(weight.flatten().roll(2).view_as(weight))


def setting(network: Any) -> None:
    network.stem[1].eps = 10.0


def tuple_of_settings(network: Any) -> None:
    network.stem[0].stride = (1, 1)


def forward_of_its_own(network: Any) -> None:
    network.stem[2].forward = torch.sigmoid


@pytest.mark.parametrize(
    "change", [through_data, buffer, module_itself, hook, rolled, setting, tuple_of_settings, forward_of_its_own]
)
@pytest.mark.parametrize("frozen", ["head", "stage"])
def test_whatever_changes_what_is_frozen_is_noticed(shapes_folder: Path, frozen: str, change: Any) -> None:
    live, known = (learner(data(shapes_folder, augment=None), frozen) for _ in range(2))
    expected = fitted(live, 5, cache_features=False, callbacks=[Change(change)])
    assert close(expected, fitted(known, 5, callbacks=[Change(change)]))


class Tempered(nn.Module):
    """A head that does something before its Linear, whose input is what is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 3)
        self.temperature = 1.0

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features / self.temperature)
        return logits


class Factored(Counted):
    """A network with settings of its own, one of which its `forward` changes."""

    def __init__(self) -> None:
        super().__init__()
        del self.stage[3]
        self.fc = Tempered()
        self.factor = self._bias = 1.0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().forward(images * self.factor + self._bias)


def temperature(network: Any) -> None:
    network.fc.temperature = 4.0


def beside_one_that_changes(network: Any) -> None:
    network.factor = 2.0


def underscored(network: Any) -> None:
    network._bias = 2.0


@pytest.mark.parametrize("change", [temperature, beside_one_that_changes, underscored])
def test_settings_are_looked_at_wherever_features_are_made(shapes_folder: Path, change: Any) -> None:
    histories = []
    for kept in (False, "auto"):
        torch.manual_seed(0)
        made = Learner(Factored(), data(shapes_folder, augment=None), head=Head(init="xavier"))
        made.freeze()
        histories.append(fitted(made, 5, cache_features=kept, callbacks=[Change(change)]))
    assert close(*histories)


class Annealing(Counted):
    """A network that does less and less to its pictures."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        return super().forward(images * (1 + 1 / self.seen))


def test_what_a_network_counts_is_left_as_it_was_by_a_trial(
    shapes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = []
    for kept in (False, "auto"):
        torch.manual_seed(0)
        made = Learner(Annealing(), data(shapes_folder, augment=None), head=Head(init="xavier"))
        made.freeze()
        histories.append(fitted(made, 3, cache_features=kept))
    assert histories[0] == histories[1]
    assert "in every epoch: a forward draws random numbers outside of modules" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("views", "augment", "told"),
    [
        (1, "default", "cache_features=1: the frozen stages see each training picture once, without augmentation"),
        (2, "default", "see 2 augmented views of each training picture, which take turns in 3 epochs"),
        (3, "default", None),
        (1, None, None),
    ],
)
def test_what_variety_is_given_up_is_told(
    shapes_folder: Path, capsys: pytest.CaptureFixture[str], views: int, augment: Any, told: str | None
) -> None:
    fitted(learner(data(shapes_folder, augment=augment)), 3, cache_features=views)
    out = capsys.readouterr().out
    assert "cache_features=" not in out if told is None else told in out


def backward_hook(network: Any) -> None:
    network.register_full_backward_pre_hook(lambda module, gradients: tuple(-each for each in gradients))


def test_who_looks_at_the_gradients_of_the_network_sees_them(shapes_folder: Path) -> None:
    histories = []
    for kept in (False, "auto"):
        torch.manual_seed(0)
        network = Counted()
        del network.stage[3]  # then what the head gives is what the network gives
        made = Learner(network, data(shapes_folder, augment=None))
        made.freeze()
        histories.append(fitted(made, 5, cache_features=kept, callbacks=[Change(backward_hook)]))
    assert close(*histories)


def same_weights_again(network: Any, epoch: int) -> None:
    network.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})


def setting_of_the_head(network: Any, epoch: int) -> None:
    next(module for module in network.fc.modules() if isinstance(module, nn.Dropout)).p = 0.3 / (epoch + 1)


@pytest.mark.parametrize("change", [same_weights_again, setting_of_the_head])
def test_what_changes_no_feature_is_no_reason_to_find_them_anew(shapes_folder: Path, change: Any) -> None:
    class Changing(Callback):
        def on_epoch_begin(self, epoch: int, logs: Any) -> None:
            change(self.run.network, epoch)

    counts = []
    for callbacks in ([], [Changing()]):
        made = learner(data(shapes_folder, augment=None))
        fitted(made, 3, callbacks=callbacks)
        counts.append(Counting.pictures)
    assert counts[0] == counts[1]


class Noting(Counted):
    """A network that keeps a note of its batches."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().forward(images)


def test_what_a_forward_notes_is_no_reason_to_find_features_anew(shapes_folder: Path) -> None:
    counts = []
    for epochs in (3, 6):
        torch.manual_seed(0)
        network = Noting()
        network.stem[0] = Counting(3, 8, 3, stride=2)
        made = Learner(network, data(shapes_folder, augment=None))
        made.freeze()
        Counting.pictures = 0
        fitted(made, epochs)
        counts.append(Counting.pictures)
    assert counts[0] == counts[1]


class Choosy(Counted):
    """A network that wants whole batches."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 3:
            raise ZeroDivisionError("three")
        return super().forward(images)


def test_a_network_that_fails_on_a_few_pictures_is_asked_about_all(
    shapes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Learner(Choosy(), data(shapes_folder, augment=None, batch_size=9), head=Head())
    made.freeze()
    fitted(made, 4)
    assert "3 pictures alone end in ZeroDivisionError: three" in capsys.readouterr().out


@pytest.mark.parametrize("broken", [1, 4])
def test_pictures_to_try_it_on_that_cannot_be_read_are_no_trouble(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: int
) -> None:
    shutil.copytree(shapes_folder, tmp_path / "shapes")
    tried = [0, 17, 35, 53, 71][:broken]
    for number in tried:
        sorted((tmp_path / "shapes" / "train").glob("*/*"))[number].write_bytes(b"no picture")
    pictures = data(tmp_path / "shapes", augment=None, on_error="skip")
    histories = [fitted(learner(pictures), 4, cache_features=kept) for kept in (False, "auto")]
    assert close(*histories)
    assert "too few pictures can be read to try it on" in capsys.readouterr().out


class Cutting(Callback):
    order = Order.REPORT

    def on_epoch_begin(self, epoch: int, logs: Any) -> None:
        if epoch == 2 and not self.run.resumed:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kept", ["auto", 2])
def test_a_fit_is_gone_on_with_to_the_same_bits(shapes_folder: Path, tmp_path: Path, kept: Any) -> None:
    augment = None if kept == "auto" else "default"

    def run(folder: Path, *callbacks: Callback) -> Learner:
        made = learner(data(shapes_folder, augment=augment))
        fitted(made, 5, cache_features=kept, callbacks=[ModelCheckpoint(folder), *callbacks], resume=True)
        return made

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Cutting())
    assert same(weights(run(tmp_path / "cut")), weights(run(tmp_path / "whole")))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_also_when_stages_were_unfrozen_inside_of_the_epoch_that_was_cut(
    shapes_folder: Path, tmp_path: Path, accumulate: int
) -> None:
    class CuttingInside(Callback):
        order = Order.REPORT

        def on_train_batch_end(self, batch: int, logs: Any) -> None:
            if self.run.epoch == 1 and batch == 6 and not self.run.resumed:
                raise KeyboardInterrupt

    def run(folder: Path, *callbacks: Callback) -> Learner:
        made = learner(data(shapes_folder))
        callbacks = (ModelCheckpoint(folder), UnfreezingInside(), *callbacks)
        fitted(made, 4, cache_features=2, accumulate=accumulate, callbacks=callbacks, resume=True)
        return made

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", CuttingInside())
    assert same(weights(run(tmp_path / "cut")), weights(run(tmp_path / "whole")))


# Where they are kept


def test_more_than_memory_may_take_goes_into_a_file(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 72 and 27 pictures of 16 x 7 x 7 numbers: the first view fits, and the val pictures; the other two views do not.
    settings = {"cache": Cache(budget=(72 + 27) * 16 * 7 * 7 * 4)}
    live, known = (learner(data(shapes_folder, **settings)) for _ in range(2))
    monkeypatch.setattr("headstart.data.cache.Memo._expected_bytes", lambda self: 10**9)
    before = fitted(live, cache_features=False)
    made: list[Tensor | None] = []
    in_file = module._in_file
    monkeypatch.setattr(module, "_in_file", lambda count, found: made.append(in_file(count, found)) or made[-1])
    assert close(before, fitted(known, cache_features=3))
    assert [row is not None for row in made] == [True, True]


@pytest.mark.parametrize("limit", ["disk", "unasked"])
def test_where_there_is_no_room_at_all_pictures_are_used(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    live, known = (learner(data(shapes_folder, augment=None)) for _ in range(2))
    before = fitted(live, cache_features=False)
    if limit == "disk":
        monkeypatch.setattr("headstart.data.cache.Cache.room", lambda self, taken=0: 0)
    else:
        monkeypatch.setattr("headstart.training.feed._MOST", 1000)
    assert close(before, fitted(known))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no room")]
    assert len(told) == 2  # for train and for val


def test_where_there_is_room_for_some_views_these_are_used(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = learner(data(shapes_folder))
    monkeypatch.setattr(module, "_in_file", lambda count, found: None)
    monkeypatch.setattr("headstart.data.cache.Cache.room", lambda self, taken=0: (2 * 72 + 27) * 16 * 7 * 7 * 4 - taken)
    monkeypatch.setattr("headstart.data.cache.Memo._expected_bytes", lambda self: 10**9)
    capsys.readouterr()
    fitted(made, 8, cache_features=4)
    assert "no more room for 0 MB: 72 pictures go through the frozen stages in some epochs" in capsys.readouterr().out
    assert Counting.pictures < 27 + 2 * 72 + 2 * 2 * 72 + 60, "all views have been given up"


def test_val_pictures_stay_decoded_for_epochs_in_which_more_trains(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unfreezing(Callback):
        def on_epoch_begin(self, epoch: int, logs: Any) -> None:
            if epoch == 2:
                opened.clear()
                self.learner.unfreeze()

    opened: list[Path] = []
    sample = FolderSource.sample
    monkeypatch.setattr(
        FolderSource, "sample", lambda self, place, side=None: opened.append(place) or sample(self, place, side)
    )
    fitted(learner(data(shapes_folder)), 4, callbacks=Unfreezing())
    assert not opened


def test_a_pipeline_that_is_not_used_is_not_compared(shapes_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = learner(data(shapes_folder, augment=lambda picture: picture.resize((20, 20))))
    fitted(made, 2, cache_features=1)
    assert "your pipeline" not in capsys.readouterr().out


def test_a_buffer_that_is_changed_by_hand_is_seen(shapes_folder: Path) -> None:
    class Scaled(Counted):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images * self.factor)

    class Scaling(Callback):
        def on_epoch_begin(self, epoch: int, logs: Any) -> None:
            self.learner.model.factor.fill_(1.0 + epoch // 2)

    def scaled(**options: Any) -> dict[str, list[float]]:
        torch.manual_seed(0)
        made = Learner(Scaled(), data(shapes_folder, augment=None))
        made.freeze()
        return fitted(made, 4, callbacks=Scaling(), **options)

    assert close(scaled(cache_features=False), scaled())


def test_pictures_that_are_passed_over_are_no_trouble(
    shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(shapes_folder.rglob("*.jpg")):
        target = tmp_path / "pictures" / path.relative_to(shapes_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"none" if path.name in ("03.jpg", "26.jpg") else path.read_bytes())
    settings = {"augment": None, "on_error": "skip"}
    live, known = (learner(data(tmp_path / "pictures", **settings)) for _ in range(2))
    before = fitted(live, 3, cache_features=False)
    tried = Counting.pictures
    capsys.readouterr()
    assert close(before, fitted(known, 3, cache_features=1))
    assert Counting.pictures - 2 * tried < 30, "they have been looked for to the end, or more than once"
    told = "some pictures are passed over: all pictures go through the frozen stages in every epoch"
    assert capsys.readouterr().out.count(told) == 2  # of train and of val


def test_who_takes_the_place_of_a_picture_that_cannot_be_read_is_named(shapes_folder: Path, tmp_path: Path) -> None:
    class Naming(Callback):
        def on_train_batch_end(self, batch: int, logs: Any) -> None:
            named.update(self.run.pictures(batch))

    shutil.copytree(shapes_folder, tmp_path / "shapes")
    broken = sorted((tmp_path / "shapes" / "train").glob("*/*"))[1]
    broken.write_bytes(b"none")
    named: set[str] = set()
    fitted(learner(data(tmp_path / "shapes", on_error="skip")), 3, cache_features=2, callbacks=Naming())
    assert len(named) == 71
    assert str(broken) not in named


def test_a_batch_that_memory_does_not_hold_goes_through_in_portions(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Counting.forward

    def small(self: Counting, images: Tensor) -> Tensor:
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images)

    monkeypatch.setattr(Counting, "forward", small)
    live, known = (learner(data(shapes_folder, augment=None)) for _ in range(2))
    assert close(fitted(live, cache_features=False), fitted(known, cache_features=1))


@pytest.mark.parametrize(("small", "threads"), [(module._SMALL, 1), (50, 2)])
def test_small_steps_are_taken_in_one_thread(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch, small: int, threads: int
) -> None:
    monkeypatch.setattr(module, "_SMALL", small)
    seen: list[int] = []

    class Threads(Callback):
        def on_train_batch_end(self, batch: int, logs: Any) -> None:
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fitted(learner(data(shapes_folder)), 1, cache_features=1, callbacks=[Threads()])
        assert set(seen) == {threads}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# What cannot be asked for


@pytest.mark.parametrize("wrong", [True, 0, -1, 1.5, "all", None])
def test_what_is_no_number_of_views_is_refused(shapes_folder: Path, wrong: Any) -> None:
    error = refusal(ConfigError, lambda: fitted(learner(data(shapes_folder)), cache_features=wrong))
    assert f"cache_features={wrong!r}" in error.arrived


def test_views_of_what_trains_are_refused(shapes_folder: Path) -> None:
    error = refusal(ConfigError, lambda: fitted(learner(data(shapes_folder), None), cache_features=4))
    assert "learner.freeze()" in error.todo


@pytest.mark.parametrize("own", ["dataset", "pipeline"])
def test_views_of_what_may_be_another_picture_each_time_are_refused(shapes_folder: Path, own: str) -> None:
    pictures = data(shapes_folder, augment=lambda picture: picture)
    if own == "dataset":
        pictures = ImageData.from_datasets([(Image.new("RGB", (32, 32)), n % 3) for n in range(9)], classes=3)
    error = refusal(ConfigError, lambda: fitted(learner(pictures), cache_features=4))
    assert "from_folder" in error.needed


def test_why_a_network_takes_pictures_through_is_told_once(
    shapes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = learner(data(shapes_folder))
    made.model.stem.register_forward_hook(lambda *given: None)  # type: ignore[union-attr, operator]
    fitted(made)
    told = [line for line in capsys.readouterr().out.splitlines() if "frozen stages in every epoch" in line]
    assert len(told) == 1
    assert "hooks" in told[0]
    assert os.sep not in told[0]


@pytest.mark.parametrize("interrupted", [False, True])
def test_no_process_stays_when_a_fit_is_over(shapes_folder: Path, interrupted: bool) -> None:
    class Ending(Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            if interrupted:
                raise KeyboardInterrupt

    kept = Ending()  # which keeps the run
    made = learner(data(shapes_folder, workers=1, cache=None))
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        fitted(made, 1, callbacks=[kept])
    assert set(multiprocessing.active_children()) == before


def test_no_process_stays_when_all_features_are_found(shapes_folder: Path) -> None:
    class Watching(Callback):
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            living.append(len(set(multiprocessing.active_children()) - before))

    living: list[int] = []
    before = set(multiprocessing.active_children())
    made = learner(data(shapes_folder, workers=1, cache=None))
    fitted(made, 3, callbacks=Watching(), cache_features=2)
    assert living == [1, 0, 0]  # the second view is found in the second epoch


def test_pixels_stay_where_there_is_no_room_for_features(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.training.feed._MOST", 1000)
    pictures = data(shapes_folder, augment=None)
    made = learner(pictures)
    opened: list[int] = []
    sample = FolderSource.sample
    monkeypatch.setattr(
        FolderSource, "sample", lambda self, place, side=None: opened.append(place) or sample(self, place, side)
    )
    fitted(made, 3)
    assert len(opened) <= 72 + 27 + 2 * 16 + 5, "pictures were decoded in every epoch"


def test_where_nothing_is_frozen_files_are_only_decoded(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []
    check = ImageData.check
    monkeypatch.setattr(ImageData, "check", lambda self, *names: checked.extend(names) or check(self, *names))
    fitted(learner(data(shapes_folder), None), 1)
    assert not checked
