"""A cache is a memo: with it and without it the same numbers come out, whatever happens to it or to the pictures."""

import contextlib
import errno
import io
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyNetwork
from handmade import refusal
from PIL import Image
from torch import Tensor

from headstart import ImageData, Learner
from headstart.data import cache as cache_module
from headstart.data.augment import _STEPS
from headstart.data.cache import Cache, Memo, as_cache
from headstart.data.folders import scan_classes
from headstart.data.sources import FolderSource
from headstart.data.store import keep_in_memory
from headstart.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

Batch = tuple[Tensor, Tensor]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def epochs(data: ImageData, count: int = 2) -> list[Batch]:
    """Give the batches of some epochs of training and one of validation."""
    assert data.val is not None
    train, val = data.train_batches(seed=3), data.eval_batches(data.val, "val")
    return [*(pair for epoch in range(count) for pair in train.epoch(1, epoch)), *val.epoch(1, 0)]


def shapes(folder: Path, cache: Any, **settings: Any) -> ImageData:
    given = {"image_size": 32, "batch_size": 7, "workers": 0, **settings}
    return ImageData.from_folder(folder, cache=cache, **given)


def filled(folder: Path, cache: Any, **settings: Any) -> ImageData:
    data = shapes(folder, cache, **settings)
    data.prepare()
    return data


def placed(where: Any, folder: Path, **settings: Any) -> Cache:
    return Cache(where, folder if where == "disk" else None, **settings)


@pytest.fixture
def folder(tmp_path: Path, shapes_folder: Path) -> Path:
    """Copy two classes, five pictures of each to train on and two to validate on, to be changed by a test."""
    for part, count in (("train", 5), ("val", 2)):
        for kind in ("circle", "square"):
            for path in sorted((shapes_folder / part / kind).iterdir())[:count]:
                target = tmp_path / "pictures" / part / kind / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    return tmp_path / "pictures"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Give the list of all files that are decoded, in this process."""
    opened: list[Path] = []
    sample = FolderSource.sample

    def noting(self: FolderSource, index: int, least_side: int | None = None) -> Any:
        opened.append(self.paths[index])
        return sample(self, index, least_side)

    monkeypatch.setattr(FolderSource, "sample", noting)
    return opened


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pixels"), key=lambda path: path.stat().st_size)


# It changes no number


@pytest.mark.parametrize("where", ["ram", "disk"])
@pytest.mark.parametrize("augment", ["default", "strong", "light", None, *[[name] for name in _STEPS]])
def test_the_batches_are_those_without_a_cache(shapes_folder: Path, tmp_path: Path, where: Any, augment: Any) -> None:
    plain = shapes(shapes_folder, None, augment=augment)
    kept = filled(shapes_folder, placed(where, tmp_path), augment=augment)
    assert same(epochs(plain), epochs(kept))
    assert same(epochs(plain), epochs(kept)), "what was kept has been written to"


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_so_are_those_that_processes_prepare(shapes_folder: Path, tmp_path: Path, where: Any) -> None:
    plain = shapes(shapes_folder, None)
    kept = filled(shapes_folder, placed(where, tmp_path), workers=2)
    assert same(epochs(plain), epochs(kept))


def test_real_photographs_keep_every_pixel(assets: Path, tmp_path: Path) -> None:
    photographs = assets / "hymenoptera_data"
    plain = ImageData.from_folder(photographs, cache=None, workers=0, batch_size=64)
    part = next(iter(plain.train_batches(seed=0).epoch(1, 0)))
    for where in ("ram", "disk"):
        kept = filled(photographs, placed(where, tmp_path), image_size=None, batch_size=64)
        assert same([part], [next(iter(kept.train_batches(seed=0).epoch(1, 0)))])


@pytest.mark.parametrize("where", ["auto", "ram", "disk"])
def test_a_fit_ends_at_the_same_weights(shapes_folder: Path, tmp_path: Path, where: Any) -> None:
    def trained(cache: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        learner = Learner(TinyNetwork(3), shapes(shapes_folder, cache))
        learner.fit(2, lr=1e-3, verbose=False)
        return learner.model.state_dict()

    plain, kept = trained(None), trained(placed(where, tmp_path))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in plain.items())


# Pictures are decoded once


def test_later_epochs_and_fits_decode_nothing(shapes_folder: Path, decoded: list[Path]) -> None:
    learner = Learner(TinyNetwork(3), shapes(shapes_folder, "ram"))
    learner.fit(1, lr=1e-3, verbose=False)
    assert set(decoded) == {path for part in (learner.data.train, learner.data.val) for path in part.paths}  # type: ignore[union-attr]
    decoded.clear()
    learner.fit(2, lr=1e-3, verbose=False)
    learner.evaluate()
    assert not decoded


def test_the_next_run_finds_them_on_the_disk(shapes_folder: Path, tmp_path: Path, decoded: list[Path]) -> None:
    first = epochs(filled(shapes_folder, Cache("disk", tmp_path)))
    decoded.clear()
    assert same(first, epochs(filled(shapes_folder, Cache("disk", tmp_path))))
    assert not decoded


def test_another_split_frame_or_version_is_kept_apart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache("disk", tmp_path)
    filled(folder, cache)
    assert len(stored(tmp_path)) == 2
    filled(folder, cache, image_size=40)
    assert len(stored(tmp_path)) == 4
    (folder / "val" / "square" / "24.jpg").unlink()
    filled(folder, cache)
    assert len(stored(tmp_path)) == 5
    monkeypatch.setattr(cache_module, "VERSION", "0.0.0")
    filled(folder, cache)
    assert len(stored(tmp_path)) == 7


@pytest.mark.parametrize(("workers", "expected"), [("auto", 0), (1, 1)])
def test_a_cpu_that_trains_starts_no_processes_to_read_memory(folder: Path, workers: Any, expected: int) -> None:
    data = filled(folder, "ram", workers=workers)
    assert data.train_batches(0)._loader.num_workers == expected  # type: ignore[attr-defined]
    assert data.train_batches(0, for_gpu=True)._loader.num_workers == data.worker_count(data.part("train"))  # type: ignore[attr-defined, arg-type]


def test_what_may_draw_is_not_kept(shapes_folder: Path, decoded: list[Path]) -> None:
    data = filled(shapes_folder, "ram", augment=lambda picture: picture, eval_transform=lambda picture: picture)
    assert not data.memos
    assert not decoded
    own = ImageData.from_datasets([(Image.new("RGB", (8, 8)), 0)] * 4, classes=["a", "b"])
    own.prepare()
    assert not own.memos


# Pictures that change


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_picture_that_is_rewritten_is_decoded_anew(
    folder: Path, tmp_path: Path, where: Any, decoded: list[Path]
) -> None:
    data = filled(folder, placed(where, tmp_path / "kept"))
    before = epochs(data)
    changed = folder / "train" / "circle" / "02.jpg"
    Image.new("RGB", (50, 60), "red").save(changed)
    decoded.clear()
    assert same(epochs(data), epochs(shapes(folder, None)))
    assert not same(epochs(data), before)
    assert decoded.count(changed) >= 2  # once in every epoch, until the next fit
    decoded.clear()
    data.prepare()
    assert decoded.count(changed) >= 1
    decoded.clear()
    assert same(epochs(data), epochs(shapes(folder, None, workers=1)))
    assert not decoded


def test_only_the_one_that_changed_is_decoded_for_the_disk(folder: Path, tmp_path: Path, decoded: list[Path]) -> None:
    cache = Cache("disk", tmp_path / "kept")
    filled(folder, cache)
    changed = folder / "train" / "circle" / "02.jpg"
    Image.new("RGB", (50, 60), "red").save(changed)
    memo = Memo(scan_classes(folder / "train"), shapes(folder, cache).train_view, cache)
    decoded.clear()
    memo._expected_bytes = lambda: 0  # type: ignore[method-assign]  # which looks at some of them
    assert memo.fill() == []
    assert decoded == [changed]
    assert len(stored(tmp_path / "kept")) == 2


def test_the_same_size_and_a_later_second_is_another_picture(folder: Path) -> None:
    data = filled(folder, "ram", augment=None)
    path = folder / "train" / "circle" / "00.jpg"
    changed = bytearray(path.read_bytes())
    changed[-200] ^= 1
    path.write_bytes(changed)
    os.utime(path, (1, 1))
    assert same(epochs(data), epochs(shapes(folder, None, augment=None)))


def test_a_picture_that_is_gone_is_missed(folder: Path) -> None:
    data = filled(folder, "ram")
    (folder / "train" / "circle" / "00.jpg").unlink()
    assert "00.jpg' cannot be read: No such file" in refusal(DataError, lambda: epochs(data)).arrived


# Files that are damaged


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_written_anew(folder: Path, tmp_path: Path, share: float) -> None:
    cache = Cache("disk", tmp_path / "kept")
    filled(folder, cache)
    whole = [path.read_bytes() for path in stored(cache.place)]
    for path, content in zip(stored(cache.place), whole, strict=True):
        path.write_bytes(content[: int(share * len(content))])
    assert same(epochs(filled(folder, cache)), epochs(shapes(folder, None)))
    assert [path.read_bytes() for path in stored(cache.place)] == whole


def test_a_file_that_is_cut_short_while_it_is_used_is_not_served(folder: Path, tmp_path: Path) -> None:
    cache = Cache("disk", tmp_path / "kept")
    data = filled(folder, cache)
    for path in stored(cache.place):
        os.truncate(path, path.stat().st_size // 3)
    assert same(epochs(data), epochs(shapes(folder, None)))


def test_a_file_that_is_cut_short_after_it_was_read_is_not_served_and_not_filled_up(
    folder: Path, tmp_path: Path
) -> None:
    cache = Cache("disk", tmp_path / "kept")
    data, plain = filled(folder, cache), shapes(folder, None)
    assert same(epochs(data), epochs(plain))
    lengths = [path.stat().st_size // 3 for path in stored(cache.place)]
    for path, length in zip(stored(cache.place), lengths, strict=True):
        os.truncate(path, length)
    assert same(epochs(data, 3), epochs(plain, 3))
    assert [path.stat().st_size for path in stored(cache.place)] == lengths


def test_nothing_is_mended_in_a_file_that_has_taken_the_place_of_another(folder: Path, tmp_path: Path) -> None:
    cache = Cache("disk", tmp_path / "kept")
    data = filled(folder, cache)
    for path in stored(cache.place):
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.write(b"damaged")
        (other := tmp_path / "other").write_bytes(content[:9] + bytes(len(content) - 9))
        other.replace(path)
    before = [path.read_bytes() for path in stored(cache.place)]
    assert same(epochs(data), epochs(shapes(folder, None)))
    assert [path.read_bytes() for path in stored(cache.place)] == before


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_disk_that_cannot_be_read_is_done_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    def fail(*given: Any) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    cache = Cache("disk", tmp_path / "kept")
    data = filled(folder, cache, on_error=on_error)
    monkeypatch.setattr("headstart.data.store._read_at", fail)
    assert same(epochs(data), epochs(shapes(folder, None)))
    assert same(epochs(filled(folder, cache, on_error=on_error)), epochs(shapes(folder, None)))


def test_no_flipped_bit_is_served_and_each_is_mended(folder: Path, tmp_path: Path) -> None:
    cache = Cache("disk", tmp_path / "kept")
    filled(folder, cache, augment=None)
    path = stored(cache.place)[-1]
    whole, plain = path.read_bytes(), epochs(shapes(folder, None, augment=None))
    for place in [*range(0, len(whole), len(whole) // 40), *range(len(whole) - 500, len(whole), 7), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert same(epochs(filled(folder, cache, augment=None)), plain), f"byte {place}"
        assert path.read_bytes() == whole, f"byte {place}"


def test_somebody_elses_file_under_the_name_is_replaced(folder: Path, tmp_path: Path) -> None:
    cache = Cache("disk", tmp_path / "kept")
    filled(folder, cache)
    one, other = stored(cache.place)
    other.write_bytes(one.read_bytes())  # whole, but of other pictures
    assert same(epochs(filled(folder, cache)), epochs(shapes(folder, None)))


# Places that are not to be had


@pytest.fixture(params=["a file", "read-only", "full"])
def refusing(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder that nothing can be written to."""
    folder = tmp_path / "refusing"
    if request.param == "a file":
        folder.write_text("in the way")
    elif request.param == "read-only":
        folder.mkdir(mode=0o555)
        if os.access(folder, os.W_OK):  # of an administrator no folder is safe
            pytest.skip("this user may write everywhere")
    else:
        import errno

        def full(*given: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(cache_module, "write_store", full)
    yield folder
    if folder.is_dir():
        folder.chmod(0o755)


def test_a_folder_that_refuses_is_told_and_done_without(
    folder: Path, refusing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = filled(folder, Cache("disk", refusing))
    assert same(epochs(data), epochs(shapes(folder, None)))
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1
    assert told[0].endswith(": pictures are decoded in every epoch")
    assert not [*refusing.glob("*")] if refusing.is_dir() else True


def test_a_budget_that_does_not_hold_all_is_told_and_done_without(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for where in ("auto", "ram", "disk"):
        data = filled(folder, placed(where, tmp_path / "kept", budget=10_000))
        assert same(epochs(data), epochs(shapes(folder, None)))
        assert data.memos.size <= 10_000
        assert "MB, may take 0 MB: pictures are decoded in every epoch" in capsys.readouterr().out
    assert not [*(tmp_path / "kept").glob("*")]


def test_a_budget_is_kept_where_some_are_larger_than_they_seemed(
    folder: Path, capsys: pytest.CaptureFixture[str], decoded: list[Path]
) -> None:
    data = shapes(folder, None)
    memo = Memo(scan_classes(folder / "train"), data.train_view, Cache("ram", budget=40_000))
    memo._expected_bytes = lambda: 1  # type: ignore[method-assign]
    assert memo.fill() is None
    assert memo.size == 0
    assert "the pixels of 10 pictures take more than 0 MB: pictures are decoded" in capsys.readouterr().out
    decoded.clear()
    assert memo.fill() is None
    assert not decoded
    changed = folder / "train" / "circle" / "00.jpg"
    os.utime(changed, (1, 1))
    assert memo.fill() is None
    assert changed in decoded


def test_that_there_is_no_room_is_told_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shapes(folder, Cache("ram", budget=10_000))
    for _ in range(3):
        data.prepare()
    assert capsys.readouterr().out.count("decoded in every epoch") == 1


def test_a_budget_is_for_all_parts_together(folder: Path) -> None:
    size = filled(folder, "ram").memos["train"].size
    data = filled(folder, Cache("ram", budget=size + 5000))
    assert [data.memos[name].size for name in ("train", "val")] == [size, 0]
    Image.new("RGB", (37, 60), "red").save(folder / "train" / "circle" / "00.jpg")
    data.prepare()
    assert data.memos["train"].size > 0


def test_a_budget_smaller_than_a_picture_is_refused(folder: Path) -> None:
    error = refusal(ConfigError, lambda: filled(folder, Cache("ram", budget=1000)))
    assert "1000 bytes" in error.arrived
    assert "cache=None" in error.todo


@pytest.mark.parametrize("wrong", ["memory", 3, True, 0.5, ["ram"]])
def test_what_is_no_cache_is_refused(folder: Path, wrong: Any) -> None:
    assert f"cache={wrong!r}" in refusal(ConfigError, lambda: shapes(folder, wrong)).arrived


def test_the_nearest_place_is_named(folder: Path) -> None:
    assert "Did you mean 'disk'" in refusal(ConfigError, lambda: shapes(folder, "dsik")).todo


@pytest.mark.parametrize(
    ("name", "wrong"), [("folder", 3), ("folder", ""), ("budget", 0), ("budget", -1), ("budget", 1.5), ("budget", True)]
)
def test_settings_out_of_range_are_refused(name: str, wrong: Any) -> None:
    assert f"{name}={wrong!r}" in refusal(ConfigError, lambda: Cache(**{name: wrong})).arrived


@pytest.mark.parametrize("where", ["auto", "ram"])
def test_a_folder_for_what_stays_in_memory_is_refused(tmp_path: Path, where: Any) -> None:
    assert f"where={where!r}" in refusal(ConfigError, lambda: Cache(where, tmp_path)).arrived


def test_the_folder_is_that_for_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache("disk").place == tmp_path / "headstart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Cache("disk").place == Path.home() / ".cache" / "headstart"
    assert as_cache(None) is None
    assert as_cache("ram") == Cache("ram")


# Pictures that cannot be read


def test_all_that_cannot_be_read_are_told_at_once(folder: Path) -> None:
    cut = folder / "val" / "circle" / "24.jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    (folder / "train" / "square" / "01.jpg").write_bytes(b"no picture")
    error = refusal(DataError, lambda: filled(folder, "ram"))
    assert "2 of 14 pictures cannot be read" in error.arrived
    assert "24.jpg' (" in error.arrived
    assert "01.jpg' (not a picture" in error.arrived


def test_those_to_be_passed_over_are(folder: Path) -> None:
    (folder / "train" / "square" / "01.jpg").write_bytes(b"no picture")
    data = filled(folder, "ram", on_error="skip")
    assert same(epochs(data), epochs(shapes(folder, None, on_error="skip")))
    (folder / "train" / "square" / "02.jpg").write_bytes(b"no picture")
    (folder / "train" / "square" / "03.jpg").write_bytes(b"no picture")
    assert "3 of 10" in refusal(DataError, lambda: filled(folder, "ram", on_error="skip")).arrived


# Several processes


def _fill(folder: Path, kept: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert same(epochs(filled(folder, Cache("disk", kept))), epochs(shapes(folder, None)))


def test_two_that_write_the_same_file_both_end_right(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_fill, args=(folder, tmp_path / "kept")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len([*(tmp_path / "kept").iterdir()]) == 2
    _fill(folder, tmp_path / "kept")


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_processes_that_are_not_forked_give_the_same(folder: Path, tmp_path: Path, where: Any) -> None:
    memo = filled(folder, placed(where, tmp_path / "kept")).memos["train"]
    other = pickle.loads(pickle.dumps(memo))  # noqa: S301 - as the loader's processes are given it
    assert (other.store is None) == (where == "ram")
    assert all(torch.equal(memo.sample(number)[0], other.sample(number)[0]) for number in range(len(memo)))


@pytest.mark.parametrize("is_ours_alone", [True, False])
def test_what_nobody_has_used_for_a_month_is_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ours_alone: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = Cache("disk", None if is_ours_alone else tmp_path / "headstart")
    filled(folder, cache)
    used, unused = stored(cache.place)
    left, own = cache.place / f".{'0' * 32}.pixels.12ab", cache.place / "notes.pixels"
    half = cache.place / ".tmpAb3dE6"  # what safetensors was at
    for path in (left, own, half):
        path.write_text("")
    for path in (used, unused, left, own, half):
        os.utime(path, (time.time() - 31 * 24 * 3600,) * 2)
    data = shapes(folder, cache)
    data.prepare({"val"})  # used anew
    filled(folder, cache, image_size=48)
    assert used.exists()
    assert own.exists()
    assert not left.exists()
    assert half.exists() is not is_ours_alone  # other programs call their files so, too
    assert not unused.exists()


def test_those_used_last_stay_in_a_budget(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    filled(folder, Cache("disk", place))
    sizes = {path: path.stat().st_size for path in stored(place)}
    for age, path in enumerate(sizes, start=1):
        os.utime(path, (time.time() - 60 * age,) * 2)
    writing = place / f".{'0' * 32}.pixels.12ab"
    writing.write_bytes(bytes(1000))
    used, unused = sizes
    data = shapes(folder, Cache("disk", place, budget=sum(sizes.values()) + 1000), image_size=40)
    data.prepare({"val"})
    assert used.exists()
    assert not unused.exists()
    assert writing.exists()
    assert len(stored(place)) == 2


def test_a_file_that_another_run_has_swept_at_once_is_told_and_done_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_module, "open_store", lambda path, key: path.unlink(missing_ok=True))
    swept = filled(folder, Cache("disk", tmp_path / "kept"))
    assert "was gone as soon as it was written" in capsys.readouterr().out
    assert same(epochs(swept), epochs(shapes(folder, None)))


def test_one_that_cannot_be_read_back_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_module, "open_store", lambda path, key: None)
    assert same(epochs(filled(folder, Cache("disk", tmp_path / "kept"))), epochs(shapes(folder, None)))
    assert "cannot be read: pictures are decoded in every epoch" in capsys.readouterr().out


def test_a_file_that_is_written_anew_needs_no_room_beside_itself(tmp_path: Path) -> None:
    files = [tmp_path / f"{digit * 32}.features" for digit in "0123"]
    for age, (file, size) in enumerate(zip(files, (100, 100, 100, 50), strict=True)):
        file.write_bytes(bytes(size))
        os.utime(file, (time.time() - 60 * age,) * 2)
    Cache("disk", tmp_path, budget=350).sweep(200, files[0])
    assert [file.exists() for file in files] == [True, True, False, True]  # what is older and fits stays


# In memory


def test_pictures_larger_than_a_block_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.data.store._BLOCK", 1000)
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 20, 30), (3, 2, 3), (3, 5, 60), (3, 18, 18), (3, 1, 9), (3, 40, 40)]
    pictures = [torch.randint(256, size, generator=generator).to(torch.uint8) for size in sizes]
    store = keep_in_memory([(picture, (number, 0)) for number, picture in enumerate(pictures)], most=10_000)
    assert all(torch.equal(store.read(n, (n, 0)), picture) for n, picture in enumerate(pictures))  # type: ignore[arg-type]
    assert store.read(1, (1, 1)) is None
    assert store.size == sum(picture.numel() for picture in pictures)


def test_a_second_network_with_another_frame_takes_the_room_of_the_first(folder: Path) -> None:
    data = filled(folder, "ram")
    small = data.memos["train"]
    assert data.preprocessing is None
    other = replace(data, image_size=64)
    other.prepare()
    assert other.memos["train"] is not small
    assert same(epochs(other), epochs(shapes(folder, None, image_size=64)))
    assert same(epochs(data), epochs(shapes(folder, None)))


@pytest.mark.parametrize("denied", ["exists", "iterdir"])
def test_a_folder_that_one_may_not_look_into_is_told_and_done_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], denied: str
) -> None:
    place, own = tmp_path / "kept", getattr(Path, denied)
    place.mkdir()

    def refuse(path: Path, *given: Any) -> Any:
        if path == place:
            raise PermissionError(13, "Permission denied", str(path))
        return own(path, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Path, denied, refuse)
        data = filled(folder, Cache("disk", place))
    assert same(epochs(data), epochs(shapes(folder, None)))
    assert "the cache's folder cannot be used: [Errno 13] Permission denied" in capsys.readouterr().out
