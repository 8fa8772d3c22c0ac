"""Every way to vary a picture gives what a batch can hold: pixels of the network's size, or the user's own floats."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2

from headstart.data.augment import PRESETS, RandomCrop, check_augment, eval_view, least_side, named_steps, train_view
from headstart.data.decode import open_picture
from headstart.data.preprocessing import Preprocessing, to_pixels
from headstart.errors import ConfigError, DataError
from headstart.randomness import preserved, seed_sample

NAMES = ["crop", "flip", "vflip", "rotate", "color", "randaugment", "trivialaugment", "erase"]
SMALL = Preprocessing(image_size=(48, 48), resize=(54, 54))
WIDE = Preprocessing(image_size=(40, 64), resize=(40, 64), crop="squash", interpolation="bicubic")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def coloured(width: int = 90, height: int = 70) -> Image.Image:
    """Make a picture with soft and hard parts, no side like another."""
    chance = np.random.default_rng([width, height])
    low = Image.fromarray(chance.integers(1, 255, size=(5, 7, 3), dtype=np.uint8))
    return low.resize((width, height), Image.Resampling.BILINEAR)


def seen(view: Callable[[Any], Tensor], picture: Any, seed: int = 0) -> Tensor:
    """Look at a picture with a seed, as a loader does."""
    with preserved():
        seed_sample(seed)
        return view(picture)


def plainly(image: Any) -> Any:
    return image


# By name


@pytest.mark.parametrize("preprocessing", [SMALL, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize("augment", [*NAMES, *PRESETS, NAMES])
def test_named_augmentations_give_pixels_of_the_networks_size(
    augment: str | list[str], preprocessing: Preprocessing
) -> None:
    view = train_view(preprocessing, augment)
    pictures: list[Any] = [coloured(width, height) for width, height in [(90, 70), (1, 1), (200, 2), (2, 200)]]
    pictures += [to_pixels(pictures[0]), to_pixels(pictures[0])[:1], torch.full((4, 9, 200), 7, dtype=torch.uint8)]
    for picture in pictures:
        for seed in range(4):
            result = seen(view, picture, seed)
            assert (result.dtype, tuple(result.shape)) == (torch.uint8, (3, *preprocessing.image_size))


@pytest.mark.parametrize("augment", [*NAMES, *PRESETS])
def test_a_seed_decides_all_of_a_named_augmentation(augment: str) -> None:
    view = train_view(SMALL, augment)
    results = [seen(view, coloured(), seed) for seed in range(20)]
    assert all(torch.equal(result, seen(view, coloured(), seed)) for seed, result in enumerate(results))
    assert any(not torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("augment", NAMES)
def test_a_picture_and_its_pixels_are_varied_alike(augment: str) -> None:
    view, picture = train_view(SMALL, augment), coloured()
    assert torch.equal(seen(view, picture, 3), seen(view, to_pixels(picture), 3))


@pytest.mark.parametrize(("augment", "axis"), [("flip", 2), ("vflip", 1), ("light", 2)])
def test_a_flipped_picture_is_what_evaluation_sees_or_its_mirror_image(augment: str, axis: int) -> None:
    plain = eval_view(SMALL)(coloured())
    results = [seen(train_view(SMALL, augment), coloured(), seed) for seed in range(20)]
    mirrored = [torch.equal(result, plain.flip(axis)) for result in results]
    assert all(flipped or torch.equal(result, plain) for flipped, result in zip(mirrored, results, strict=True))
    assert {True, False} == set(mirrored)


def test_a_crop_takes_colours_from_the_picture_and_adds_none() -> None:
    even = Image.new("RGB", (300, 200), (10, 20, 30))
    for seed in range(10):
        assert seen(train_view(WIDE, "crop"), even, seed).unique(dim=1).tolist() == [
            [[10] * 64],
            [[20] * 64],
            [[30] * 64],
        ]


@pytest.mark.parametrize("augment", ["erase", "rotate"])
def test_what_is_erased_or_rotated_in_is_filled_with_the_mean_colour(augment: str) -> None:
    even = Image.new("RGB", (48, 48), (10, 20, 30))
    colours = {
        tuple(colour)
        for seed in range(20)
        for colour in seen(train_view(Preprocessing((48, 48), (48, 48)), augment), even, seed).flatten(1).T.tolist()
    }
    mean = tuple(round(255 * value) for value in SMALL.mean)
    assert {(10, 20, 30), mean} <= colours
    if augment == "erase":
        assert colours == {(10, 20, 30), mean}


def test_color_changes_colours_and_moves_nothing() -> None:
    halves = Image.new("RGB", (48, 48), (200, 60, 60))
    halves.paste((60, 60, 200), (0, 0, 24, 48))
    result = seen(train_view(Preprocessing((48, 48), (48, 48)), "color"), halves, 1)
    assert not torch.equal(result, to_pixels(halves))
    assert [len(half.flatten(1).unique(dim=1).T) for half in (result[:, :, :24], result[:, :, 24:])] == [1, 1]


def test_presets_are_spelt_out_and_nothing_happens_twice() -> None:
    assert named_steps("default") == ["crop", "flip"]
    assert named_steps("erase") == ["erase"]
    assert named_steps(["light", "color", "default", "flip"]) == ["flip", "color", "crop"]
    assert named_steps(("crop",)) == ["crop"]


def test_augmentations_happen_in_the_order_they_are_named() -> None:
    picture = coloured(48, 48)
    preprocessing = Preprocessing((48, 48), (48, 48))
    both = [seen(train_view(preprocessing, order), picture, 6) for order in (["rotate", "vflip"], ["vflip", "rotate"])]
    assert not torch.equal(*both)


@pytest.mark.parametrize(
    ("augment", "near"),
    [
        ("filp", "'flip'"),
        ("Default", "'default'"),
        (["flip", "colour"], "'color'"),
        ("", ""),
        ([], ""),
        ((), ""),
        (["flip", None], ""),
        ([["flip"]], ""),
        (["crop", plainly], ""),
        (5, ""),
        (True, ""),
        (False, ""),
        ({"flip": 0.5}, ""),
        ({"flip", "crop"}, ""),
    ],
)
def test_what_is_no_augmentation_is_refused_with_the_nearest_name(augment: Any, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_augment(augment)
    assert all((caught.value.arrived, caught.value.needed, caught.value.todo))
    assert "augment=" in caught.value.arrived
    assert "randaugment" in caught.value.needed
    assert near in caught.value.todo


@pytest.mark.parametrize("augment", [None, "strong", ["flip"], plainly, transforms.ToTensor(), nn.Identity()])
def test_what_can_vary_a_picture_is_let_through(augment: Any) -> None:
    check_augment(augment)


# Presizing


def test_training_pictures_keep_room_around_what_the_network_sees_and_what_evaluation_cuts_from() -> None:
    assert least_side(Preprocessing()) == 256
    assert least_side(Preprocessing().at_size(96)) == 110
    assert least_side(Preprocessing((224, 224), (320, 320))) == 320
    assert least_side(Preprocessing((100, 224), (100, 224), crop="squash")) == 256


@pytest.mark.parametrize(
    ("size", "expected"),
    [((90, 70), (71, 55)), ((56, 55), (56, 55)), ((40, 900), (40, 900)), ((1, 1), (1, 1)), ((3000, 600), (275, 55))],
)
def test_large_pictures_are_shrunk_before_they_are_cropped(size: tuple[int, int], expected: tuple[int, int]) -> None:
    view: Any = train_view(SMALL, "crop")
    assert least_side(SMALL) == 55
    assert tuple(view.frame(coloured(*size)).shape) == (3, *expected[::-1])


@pytest.mark.parametrize("preprocessing", [SMALL, WIDE], ids=["square", "wide"])
def test_shrinking_gives_what_torchvision_gives(preprocessing: Preprocessing) -> None:
    picture = coloured(300, 200)
    view: Any = train_view(preprocessing, "crop")
    least = least_side(preprocessing)
    expected = v2.functional.resize(to_pixels(picture), [least, round(least * 1.5)], preprocessing.mode)
    assert torch.equal(view.frame(picture), expected)


# Crops


def test_a_crop_is_the_part_that_was_drawn_as_torchvision_resizes_it() -> None:
    pixels, crop = to_pixels(coloured(56, 55)), RandomCrop((48, 48), SMALL.mode)
    for seed in range(20):
        box = seen(lambda pixels: crop.draw(*pixels.shape[1:]), pixels, seed)
        expected = v2.functional.resized_crop(pixels, *box, size=[48, 48], interpolation=SMALL.mode)
        assert (seen(crop, pixels, seed).int() - expected.int()).abs().max() <= 1  # it has two kernels
    assert torch.equal(seen(train_view(SMALL, "crop"), coloured(56, 55), 5), seen(crop, pixels, 5))


def torchvisions(crop: v2.RandomResizedCrop, size: tuple[int, int]) -> tuple[int, ...]:
    """Draw a part of a picture as torchvision does."""
    box = crop.make_params([tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))])
    return tuple(box[name] for name in ("top", "left", "height", "width"))


@pytest.mark.parametrize("size", [(375, 500), (300, 300), (256, 700), (40, 30)])
def test_crops_are_drawn_like_those_of_torchvision(size: tuple[int, int]) -> None:
    height, width = size
    theirs = v2.RandomResizedCrop((48, 48), scale=(0.35, 1.0))
    ours = RandomCrop((48, 48), SMALL.mode)

    def drawn(draw: Callable[[], Sequence[int]]) -> np.ndarray:
        with preserved():
            seed_sample(1)
            top, left, high, wide = np.array([draw() for _ in range(4000)], float).T
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + high <= height).all()
        assert (left + wide <= width).all()
        return np.stack([top, left, high, wide, high * wide, np.log(wide / high)])

    mine = drawn(lambda: ours.draw(height, width))
    other = drawn(lambda: torchvisions(theirs, size))
    error = np.sqrt((mine.var(1) + other.var(1)) / 4000)
    assert (np.abs(mine.mean(1) - other.mean(1)) <= 4 * error).all()
    spread = np.abs(mine.std(1) / other.std(1) - 1)
    assert (spread < 0.1).all()


@pytest.mark.parametrize("size", [(10, 900), (900, 10), (1, 1), (2, 5)])
def test_of_a_picture_too_long_for_any_part_the_middle_is_taken(size: tuple[int, int]) -> None:
    ours = RandomCrop((48, 48), SMALL.mode, area=(1.0, 1.0)).draw(*size)
    assert ours == torchvisions(v2.RandomResizedCrop((48, 48), scale=(1.0, 1.0)), size)


def test_decoding_smaller_never_goes_below_what_a_flipped_picture_is_framed_from(tmp_path: Path) -> None:
    preprocessing = Preprocessing((32, 32), (60, 60))
    path = tmp_path / "a.jpg"
    coloured(130, 130).save(path)
    assert min(open_picture(path, least_side(preprocessing)).size) >= 60


# Floats are final


FLOATS = [torch.rand(3, 9, 7), torch.rand(1, 48, 48).double(), torch.rand(5, 8, 8).half(), torch.full((3, 2, 2), 99.0)]


@pytest.mark.parametrize("augment", [None, "default", "strong", ["flip"], transforms.RandomErasing(p=1.0)])
@pytest.mark.parametrize("picture", FLOATS)
def test_float_tensors_are_final_for_every_view(picture: Tensor, augment: Any) -> None:
    before = picture.clone()
    assert train_view(SMALL, augment)(picture) is picture
    assert eval_view(SMALL, augment if callable(augment) else None)(picture) is picture
    assert torch.equal(picture, before)


# The user's own pipelines


def tutorial(size: int) -> transforms.Compose:
    """Make the pipeline that every tutorial trains with."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def modern(size: int) -> v2.Compose:
    """Make the same in torchvision's newer words."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


@pytest.mark.parametrize("size", [48, 33])
@pytest.mark.parametrize("make", [tutorial, modern])
def test_the_pipeline_of_every_tutorial_is_final_whatever_its_size(make: Callable[[int], Any], size: int) -> None:
    pipeline = make(size)
    for view in (train_view(SMALL, pipeline), eval_view(SMALL, pipeline)):
        result = seen(view, coloured(), 4)
        assert result.dtype == torch.float32
        assert torch.equal(result, seen(pipeline, coloured(), 4))


@pytest.mark.parametrize(
    "pipeline",
    [
        plainly,
        lambda picture: picture.rotate(90),
        transforms.Compose([transforms.ColorJitter(0.4)]),
        transforms.RandomResizedCrop(30),
        v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(30, antialias=True)]),
        nn.Sequential(v2.PILToTensor(), v2.RandomHorizontalFlip(1.0)),
        v2.ToImage(),
    ],
)
def test_8_bit_results_of_a_pipeline_are_brought_to_the_networks_size(pipeline: Callable[[Any], Any]) -> None:
    result = seen(train_view(WIDE, pipeline), coloured(), 2)
    expected = eval_view(WIDE)(seen(pipeline, coloured(), 2))
    assert type(result) is Tensor
    assert (result.dtype, tuple(result.shape)) == (torch.uint8, (3, 40, 64))
    assert torch.equal(result, expected)


def test_8_bit_results_that_have_the_networks_size_are_left_as_they_are() -> None:
    picture = coloured(48, 48)
    assert not torch.equal(eval_view(SMALL)(picture), to_pixels(picture))
    assert torch.equal(train_view(SMALL, plainly)(picture), to_pixels(picture))
    assert torch.equal(train_view(SMALL, to_pixels)(picture), to_pixels(picture))
    assert torch.equal(eval_view(SMALL, plainly)(picture), to_pixels(picture))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_a_pipeline_may_give_pictures_of_any_mode(mode: str) -> None:
    result = train_view(SMALL, lambda picture: picture.convert(mode))(coloured(48, 48))
    assert (result.dtype, tuple(result.shape)) == (torch.uint8, (3, 48, 48))
    assert torch.equal(result, to_pixels(coloured(48, 48).convert(mode).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_pipeline_may_give_arrays_of_8_bits_as_a_dataset_may(mode: str) -> None:
    for size in ((48, 48), (70, 50)):
        picture = coloured(*size).convert(mode)
        expected = train_view(SMALL, lambda picture: picture.convert(mode))(picture.convert("RGB"))
        array = np.asarray(picture)
        assert torch.equal(train_view(SMALL, lambda _: array)(picture), expected)  # noqa: B023
        assert torch.equal(eval_view(SMALL, lambda _: array)(picture), expected)  # noqa: B023
    assert torch.equal(
        train_view(SMALL, lambda _: np.full((48, 48, 1), 9, np.uint8))(picture), torch.full((3, 48, 48), 9)
    )


def test_a_pipeline_gets_pixels_of_a_dataset_as_they_are() -> None:
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    got: list[Any] = []
    train_view(SMALL, lambda picture: got.append(picture) or picture)(pixels)
    assert got == [pixels]
    assert got[0] is pixels


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (None, "NoneType"),
        ("a.jpg", "str"),
        (np.zeros((48, 48, 3)), "float64 array [48, 48, 3]"),
        (np.zeros((3, 48, 48), np.uint8), "uint8 array [3, 48, 48]"),
        (torch.rand(48, 48, 3), "float32 tensor [48, 48, 3]"),
        ((torch.rand(3, 48, 48), 1), "tuple"),
        ({"image": torch.rand(3, 48, 48)}, "dict"),
        (torch.zeros(3, 48, 48, dtype=torch.int64), "int64 tensor [3, 48, 48]"),
        (torch.zeros(3, 48, 48, dtype=torch.bool), "bool tensor [3, 48, 48]"),
        (torch.zeros(48, 48, 3, dtype=torch.uint8), "uint8 tensor [48, 48, 3]"),
        (torch.zeros(48, 48, dtype=torch.uint8), "uint8 tensor [48, 48]"),
        (torch.rand(48, 48), "float32 tensor [48, 48]"),
        (torch.rand(1, 3, 48, 48), "float32 tensor [1, 3, 48, 48]"),
        (torch.rand(3, 0, 48), "float32 tensor [3, 0, 48]"),
    ],
)
def test_a_pipeline_that_makes_no_picture_is_refused(result: object, told: str) -> None:
    for view in (train_view(SMALL, lambda _: result), eval_view(SMALL, lambda _: result)):
        with pytest.raises(DataError) as caught:
            view(coloured())
        assert all((caught.value.arrived, caught.value.needed, caught.value.todo))
        assert told in caught.value.arrived


def test_what_a_pipeline_raises_passes_through() -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train_view(SMALL, broken)(coloured())


# Evaluation


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    assert torch.equal(train_view(SMALL, None)(coloured()), eval_view(SMALL)(coloured()))


@pytest.mark.parametrize("preprocessing", [SMALL, WIDE])
def test_evaluation_sees_the_weights_own_crop_of_pictures_and_of_pixels(preprocessing: Preprocessing) -> None:
    expected = to_pixels(preprocessing.geometry()(coloured()))
    assert torch.equal(eval_view(preprocessing)(coloured()), expected)
    assert torch.equal(eval_view(preprocessing)(to_pixels(coloured())), expected)


def test_evaluation_draws_no_numbers() -> None:
    before = torch.get_rng_state()
    eval_view(SMALL)(coloured())
    assert torch.equal(torch.get_rng_state(), before)


# Travelling


@pytest.mark.parametrize(
    "augment", [None, *NAMES, *PRESETS, tutorial(20), modern(20), transforms.ColorJitter(0.3), plainly]
)
def test_views_travel_to_the_workers_of_every_system(augment: str | Sequence[str] | Any) -> None:
    views = [train_view(WIDE, augment), eval_view(WIDE, augment if callable(augment) else None)]
    for view in views:
        arrived = pickle.loads(pickle.dumps(view))  # noqa: S301 - bytes made on the same line
        assert torch.equal(seen(arrived, coloured(), 8), seen(view, coloured(), 8))


def test_pictures_of_torchvisions_own_tensor_type_are_tensors() -> None:
    pixels = tv_tensors.Image(to_pixels(coloured()))
    for augment in (None, "default", "strong"):
        assert tuple(seen(train_view(SMALL, augment), pixels).shape) == (3, 48, 48)
