"""Datasets and loaders of the user's own become data, and what cannot be trained on is refused at the door."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import epoch, evaluated, refusal
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import FakeData, ImageFolder

from headstart import ImageData
from headstart.data.augment import eval_view
from headstart.data.preprocessing import Preprocessing
from headstart.data.unlabelled import PictureList
from headstart.errors import ConfigError, DataError

SMALL = Preprocessing(image_size=(32, 32), resize=(36, 36))
TALL = Preprocessing(image_size=(48, 24), resize=(48, 24), crop="squash", interpolation="bicubic")
PAIR = (torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 1]))
RED = Image.new("RGB", (40, 30), "red")


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield RED, 0


class Measured(Stream):
    """A stream that says how long it is."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        return iter([(PAIR[0][0], 1)] * 4)


class Known(Dataset[Any]):
    """Two pictures of a dataset that says what its classes are, in whatever way."""

    def __init__(self, classes: Any) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return RED, index


# Datasets


def test_a_folder_of_torchvisions_is_the_same_as_the_folder(shapes_folder: Path) -> None:
    settings: dict[str, Any] = {"image_size": 32, "workers": 0, "batch_size": 30}
    train, val = (ImageFolder(str(shapes_folder / part)) for part in ("train", "val"))
    mine, theirs = ImageData.from_datasets(train, val, **settings), ImageData.from_folder(shapes_folder, **settings)
    assert repr(mine) == repr(theirs)
    assert mine.classes == theirs.classes
    for one, other in zip(evaluated(mine, "val"), evaluated(theirs, "val"), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(epoch(mine.train_batches(0)), epoch(theirs.train_batches(0)), strict=True):
        assert one.shape == other.shape


def test_photographs_held_on_their_side_are_seen_alike_in_folders_datasets_and_predictions(tmp_path: Path) -> None:
    note = Image.Exif()
    note[ExifTags.Base.Orientation] = 6
    for number, kind in enumerate(("ants", "bees")):
        for part in ("train", "val"):
            (tmp_path / part / kind).mkdir(parents=True)
            Image.effect_noise((60, 36), 50 + number).save(tmp_path / part / kind / "1.jpg", exif=note)
    theirs = ImageData.from_datasets(*(ImageFolder(str(tmp_path / part)) for part in ("train", "val")), workers=0)
    mine = ImageData.from_folder(tmp_path, workers=0).bind(SMALL)
    expected, _ = evaluated(mine, "val")
    assert torch.equal(evaluated(theirs.bind(SMALL), "val")[0], expected)
    assert torch.equal(epoch(mine.unlabelled_batches(PictureList.of(tmp_path / "val")))[0], expected)
    for path, seen in zip(sorted(tmp_path.glob("val/*/*")), expected, strict=True):
        with Image.open(path) as picture:
            assert torch.equal(eval_view(SMALL)(picture.convert("RGB").rotate(-90, expand=True)), seen)


def test_every_picture_of_a_dataset_is_seen_with_its_label() -> None:
    pictures = FakeData(9, (3, 20, 30), num_classes=3)
    data = ImageData.from_datasets(pictures, pictures, test=pictures, classes=3, workers=0).bind(SMALL)
    assert repr(data) == "ImageData: 3 classes (0, 1, 2), 9 train, 9 val, 9 test pictures"
    for part in ("train", "val", "test"):
        images, labels = evaluated(data, part)
        assert labels.tolist() == [int(label) for _, label in pictures]
        expected = torch.stack([data.eval_view(picture) for picture, _ in pictures])
        assert torch.equal(images, expected)


def test_a_dataset_of_finished_floats_is_left_alone_by_augmentation() -> None:
    finish = transforms.Compose([transforms.Resize((9, 7)), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
    pictures = FakeData(6, (3, 20, 30), num_classes=2, transform=finish)
    expected = torch.stack([picture for picture, _ in pictures])
    data = ImageData.from_datasets(pictures, classes=2, augment="strong", workers=0).bind(SMALL)
    images, _ = epoch(data.train_batches(seed=0))
    assert images.shape == expected.shape
    assert sorted(images.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())
    assert torch.equal(evaluated(data, "train")[0], expected)


def test_the_datasets_own_random_transform_follows_from_the_seed() -> None:
    pictures = FakeData(6, (3, 40, 40), num_classes=2, transform=transforms.RandomCrop(32))
    data = ImageData.from_datasets(pictures, classes=2, augment=lambda picture: picture, workers=0).bind(SMALL)
    first, again, other = (epoch(data.train_batches(seed=0), 0, number)[0] for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pixels_of_a_dataset_are_varied_and_resized() -> None:
    pixels = TensorDataset(torch.randint(0, 256, (5, 1, 20, 30), dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 1]))
    data = ImageData.from_datasets(pixels, classes=["zero", "one"], workers=0).bind(TALL)
    for images, _ in (epoch(data.train_batches(seed=0)), evaluated(data, "train")):
        assert (images.dtype, tuple(images.shape)) == (torch.uint8, (5, 3, 48, 24))


@pytest.mark.parametrize("classes", [["ant", "bee"], ("ant", "bee"), np.array(["ant", "bee"]), {"bee": 1, "ant": 0}])
def test_class_names_may_come_in_any_order_that_is_one(classes: Any) -> None:
    assert ImageData.from_datasets([(RED, 0)], classes=classes).classes == ("ant", "bee")
    assert ImageData.from_datasets(Known(classes)).classes == ("ant", "bee")
    assert ImageData.from_loaders([PAIR], classes=classes).classes == ("ant", "bee")


@pytest.mark.parametrize("classes", [3, np.int64(3), range(3)])
def test_classes_may_be_counted(classes: Any) -> None:
    assert ImageData.from_datasets([(RED, 0)], classes=classes).classes == ("0", "1", "2")
    assert ImageData.from_datasets(Known(classes)).classes == ("0", "1", "2")


@pytest.mark.parametrize("classes", [0, -3, True, 2.0, "ants", [], ["ant"], {"ant", "bee"}, {"ant": 1, "bee": 2}, 1j])
def test_what_names_no_classes_is_refused(classes: Any) -> None:
    for door in (ImageData.from_datasets, ImageData.from_loaders):
        assert refusal(ConfigError, lambda: door([PAIR], classes=classes)).arrived == f"classes={classes!r}"  # noqa: B023


def test_a_subset_has_the_classes_of_the_whole(shapes_folder: Path) -> None:
    whole = ImageFolder(str(shapes_folder / "train"))
    data = ImageData.from_datasets(Subset(Subset(whole, range(0, 72, 2)), range(10)), Subset(whole, [1, 2]))
    assert repr(data) == "ImageData: 3 classes (circle, square, triangle), 10 train, 2 val pictures"


def test_names_given_by_hand_win_over_those_of_the_datasets() -> None:
    data = ImageData.from_datasets(Known(["a", "b"]), Known(["b", "a"]), classes=["left", "right"])
    assert data.classes == ("left", "right")


def test_datasets_that_number_their_classes_differently_are_refused(shapes_folder: Path, tmp_path: Path) -> None:
    for kind in ("square", "triangle"):
        (tmp_path / kind).symlink_to(shapes_folder / "val" / kind)
    train, val = ImageFolder(str(shapes_folder / "train")), ImageFolder(str(tmp_path))
    assert val.class_to_idx["square"] == 0 != train.class_to_idx["square"]
    error = refusal(DataError, lambda: ImageData.from_datasets(train, val))
    assert "val dataset with the classes square, triangle" in error.arrived
    assert "circle, square, triangle" in error.needed
    assert "test dataset" in refusal(DataError, lambda: ImageData.from_datasets(train, test=Subset(val, [0]))).arrived
    assert ImageData.from_datasets(train, [(RED, 0)]).classes == tuple(train.classes)


@pytest.mark.parametrize("dataset", [FakeData(3), [(RED, 0)], ConcatDataset([Known(["a", "b"])]), Known(None)])
def test_datasets_that_do_not_know_their_classes_need_them_named(dataset: Any) -> None:
    assert "classes=" in refusal(ConfigError, lambda: ImageData.from_datasets(dataset)).todo
    assert len(ImageData.from_datasets(dataset, classes=10).classes) == 10


@pytest.mark.parametrize("dataset", [Stream(), Measured(), iter([(RED, 0)]), DataLoader(Known(["a", "b"])), None, 5])
def test_what_is_no_map_style_dataset_is_refused(dataset: Any) -> None:
    for classes in (None, 2):
        error = refusal(DataError, lambda: ImageData.from_datasets(dataset, classes=classes))  # noqa: B023
        assert type(dataset).__name__ in error.arrived
        assert "from_loaders" in error.todo


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_empty_dataset_is_refused_by_name(part: str) -> None:
    parts: dict[str, Any] = {"train": Known(["a", "b"]), part: Subset(Known(["a", "b"]), [])}
    assert f"{part} dataset of type Subset" in refusal(DataError, lambda: ImageData.from_datasets(**parts)).arrived


@pytest.mark.parametrize("sample", [{"image": RED, "label": 0}, (RED, 0, 1), RED, (RED, 2), (RED, "a"), ("a.jpg", 0)])
def test_samples_that_cannot_be_trained_on_are_refused_by_number(sample: object) -> None:
    data = ImageData.from_datasets([(RED, 0), sample], classes=["a", "b"], workers=0)
    for batches in (data.train_batches(seed=0), data.eval_batches(data.part("train"), "train")):
        assert "sample 1" in refusal(DataError, lambda: epoch(batches)).arrived  # noqa: B023


# Loaders


def test_the_batches_of_loaders_are_left_as_they_are() -> None:
    train, val, test = (TensorDataset(torch.rand(n, 3, 8, 8), torch.arange(n) % 3) for n in (10, 5, 3))
    loaders = [DataLoader(dataset, batch_size=4) for dataset in (train, val, test)]
    data = ImageData.from_loaders(loaders[0], loaders[1], test=loaders[2], classes=["a", "b", "c"])
    assert repr(data) == "ImageData: 3 classes (a, b, c), 3 train, 2 val, 1 test batch"
    assert torch.equal(epoch(data.train_batches(seed=0))[0], train.tensors[0])
    for part, dataset in (("train", train), ("val", val), ("test", test)):
        images, labels = evaluated(data, part)
        assert torch.equal(images, dataset.tensors[0])
        assert torch.equal(labels, dataset.tensors[1])
    assert repr(ImageData.from_loaders([PAIR], [PAIR] * 2, classes=2)).endswith("1 train, 2 val batches")


def test_a_stream_that_knows_its_length_may_have_a_loader() -> None:
    data = ImageData.from_loaders(DataLoader(Measured(), batch_size=2), classes=2)
    assert epoch(data.train_batches(seed=0))[1].tolist() == [1] * 4


@pytest.mark.parametrize("targets", [torch.eye(3)[PAIR[1]], torch.full((4, 3), 1 / 3, dtype=torch.float64)])
def test_probabilities_are_targets_too(targets: Tensor) -> None:
    data = ImageData.from_loaders([(PAIR[0], targets)], classes=3)
    assert torch.equal(epoch(data.train_batches(seed=0))[1], targets)


def test_pixels_of_a_loader_are_resized_for_the_weights() -> None:
    pixels = torch.randint(0, 256, (4, 3, 50, 40), dtype=torch.uint8)
    data = ImageData.from_loaders([(pixels, PAIR[1])], [(pixels, PAIR[1])], classes=3)
    for preprocessing in (SMALL, TALL):
        bound = data.bind(preprocessing)
        expected = torch.stack([bound.eval_view(picture) for picture in pixels])
        assert expected.shape == (4, 3, *preprocessing.image_size)
        assert torch.equal(epoch(bound.train_batches(seed=0))[0], expected)
        assert torch.equal(evaluated(bound, "val")[0], expected)


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("loader", [DataLoader(Stream()), iter([PAIR]), 5, [], DataLoader(Subset(Known(2), []))])
def test_a_loader_that_cannot_be_counted_or_is_empty_is_refused_by_name(part: str, loader: Any) -> None:
    error = refusal(DataError, lambda: ImageData.from_loaders(**{"train": [PAIR], part: loader}, classes=3))
    assert f"{part} loader" in error.arrived


def test_train_is_needed() -> None:
    assert "train loader" in refusal(DataError, lambda: ImageData.from_loaders(None, [PAIR], classes=3)).arrived  # type: ignore[arg-type]
    assert "NoneType" in refusal(DataError, lambda: ImageData.from_datasets(None, [PAIR], classes=3)).arrived


@pytest.mark.parametrize("batch", [{"image": PAIR[0]}, (*PAIR, 0), (PAIR[0][0], PAIR[1]), (PAIR[0], PAIR[1] - 1)])
def test_a_loader_that_yields_something_else_is_refused_at_the_batch_that_does(batch: Any) -> None:
    data = ImageData.from_loaders([PAIR, batch], [PAIR, batch], classes=3)
    assert "batch 1 of the train loader" in refusal(DataError, lambda: epoch(data.train_batches(seed=0))).arrived
    assert "batch 1 of the val loader" in refusal(DataError, lambda: evaluated(data, "val")).arrived


# Whose preprocessing


def test_a_preprocessing_of_the_users_own_stays_whatever_data_is_bound_to() -> None:
    data = ImageData.from_loaders([PAIR], classes=3, preprocessing=SMALL)
    assert data.bind(TALL) is data
    assert data.eval_view(RED).shape == (3, 32, 32)


def test_loaders_without_one_are_bound_anew_to_every_network() -> None:
    data = ImageData.from_loaders([PAIR], classes=3)
    assert data.bind(SMALL).bind(TALL).preprocessing == TALL
    part, _, owner = data.bind(TALL).find(data.bind(SMALL))
    assert (part, owner.preprocessing) == (data.train, TALL)


@pytest.mark.parametrize("preprocessing", [224, "imagenet", transforms.ToTensor()])
def test_a_preprocessing_that_is_none_is_refused(preprocessing: Any) -> None:
    error = refusal(ConfigError, lambda: ImageData.from_loaders([PAIR], classes=3, preprocessing=preprocessing))
    assert error.arrived == f"preprocessing={preprocessing!r}"
