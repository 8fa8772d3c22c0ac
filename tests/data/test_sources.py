"""Files of known classes and datasets of every kind give pictures with class numbers, or an error that says why."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import refusal
from PIL import ExifTags, Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from headstart.data.decode import open_picture
from headstart.data.sources import DatasetSource, FolderSource, Source
from headstart.errors import DataError

RED = Image.new("RGB", (5, 3), "red")


@pytest.fixture
def files(tmp_path: Path) -> FolderSource:
    """Make three small pictures of two classes."""
    for number in (1, 2, 3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    return FolderSource(tuple(tmp_path / f"{number}.png" for number in (1, 2, 3)), (0, 1, 1), ("ants", "bees"))


# Files


def test_a_folder_source_opens_tells_and_divides(files: FolderSource, tmp_path: Path) -> None:
    picture, label = files.sample(1)
    assert (picture.getpixel((0, 0)), picture.mode, label, len(files)) == ((2, 0, 0), "RGB", 1, 3)
    assert files.path(2) == tmp_path / "3.png"
    assert files.part([2, 0]) == FolderSource((files.paths[2], files.paths[0]), (1, 0), ("ants", "bees"))


def test_a_folder_source_is_short_when_printed_and_travels_to_workers(files: FolderSource) -> None:
    assert repr(files) == "FolderSource(classes=('ants', 'bees'))"
    assert pickle.loads(pickle.dumps(files)) == files  # noqa: S301 - bytes made on the same line


# Datasets


def of(picture: object, label: object = 0) -> DatasetSource:
    return DatasetSource([(picture, label)], ("ants", "bees"))


@pytest.mark.parametrize(
    "picture",
    [
        RED,
        RED.convert("P"),
        RED.convert("RGBA"),
        RED.convert("CMYK"),
        np.asarray(RED),
        np.asarray(RED.convert("RGBA")),
    ],
    ids=["RGB", "P", "RGBA", "CMYK", "array", "array with alpha"],
)
def test_pictures_and_arrays_of_a_dataset_become_rgb(picture: object) -> None:
    found, _ = of(picture).sample(0)
    assert isinstance(found, Image.Image)
    assert (found.mode, found.size, found.tobytes()) == ("RGB", (5, 3), RED.tobytes())


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1)])
def test_grey_arrays_become_rgb(shape: tuple[int, ...]) -> None:
    found, _ = of(np.full(shape, 9, np.uint8)).sample(0)
    assert isinstance(found, Image.Image)
    assert (found.size, found.getpixel((0, 0))) == ((5, 3), (9, 9, 9))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_of_a_dataset_are_passed_on_untouched(dtype: torch.dtype, channels: int) -> None:
    tensor = torch.zeros(channels, 5, 4, dtype=dtype)
    assert of(tensor).sample(0)[0] is tensor


@pytest.mark.parametrize("label", [1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1)])
def test_labels_may_be_any_kind_of_whole_number(label: object) -> None:
    found = of(RED, label).sample(0)[1]
    assert (found, type(found)) == (1, int)


@pytest.mark.parametrize(
    "label",
    [2, -1, 1.0, True, "ants", None, torch.tensor(1.0), torch.tensor([1]), torch.tensor(True), np.array([0, 1])],
)
def test_other_labels_are_refused_with_the_number_of_the_sample(label: object) -> None:
    source = DatasetSource([(RED, 0), (RED, label)], ("ants", "bees"))
    error = refusal(DataError, lambda: source.sample(1))
    assert "sample 1" in error.arrived
    assert "[0, 2)" in error.needed


@pytest.mark.parametrize(
    "picture",
    [
        "a.jpg",
        None,
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 7), np.uint8),
        np.zeros((0, 4), np.uint8),
        torch.zeros(4, 4),
        torch.zeros(2, 3, 4, 4),
        torch.zeros(9, 9, 3, dtype=torch.uint8),
        torch.zeros(7, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 4, 4, dtype=torch.int64),
        torch.zeros(28, 28, 1),
        torch.zeros(8, 9, 3),
        torch.zeros(3, 0, 4),
    ],
)
def test_other_pictures_are_refused_with_the_number_of_the_sample(picture: object) -> None:
    assert "sample 0" in refusal(DataError, lambda: of(picture).sample(0)).arrived


@pytest.mark.parametrize("sample", [RED, (RED,), (RED, 0, 0), {"image": RED, "label": 0}, None])
def test_samples_that_are_no_pairs_are_refused_with_their_number(sample: object) -> None:
    assert "sample 0" in refusal(DataError, lambda: DatasetSource([sample], ("a", "b")).sample(0)).arrived


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_of_a_dataset_is_upright_as_its_file_is(tmp_path: Path, orientation: int) -> None:
    note = Image.Exif()
    note[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "phone.jpg"
    Image.effect_noise((40, 24), 90).save(path, exif=note)
    with Image.open(path) as opened:
        for picture in (opened, opened.convert("RGB")):  # as torchvision's ImageFolder does
            found, _ = of(picture).sample(0)
            assert isinstance(found, Image.Image)
            assert (found.size, found.tobytes()) == (open_picture(path).size, open_picture(path).tobytes())


def test_a_broken_picture_of_a_dataset_is_refused_with_the_number_of_the_sample(tmp_path: Path) -> None:
    RED.save(tmp_path / "1.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: whole.index(b"IDAT") + 6])
    with Image.open(tmp_path / "1.png") as picture:
        assert "sample 0" in refusal(DataError, lambda: of(picture).sample(0)).arrived


def test_a_part_of_a_dataset_names_samples_by_their_number_in_the_whole() -> None:
    source = DatasetSource([(RED, 0), (RED, 1), (RED, 5), (RED, 1)], ("ants", "bees"))
    part = source.part([3, 2, 0]).part([1, 2])
    assert (len(source), len(part), part.classes, part.path(0)) == (4, 2, ("ants", "bees"), None)
    assert part.sample(1)[1] == 0
    assert "sample 2" in refusal(DataError, lambda: part.sample(0)).arrived


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("dataset", "cure"),
    [
        (Stream(), "__len__"),
        (DataLoader([(RED, 0)]), "from_loaders"),  # type: ignore[arg-type]
        (iter([]), "from_loaders"),
        ({1, 2}, "from_loaders"),
        (None, "from_loaders"),
        ("flowers", "from_folder"),
        (Path("flowers"), "from_folder"),
        (np.zeros((2, 8, 8, 3), np.uint8), "zip"),
        (torch.zeros(2, 3, 8, 8), "zip"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(2)), "zip"),
        ((np.zeros((2, 8, 8, 3), np.uint8), [0, 1]), "zip"),
        ([np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2)], "zip"),
    ],
)
def test_datasets_whose_samples_cannot_be_had_by_number_are_refused(dataset: object, cure: str) -> None:
    error = refusal(DataError, lambda: DatasetSource(dataset, ("ants", "bees")))
    assert type(dataset).__name__ in error.arrived
    assert cure in error.todo


def test_the_cure_for_a_pair_of_arrays_works() -> None:
    for pictures, labels in [(np.zeros((2, 8, 9, 3), np.uint8), np.array([0, 1])), (torch.zeros(2, 3, 8, 9), [0, 1])]:
        source = DatasetSource(list(zip(pictures, labels, strict=True)), ("ants", "bees"))
        assert source.sample(1)[1] == 1


def test_a_tuple_of_samples_is_a_dataset() -> None:
    assert DatasetSource(((RED, 0), (RED, 1)), ("ants", "bees")).sample(1)[1] == 1


class Labelled(Dataset[Any]):
    """A dataset that tells its labels in advance, and counts how often it is asked for a sample."""

    def __init__(self, targets: Any, change: Callable[[Any], Any] = lambda label: label, length: int = 0) -> None:
        self.targets, self.change, self.length, self.asked = targets, change, length or len(targets), 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        self.asked += 1
        torch.rand(())
        return RED, self.change(self.targets[index])


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_labels_that_are_told_in_advance_are_looked_at_without_a_picture(kind: Callable[[list[int]], Any]) -> None:
    good, bad = Labelled(kind([0, 1, 0])), Labelled(kind([0, 1, 5, 7]))
    DatasetSource(good, ("ants", "bees")).demand_labels()
    assert good.asked == 0
    error = refusal(DataError, lambda: DatasetSource(bad, ("ants", "bees")).demand_labels())
    assert "sample 2 of the dataset: 5" in error.arrived
    assert bad.asked == 1


@pytest.mark.parametrize("label", [-1, 2, "ant", 0.5, None, True])
def test_whatever_is_no_class_number_is_found_in_advance(label: object) -> None:
    source = DatasetSource(Labelled([0, 1, label]), ("ants", "bees"))
    assert f"sample 2 of the dataset: {label!r}" in refusal(DataError, source.demand_labels).arrived


def test_labels_are_found_through_subsets_and_concatenations_and_named_by_their_place() -> None:
    parts = ConcatDataset([Labelled([0, 1]), Subset(Labelled([9, 1, 0, 3]), [1, 2, 3, 2])])
    assert "sample 4 of" in refusal(DataError, DatasetSource(parts, ("ants", "bees")).demand_labels).arrived
    DatasetSource(Subset(parts, [0, 3, 2]), ("ants", "bees")).demand_labels()
    DatasetSource(parts, ("ants", "bees")).part([0, 3]).demand_labels()
    part = DatasetSource(parts, ("ants", "bees")).part([0, 4])
    assert "sample 4 of" in refusal(DataError, part.demand_labels).arrived


def test_a_dataset_that_changes_its_labels_has_the_last_word_and_is_asked_once() -> None:
    names = Labelled(["ant", "bee", "ant"], change=["ant", "bee"].index)
    before = torch.get_rng_state()
    DatasetSource(names, ("ants", "bees")).demand_labels()
    assert names.asked == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dataset", [[(RED, 7)], Labelled([7], length=2), Labelled(7, length=1)])
def test_labels_that_are_not_told_wait_for_their_turn(dataset: Any) -> None:
    DatasetSource(dataset, ("ants", "bees")).demand_labels()


def test_both_kinds_are_sources(files: FolderSource) -> None:
    sources: list[Source] = [files, of(RED)]
    assert [source.sample(0)[1] for source in sources] == [0, 0]
    assert [source.path(0) for source in sources] == [files.paths[0], None]
