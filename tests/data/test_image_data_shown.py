"""Pictures can be looked at as the network gets them, and looking changes nothing."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import epoch, evaluated, refusal
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

from headstart import ImageData
from headstart.data.preprocessing import Preprocessing, to_pixels
from headstart.errors import ConfigError, DataError
from headstart.randomness import preserved, seed_sample

SMALL = Preprocessing(image_size=(32, 32), resize=(36, 36))
PAIR = (torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 1]))
DRAWS = [lambda: torch.rand(()).item(), random.random, np.random.random]  # one number from each generator


def folder(shapes_folder: Path, **settings: Any) -> ImageData:
    return ImageData.from_folder(shapes_folder, **{"batch_size": 16, "image_size": 32, "workers": 0, **settings})


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def drawn(figure: Figure) -> Tensor:
    """Give the pictures of a figure as `[pictures, 3, height, width]`."""
    arrays = [torch.as_tensor(axes.images[0].get_array().copy()) for axes in figure.axes]
    return torch.stack(arrays).permute(0, 3, 1, 2)


def test_examples_are_taken_evenly_and_seen_as_evaluation_sees_them(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    images, labels = data.examples("val", 3)
    expected = evaluated(data)
    assert labels == [0, 1, 2]
    assert torch.equal(images, expected[0][[0, 13, 26]])
    images, labels = data.examples("val", 100)
    assert torch.equal(images, expected[0])
    assert labels == expected[1].tolist()


@pytest.mark.parametrize("targets", [PAIR[1], torch.eye(3)[PAIR[1]]])
def test_examples_of_a_loader_are_the_first_it_gives(targets: Tensor) -> None:
    data = ImageData.from_loaders([(PAIR[0], targets), PAIR], classes=3)
    images, labels = data.examples("train", 3)
    assert torch.equal(images, PAIR[0][:3])
    assert labels == [0, 1, 2]


@pytest.mark.parametrize("count", [0, -1, 2.5, None])
def test_a_number_of_pictures_to_show_is_1_or_more(shapes_folder: Path, count: Any) -> None:
    data = folder(shapes_folder)
    assert refusal(ConfigError, lambda: data.examples("val", count)).arrived == f"pictures={count!r}"
    assert refusal(ConfigError, lambda: data.show_batch(count)).arrived == f"pictures={count!r}"


def test_examples_that_do_not_fit_together_are_refused() -> None:
    data = ImageData.from_datasets([(torch.rand(3, 4, 4), 0), (torch.rand(3, 5, 5), 1)], classes=2)
    assert "[3, 5, 5]" in refusal(DataError, lambda: data.examples("train", 2)).arrived
    assert "[3, 5, 5]" in refusal(DataError, lambda: data.show_batch(2)).arrived


def test_a_figure_shows_the_first_batch_of_training_with_its_class_names(shapes_folder: Path) -> None:
    data = folder(shapes_folder, batch_size=5)
    figure = data.show_batch(7)
    images, labels = epoch(folder(shapes_folder, batch_size=72).train_batches(seed=0), 1, 0)
    assert titles(figure) == [data.classes[label] for label in labels[:7]]
    assert torch.allclose(drawn(figure).float(), images[:7] / 255)


def test_a_figure_of_another_part_shows_all_of_it_evenly_by_the_book(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    figure = data.show_batch(part="val")
    images, labels = evaluated(data)
    places = [0, 2, 4, 7, 9, 11, 14, 16, 18, 21, 23, 26]
    assert titles(figure) == [data.classes[labels[place]] for place in places]
    assert set(titles(figure)) == set(data.classes)
    assert torch.allclose(drawn(figure).float(), images[places] / 255)
    assert "'test'" in refusal(ConfigError, lambda: data.show_batch(part="test")).arrived


@pytest.mark.parametrize("targets", [PAIR[1], torch.eye(3)[PAIR[1]]])
def test_a_figure_of_a_loader_shows_the_colours_behind_its_floats(targets: Tensor) -> None:
    colours = torch.rand(4, 3, 16, 16)
    mean, std = torch.tensor(SMALL.mean).view(3, 1, 1), torch.tensor(SMALL.std).view(3, 1, 1)
    data = ImageData.from_loaders([((colours - mean) / std, targets)], classes=["ant", "bee", "cat"])
    figure = data.show_batch(3)
    assert titles(figure) == ["ant", "bee", "cat"]
    assert torch.allclose(drawn(figure), colours[:3], atol=1e-5)


@pytest.mark.parametrize("part", ["train", "val"])
def test_images_that_cannot_be_looked_at_are_refused(part: str) -> None:
    batches = [(torch.rand(4, 5, 16, 16), PAIR[1])]
    data = ImageData.from_loaders(batches, batches, classes=3)
    assert "[3, 5, 16, 16]" in refusal(DataError, lambda: data.show_batch(3, part=part)).arrived


def test_a_number_of_pictures_to_show_may_be_numpys(shapes_folder: Path) -> None:
    data = folder(shapes_folder)
    count: Any = np.int64(3)
    assert len(titles(data.show_batch(count))) == len(titles(data.show_batch(count, part="val"))) == 3


def test_looking_at_pictures_moves_nobodys_random_numbers(shapes_folder: Path) -> None:
    shuffled = DataLoader(TensorDataset(*PAIR), batch_size=2, shuffle=True)
    chancy = transforms.Compose([transforms.RandomCrop(20, pad_if_needed=True), transforms.ToTensor()])
    with preserved():
        seed_sample(11)
        expected = [draw() for draw in DRAWS]
    with preserved():
        seed_sample(11)
        folder(shapes_folder, augment="strong").show_batch()
        folder(shapes_folder, augment=chancy).show_batch(3)
        folder(shapes_folder, eval_transform=chancy).show_batch(3, part="val")
        folder(shapes_folder, eval_transform=chancy).examples("val", 3)
        ImageData.from_loaders(shuffled, classes=3).show_batch()
        ImageData.from_loaders(shuffled, classes=3).examples("train", 2)
        assert [draw() for draw in DRAWS] == expected


def test_pixels_of_a_loader_are_shown_as_the_network_gets_them() -> None:
    pixels = torch.randint(0, 256, (2, 3, 50, 40), dtype=torch.uint8)
    data = ImageData.from_loaders([(pixels, torch.tensor([1, 0]))], classes=2).bind(SMALL)
    expected = torch.stack([to_pixels(SMALL.geometry()(transforms.ToPILImage()(picture))) for picture in pixels])
    assert torch.equal(epoch(data.train_batches(seed=0))[0], expected)
    assert torch.allclose(drawn(data.show_batch()).float(), expected / 255)
