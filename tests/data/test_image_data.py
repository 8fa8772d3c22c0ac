"""Folders, datasets and loaders become data that never changes; a Learner binds it to what its weights expect."""

import shutil
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import epoch, evaluated, refusal
from PIL import Image
from timm import get_pretrained_cfg
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder

from headstart import ImageData
from headstart.data.folders import scan_parts
from headstart.data.own_loader import OwnLoader, Part
from headstart.data.preprocessing import Preprocessing
from headstart.data.sources import FolderSource
from headstart.data.splits import stratified
from headstart.data.unlabelled import PictureList
from headstart.errors import ConfigError, DataError

SMALL = Preprocessing(image_size=(32, 32), resize=(36, 36))
TALL = Preprocessing(image_size=(48, 24), resize=(48, 24), crop="squash", interpolation="bicubic")
PAIR = (torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 1]))
# torch warns when there are more workers than cores, which on a small machine is one.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def draw(root: Path, *names: str) -> Path:
    """Put a small picture under each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (number, 2 * number, 255 - number)).save(root / name, "PNG")
    return root


def folder(shapes_folder: Path, **settings: Any) -> ImageData:
    return ImageData.from_folder(shapes_folder, **{"batch_size": 16, "image_size": 32, "workers": 0, **settings})


# A folder


def test_a_folder_with_parts_is_taken_as_it_is(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    assert (data.train, data.val, data.test) == scan_parts(shapes_folder)[:3]
    assert data.classes == ("circle", "square", "triangle")
    assert repr(data) == "ImageData: 3 classes (circle, square, triangle), 72 train, 27 val pictures"


def test_a_folder_of_classes_is_split_by_fraction_and_seed(shapes_folder: Path) -> None:
    whole = scan_parts(shapes_folder / "train").train
    for fraction, seed in [(0.2, 0), (0.2, 5), (0.5, 0)]:
        data = ImageData.from_folder(str(shapes_folder / "train"), val_fraction=fraction, seed=seed)
        kept, held_back = stratified(whole.labels, fraction, seed)
        assert (data.train, data.val, data.test) == (whole.part(kept), whole.part(held_back), None)


def test_train_without_val_is_split_too(tmp_path: Path) -> None:
    draw(tmp_path, *(f"train/{kind}/{number}.png" for kind in ("ants", "bees") for number in range(5)))
    data = ImageData.from_folder(tmp_path)
    assert repr(data) == "ImageData: 2 classes (ants, bees), 8 train, 2 val pictures"


def test_a_folder_may_be_named_from_home(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(shapes_folder.parent))
    assert len(ImageData.from_folder("~/shapes").part("train")) == len(
        ImageData.from_folder(shapes_folder).part("train")
    )


def test_test_serves_as_val_where_there_is_no_other(tmp_path: Path) -> None:
    draw(tmp_path, "train/ants/1.png", "train/bees/2.png", "test/ants/3.png")
    data = ImageData.from_folder(tmp_path)
    assert data.val == data.test
    assert repr(data) == "ImageData: 2 classes (ants, bees), 2 train, 1 val, 1 test picture"
    assert equal(evaluated(data, "val"), evaluated(data, "test"))


def test_many_classes_are_not_all_printed(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{name}/{number}.png" for name in "abcdef" for number in (1, 2)))
    assert repr(ImageData.from_folder(tmp_path)).startswith("ImageData: 6 classes (a, b, c, d, e, ...), 6 train, 6 val")


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_size": True},
        {"image_size": 7},
        {"image_size": (32, 32)},
        {"image_size": "32"},
        {"workers": -1},
        {"workers": "all"},
        {"workers": None},
        {"augment": "filp"},
        {"augment": 5},
        {"augment": []},
        {"eval_transform": "resize"},
    ],
)
def test_settings_out_of_range_are_refused_at_every_door(shapes_folder: Path, settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    datasets = ImageFolder(str(shapes_folder / "train"))
    for door in (lambda: folder(shapes_folder, **settings), lambda: ImageData.from_datasets(datasets, **settings)):
        assert refusal(ConfigError, door).arrived == f"{name}={value!r}"


@pytest.mark.parametrize("seed", [-1, 0.5, None, "0"])
def test_a_seed_is_a_whole_number(shapes_folder: Path, seed: Any) -> None:
    assert refusal(ConfigError, lambda: folder(shapes_folder, seed=seed)).arrived == f"seed={seed!r}"


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan"), "0.2", None, True])
def test_a_share_for_val_is_between_0_and_1_whether_it_is_needed_or_not(shapes_folder: Path, fraction: Any) -> None:
    for root in (shapes_folder / "train", shapes_folder):
        error = refusal(ConfigError, lambda: ImageData.from_folder(root, val_fraction=fraction))  # noqa: B023
        assert error.arrived == f"val_fraction={fraction!r}"


def test_all_settings_out_of_range_are_told_at_once(shapes_folder: Path) -> None:
    wrong: dict[str, Any] = {"val_fraction": 2, "seed": -1, "batch_size": 0, "image_size": 1, "workers": -2}
    error = refusal(ConfigError, lambda: folder(shapes_folder, **wrong))
    assert error.arrived == "val_fraction=2, seed=-1, batch_size=0, image_size=1, workers=-2"


def test_numbers_may_be_numpys_and_are_kept_as_pythons(shapes_folder: Path) -> None:
    whole: dict[str, Any] = {"batch_size": 16, "image_size": 32, "workers": 0}
    given: dict[str, Any] = {name: np.int64(number) for name, number in whole.items()}
    pictures = ImageFolder(str(shapes_folder / "train"))
    split: dict[str, Any] = {"val_fraction": np.float32(0.25), "seed": np.int64(3)}
    data = ImageData.from_folder(shapes_folder / "train", **given, **split)
    plain = ImageData.from_folder(shapes_folder / "train", **whole, val_fraction=0.25, seed=3)
    assert (data.train, data.val) == (plain.train, plain.val)
    for made in (data, ImageData.from_datasets(pictures, **given)):
        found = {name: getattr(made, name) for name in whole}
        assert found == whole
        assert {type(number) for number in found.values()} == {int}


@pytest.mark.parametrize("root", [None, 5, ["flowers"]])
def test_what_is_no_path_is_refused(root: Any) -> None:
    assert refusal(ConfigError, lambda: ImageData.from_folder(root)).arrived == f"root={root!r}"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "no folder and 0 pictures"),
        (("ants/1.png",), "only the folder 'ants'"),
        (("train/ants/1.png", "val/ants/1.png"), "only the folder 'ants'"),
        (("train/ants/1.png", "train/bees/2.png", "val/cats/3.png"), "'cats'"),
        (("train/ants/1.png", "train/bees/2.png", "val/3.png"), "no picture"),
        (("ants/1.png", "bees/2.png"), "too few pictures to keep any for val"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    assert told in refusal(DataError, lambda: ImageData.from_folder(draw(tmp_path, *names))).arrived


def test_a_missing_folder_and_an_empty_class_are_refused_by_name(tmp_path: Path) -> None:
    assert "'flowers'" not in refusal(DataError, lambda: ImageData.from_folder(tmp_path / "flowers")).todo
    draw(tmp_path, "ants/1.png", "bees/2.png")
    (tmp_path / "cats").mkdir()
    assert "'cats'" in refusal(DataError, lambda: ImageData.from_folder(tmp_path)).arrived


def test_what_is_passed_over_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path, "train/ants/1.png", "train/bees/2.png", "test/ants/3.png")
    ImageData.from_folder(tmp_path)
    shared = "val is the test part, since there is no val folder: do not choose by one and report the other"
    assert capsys.readouterr().out.splitlines() == [shared]
    draw(
        tmp_path,
        "train/ants/1.gif",
        "train/ants/.DS_Store",
        "train/bees/notes.txt",
        "test/ants/3.avif",
        "dev/ants/4.png",
    )
    data = ImageData.from_folder(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        shared,
        "passed over 2 files that are no pictures we read: 1.gif, 3.avif",
        "passed over 1 folder beside train: dev",
    ]
    data.find(tmp_path / "test")
    assert capsys.readouterr().out == "passed over 1 file that is no picture we read: 3.avif\n"


# Batches


def test_evaluation_sees_real_pictures_as_timm_does(assets: Path) -> None:
    known = get_pretrained_cfg("resnet18.a1_in1k")
    assert known is not None
    config = resolve_data_config(pretrained_cfg=known.to_dict())
    root = assets / "flowers"
    expected = ImageFolder(str(root / "val"), create_transform(**config))
    preprocessing = Preprocessing.from_timm(config)
    data = ImageData.from_folder(root, batch_size=7, workers=1).bind(preprocessing)
    images, labels = evaluated(data)
    normalised = preprocessing.normaliser(torch.device("cpu"))(images)
    assert labels.tolist() == expected.targets
    for place in range(0, len(expected), 5):
        assert torch.equal(normalised[place], expected[place][0]), expected.samples[place]


def test_training_sees_other_variations_each_epoch_and_evaluation_none(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    batches = data.train_batches(seed=3)
    assert not equal(epoch(batches, 0, 0), epoch(batches, 0, 1))
    assert equal(epoch(batches, 0, 1), epoch(data.train_batches(seed=3), 0, 1))
    assert equal(evaluated(data), evaluated(data))
    images, labels = evaluated(data, "train")
    assert isinstance(data.train, FolderSource)
    assert labels.tolist() == list(data.train.labels)
    assert torch.equal(images[5], data.eval_view(data.train.sample(5)[0]))


def test_the_split_and_the_order_have_seeds_of_their_own(shapes_folder: Path) -> None:
    one, other = (ImageData.from_folder(shapes_folder, image_size=32, workers=0, seed=seed) for seed in (0, 1))
    assert equal(epoch(one.train_batches(seed=4)), epoch(other.train_batches(seed=4)))


def test_the_number_of_workers_changes_no_bit(shapes_folder: Path) -> None:
    expected = epoch(folder(shapes_folder).train_batches(seed=0), 1, 1)
    for workers in (1, "auto"):
        data = folder(shapes_folder, workers=workers)
        assert equal(epoch(data.train_batches(seed=0), 1, 1), expected)
        assert equal(evaluated(data), evaluated(folder(shapes_folder)))


@pytest.mark.parametrize("transform", [None, transforms.Compose([transforms.Resize((20, 20)), transforms.ToTensor()])])
def test_without_augmentation_training_sees_what_evaluation_sees(shapes_folder: Path, transform: Any) -> None:
    data = folder(shapes_folder, augment=None, eval_transform=transform, batch_size=72)
    (images, labels), (plain, known) = epoch(data.train_batches(seed=0)), evaluated(data, "train")
    assert labels.tolist() != known.tolist()
    order = {picture.numpy().tobytes(): place for place, picture in enumerate(plain)}
    places = [order[picture.numpy().tobytes()] for picture in images]
    assert sorted(places) == list(range(72))
    assert torch.equal(labels, known[places])


def test_a_pipeline_of_the_users_gets_whole_pictures_and_its_result_is_final(tmp_path: Path) -> None:
    draw(tmp_path, "ants/1.jpg", "ants/2.jpg", "bees/1.jpg", "bees/2.jpg")
    Image.new("L", (900, 700), 200).save(tmp_path / "ants" / "1.jpg")
    sizes: list[tuple[int, int]] = []

    def pipeline(picture: Image.Image) -> Tensor:
        sizes.append(picture.size)
        return torch.full((3, 5, 5), 9.0)

    data = ImageData.from_folder(tmp_path, augment=pipeline, eval_transform=pipeline, image_size=16, workers=0)
    for images, _ in (epoch(data.train_batches(seed=0)), evaluated(data)):
        assert images.shape[1:] == (3, 5, 5)
        assert images.eq(9).all()
    assert sorted(sizes) == [(12, 10)] * 3 + [(900, 700)]


def test_the_compose_of_every_tutorial_trains(shapes_folder: Path) -> None:
    compose = transforms.Compose(
        [
            transforms.RandomResizedCrop(24),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images, _ = epoch(folder(shapes_folder, augment=compose).train_batches(seed=0))
    assert (images.dtype, images.shape) == (torch.float32, (72, 3, 24, 24))


def test_pictures_to_predict_are_seen_as_evaluation_sees_them(shapes_folder: Path) -> None:
    data = folder(shapes_folder, workers=1)
    images, _ = epoch(data.unlabelled_batches(PictureList.of(shapes_folder / "val")))
    assert torch.equal(images, evaluated(data)[0])


# Reading


def test_all_pictures_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{part}/{kind}/{n}.png" for part in ("train", "val") for kind in ("a", "b") for n in (1, 2)))
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"")
    (tmp_path / "train" / "b" / "2.png").write_text("no picture")
    cut = tmp_path / "val" / "b" / "1.png"
    cut.write_bytes(cut.read_bytes()[:50])
    data = ImageData.from_folder(tmp_path)
    error = refusal(DataError, lambda: data.check("train", "val"))
    assert "3 of 8" in error.arrived
    assert all(str(tmp_path / name) in error.arrived for name in ("train/a/1.png", "train/b/2.png", "val/b/1.png"))
    assert "2 of 4" in refusal(DataError, lambda: data.check("train")).arrived
    draw(tmp_path, "train/a/1.png", "train/b/2.png", "val/b/1.png")
    data.check("train", "val")


def test_pictures_are_checked_once_and_those_that_go_later_are_named_when_their_turn_comes(tmp_path: Path) -> None:
    draw(tmp_path, *(f"train/{kind}/{n}.png" for kind in "ab" for n in range(4)), "val/a/1.png", "val/b/1.png")
    data = ImageData.from_folder(tmp_path, workers=0, image_size=16)
    data.check("train", "val")
    gone = tmp_path / "train" / "b" / "2.png"
    gone.unlink()
    data.bind(SMALL).check("train")
    assert str(gone) in refusal(DataError, lambda: epoch(data.train_batches(seed=0))).arrived
    ImageData.from_folder(tmp_path).check("train")


def test_datasets_and_loaders_have_no_files_to_check() -> None:
    ImageData.from_loaders([PAIR], [PAIR], classes=3).check("train", "val")
    ImageData.from_datasets([(Image.new("L", (4, 4)), 0)], classes=3).check("train")


@pytest.mark.parametrize("part", ["train", "val"])
def test_labels_that_a_dataset_tells_in_advance_are_checked_before_the_first_batch(
    shapes_folder: Path, part: str
) -> None:
    parts: dict[str, Any] = {name: ImageFolder(str(shapes_folder / "val")) for name in ("train", "val")}
    ImageData.from_datasets(**parts).check("train", "val")
    parts[part].samples[20] = (parts[part].samples[20][0], 9)
    parts[part].targets[20] = 9
    data = ImageData.from_datasets(**parts)
    assert "sample 20 of the dataset: 9" in refusal(DataError, lambda: data.check("train", "val")).arrived


# What never changes


def test_data_cannot_be_changed(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    for field in fields(data):
        with pytest.raises(FrozenInstanceError):
            setattr(data, field.name, None)


def test_binding_gives_other_data_and_leaves_the_first_as_it_was(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    before = evaluated(data)
    small, tall = data.bind(SMALL), data.bind(TALL)
    assert data.preprocessing is None
    assert (small.preprocessing, tall.preprocessing, small.bind(TALL).preprocessing) == (SMALL, TALL, TALL)
    assert (small.train, small.val, small.classes) == (data.train, data.val, data.classes)
    assert equal(evaluated(data), before)
    assert evaluated(small)[0].shape[1:] == (3, 32, 32)
    assert evaluated(tall)[0].shape[1:] == (3, 48, 24)


def test_unbound_data_is_seen_at_the_size_asked_for_or_at_224(shapes_folder: Path) -> None:
    assert evaluated(folder(shapes_folder))[0].shape[1:] == (3, 32, 32)
    assert next(iter(folder(shapes_folder, image_size=None).train_batches(0).epoch(0, 0)))[0].shape[1:] == (3, 224, 224)


# Parts


def test_a_part_that_is_not_there_is_refused_with_those_that_are(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    error = refusal(ConfigError, lambda: data.part("test"))
    assert "'test'" in error.arrived
    assert error.needed == "one of train, val"
    assert "'valid'" in refusal(ConfigError, lambda: data.part("valid")).arrived


def test_a_part_that_there_never_is_is_answered_with_what_there_is(shapes_folder: Path) -> None:
    error = refusal(ConfigError, lambda: folder(shapes_folder).part("tests"))
    assert error.todo == "Name one of these, or pass a folder or an ImageData."


def test_data_without_any_part_says_so() -> None:
    data = ImageData(("ant", "bee"))
    assert repr(data) == "ImageData: 2 classes (ant, bee), no pictures"
    error = refusal(ConfigError, lambda: data.part("val"))
    assert "without pictures" in error.arrived
    assert "Learner.load(file, data)" in error.todo


@pytest.mark.parametrize(("what", "name"), [(None, "val"), ("val", "val"), ("train", "train")])
def test_a_part_is_found_by_name_and_val_without_one(shapes_folder: Path, what: Any, name: str) -> None:
    data = folder(shapes_folder)
    assert data.find(what) == (data.part(name), name, data)


def test_a_part_that_is_found_can_be_read(tmp_path: Path) -> None:
    draw(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    data = ImageData.from_folder(tmp_path)
    (tmp_path / "val" / "a" / "1.png").write_bytes(b"")
    assert "1 of 1" in refusal(DataError, lambda: data.find(None)).arrived
    assert "1 of 1" in refusal(DataError, lambda: data.find(tmp_path / "val")).arrived


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_found_and_labelled_by_the_names_of_its_classes(
    shapes_folder: Path, tmp_path: Path, kind: Any
) -> None:
    shutil.copytree(shapes_folder / "val" / "triangle", tmp_path / "new" / "triangle")
    data = folder(shapes_folder)
    part, name, owner = data.find(kind(tmp_path / "new"))
    assert isinstance(part, FolderSource)
    assert (part.labels, part.classes, name, owner) == ((2,) * 9, data.classes, str(tmp_path / "new"), data)


def test_a_folder_with_other_classes_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    data = folder(shapes_folder)
    assert "'star'" in refusal(DataError, lambda: data.find(draw(tmp_path, "star/1.png"))).arrived
    assert "does not exist" in refusal(DataError, lambda: data.find("somewhere")).arrived


def test_a_misspelt_part_is_no_folder(shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(shapes_folder)
    error = refusal(ConfigError, lambda: data.find("vla"))
    assert "the part 'vla'" in error.arrived
    assert error.todo.startswith("Did you mean 'val'?")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shapes_folder / "val", "vla")
    assert len(data.find("vla")[0]) == 27


def test_other_data_is_found_by_its_val_part_or_its_train_part_and_seen_as_this_data_is(shapes_folder: Path) -> None:
    data, other = folder(shapes_folder).bind(TALL), folder(shapes_folder)
    part, name, owner = data.find(other)
    assert (part, name, owner.preprocessing) == (other.val, "val", TALL)
    part, name, owner = folder(shapes_folder).find(other)
    assert (part, owner) == (other.val, other)
    pictures = ImageFolder(str(shapes_folder / "val"))
    alone = ImageData.from_datasets(pictures)
    part, name, owner = data.find(alone)
    assert (part, name, owner.preprocessing, alone.preprocessing) == (alone.train, "train", TALL, None)
    assert equal(epoch(owner.eval_batches(part, name)), evaluated(data))


def test_other_data_with_other_classes_is_refused(shapes_folder: Path) -> None:
    other = ImageData.from_loaders([PAIR], classes=["square", "circle", "triangle"])
    error = refusal(DataError, lambda: folder(shapes_folder).find(other))
    assert "square, circle, triangle" in error.arrived
    assert "circle, square, triangle" in error.needed


def test_a_loader_is_found_and_checked_as_it_comes(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    part, name, owner = data.find([PAIR])
    assert isinstance(part, OwnLoader)
    assert equal(epoch(owner.eval_batches(part, name)), PAIR)
    for wrong in (5, [{"image": 1}], [(PAIR[0], PAIR[1] + 1)]):
        part, name, owner = data.find(wrong)  # type: ignore[arg-type]

        def look(owner: ImageData = owner, part: Part = part, name: str = name) -> None:
            batches = owner.eval_batches(part, name)
            list(batches.epoch(0, 0) if len(batches) else ())

        refusal(DataError, look)
