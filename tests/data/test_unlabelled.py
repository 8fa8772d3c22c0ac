"""Whatever may be given to `predict` becomes a list of pictures in the same order, or an error that says why not."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import refusal
from PIL import Image

from headstart.data.decode import open_picture
from headstart.data.sources import Source
from headstart.data.unlabelled import PictureList
from headstart.errors import DataError

RED = Image.new("RGB", (5, 3), "red")
PIXELS = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a folder with three pictures, one of them further down, and a file that is none."""
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "a.png", "deep/c.png"):
        RED.save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    return tmp_path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_one_picture(folder: Path, kind: Any) -> None:
    pictures = PictureList.of(kind(folder / "a.png"))
    assert (len(pictures), pictures.paths, pictures.classes) == (1, (folder / "a.png",), ())
    picture, label = pictures.sample(0)
    assert isinstance(picture, Image.Image)
    assert (picture.tobytes(), label) == (RED.tobytes(), 0)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_all_pictures_below_it_sorted(folder: Path, kind: Any) -> None:
    pictures = PictureList.of(kind(folder))
    assert pictures.paths == (folder / "a.png", folder / "b.png", folder / "deep" / "c.png")


def test_files_in_folders_that_are_no_pictures_are_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PictureList.of(folder)
    assert capsys.readouterr().out == ""
    (folder / "deep" / "d.gif").touch()
    (folder / "e.heic").touch()
    assert len(PictureList.of([folder, folder / "deep"])) == 4
    assert capsys.readouterr().out == "passed over 2 files that are no pictures we read: d.gif, e.heic\n"


def test_a_file_that_is_named_may_have_any_suffix(folder: Path) -> None:
    shutil.copy(folder / "a.png", folder / "upload")
    assert PictureList.of(folder / "upload").sample(0)[1] == 0


def test_a_picture_in_memory_becomes_rgb_and_has_no_path() -> None:
    pictures = PictureList.of(RED.convert("P"))
    picture, _ = pictures.sample(0)
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.tobytes(), pictures.path(0)) == ("RGB", RED.tobytes(), None)


@pytest.mark.parametrize("tensor", [PIXELS, torch.rand(3, 8, 8), torch.rand(13, 8, 8).half(), PIXELS[:1]])
def test_a_tensor_is_one_picture_or_a_batch_of_them_untouched(tensor: torch.Tensor) -> None:
    one, many = PictureList.of(tensor), PictureList.of(torch.stack([tensor, tensor + 1]))
    assert (len(one), len(many), many.paths) == (1, 2, (None, None))
    for found, expected in [(one.sample(0)[0], tensor), (many.sample(0)[0], tensor), (many.sample(1)[0], tensor + 1)]:
        assert isinstance(found, torch.Tensor)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_photograph_held_on_its_side_is_upright_from_its_file_and_from_memory(tmp_path: Path) -> None:
    note = Image.Exif()
    note[0x0112] = 6  # the orientation: turned by a quarter
    path = tmp_path / "phone.png"
    Image.effect_noise((8, 5), 90).save(path, exif=note)
    with Image.open(path) as picture:
        pictures = PictureList.of([path, picture])
        from_file, from_memory = (np.asarray(pictures.sample(place)[0]) for place in range(2))
        assert picture.size == (8, 5)
    assert from_file.shape == (8, 5, 3)
    assert np.array_equal(from_file, from_memory)


def test_a_list_may_hold_all_kinds_and_keeps_their_order(folder: Path) -> None:
    images = [folder / "b.png", RED, str(folder / "deep"), torch.stack([PIXELS, PIXELS]), (PIXELS, [folder / "b.png"])]
    pictures = PictureList.of(images)
    b, c = folder / "b.png", folder / "deep" / "c.png"
    assert pictures.paths == (b, None, c, None, None, None, b)
    assert [pictures.path(index) for index in range(7)] == list(pictures.paths)
    assert pictures.sample(1)[0] is RED


def test_files_are_decoded_when_their_turn_comes_and_as_small_as_asked_for(tmp_path: Path) -> None:
    Image.new("L", (400, 300), 99).save(tmp_path / "a.jpg")
    pictures = PictureList.of(tmp_path)
    assert [getattr(pictures.sample(0, side)[0], "size", None) for side in (None, 128)] == [(400, 300), (200, 150)]
    (tmp_path / "a.jpg").unlink()
    assert str(tmp_path / "a.jpg") in refusal(DataError, lambda: pictures.sample(0)).arrived


def test_a_list_of_pictures_is_a_source_and_travels_to_workers(folder: Path) -> None:
    source: Source = PictureList.of([folder, RED])
    arrived = pickle.loads(pickle.dumps(source))  # noqa: S301 - bytes made on the same line
    assert (len(arrived), arrived.path(0)) == (4, folder / "a.png")


def test_photographs_of_a_folder_are_all_there(assets: Path) -> None:
    root = assets / "hymenoptera_data" / "val"
    pictures = PictureList.of(root)
    assert len(pictures) == 153
    assert list(pictures.paths) == sorted(root.rglob("*.jpg"))
    picture, _ = pictures.sample(70)
    assert isinstance(picture, Image.Image)
    assert picture.tobytes() == open_picture(pictures.paths[70] or Path()).tobytes()


# Refused


@pytest.mark.parametrize("images", [[], (), [[], []], torch.zeros(0, 3, 8, 8)])
def test_nothing_is_refused(images: Any) -> None:
    assert "no picture" in refusal(DataError, lambda: PictureList.of(images)).arrived


@pytest.mark.parametrize("name", ["nope.jpg", "nope"])
def test_a_path_to_nothing_is_to_be_checked(tmp_path: Path, name: str) -> None:
    error = refusal(DataError, lambda: PictureList.of(tmp_path / name))
    assert str(tmp_path / name) in error.arrived
    assert error.todo == "Check the path."


@pytest.mark.parametrize("lazy", [lambda folder: folder.rglob("*.png"), lambda folder: map(str, folder.iterdir())])
def test_what_gives_pictures_only_once_is_refused_with_the_way_to_a_list(folder: Path, lazy: Any) -> None:
    error = refusal(DataError, lambda: PictureList.of(lazy(folder)))
    assert "list(" in error.todo
    assert len(PictureList.of(list(folder.rglob("*.png")))) == 3


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_without_pictures_is_refused_by_name(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "notes.txt").touch()
    assert str(tmp_path) in refusal(DataError, lambda: PictureList.of(kind(tmp_path))).arrived


def test_all_files_that_cannot_be_read_are_named_at_once(folder: Path) -> None:
    (folder / "empty.png").touch()
    (folder / "words.jpg").write_text("no picture")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    error = refusal(DataError, lambda: PictureList.of([folder, folder / "missing.jpg", RED]))
    assert "4 of 7" in error.arrived
    for name in ("empty.png", "words.jpg", "cut.png", "missing.jpg"):
        assert str(folder / name) in error.arrived
    assert "a.png" not in error.arrived


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (None, "NoneType"),
        (5, "int"),
        (b"a.jpg", "bytes"),
        ({"image": RED}, "dict"),
        (iter([RED]), "iterator"),
        (np.zeros((8, 8, 3), np.uint8), "ndarray"),
        ([RED, np.zeros((8, 8, 3), np.uint8)], "ndarray"),
        ([RED, None], "NoneType"),
        (torch.zeros(8, 8), "[8, 8]"),
        (torch.zeros(1, 1, 3, 8, 8), "[1, 1, 3, 8, 8]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), "bool"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "uint8 tensor [8, 8, 3]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "uint8 tensor [2, 8, 8, 3]"),
        (torch.zeros(3, 0, 8), "[3, 0, 8]"),
        ([RED, torch.zeros(2, 8, 8, 7, dtype=torch.uint8)], "uint8 tensor [2, 8, 8, 7]"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_kind(images: Any, told: str) -> None:
    assert told in refusal(DataError, lambda: PictureList.of(images)).arrived


def test_the_way_from_an_array_is_told() -> None:
    error = refusal(DataError, lambda: PictureList.of(np.zeros((8, 8, 3), np.uint8)))
    assert "fromarray" in error.todo
