"""Batches follow from seed, fit and epoch alone, whoever prepares them; what a loader yields is checked as it comes."""

import functools
import gc
import multiprocessing
import os
import pickle
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import refusal
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from headstart.data.augment import eval_view, train_view
from headstart.data.folders import scan_classes
from headstart.data.loading import (
    LoaderBatches,
    Pair,
    SourceBatches,
    _Order,
    check_batch,
    loader_length,
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


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_where_workers_would_run_the_script_again_there_are_none(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr("sys.platform", system)
    assert worker_count("auto") == 0


# The user's own loaders


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.rand(3, 8, 8), 0


class Own:
    """A loader that is none of torch's, and can be made to tell lies about its length."""

    def __init__(self, batches: list[Any], length: int | None = None) -> None:
        self.batches = batches
        self.length = len(batches) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


PAIR = (torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 1]))


def own(loader: Any, view: Any = None) -> LoaderBatches:
    return LoaderBatches(loader, 3, view or eval_view(SMALL), "train")


def test_the_batches_of_a_loader_are_passed_on_untouched() -> None:
    loader = DataLoader(TensorDataset(torch.rand(10, 3, 8, 8), torch.arange(10) % 3), batch_size=4)
    assert len(own(loader)) == 3
    for mine, theirs in zip(own(loader).epoch(0, 0), loader, strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])
    images, targets = next(iter(own([PAIR]).epoch(0, 0)))
    assert images is PAIR[0]
    assert targets is PAIR[1]


def test_batches_of_a_loader_before_the_start_are_passed_over() -> None:
    loader = [(PAIR[0] + number, PAIR[1]) for number in range(4)]
    assert [float(images.min() - PAIR[0].min()) for images, _ in own(loader).epoch(0, 0, 2)] == pytest.approx([2, 3])


@pytest.mark.parametrize("kind", [list, tuple, Own])
def test_anything_with_a_length_that_can_be_gone_through_is_a_loader(kind: Any) -> None:
    assert len([*own(kind([PAIR, list(PAIR)])).epoch(0, 0)]) == len(own(kind([PAIR, PAIR]))) == 2


@pytest.mark.parametrize("size", [(32, 32), (20, 50)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_8_bit_batches_of_a_loader_are_resized_for_the_weights(channels: int, size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (4, channels, *size), dtype=torch.uint8)
    ((images, targets),) = own([(pixels, PAIR[1])]).epoch(0, 0)
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (4, 3, 32, 32))
    assert torch.equal(images, torch.stack([eval_view(SMALL)(picture) for picture in pixels]))
    assert torch.equal(targets, PAIR[1])


def test_a_distributed_sampler_is_told_the_epoch() -> None:
    dataset = TensorDataset(torch.arange(16.0).view(16, 1, 1, 1), torch.zeros(16, dtype=torch.long))
    sampler: Any = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True)
    loader = DataLoader(dataset, batch_size=16, sampler=sampler)
    orders = [next(iter(own(loader).epoch(0, epoch)))[0].flatten().tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_a_later_fit_has_orders_of_its_own_and_the_first_the_plain_epochs() -> None:
    class Sampler:
        def __init__(self) -> None:
            self.told: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.told.append(epoch)

    loader: Any = Own([PAIR])
    loader.sampler = Sampler()
    for fit in (1, 2, 3):
        for epoch in (0, 1, 2):
            list(own(loader).epoch(fit, epoch))
    told = loader.sampler.told
    assert told[:3] == [0, 1, 2]
    assert len(set(told)) == 9
    assert all(type(number) is int and 0 <= number < 2**31 for number in told)
    list(own(loader).epoch(2, 1))
    assert told[-1] == told[4]


@pytest.mark.parametrize(
    ("loader", "told"),
    [
        (DataLoader(Stream()), "without a length"),
        (iter([PAIR]), "without a length"),
        (5, "int"),
        (None, "NoneType"),
        ([], "no batch"),
        (Own([], 0), "no batch"),
        (DataLoader(TensorDataset(torch.rand(2, 3, 8, 8)), batch_size=4, drop_last=True), "no batch"),
    ],
)
def test_a_loader_without_length_or_batch_is_refused(loader: Any, told: str) -> None:
    error = refusal(DataError, lambda: loader_length(loader, "val"))
    assert told in error.arrived
    assert "val" in error.arrived


def test_a_loader_that_can_be_gone_through_only_once_is_refused_the_second_time() -> None:
    once = Own([PAIR])
    once.batches = iter(once.batches)  # type: ignore[assignment]
    batches = own(once)
    assert len([*batches.epoch(0, 0)]) == 1
    error = refusal(DataError, lambda: list(batches.epoch(0, 1)))
    assert "train loader" in error.arrived


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ({"image": PAIR[0], "label": PAIR[1]}, "dict"),
        (PAIR[0], "Tensor"),
        ((*PAIR, PAIR[1]), "tuple of 3"),
        ([PAIR[0]], "list of 1"),
        ((PAIR[0], None), "(Tensor, NoneType)"),
        ((PAIR[0].numpy(), PAIR[1]), "(ndarray, Tensor)"),
        ((Image.new("RGB", (8, 8)), 1), "(Image, int)"),
        ((PAIR[0][0], PAIR[1]), "images [3, 32, 32]"),
        ((PAIR[0][None], PAIR[1][:1]), "images [1, 4, 3, 32, 32]"),
        ((PAIR[0].long(), PAIR[1]), "int64"),
        ((PAIR[0].bool(), PAIR[1]), "bool"),
        ((torch.zeros(4, 32, 32, 3, dtype=torch.uint8), PAIR[1]), "images [4, 32, 32, 3]"),
        ((torch.zeros(4, 3, 0, 32), PAIR[1]), "images [4, 3, 0, 32]"),
        ((PAIR[0][:0], PAIR[1][:0]), "0 images"),
        ((PAIR[0], PAIR[1][:3]), "4 images and targets [3]"),
        ((PAIR[0], torch.tensor(1)), "targets []"),
        ((PAIR[0], PAIR[1][:, None]), "targets [4, 1]"),
        ((PAIR[0], PAIR[1] == 1), "bool"),
        ((PAIR[0], PAIR[1].float()), "targets [4] of torch.float32"),
        ((PAIR[0], torch.rand(4, 2)), "targets [4, 2]"),
        ((PAIR[0], 7 * torch.eye(3)[PAIR[1]]), "sums to 7"),
        ((PAIR[0], torch.tensor([[0.5, 0.5, 0.0]] * 3 + [[0.7, 0.7, -0.4]])), "-0.4"),
        ((PAIR[0], torch.tensor([[0.5, 0.5, 0.0]] * 3 + [[0.5, 0.5, float("nan")]])), "sums to nan"),
        ((PAIR[0], torch.zeros(4, 3)), "sums to 0"),
        ((PAIR[0], 1.01 * torch.eye(3)[PAIR[1]]), "sums to 1.01"),
        ((PAIR[0], torch.rand(4, 3, 1)), "targets [4, 3, 1]"),
        ((PAIR[0], torch.tensor([0, 1, -1, 2])), "label -1"),
        ((PAIR[0], torch.tensor([0, 1, 3, 2])), "label 3"),
        ((PAIR[0], torch.tensor([0, -5, 3, 2])), "label -5"),
        ((PAIR[0], torch.tensor([0, 1, 255, 2], dtype=torch.uint8)), "label 255"),
    ],
)
def test_a_batch_that_cannot_be_trained_on_is_refused_with_its_place(batch: object, told: str) -> None:
    batches = own([PAIR, batch, PAIR])
    found: list[Pair] = []
    error = refusal(DataError, lambda: [found.append(pair) for pair in batches.epoch(0, 0)])
    assert len(found) == 1
    assert "batch 1 of the train loader" in error.arrived
    assert told in error.arrived
    assert "[0, 3)" in error.needed


@pytest.mark.parametrize("shape", [(4, 28, 28, 1), (4, 32, 40, 3), (4, 9, 6, 4)])
def test_a_batch_whose_channels_come_last_is_refused_with_the_cure(shape: tuple[int, ...]) -> None:
    error = refusal(DataError, lambda: check_batch((torch.rand(shape), PAIR[1]), 3, "here"))
    assert f"images {list(shape)}" in error.arrived
    assert "permute(0, 3, 1, 2)" in error.todo
    assert check_batch((torch.rand(shape).permute(0, 3, 1, 2), PAIR[1]), 3, "here")[0].shape[1] == shape[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_mixed_and_smoothed_targets_are_probabilities_in_any_float_type(dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(0)
    mixed = torch.rand(64, 1000, generator=chance).softmax(1)
    smoothed = torch.eye(1000)[:64] * 0.9 + 0.1 / 1000
    for targets in (mixed, smoothed, 0.3 * mixed + 0.7 * smoothed):
        assert check_batch((torch.rand(64, 3, 8, 8), targets.to(dtype)), 1000, "here")[1].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_any_whole_type_become_int64(dtype: torch.dtype) -> None:
    images, targets = check_batch((PAIR[0], PAIR[1].to(dtype)), 3, "here")
    assert images is PAIR[0]
    assert targets.dtype == torch.int64
    assert torch.equal(targets, PAIR[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_images_and_probabilities_of_any_float_type_are_passed_on(dtype: torch.dtype) -> None:
    batch = (PAIR[0].to(dtype), torch.eye(3)[PAIR[1]].to(dtype))
    images, targets = check_batch(batch, 3, "here")
    assert images is batch[0]
    assert targets is batch[1]


def test_a_network_of_any_number_of_channels_may_have_its_own_loader() -> None:
    images = torch.rand(4, 13, 8, 8)
    assert check_batch((images, PAIR[1]), 3, "here")[0] is images
