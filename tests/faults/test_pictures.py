"""Pictures that cannot be read: found before training, passed over where that is asked for, and told."""

import errno
import multiprocessing
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import At, png_header, refusal
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from headstart import CSVLogger, DataError, ImageData, Learner, ModelCheckpoint, TerminateOnNaN
from headstart.data.augment import eval_view
from headstart.data.decode import open_picture
from headstart.data.folders import scan_classes
from headstart.data.loading import Pair, SourceBatches, gather
from headstart.data.preprocessing import Preprocessing

SMALL = Preprocessing(image_size=(32, 32), resize=(36, 36))
WORKERS = pytest.mark.parametrize("workers", [0, 2])
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def folder(shapes_folder: Path, tmp_path: Path) -> Path:
    """Copy the shapes, to be damaged."""
    return Path(shutil.copytree(shapes_folder, tmp_path / "shapes"))


def cut(*paths: Path) -> None:
    """Keep the first half of files."""
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(*paths: Path) -> None:
    """Destroy the middle of files; heads and ends look whole."""
    for path in paths:
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 200] = b"\xff\xd8\x00" * 66 + b"\xff\xd8"
        path.write_bytes(content)


def batches(folder: Path, *, seed: int | None = None, workers: int = 0, size: int = 8) -> SourceBatches:
    view = eval_view(SMALL, None)
    return SourceBatches(scan_classes(folder), view, size, seed=seed, workers=workers, skips=True)


def joined(found: list[Pair]) -> tuple[Tensor, list[int]]:
    return torch.cat([images for images, _ in found]), [int(label) for _, labels in found for label in labels]


def learner(folder: Path, make_network, **options) -> Learner:
    data = ImageData.from_folder(folder, image_size=32, batch_size=8, **{"workers": 0, "on_error": "skip", **options})
    return Learner(make_network(), data, device="cpu", head=None)


@WORKERS
def test_evaluation_leaves_out_what_cannot_be_read(folder: Path, workers: int) -> None:
    whole = joined(list(batches(folder / "val").epoch(0, 0)))
    bad = [folder / "val/circle/26.jpg", folder / "val/square/24.jpg", folder / "val/triangle/32.jpg"]
    places = [scan_classes(folder / "val").paths.index(path) for path in bad]
    cut(bad[0])
    overwrite(bad[1])
    bad[2].write_bytes(b"")
    part = batches(folder / "val", workers=workers)
    images, labels = joined(list(part.epoch(0, 0)))
    kept = [place for place in range(27) if place not in places]
    assert torch.equal(images, whole[0][kept])
    assert labels == [whole[1][place] for place in kept]
    assert part.told() == f"passed over 3 of 27 pictures: {bad[0]}, {bad[1]}, {bad[2]}"


@WORKERS
def test_in_training_the_next_picture_that_can_be_read_takes_the_place(folder: Path, workers: int) -> None:
    source = scan_classes(folder / "train")
    whole = batches(folder / "train", seed=3)
    order = [index for number in range(9) for index, _ in next(whole._order.batches(1, 0, number))]
    images, labels = joined(list(whole.epoch(1, 0)))
    bad = [5, 6, 30, 71]
    overwrite(*(source.paths[place] for place in bad))
    found = joined(list(batches(folder / "train", seed=3, workers=workers).epoch(1, 0)))
    stand_in = {5: 7, 6: 7, 30: 31, 71: 0}
    expected = [order.index(stand_in.get(index, index)) for index in order]
    assert torch.equal(found[0], images[expected])
    assert found[1] == [labels[place] for place in expected]


def test_a_batch_of_which_nothing_can_be_read_is_no_batch(folder: Path) -> None:
    overwrite(*(folder / f"val/circle/{number}.jpg" for number in (24, 25, 26)))
    assert [len(labels) for _, labels in batches(folder / "val", size=3).epoch(0, 0)] == [3] * 8


def test_the_names_of_a_batch_are_those_of_the_pictures_that_came(folder: Path) -> None:
    part = batches(folder / "train", seed=0)
    first = part.pictures(1, 0, 0)
    overwrite(Path(first[0]))
    list(part.epoch(1, 0))
    following = scan_classes(folder / "train").paths
    place = following.index(Path(first[0]))
    assert part.pictures(1, 0, 0) == [str(following[(place + 1) % 72]), *first[1:]]


@WORKERS
def test_more_than_one_in_five_are_refused_as_soon_as_they_are_seen(folder: Path, workers: int) -> None:
    overwrite(*sorted((folder / "val").rglob("*.jpg"))[::4])  # 7 of 27
    part = batches(folder / "val", workers=workers)
    error = refusal(DataError, lambda: list(part.epoch(0, 0)))
    assert "of 27 pictures that cannot be read: " in error.arrived
    assert "on_error='skip' passes over 20% at the most" in error.needed


def test_a_fit_passes_over_bad_pictures_and_tells_which(folder: Path, tiny_network, capsys) -> None:
    bad = [folder / "train/circle/03.jpg", folder / "val/square/25.jpg"]
    cut(*bad)
    learner_ = learner(folder, tiny_network)
    history = learner_.fit(2, 0.01, verbose=False)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"passed over 1 of 72 pictures: {bad[0]}",
        f"passed over 1 of 27 pictures: {bad[1]}",
    ]
    kept = shutil.copytree(folder, folder.parent / "kept")
    for path in bad:
        (kept / path.relative_to(folder)).unlink()
    rest = ImageData.from_folder(kept, image_size=32, workers=0)
    expected = learner_.evaluate(rest)
    assert learner_.evaluate() == pytest.approx(expected)
    assert history.history["val_accuracy"][-1] == expected["accuracy"]


@WORKERS
def test_a_picture_deleted_while_training_goes_on_is_passed_over(folder: Path, tiny_network, capsys, workers) -> None:
    gone = folder / "train/triangle/07.jpg"
    delete = At(on_epoch_end=lambda c, epoch, logs: gone.unlink(missing_ok=True))
    learner(folder, tiny_network, workers=workers).fit(3, 0.01, callbacks=[delete], verbose=False)
    assert capsys.readouterr().out.splitlines()[-1] == f"passed over 1 of 72 pictures: {gone}"


@WORKERS
def test_without_being_asked_to_nothing_is_passed_over_and_the_run_stays(
    folder: Path, tmp_path: Path, tiny_network, workers: int
) -> None:
    gone = folder / "train/triangle/07.jpg"
    kept = gone.read_bytes()

    def script(*callbacks):
        own = learner(folder, tiny_network, workers=workers, on_error="raise")
        saving = ModelCheckpoint(tmp_path / "runs")
        own.fit(3, 0.01, callbacks=[saving, *callbacks], resume=True, verbose=False)
        return own

    delete = At(on_epoch_end=lambda c, epoch, logs: gone.unlink(missing_ok=True))
    error = refusal(DataError, lambda: script(delete))
    assert str(gone) in error.arrived
    gone.write_bytes(kept)
    plain = At(on_epoch_end=lambda c, epoch, logs: None)
    assert script(plain).history.epoch == [0, 1, 2]


def test_too_many_bad_pictures_are_refused_before_training(folder: Path, tmp_path: Path, tiny_network) -> None:
    cut(*sorted((folder / "val").rglob("*.jpg"))[:6])  # 6 of 27
    log = tmp_path / "log.csv"
    error = refusal(DataError, lambda: learner(folder, tiny_network).fit(1, 0.01, callbacks=[CSVLogger(log)]))
    assert error.arrived.startswith("6 of 27 pictures cannot be read: ")
    assert error.needed.endswith("on_error='skip' passes over 20% at the most")
    assert not log.exists()


def test_a_folder_to_evaluate_on_may_hold_some_too(folder: Path, tiny_network, capsys) -> None:
    own = learner(folder, tiny_network)
    cut(folder / "val/circle/24.jpg")
    capsys.readouterr()
    assert 0 <= own.evaluate(folder / "val")["accuracy"] <= 1
    assert capsys.readouterr().out == f"passed over 1 of 27 pictures: {folder / 'val/circle/24.jpg'}\n"
    strict = learner(folder, tiny_network, on_error="raise")
    assert "1 of 27" in refusal(DataError, lambda: strict.evaluate(folder / "val")).arrived


def test_pictures_to_predict_are_never_passed_over(folder: Path, tiny_network) -> None:
    own = learner(folder, tiny_network)
    cut(folder / "val/circle/24.jpg")
    assert "1 of 9" in refusal(DataError, lambda: own.predict(folder / "val/circle")).arrived


class Opening(Dataset):
    """A dataset that opens its files itself, as many tutorials do."""

    def __init__(self, folder: Path) -> None:
        self.inner = ImageFolder(folder)
        self.classes = self.inner.classes

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, place: int):
        return self.inner[place]


@WORKERS
def test_what_a_dataset_cannot_open_is_passed_over_too(folder: Path, tiny_network, capsys, workers: int) -> None:
    cut(folder / "train/circle/03.jpg")
    (folder / "train/circle/04.jpg").write_bytes(b"words")
    data = ImageData.from_datasets(Opening(folder / "train"), image_size=32, workers=workers, on_error="skip")
    Learner(tiny_network(), data, device="cpu", head=None).fit(1, 0.01, verbose=False)
    assert capsys.readouterr().out.splitlines()[-1] == "passed over 2 of 72 pictures: sample 3, sample 4"


def test_a_bad_label_is_not_a_bad_picture(folder: Path, tiny_network) -> None:
    class Wrong(Opening):
        def __getitem__(self, place: int):
            return self.inner[place][0], 7

    data = ImageData.from_datasets(Wrong(folder / "train"), image_size=32, workers=0, on_error="skip")
    own = Learner(tiny_network(), data, device="cpu", head=None)
    assert "the label of sample" in refusal(DataError, lambda: own.fit(1, 0.01, verbose=False)).arrived


@pytest.mark.parametrize("want", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_is_lacking_for_a_moment_is_not_the_fault_of_a_picture(folder: Path, monkeypatch, want) -> None:
    def fail(*arguments, **options):
        raise want

    part = batches(folder / "val")
    data = ImageData.from_datasets(Opening(folder / "val"), image_size=32, workers=0, on_error="skip")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(type(want)):
        list(part.epoch(0, 0))
    with pytest.raises(type(want)):
        list(data.train_batches(0).epoch(1, 0))
    assert part.told() == ""


def test_pictures_to_show_are_those_that_can_be_read(folder: Path) -> None:
    source = scan_classes(folder / "val")
    cut(source.paths[0])
    images, labels = gather(source, eval_view(SMALL, None), [0, 9, 18], skips=True)
    assert labels.tolist() == [1, 2]
    assert len(images) == 2
    error = refusal(DataError, lambda: gather(source, eval_view(SMALL, None), [0], skips=True))
    assert str(source.paths[0]) in error.arrived
    assert (
        str(source.paths[0])
        in refusal(DataError, lambda: gather(source, eval_view(SMALL, None), [0, 9], skips=False)).arrived
    )


def test_a_run_on_damaged_pictures_can_be_gone_on_with_when_they_are_passed_over(
    folder: Path, tmp_path: Path, tiny_network
) -> None:
    bad = folder / "train/square/10.jpg"

    class Damage(TerminateOnNaN):
        """Break a picture, in its middle and without changing its size, when the first epoch is over."""

        def on_epoch_end(self, epoch, logs):
            super().on_epoch_end(epoch, logs)
            overwrite(bad)

    def fit(on_error: str) -> Learner:
        own = learner(folder, tiny_network, on_error=on_error)
        own.fit(3, 0.01, callbacks=[ModelCheckpoint(tmp_path / "runs"), Damage()], resume=True, verbose=False)
        return own

    assert str(bad) in refusal(DataError, lambda: fit("raise")).arrived
    assert fit("skip").history.epoch == [0, 1, 2]


def test_on_error_takes_one_of_two_words(folder: Path) -> None:
    error = refusal(ValueError, lambda: ImageData.from_folder(folder, on_error="ignore"))
    assert "'raise' or 'skip'" in error.needed


def odd_pictures(folder: Path) -> int:
    """Fill a folder with pictures of every kind that people have; give their number."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    pixels = chance.integers(256, size=(48, 64, 3), dtype=np.uint8)
    plain = Image.fromarray(pixels)
    deep = Image.fromarray(chance.integers(65536, size=(48, 64), dtype=np.uint16))
    palette = plain.quantize(16)
    for turn in range(1, 9):
        note = Image.Exif()
        note[0x112] = turn
        plain.save(folder / f"turned {turn}.jpg", exif=note)
    kinds = {
        "cmyk.jpg": plain.convert("CMYK"),
        "grey.jpg": plain.convert("L"),
        "palette.png": palette,
        "alpha.png": plain.convert("RGBA"),
        "grey alpha.png": plain.convert("LA"),
        "bits.png": plain.convert("1"),
        "deep.png": deep,
        "thin.png": plain.resize((1, 200)),
        "flat.png": plain.resize((200, 1)),
        "dot.png": plain.resize((1, 1)),
        "wide.png": plain.resize((30_000, 3)),
        "Übergröße\N{COMBINING ACUTE ACCENT}.jpg": plain,
        "two\nlines.jpg": plain,
    }
    for name, picture in kinds.items():
        picture.save(folder / name)
    palette.save(folder / "clear.png", transparency=3)
    frames = [Image.fromarray(255 - pixels), plain]
    plain.save(folder / "moving.webp", save_all=True, append_images=frames, duration=50)
    plain.save(folder / "moving.png", save_all=True, append_images=frames)
    plain.save(folder / "liar.jpg", format="WEBP")
    plain.save(folder / "passed over.gif")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / ".ipynb_checkpoints").mkdir()
    plain.save(folder / ".ipynb_checkpoints" / "copy-checkpoint.jpg")
    (folder / "round").symlink_to(folder.parent)
    (folder / "twice.jpg").symlink_to(folder / "grey.jpg")
    return 8 + len(kinds) + 4


@pytest.mark.parametrize("augment", ["default", "strong", None])
def test_pictures_of_every_kind_train_and_are_evaluated(tmp_path: Path, tiny_network, capsys, augment) -> None:
    count = odd_pictures(tmp_path / "odd" / "one")
    odd_pictures(tmp_path / "odd" / "two")
    data = ImageData.from_folder(tmp_path / "odd", image_size=32, batch_size=8, augment=augment, workers=0)
    assert capsys.readouterr().out.startswith("passed over 2 files that are no pictures we read")
    assert len(data.train) + len(data.val) == 2 * count
    own = Learner(tiny_network(classes=2), data, device="cpu", head=None)
    history = own.fit(1, 0.001, verbose=False).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert len(own.predict(tmp_path / "odd" / "one")) == count


def test_bombs_are_named_and_neither_end_the_process_nor_fill_its_memory(shapes_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shapes_folder / "val", tmp_path / "shapes"))
    for side in (12_000, 20_000):
        (folder / "circle" / f"{side}.png").write_bytes(png_header(side))

    def work() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 500_000_000, resource.RLIM_INFINITY))
        data = ImageData.from_folder(folder, image_size=32, workers=0)
        error = refusal(DataError, lambda: data.check("train", "val"))
        assert "12000.png" in error.arrived
        assert "20000.png" in error.arrived
        for side in (12_000, 20_000):
            refusal(DataError, lambda side=side: open_picture(folder / "circle" / f"{side}.png"))

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0
