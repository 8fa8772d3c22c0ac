"""Folders of every shape, and datasets of every kind, become pictures with class numbers, or an error that says why."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import refusal
from PIL import Image
from torch.utils.data import IterableDataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from headstart.data.decode import unreadable
from headstart.data.sources import (
    EXTENSIONS,
    DatasetSource,
    FolderSource,
    Source,
    find_pictures,
    scan_classes,
    scan_known_classes,
    scan_parts,
)
from headstart.errors import DataError


def draw(root: Path, *names: str) -> Path:
    """Put a small picture under each name, with the folders it needs; a name that ends in / is a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), "red").save(path, "PNG")
    return root


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_the_suffixes_are_torchvisions() -> None:
    assert set(EXTENSIONS) == set(IMG_EXTENSIONS)


# Finding pictures


def test_pictures_are_found_at_any_depth_sorted_and_by_suffix_in_any_case(tmp_path: Path) -> None:
    draw(tmp_path, "b.JPG", "a.png", "deep/er/c.Tiff", "deep/d.webp", "e.gif")
    (tmp_path / "notes.txt").touch()
    pictures, others = find_pictures(tmp_path)
    assert names(pictures, tmp_path) == ["a.png", "b.JPG", "deep/d.webp", "deep/er/c.Tiff"]
    assert names(others, tmp_path) == ["e.gif", "notes.txt"]


def test_hidden_files_and_the_litter_of_operating_systems_are_passed_over(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png")
    for litter in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / litter).touch()
    assert find_pictures(tmp_path) == ([tmp_path / "a.png"], [])


def test_names_may_hold_anything(tmp_path: Path) -> None:
    draw(tmp_path, *(odd := ["Blüte im März.png", "two\nlines.png", "花.png", os.fsdecode(b"\xff.png"), "a.b.png"]))
    assert set(names(find_pictures(tmp_path)[0], tmp_path)) == set(odd)


def test_links_are_followed_out_of_the_folder(tmp_path: Path) -> None:
    draw(tmp_path, "elsewhere/blob", "elsewhere/more/2.png", "ants/")
    (tmp_path / "ants" / "1.png").symlink_to(tmp_path / "elsewhere" / "blob")
    (tmp_path / "ants" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    assert names(find_pictures(tmp_path / "ants")[0], tmp_path) == ["ants/1.png", "ants/more/2.png"]


def test_a_picture_that_can_be_reached_on_several_ways_counts_once(tmp_path: Path) -> None:
    draw(tmp_path, "real/1.png", "real/2.png")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "real" / "3.png").symlink_to("1.png")
    (tmp_path / "0.txt").symlink_to("real/2.png")
    assert len(find_pictures(tmp_path)[0]) == 2


@pytest.mark.parametrize("target", [".", "..", "../..", "inner"])
def test_links_that_lead_round_and_round_add_nothing(tmp_path: Path, target: str) -> None:
    draw(tmp_path, "root/ants/1.png", "root/ants/inner/2.png", "root/bees/3.png")
    (tmp_path / "root" / "ants" / "inner" / "loop").symlink_to(tmp_path / "root" / "ants" / target)
    (tmp_path / "root" / "ants" / "self.png").symlink_to("self.png")
    pictures, _ = find_pictures(tmp_path / "root" / "ants")
    assert names(pictures, tmp_path / "root" / "ants") == ["1.png", "inner/2.png", "self.png"]


def test_a_link_to_nothing_is_kept_to_be_reported_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    pictures, _ = find_pictures(tmp_path)
    assert [path.name for path, _ in unreadable(pictures)] == ["gone.jpg"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", locked)
    error = refusal(DataError, lambda: find_pictures(tmp_path))
    assert str(tmp_path) in error.arrived
    assert "Permission denied" in error.arrived


# A folder per class


def test_each_folder_is_a_class_in_the_order_of_their_names(tmp_path: Path) -> None:
    draw(tmp_path, "bees/2.png", "ants/1.png", "ants/deep/3.png", "loose.png", ".ipynb_checkpoints/4.png")
    source = scan_classes(tmp_path)
    assert source.classes == ("ants", "bees")
    assert names(list(source.paths), tmp_path) == ["ants/1.png", "ants/deep/3.png", "bees/2.png"]
    assert source.labels == (0, 0, 1)


def test_a_folder_source_opens_tells_and_divides(tmp_path: Path) -> None:
    source = scan_classes(draw(tmp_path, "ants/1.png", "bees/2.png", "bees/3.png"))
    picture, label = source.sample(1)
    assert (picture.size, picture.mode, label, len(source)) == ((4, 4), "RGB", 1, 3)
    assert source.path(2) == tmp_path / "bees" / "3.png"
    assert source.part([2, 0]) == FolderSource((source.paths[2], source.paths[0]), (1, 0), ("ants", "bees"))


def test_a_folder_source_is_short_when_printed_and_travels_to_workers(tmp_path: Path) -> None:
    source = scan_classes(draw(tmp_path, "ants/1.png", "bees/2.png"))
    assert repr(source) == "FolderSource(classes=('ants', 'bees'))"
    assert pickle.loads(pickle.dumps(source)) == source  # noqa: S301 - bytes made on the same line


def test_a_link_back_to_the_root_is_no_class(tmp_path: Path) -> None:
    draw(tmp_path, "ants/1.png", "bees/2.png")
    (tmp_path / "here").symlink_to(".")
    (tmp_path / "up").symlink_to("..")
    assert scan_classes(tmp_path).classes == ("ants", "bees")


def test_a_linked_folder_is_a_class(tmp_path: Path) -> None:
    draw(tmp_path, "store/x1/1.png", "root/ants/2.png")
    (tmp_path / "root" / "bees").symlink_to(tmp_path / "store" / "x1")
    assert scan_classes(tmp_path / "root").classes == ("ants", "bees")


def test_a_missing_folder_is_named_in_full_with_what_was_probably_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path, "flowers/train/roses/1.png")
    monkeypatch.chdir(tmp_path)
    error = refusal(DataError, lambda: scan_classes(Path("flovers/train")))
    assert str(tmp_path / "flovers" / "train") in error.arrived
    assert "'flowers'" in error.todo
    assert refusal(DataError, lambda: scan_classes(tmp_path / "flowers" / "zebra")).todo.startswith("Check the path")


def test_a_file_is_no_folder_of_classes(tmp_path: Path) -> None:
    draw(tmp_path, "pictures.zip")
    for path in (tmp_path / "pictures.zip", tmp_path / "pictures.zip" / "train"):
        refusal(DataError, lambda path=path: scan_classes(path))
    assert "is a file" in refusal(DataError, lambda: scan_parts(tmp_path / "pictures.zip")).arrived


def test_no_class_folder_at_all_is_refused_with_the_number_of_pictures(tmp_path: Path) -> None:
    error = refusal(DataError, lambda: scan_classes(draw(tmp_path, "1.png", "2.png")))
    assert "no folder and 2 pictures" in error.arrived


def test_one_class_is_refused_with_a_hint_to_look_further_down(tmp_path: Path) -> None:
    error = refusal(DataError, lambda: scan_classes(draw(tmp_path, "flowers/roses/1.png", "flowers/tulips/2.png")))
    assert "'flowers'" in error.arrived
    assert repr(str(tmp_path / "flowers")) in error.todo


def test_all_empty_classes_are_named(tmp_path: Path) -> None:
    draw(tmp_path, "ants/1.png", "bees/", "cats/", "dogs/2.png")
    (tmp_path / "cats" / "cat.gif").touch()
    error = refusal(DataError, lambda: scan_classes(tmp_path))
    assert "'bees', 'cats'" in error.arrived
    assert "ants" not in error.arrived.replace(str(tmp_path), "")


# Train, val and test


TRAIN = ("train/ants/1.png", "train/bees/2.png")


def test_a_folder_without_train_is_all_train(tmp_path: Path) -> None:
    parts = scan_parts(draw(tmp_path, "ants/1.png", "bees/2.png"))
    assert parts == (scan_classes(tmp_path), None, None)


def test_train_alone_leaves_the_others_out(tmp_path: Path) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN))
    assert parts == (scan_classes(tmp_path / "train"), None, None)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_val_goes_by_several_names(tmp_path: Path, name: str) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN, f"{name}/ants/3.png", "test/bees/4.png"))
    assert parts.val == FolderSource((tmp_path / name / "ants" / "3.png",), (0,), ("ants", "bees"))
    assert parts.test == FolderSource((tmp_path / "test" / "bees" / "4.png",), (1,), ("ants", "bees"))


def test_the_first_of_several_val_folders_is_taken(tmp_path: Path) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN, "validation/ants/3.png", "valid/ants/4.png", "val/ants/5.png"))
    assert parts.val is not None
    assert parts.val.paths == (tmp_path / "val" / "ants" / "5.png",)


def test_test_is_also_val_where_there_is_no_other(tmp_path: Path) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN, "test/ants/3.png"))
    assert parts.val is not None
    assert parts.val == parts.test


@pytest.mark.parametrize("test", [("test/3.png", "test/4.png"), ("test/",)], ids=["flat", "empty"])
def test_a_test_folder_without_classes_does_not_count(tmp_path: Path, test: tuple[str, ...]) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN, *test))
    assert (parts.val, parts.test) == (None, None)


def test_train_wins_over_folders_that_look_like_classes(tmp_path: Path) -> None:
    assert scan_parts(draw(tmp_path, *TRAIN, "cats/3.png", "dogs/4.png")).train.classes == ("ants", "bees")


def test_labels_go_by_name_also_when_val_lacks_a_class_or_has_it_empty(tmp_path: Path) -> None:
    draw(tmp_path, "train/ants/1.png", "train/bees/2.png", "train/cats/3.png", "val/cats/4.png", "val/ants/")
    parts = scan_parts(tmp_path)
    assert parts.val is not None
    assert (parts.val.labels, parts.val.classes) == ((2,), ("ants", "bees", "cats"))


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_train_does_not_have_is_refused_with_the_nearest(tmp_path: Path, part: str) -> None:
    draw(tmp_path, *TRAIN, f"{part}/ant/3.png", f"{part}/bees/4.png", f"{part}/zebras/5.png")
    error = refusal(DataError, lambda: scan_parts(tmp_path))
    assert "'ant', 'zebras'" in error.arrived
    assert "'ants'" in error.todo


@pytest.mark.parametrize("val", ["val/", "val/3.png", "val/ants/"])
def test_val_without_a_picture_in_a_class_folder_is_refused(tmp_path: Path, val: str) -> None:
    assert "val" in refusal(DataError, lambda: scan_parts(draw(tmp_path, *TRAIN, val))).arrived


def test_parts_without_train_are_not_taken_for_classes(tmp_path: Path) -> None:
    draw(tmp_path, "training/ants/1.png", "training/bees/2.png", "testing/ants/3.png", "testing/bees/4.png")
    assert "'train'" in refusal(DataError, lambda: scan_parts(tmp_path)).todo


def test_a_flat_train_folder_is_refused(tmp_path: Path) -> None:
    error = refusal(DataError, lambda: scan_parts(draw(tmp_path, "train/1.png", "train/2.png", "test/3.png")))
    assert "from_datasets" in error.todo


def test_known_classes_are_labelled_in_their_own_order(tmp_path: Path) -> None:
    source = scan_known_classes(draw(tmp_path, "ants/1.png", "bees/2.png"), ("bees", "wasps", "ants"))
    assert (source.labels, source.classes) == ((2, 0), ("bees", "wasps", "ants"))


def test_the_ants_and_bees_of_the_tutorial_are_all_there(assets: Path) -> None:
    root = assets / "hymenoptera_data"
    parts = scan_parts(root)
    assert parts.val is not None
    assert parts.train.classes == ("ants", "bees")
    assert [parts.train.labels.count(label) for label in (0, 1)] == [123, 121]
    assert [parts.val.labels.count(label) for label in (0, 1)] == [70, 83]
    assert [path.name for path in find_pictures(root / "train" / "ants")[1]] == ["imageNotFound.gif"]
    assert parts.test is None


def test_the_hot_dogs_have_a_test_part_that_is_also_val(assets: Path) -> None:
    parts = scan_parts(assets / "hotdog_tiny")
    assert parts.test is not None
    assert (len(parts.train), len(parts.test), parts.val == parts.test) == (496, 499, True)


def test_real_pictures_are_listed_as_torchvision_lists_them(assets: Path) -> None:
    root = assets / "flowers" / "train"
    source, known = scan_classes(root), ImageFolder(str(root))
    assert list(zip(map(str, source.paths), source.labels, strict=True)) == known.samples
    assert list(source.classes) == known.classes


# Datasets


def of(picture: object, label: object = 0) -> DatasetSource:
    return DatasetSource([(picture, label)], ("ants", "bees"))


RED = Image.new("RGB", (5, 3), "red")


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
    ],
)
def test_other_pictures_are_refused_with_the_number_of_the_sample(picture: object) -> None:
    assert "sample 0" in refusal(DataError, lambda: of(picture).sample(0)).arrived


@pytest.mark.parametrize("sample", [RED, (RED,), (RED, 0, 0), {"image": RED, "label": 0}, None])
def test_samples_that_are_no_pairs_are_refused_with_their_number(sample: object) -> None:
    assert "sample 0" in refusal(DataError, lambda: DatasetSource([sample], ("a", "b")).sample(0)).arrived


def test_a_broken_picture_of_a_dataset_is_refused_with_the_number_of_the_sample(tmp_path: Path) -> None:
    draw(tmp_path, "1.png")
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


@pytest.mark.parametrize("dataset", [Stream(), iter([]), {1, 2}, None])
def test_datasets_whose_samples_cannot_be_had_by_number_are_refused(dataset: object) -> None:
    assert type(dataset).__name__ in refusal(DataError, lambda: DatasetSource(dataset, ("ants", "bees"))).arrived


def test_both_kinds_are_sources(tmp_path: Path) -> None:
    sources: list[Source] = [scan_classes(draw(tmp_path, "ants/1.png", "bees/2.png")), of(RED)]
    assert [source.sample(0)[1] for source in sources] == [0, 0]
    assert [source.path(0) for source in sources] == [tmp_path / "ants" / "1.png", None]
