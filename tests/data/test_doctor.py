"""What is said where training waits for its pictures: measured times are made by hand, and pictures are real files."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SHAPES
from handmade import same, weights

from headstart import ImageData, Learner
from headstart.data import doctor
from headstart.data.doctor import diagnose as diagnose_fit
from headstart.data.loading import Pace, SourceBatches
from headstart.data.preprocessing import Preprocessing
from headstart.training import companions

TWO_THIRDS = Pace(waited=6.0, worked=3.0, pictures=1000)


def diagnose(data: ImageData, pace: Pace, processes: int, free_cores: int, epochs: int = 3, takes: bool = True) -> str:
    return diagnose_fit(data, pace, processes, (free_cores + 1, 1), epochs, lambda side: takes)


def data_of(folder: Path, **options: Any) -> ImageData:
    return ImageData.from_folder(folder, **{"image_size": 96, "batch_size": 8, "workers": 0, "cache": None, **options})


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that a machine has this many processor cores, which all share enough memory."""

    def pretend(count: int) -> None:
        monkeypatch.setattr("headstart.data.loading.cores", lambda: count)
        monkeypatch.setattr("headstart.data.loading.sys.platform", "linux")
        monkeypatch.setattr("headstart.data.loading._shared_memory", lambda: 10**12)

    return pretend


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that a clock counts these milliseconds for reading and framing a picture, and for varying it."""

    def pretend(opening: float, varying: float) -> None:
        monkeypatch.setattr(doctor, "_measured", lambda source, view: doctor._Parts(opening, varying))

    return pretend


# What is said.


@pytest.mark.parametrize("waited", [0.0, 1.0, 3.0])
def test_nothing_is_said_where_training_hardly_waits(shapes_folder, waited):
    assert diagnose(data_of(shapes_folder), Pace(waited, 9.0, 1000), 0, 8) == ""


@pytest.mark.parametrize(
    "failure",
    [MemoryError(), OSError(24, "Too many open files"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_what_it_cannot_measure_for_want_of_something_it_does_without(shapes_folder, monkeypatch, failure):
    def sample(self, place, side=None):
        raise failure

    monkeypatch.setattr("headstart.data.sources.FolderSource.sample", sample)
    assert "training waits for its pictures 67% of the time" in diagnose(data_of(shapes_folder), TWO_THIRDS, 0, 0)


def test_what_costs_most_is_named_with_what_it_would_bring(shapes_folder, costs, cores):
    cores(1)
    costs(opening=5, varying=1)
    assert diagnose(data_of(shapes_folder), TWO_THIRDS, 0, 0) == (
        # 9 ms a picture, 6 of them to prepare it; kept, one of these 6 is left: 9 / 4.
        "training waits for its pictures 67% of the time: preparing one takes 6.0 ms. "
        "With cache='disk' the next epochs would be about 2.2 times as fast"
    )


def test_processes_beside_training_hide_what_they_do(shapes_folder, costs, cores):
    cores(9)
    costs(opening=1, varying=1)
    said = diagnose(data_of(shapes_folder), TWO_THIRDS, 0, 8)
    assert said.endswith("With workers=8 training would be about 3.0 times as fast")
    # Two that cannot keep up set the pace of 9 ms: 18 ms a picture each, so 8 take 2.25 ms, less than training's 3.
    said = diagnose(data_of(shapes_folder, workers=2), TWO_THIRDS, 2, 8)
    assert "preparing one takes 18.0 ms, in 2 processes" in said
    assert said.endswith("With workers=8 training would be about 3.0 times as fast")


def test_of_two_changes_that_bring_nearly_as_much_the_one_that_changes_less_is_named(shapes_folder, costs, cores):
    cores(9)
    costs(opening=60, varying=1)
    said = diagnose(data_of(shapes_folder), TWO_THIRDS, 0, 8)
    assert said.endswith("With cache='disk' the next epochs would be about 2.9 times as fast")  # workers=8: 3.0 times


def test_processes_that_share_the_cores_with_training_become_faster_with_less_to_do(shapes_folder, costs, cores):
    cores(8)
    costs(opening=5, varying=1)
    said = diagnose(data_of(shapes_folder, workers=7), TWO_THIRDS, 7, 0)
    assert "preparing one takes 63.0 ms, in 7 processes" in said
    assert said.endswith("With cache='disk' the next epochs would be about 3.0 times as fast")


def test_keeping_is_not_advised_in_the_last_epoch_nor_where_the_disk_was_refused(shapes_folder, costs, cores):
    cores(1)
    costs(opening=5, varying=1)
    assert "cache=" not in diagnose(data_of(shapes_folder), TWO_THIRDS, 0, 0, epochs=0)
    assert "cache=" not in diagnose(data_of(shapes_folder, cache="disk"), TWO_THIRDS, 0, 0)


def test_where_memory_had_no_room_the_disk_is_named(shapes_folder, costs, cores, monkeypatch):
    costs(8, 1)
    cores(1)
    monkeypatch.setattr("headstart.data.cache.free_memory", lambda: 0)
    data = data_of(shapes_folder, cache="auto", image_size=32)
    data.prepare()
    assert "cache='disk'" in diagnose(data, TWO_THIRDS, 0, 0)


def test_smaller_pictures_are_advised_only_to_a_network_that_takes_them(shapes_folder, cores, monkeypatch):
    cores(1)
    data = data_of(shapes_folder).bind(Preprocessing().at_size(128))
    measured = [doctor._Parts(4, 0), doctor._Parts(2, 0)] * 2
    monkeypatch.setattr(doctor, "_measured", lambda source, view: measured.pop(0))
    said = diagnose(data, TWO_THIRDS, 0, 0, epochs=0)
    # 9 ms a picture, 6 of them to prepare it, and half of that for smaller ones: 9 / 6.
    assert said.endswith("With image_size=96 training would be about 1.5 times as fast, and learn from other pictures")
    assert "image_size=" not in diagnose(data, TWO_THIRDS, 0, 0, epochs=0, takes=False)


def test_processes_are_not_advised_where_training_has_every_core(shapes_folder, costs, cores):
    cores(8)
    costs(opening=5, varying=1)
    assert "cache='disk'" in diagnose(data_of(shapes_folder), TWO_THIRDS, 0, 0)


def test_costly_augmentation_and_large_pictures_are_measured_against_lighter_ones(shapes_folder, cores):
    cores(1)
    data = data_of(shapes_folder, augment="strong", cache="ram")
    data.prepare()
    said = diagnose(data, TWO_THIRDS, 0, 0)
    assert "With augment='default'" in said or "With image_size=64" in said
    plain = data_of(shapes_folder, cache="ram", image_size=512)
    plain.prepare()
    assert "augment=" not in diagnose(plain, TWO_THIRDS, 0, 0)


def test_where_nothing_would_help_it_says_what_else_might(shapes_folder, cores):
    cores(1)
    data = data_of(shapes_folder, augment=lambda picture: picture)
    assert diagnose(data, TWO_THIRDS, 0, 0).endswith(
        "No setting would help much: a lighter pipeline would, smaller files, or more cores"
    )


def test_what_is_the_users_own_is_not_called_to_be_measured(shapes_folder, shapes, cores):
    cores(8)
    calls = []
    pipeline = data_of(shapes_folder, augment=lambda picture: calls.append(picture) or picture)

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(shapes["train"])

        def __getitem__(self, index):
            calls.append(index)
            return shapes["train"][index]

    dataset = ImageData.from_datasets(Pictures(), classes=SHAPES, image_size=32, workers=0)
    for data in (pipeline, dataset):
        assert "workers=" in diagnose(data, TWO_THIRDS, 0, 7)
    assert not calls


def test_a_core_that_waits_may_prepare_pictures_too(shapes_folder, cores):
    cores(2)
    slow = data_of(shapes_folder, augment=lambda picture: picture)
    # Each second of training takes both cores: 1,000 pictures 8.5 + 2 x 1.5 of theirs, 5.75 s where neither waits.
    said = diagnose_fit(slow, Pace(waited=8.5, worked=1.5, pictures=1000), 0, (2, 2), 3, lambda side: True)
    assert said.endswith("With workers=2 training would be about 1.7 times as fast")
    said = diagnose_fit(slow, Pace(waited=4.5, worked=5.5, pictures=1000), 0, (2, 2), 3, lambda side: True)
    assert said.endswith("With workers=1 training would be about 1.3 times as fast")  # 7.75 s, with one or two


def test_measuring_draws_nothing(shapes_folder):
    data, chance = data_of(shapes_folder), torch.default_generator.get_state()
    parts = doctor._measured(data.part("train"), data.train_view)
    assert parts.opening > 0
    assert parts.varying > 0
    assert torch.equal(chance, torch.default_generator.get_state())


def test_pictures_that_cannot_be_read_are_passed_over(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(5):
            (tmp_path / label / f"{number}.jpg").write_bytes(b"no picture")
    data = data_of(tmp_path)
    assert doctor._measured(data.part("train"), data.train_view) is None
    assert "No setting" in diagnose(data, TWO_THIRDS, 0, 0)


# How the time is counted, and when it is said.


def test_waiting_and_working_are_told_apart(shapes_folder):
    class Slow:
        def __call__(self, picture):
            time.sleep(0.005)
            return torch.zeros(3, 8, 8)

    part = data_of(shapes_folder).part("train")
    batches = SourceBatches(part, Slow(), 24, seed=0)
    for _ in batches.epoch(1, 0):
        time.sleep(0.05)
    pace = batches.pace
    assert pace.pictures == 48  # of 72: those of the first batch are not counted, for processes start with it
    assert pace.waited >= 48 * 0.005
    assert pace.worked >= 2 * 0.05
    assert pace.seconds == pace.waited + pace.worked


def slow_data(shapes: Any) -> ImageData:
    def crawl(picture: Any) -> Any:
        time.sleep(0.002)
        return picture

    return ImageData.from_datasets(
        **shapes, classes=SHAPES, image_size=32, batch_size=4, workers=0, augment=crawl, eval_transform=crawl
    )


def test_a_fit_says_it_once_and_learns_the_same(shapes, tiny_network, monkeypatch, capsys):
    ends = []
    for after in (float("inf"), 0.05):
        monkeypatch.setattr(companions, "AFTER", after)
        learner = Learner(tiny_network(), slow_data(shapes), device="cpu")
        learner.fit(2, 1e-3, verbose=False)
        ends.append(weights(learner))
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training waits")]
        assert len(said) == (0 if after > 1 else 1)
    assert same(*ends)
