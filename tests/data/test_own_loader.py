"""What a loader of the user's own yields is checked as it comes, and otherwise left as it is."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from handmade import refusal
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from headstart.data.augment import eval_view
from headstart.data.loading import Pair
from headstart.data.own_loader import LoaderBatches, check_batch, loader_length
from headstart.data.preprocessing import Preprocessing
from headstart.errors import DataError

SMALL = Preprocessing(image_size=(32, 32), resize=(36, 36))


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
