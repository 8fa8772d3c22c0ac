"""Folders of every shape are understood, with a word on what is passed over, or refused with the reason."""

import os
import unicodedata
from pathlib import Path

import pytest
from handmade import refusal
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from headstart.data.decode import unreadable
from headstart.data.folders import (
    EXTENSIONS,
    find_pictures,
    scan_classes,
    scan_known_classes,
    scan_parts,
    tell_passed_over,
)
from headstart.data.sources import FolderSource
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


FOREIGN = ("ants/a.gif", "ants/b.HEIC", "bees/c", "bees/deep/d.avif", "bees/e.mp4")


def test_files_that_are_no_pictures_are_passed_over_and_kept_in_mind(tmp_path: Path) -> None:
    source = scan_classes(draw(tmp_path, "ants/1.png", "bees/2.png", "elsewhere.gif", *FOREIGN))
    assert len(source) == 2
    assert names(list(source.passed_over), tmp_path) == list(FOREIGN)
    assert scan_known_classes(tmp_path, ("ants", "bees")).passed_over == source.passed_over
    assert source.part([0]).passed_over == ()


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ((), ""),
        (("a.gif",), "passed over 1 file that is no picture we read: a.gif\n"),
        (("a.gif", "b.heic", "c"), "passed over 3 files that are no pictures we read: a.gif, b.heic, c\n"),
        (
            ("x/a.gif", "y/a.gif", "y/b.gif", "z.avif", "z.mp4"),
            "passed over 5 files that are no pictures we read: a.gif, a.gif, b.gif and 2 more\n",
        ),
        (("notes.txt", "labels.CSV", "a.json", "README.md"), ""),
        (("notes.txt", "a.gif"), "passed over 1 file that is no picture we read: a.gif\n"),
        (
            ("two\nlines.gif", "\udcff.gif"),
            "passed over 2 files that are no pictures we read: two\\nlines.gif, \\udcff.gif\n",
        ),
    ],
)
def test_files_passed_over_are_told_in_a_line_and_notes_are_not(
    files: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_passed_over([Path(name) for name in files])
    assert capsys.readouterr().out == line


def test_folders_passed_over_are_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    tell_passed_over([Path("a.gif")], ["dev", "test (no class folders in it)"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == ["passed over 2 folders beside train: dev, test (no class folders in it)"]
    tell_passed_over([], ["two\nlines"])
    assert capsys.readouterr().out == "passed over 1 folder beside train: two\\nlines\n"


# A folder per class


def test_each_folder_is_a_class_in_the_order_of_their_names(tmp_path: Path) -> None:
    draw(tmp_path, "bees/2.png", "ants/1.png", "ants/deep/3.png", "loose.png", ".ipynb_checkpoints/4.png")
    source = scan_classes(tmp_path)
    assert source.classes == ("ants", "bees")
    assert names(list(source.paths), tmp_path) == ["ants/1.png", "ants/deep/3.png", "bees/2.png"]
    assert source.labels == (0, 0, 1)


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
    assert parts == (scan_classes(tmp_path), None, None, ())


def test_train_alone_leaves_the_others_out(tmp_path: Path) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN))
    assert parts == (scan_classes(tmp_path / "train"), None, None, ())


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_val_goes_by_several_names(tmp_path: Path, name: str) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN, f"{name}/ants/3.png", "test/bees/4.png"))
    assert parts.val == FolderSource((tmp_path / name / "ants" / "3.png",), (0,), ("ants", "bees"))
    assert parts.test == FolderSource((tmp_path / "test" / "bees" / "4.png",), (1,), ("ants", "bees"))


@pytest.mark.parametrize("several", [("val", "valid"), ("Val", "validation"), ("Train", "train"), ("TEST", "test")])
def test_two_folders_for_one_part_are_refused(tmp_path: Path, several: tuple[str, str]) -> None:
    draw(tmp_path, *TRAIN, *(f"{name}/ants/3.png" for name in several))
    if len({path.name for path in tmp_path.iterdir()} & set(several)) < 2:
        pytest.skip("a file system to which capital letters are small ones")
    error = refusal(DataError, lambda: scan_parts(tmp_path))
    assert " and ".join(map(repr, several)) in error.arrived


def test_test_is_also_val_where_there_is_no_other(tmp_path: Path) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN, "test/ants/3.png"))
    assert parts.val is not None
    assert parts.val == parts.test


@pytest.mark.parametrize("test", [("test/3.png", "test/4.png"), ("test/",)], ids=["flat", "empty"])
def test_a_test_folder_without_classes_does_not_count(tmp_path: Path, test: tuple[str, ...]) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN, *test))
    assert (parts.val, parts.test, parts.beside) == (None, None, ("test (no class folders in it)",))


@pytest.mark.parametrize("beside", [("cats", "dogs"), ("dev", "testing"), ("training",)])
def test_train_wins_over_other_folders_which_are_noted(tmp_path: Path, beside: tuple[str, ...]) -> None:
    parts = scan_parts(draw(tmp_path, *TRAIN, *(f"{name}/ants/3.png" for name in beside)))
    assert (parts.train.classes, parts.val, parts.test, parts.beside) == (("ants", "bees"), None, None, beside)


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


@pytest.mark.parametrize(
    "folders", [("testing", "training"), ("images", "val"), ("images", "Test"), ("images", "testing", "training")]
)
def test_parts_without_train_are_not_taken_for_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    draw(tmp_path, *(f"{folder}/{kind}/1.png" for folder in folders for kind in ("ants", "bees")))
    error = refusal(DataError, lambda: scan_parts(tmp_path))
    assert repr(folders[-1]) in error.arrived
    assert "'images'" not in error.arrived
    assert "'train'" in error.todo
    assert "classes" in error.todo


def test_a_class_may_have_the_name_of_a_part_inside_of_train(tmp_path: Path) -> None:
    draw(tmp_path, "train/test/1.png", "train/train/2.png", "val/train/3.png")
    parts = scan_parts(tmp_path)
    assert parts.train.classes == ("test", "train")
    assert parts.val is not None
    assert parts.val.labels == (1,)


@pytest.mark.parametrize(
    "train", [("train/1.png", "train/2.png"), ("train/ants/1.png",), ("train/ants/1.png", "train/b/")]
)
def test_what_is_wrong_with_train_is_told_of_the_train_part(tmp_path: Path, train: tuple[str, ...]) -> None:
    draw(tmp_path, "bus/1.png", "car/2.png", *train)
    assert "taken as the train part" in refusal(DataError, lambda: scan_parts(tmp_path)).arrived


def test_a_class_called_train_among_others_is_told_where_to_go(tmp_path: Path) -> None:
    error = refusal(DataError, lambda: scan_parts(draw(tmp_path, "bus/1.png", "car/2.png", "train/3.png")))
    assert "train/train" in error.todo


def test_a_flat_train_folder_is_refused(tmp_path: Path) -> None:
    error = refusal(DataError, lambda: scan_parts(draw(tmp_path, "train/1.png", "train/2.png", "test/3.png")))
    assert "from_datasets" in error.todo


@pytest.mark.parametrize(("one", "other"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_that_look_alike_are_one_class_however_they_are_written(tmp_path: Path, one: str, other: str) -> None:
    train, val = unicodedata.normalize(one, "café"), unicodedata.normalize(other, "café")
    parts = scan_parts(draw(tmp_path, f"train/{train}/1.png", "train/tea/2.png", f"val/{val}/3.png"))
    assert parts.train.classes == (train, "tea")
    assert parts.val is not None
    assert (parts.val.labels, parts.val.classes) == ((0,), (train, "tea"))


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
    assert [path.name for path in parts.train.passed_over] == ["imageNotFound.gif"]
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


@pytest.mark.parametrize("names", [("valid", "invalid"), ("control", "test")])
def test_classes_with_a_parts_name_beside_others_are_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    parts = scan_parts(tmp_path)
    assert parts.train.classes == tuple(sorted(names))
    assert parts.val is parts.test is None
