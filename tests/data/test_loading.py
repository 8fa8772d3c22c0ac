"""Batches follow from seed, fit and epoch alone, whoever prepares them; what a loader yields is checked as it comes."""

import functools
import gc
import multiprocessing
import os
import pickle
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import refusal
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from headstart.data.augment import eval_view, train_view
from headstart.data.folders import scan_classes
from headstart.data.loading import (
    Pair,
    SourceBatches,
    _Order,
    worker_count,
)
from headstart.data.preprocessing import Preprocessing, to_pixels
from headstart.data.sources import DatasetSource, FolderSource
from headstart.errors import DataError
from headstart.randomness import AUGMENTATION, ORDER, derive, generator, preserved

SMALL = Preprocessing(image_size=(32, 32), resize=(36, 36))
# torch warns when there are more workers than cores, which on a small machine is two.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def raised(act: Callable[[], object]) -> Exception | None:
    """Give the error that `act` raises, without the frames it went through.

    They would keep the workers until the garbage is collected, as in `refusal`.
    """
    try:
        act()
    except Exception as error:
        return error.with_traceback(None)
    return None


def same(one: list[Pair], other: list[Pair]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.fixture(scope="module")
def shapes(shapes_folder: Path) -> FolderSource:
    """Give 19 pictures of three classes, which is no multiple of a batch."""
    source = scan_classes(shapes_folder / "train")
    return source.part(range(0, 57, 3))


def training(source: Any, *, seed: int = 0, workers: int = 0, augment: Any = "strong", size: int = 8) -> SourceBatches:
    return SourceBatches(source, train_view(SMALL, augment), size, seed=seed, workers=workers, least_side=40)


def drawing(picture: Image.Image) -> Tensor:
    """Draw from all three generators, as pipelines of users do."""
    numbers = [torch.rand(()).item(), random.random(), np.random.random()]  # noqa: S311
    return torch.tensor(numbers)[:, None, None] + to_pixels(picture).float().mean()


# Order and chance


@pytest.mark.parametrize("augment", ["strong", ["randaugment", "color", "rotate"], drawing])
def test_the_number_of_workers_changes_no_bit(shapes: FolderSource, augment: Any) -> None:
    loaders = [training(shapes, workers=workers, augment=augment) for workers in (0, 1, 2)]
    for fit, epoch in [(0, 0), (0, 1), (1, 0)]:
        alone, one, two = ([*batches.epoch(fit, epoch)] for batches in loaders)
        assert same(alone, one)
        assert same(alone, two)


def test_the_same_epoch_of_the_same_fit_is_the_same_and_every_other_differs(shapes: FolderSource) -> None:
    batches = training(shapes)
    epochs = {(fit, epoch): [*batches.epoch(fit, epoch)] for fit in (1, 2) for epoch in (0, 1)}
    for position, seen in epochs.items():
        assert same(seen, [*batches.epoch(*position)])
        assert same(seen, [*training(shapes).epoch(*position)])
        assert not any(same(seen, other) for at, other in epochs.items() if at != position)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_gone_on_with_from_any_batch(shapes: FolderSource, workers: int) -> None:
    whole = [*training(shapes).epoch(1, 3)]
    opened: list[int] = []

    class Noting(FolderSource):
        def sample(self, index: int, least_side: int | None = None) -> Any:
            opened.append(index)
            return super().sample(index, least_side)

    noting = Noting(shapes.paths, shapes.labels, shapes.classes)
    batches = training(noting, workers=workers)
    for start in (2, len(whole) - 1, 0, len(whole)):
        opened.clear()
        assert same([*batches.epoch(1, 3, start)], whole[start:])
        if workers == 0:
            assert len(opened) == sum(len(labels) for _, labels in whole[start:])


def test_another_seed_gives_another_order_and_other_variations(shapes: FolderSource) -> None:
    ordered = DatasetSource([(Image.new("L", (4, 4), number), 0) for number in range(19)], ("a", "b"))

    def first(seed: int) -> list[int]:
        return [
            int(image.unique())
            for images, _ in training(ordered, seed=seed, augment=None).epoch(0, 0)
            for image in images
        ]

    assert first(0) == first(0) != first(1)
    alike = DatasetSource([shapes.sample(0)] * 19, shapes.classes)
    assert not same([*training(alike, seed=0).epoch(0, 0)], [*training(alike, seed=1).epoch(0, 0)])


def test_the_same_picture_is_varied_anew_in_every_place(shapes: FolderSource) -> None:
    alike = DatasetSource([shapes.sample(0)] * 8, shapes.classes)
    ((images, _),) = training(alike).epoch(0, 0)
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_every_picture_comes_once_an_epoch_with_its_own_label(shapes: FolderSource) -> None:
    numbered = DatasetSource([(Image.new("L", (32, 32), number), number % 3) for number in range(19)], ("a", "b", "c"))
    seen = [
        (int(image.unique()), int(label))
        for images, labels in training(numbered, augment=lambda picture: picture).epoch(0, 0)
        for image, label in zip(images, labels, strict=True)
    ]
    assert seen != sorted(seen)
    assert sorted(seen) == [(number, number % 3) for number in range(19)]


def test_evaluation_and_other_peoples_draws_in_between_change_nothing(shapes: FolderSource) -> None:
    expected = [*training(shapes).epoch(0, 0), *training(shapes).epoch(0, 1)]
    batches, found = training(shapes), []
    for epoch in (0, 1):
        for pair in batches.epoch(0, epoch):
            found.append(pair)
            with preserved():
                torch.rand(3), random.random(), np.random.random()  # noqa: S311
                next(iter(SourceBatches(shapes, eval_view(SMALL), 4).epoch(0, 0)))
                next(iter(training(shapes).epoch(5, 5)))
            torch.manual_seed(1234)
    assert same(found, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_early_does_not_show_in_the_next(shapes: FolderSource, workers: int) -> None:
    batches = training(shapes, workers=workers, size=2)
    for _, _ in zip(range(2), batches.epoch(0, 0), strict=False):
        pass
    assert same([*batches.epoch(0, 1)], [*training(shapes, size=2).epoch(0, 1)])
    assert same([*batches.epoch(0, 0)], [*training(shapes, size=2).epoch(0, 0)])


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_without_a_seed_come_in_order_and_draw_no_number(shapes: FolderSource, workers: int) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    found = [*SourceBatches(shapes, eval_view(SMALL), 8, workers=workers).epoch(3, 4)]
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    expected = torch.stack([eval_view(SMALL)(shapes.sample(index)[0]) for index in range(19)])
    assert torch.equal(torch.cat([images for images, _ in found]), expected)
    assert torch.cat([labels for _, labels in found]).tolist() == list(shapes.labels)


def test_training_in_workers_draws_nothing_from_the_users_generators(shapes: FolderSource) -> None:
    before = torch.get_rng_state()
    list(training(shapes, workers=1).epoch(0, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_order_and_seeds_follow_from_seed_fit_epoch_and_picture_and_never_change() -> None:
    order = _Order(1000, 32, 7)
    order.position = (2, 3)
    places = torch.randperm(1000, generator=generator(derive(ORDER, 7, 2, 3))).tolist()
    assert [key for batch in order for key in batch] == [(n, derive(AUGMENTATION, 7, 2, 3, n)) for n in places]
    assert [len(batch) for batch in order] == [32] * 31 + [8]
    assert [key for batch in _Order(5, 2, None) for key in batch] == [(n, None) for n in range(5)]


def test_a_batch_does_not_wait_for_the_seeds_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    derived = []
    monkeypatch.setattr("headstart.data.loading.derive", lambda *position: derived.append(position) or 0)
    next(iter(_Order(1000, 32, 7)))
    assert len(derived) == 33


# Batches


@pytest.mark.parametrize(("size", "lengths"), [(1, [1] * 19), (8, [8, 8, 3]), (19, [19]), (100, [19])])
def test_a_batch_holds_as_many_pictures_as_asked_for_and_the_last_one_the_rest(
    shapes: FolderSource, size: int, lengths: list[int]
) -> None:
    batches = training(shapes, size=size)
    assert len(batches) == len(lengths)
    assert [len(images) for images, _ in batches.epoch(0, 0)] == lengths


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_8_bit_channels_last_with_whole_labels(shapes: FolderSource, workers: int) -> None:
    images, labels = next(iter(training(shapes, workers=workers).epoch(0, 0)))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (8, 3, 32, 32))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (8,))


def test_float_pictures_of_a_dataset_are_batched_untouched() -> None:
    pictures = [torch.rand(3, 9, 7) for _ in range(5)]
    source = DatasetSource([(picture, 0) for picture in pictures], ("a", "b"))
    for batches in (training(source, size=5), SourceBatches(source, eval_view(SMALL), 5)):
        ((images, _),) = batches.epoch(0, 0)
        assert sorted(images.flatten(1).sum(1).tolist()) == sorted(picture.sum().item() for picture in pictures)
        assert images.shape == (5, 3, 9, 7)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("pictures", "told"),
    [
        ((torch.rand(3, 8, 8), torch.rand(3, 8, 9)), "[3, 8, 8]"),
        ((torch.rand(3, 8, 8), torch.rand(1, 8, 8)), "[1, 8, 8]"),
        ((torch.rand(3, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8)), "uint8"),
        ((torch.rand(3, 32, 32), Image.new("RGB", (32, 32))), "uint8"),
    ],
)
def test_pictures_that_do_not_fit_into_one_batch_are_refused(
    pictures: tuple[Any, ...], told: str, workers: int
) -> None:
    source = DatasetSource([(picture, 0) for picture in pictures], ("a", "b"))
    batches = SourceBatches(source, eval_view(SMALL), 2, workers=workers)
    assert told in refusal(DataError, lambda: list(batches.epoch(0, 0))).arrived


# Trouble


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_picture_that_is_gone_or_broken_is_named_from_any_process(
    shapes: FolderSource, tmp_path: Path, workers: int
) -> None:
    paths = [Path(shutil.copy(path, tmp_path / f"{number}.jpg")) for number, path in enumerate(shapes.paths)]
    source = FolderSource(tuple(paths), shapes.labels, shapes.classes)
    paths[11].unlink()
    batches = SourceBatches(source, eval_view(SMALL), 4, workers=workers)
    found = []
    error = refusal(DataError, lambda: [found.append(pair) for pair in batches.epoch(0, 0)])
    assert str(paths[11]) in error.arrived
    assert len(found) == 2
    paths[11].write_bytes(paths[10].read_bytes()[:400])
    assert str(paths[11]) in refusal(DataError, lambda: list(batches.epoch(0, 0))).arrived
    shutil.copy(paths[10], paths[11])
    assert len([*batches.epoch(0, 0)]) == 5


def test_an_error_does_not_keep_workers_waiting() -> None:
    source = DatasetSource([(torch.zeros(1), 0)], ("a", "b"))
    gc.collect()
    before = multiprocessing.active_children()
    gc.disable()
    try:
        refusal(DataError, lambda: list(SourceBatches(source, eval_view(SMALL), 1, workers=1).epoch(0, 0)))
        assert multiprocessing.active_children() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_out_of_range_is_named_from_any_process(workers: int) -> None:
    source = DatasetSource([(Image.new("RGB", (8, 8)), label) for label in (0, 1, 7)], ("a", "b"))
    batches = SourceBatches(source, eval_view(SMALL), 8, workers=workers)
    assert "sample 2" in refusal(DataError, lambda: list(batches.epoch(0, 0))).arrived


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_users_own_code_raises_passes_through(shapes: FolderSource, workers: int) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("mine")

    error = raised(lambda: list(training(shapes, augment=broken, workers=workers).epoch(0, 0)))
    assert isinstance(error, ZeroDivisionError)
    assert "mine" in str(error)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_users_own_code_raises_says_at_which_picture(shapes: FolderSource, workers: int) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("mine")

    error = raised(lambda: list(training(shapes.part([4]), augment=broken, workers=workers).epoch(0, 0)))
    assert error is not None
    told = "".join(traceback.format_exception(error))
    assert f"while preparing {shapes.paths[4]}" in told
    error = raised(lambda: list(SourceBatches(Broken(), eval_view(SMALL), 1, workers=workers).epoch(0, 0)))
    assert isinstance(error, KeyError)
    assert "while preparing sample 0" in "".join(traceback.format_exception(error))


class Broken(DatasetSource):
    """A source whose samples raise an error of the user's."""

    def __init__(self) -> None:
        super().__init__([(None, 0)], ("a", "b"))

    def sample(self, index: int, least_side: int | None = None) -> Any:
        raise KeyError("mine")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pipeline_that_makes_no_picture_says_of_which(shapes: FolderSource, workers: int) -> None:
    batches = training(shapes.part([4]), augment=lambda _: None, workers=workers)
    error = refusal(DataError, lambda: list(batches.epoch(0, 0)))
    assert error.__notes__ == [f"while preparing {shapes.paths[4]}"]


def test_what_workers_are_sent_can_be_sent(shapes: FolderSource) -> None:
    batches = training(shapes)
    arrived = pickle.loads(pickle.dumps(batches._loader.dataset))  # noqa: S301 - bytes made on the same line
    with preserved():
        for key in [(3, 17), (4, None)]:
            assert torch.equal(arrived[(3, 17)][0], batches._loader.dataset[(3, 17)][0]), key


@pytest.mark.slow
def test_workers_that_start_from_nothing_change_no_bit(shapes: FolderSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.loading.DataLoader", functools.partial(spawning, DataLoader))
    spawned = training(shapes, workers=1)
    monkeypatch.undo()
    assert same([*spawned.epoch(0, 0)], [*training(shapes).epoch(0, 0)])


def spawning(loader: Any, *arguments: Any, **settings: Any) -> Any:
    return loader(*arguments, **{**settings, "multiprocessing_context": "spawn"})


# How many workers


@pytest.mark.parametrize("workers", [0, 1, 5])
def test_a_number_of_workers_is_taken_as_it_is(workers: int) -> None:
    assert worker_count(workers) == workers


@pytest.mark.parametrize(("cores", "expected"), [(1, 0), (2, 1), (8, 7), (64, 8)])
def test_one_core_is_left_to_training(monkeypatch: pytest.MonkeyPatch, cores: int, expected: int) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert worker_count("auto") == expected


@pytest.mark.parametrize(("free", "expected"), [(10**9, 7), (64_000_000, 4), (14_000_000, 0)])
def test_shared_memory_holds_what_workers_prepare(monkeypatch: pytest.MonkeyPatch, free: int, expected: int) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("headstart.data.loading._shared_memory", lambda: free)
    assert worker_count("auto", 32 * 3 * 224 * 224) == expected
    assert worker_count(3, 32 * 3 * 224 * 224) == 3


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_where_workers_would_run_the_script_again_there_are_none(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr("sys.platform", system)
    assert worker_count("auto") == 0
