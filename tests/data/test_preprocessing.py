"""What evaluation makes of a picture is, bit for bit, what timm's and torchvision's own transforms make of it."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from handmade import refusal
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from torch import Tensor
from torchvision.transforms import InterpolationMode

from headstart.data.decode import open_picture
from headstart.data.preprocessing import Preprocessing, are_shaped, to_picture, to_pixels
from headstart.errors import BackboneError, DataError
from headstart.model.opened import Opened
from headstart.model.zoo import open_network

CPU = torch.device("cpu")


def coloured(width: int, height: int) -> Image.Image:
    """Make a picture with soft and hard parts, so that a wrong scale, crop or filter shows."""
    chance = np.random.default_rng([width, height])
    low = Image.fromarray(chance.integers(0, 256, size=(9, 11, 3), dtype=np.uint8))
    return low.resize((width, height), Image.Resampling.NEAREST if min(width, height) < 9 else Image.Resampling.BICUBIC)


ODD = [(1, 1), (1, 7), (31, 2), (2, 31), (64, 48), (97, 256), (224, 224), (256, 256), (300, 299), (640, 333)]
"""Widths and heights."""


def evaluated(preprocessing: Preprocessing, picture: Image.Image) -> Tensor:
    """Prepare a picture as evaluation does: geometry on 8 bits, arithmetic on a batch of one."""
    batch = to_pixels(preprocessing.geometry()(picture))[None]
    assert (batch.dtype, batch.shape) == (torch.uint8, (1, 3, *preprocessing.image_size))
    images: Tensor = preprocessing.normaliser(CPU)(batch)[0]
    return images


def timm_config(tag: str, **changes: Any) -> dict[str, Any]:
    """Give the data config of a tag, as `resolve_model_data_config` would for its network."""
    known = timm.get_pretrained_cfg(tag)
    assert known is not None
    config: dict[str, Any] = resolve_data_config(pretrained_cfg={**known.to_dict(), **changes})
    return config


CONFIGS = {
    "the usual": timm_config("resnet18.a1_in1k"),
    "bilinear": timm_config("resnet18.tv_in1k"),
    "another mean": timm_config("vit_base_patch16_224.augreg_in21k"),
    "0 and 1": timm_config("mobilevit_s.cvnets_in1k"),
    "0 and 1, bilinear": timm_config("mixer_b16_224.miil_in21k"),
    "uncropped": timm_config("convnext_tiny.in12k_ft_in1k", crop_pct=1.0),
    "wider than all": timm_config("volo_d4_448.sail_in1k"),
    "squash": timm_config("dm_nfnet_f0.dm_in1k"),
    "squash, uncropped": timm_config("convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384"),
    "border": timm_config("resnet18.a1_in1k", crop_mode="border", crop_pct=1.0),
    "border, cropped": timm_config("resnet18.a1_in1k", crop_mode="border", crop_pct=0.8, mean=(0.1, 0.5, 0.9)),
    "tall": timm_config("resnet18.a1_in1k", input_size=(3, 224, 160)),
    "wide, bilinear": timm_config("resnet18.tv_in1k", input_size=(3, 96, 200), crop_pct=0.9),
    "wide, squash": timm_config("resnet18.a1_in1k", input_size=(3, 96, 200), crop_mode="squash"),
    "wide, border": timm_config("resnet18.a1_in1k", input_size=(3, 96, 200), crop_mode="border"),
}
if tuple(int(part) for part in timm.__version__.split(".")[:3]) < (1, 0, 31):
    del CONFIGS["tall"]  # earlier releases resize to oblong sizes bilinearly, whatever the weights ask for
WEIGHTS = {
    f"{name}.{tag}": torchvision.models.get_model_weights(name)[tag]
    for name, tag in [
        ("resnet18", "IMAGENET1K_V1"),
        ("mobilenet_v2", "IMAGENET1K_V1"),
        ("mobilenet_v2", "IMAGENET1K_V2"),
        ("efficientnet_b0", "IMAGENET1K_V1"),
        ("efficientnet_v2_s", "IMAGENET1K_V1"),
        ("efficientnet_v2_l", "IMAGENET1K_V1"),
        ("vit_b_16", "IMAGENET1K_V1"),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
        ("inception_v3", "IMAGENET1K_V1"),
        ("vgg16", "IMAGENET1K_FEATURES"),
        ("swin_t", "IMAGENET1K_V1"),
    ]
}


@pytest.fixture(scope="session")
def photographs(assets: Path) -> list[Image.Image]:
    """Open a few real pictures of many sizes, the largest of all among them."""
    ants_bees = sorted((assets / "hymenoptera_data" / "train").rglob("*.jpg"), key=lambda path: path.stat().st_size)
    flowers = sorted((assets / "flowers" / "val").rglob("*.jpg"))
    return [open_picture(path) for path in (*ants_bees[::80], ants_bees[-1], *flowers[::40])]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_odd_pictures_become_what_timm_makes_of_them(config: dict[str, Any]) -> None:
    transform, preprocessing = create_transform(**config), Preprocessing.from_timm(config)
    for width, height in ODD:
        picture = coloured(width, height)
        assert torch.equal(evaluated(preprocessing, picture), transform(picture)), (width, height)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_photographs_become_what_timm_makes_of_them(config: dict[str, Any], photographs: list[Image.Image]) -> None:
    transform, preprocessing = create_transform(**config), Preprocessing.from_timm(config)
    for picture in photographs:
        assert torch.equal(evaluated(preprocessing, picture), transform(picture)), picture.size


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_odd_pictures_become_what_torchvision_makes_of_them(weights: Any) -> None:
    transform = weights.transforms()
    preprocessing = Preprocessing.from_torchvision(transform)
    for width, height in ODD:
        picture = coloured(width, height)
        assert torch.equal(evaluated(preprocessing, picture), transform(picture)), (width, height)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_photographs_become_what_torchvision_makes_of_them(weights: Any, photographs: list[Image.Image]) -> None:
    transform = weights.transforms()
    preprocessing = Preprocessing.from_torchvision(transform)
    for picture in photographs:
        assert torch.equal(evaluated(preprocessing, picture), transform(picture)), picture.size


# Every tag of both libraries


def timm_tags() -> dict[tuple[Any, ...], list[str]]:
    """Give all weights that timm lists, those together that expect the same of a picture."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for tag in timm.list_models(pretrained=True):
        groups.setdefault(tuple(timm_config(tag).items()), []).append(tag)
    return groups


def torchvision_weights() -> dict[str, Any]:
    """Give all weights of classification networks that torchvision has, by the name that opens them."""
    names = torchvision.models.list_models(module=torchvision.models)
    members = [(name, weights) for name in names for weights in torchvision.models.get_model_weights(name)]
    return {f"torchvision/{name}.{weights.name}": weights for name, weights in members}


@pytest.fixture(params=["an odd picture", "a photograph"])
def picture(request: pytest.FixtureRequest) -> Image.Image:
    """Give one picture that is drawn and a real one."""
    if request.param == "an odd picture":
        return coloured(211, 157)
    photograph: Image.Image = request.getfixturevalue("photographs")[1]
    return photograph


def test_pictures_become_what_timm_makes_of_them_for_every_tag_that_it_lists(picture: Image.Image) -> None:
    covered = []
    for expected, tags in timm_tags().items():
        config = dict(expected)
        found, wanted = evaluated(Preprocessing.from_timm(config), picture), create_transform(**config)(picture)
        assert torch.equal(found, wanted), tags
        covered += tags
    assert sorted(covered) == sorted(timm.list_models(pretrained=True))


def test_pictures_become_what_torchvision_makes_of_them_for_all_of_its_weights(picture: Image.Image) -> None:
    every = torchvision_weights()
    for name, weights in every.items():
        transform = weights.transforms()
        found, wanted = evaluated(Preprocessing.from_torchvision(transform), picture), transform(picture)
        assert torch.equal(found, wanted), name
    names = torchvision.models.list_models(module=torchvision.models)
    listed = [(name, tag) for name in names for tag in torchvision.models.get_model_weights(name).__members__]
    assert every.keys() == {f"torchvision/{name}.{tag}" for name, tag in listed if tag != "DEFAULT"}


def opened_without_values(tags: list[str]) -> Opened:
    """Open the first of these networks that has a classifier, without numbers."""
    for tag in tags:
        with suppress(BackboneError), torch.device("meta"):
            return open_network(tag, 3, pretrained=False)
    raise AssertionError(tags)


@pytest.mark.slow
def test_a_network_opened_by_a_tag_of_timm_expects_what_the_tag_says() -> None:
    for expected, tags in timm_tags().items():
        opened = opened_without_values(tags)
        assert opened.preprocessing == Preprocessing.from_timm(dict(expected)), opened.name


@pytest.mark.slow
def test_a_network_opened_by_a_tag_of_torchvision_expects_what_the_tag_says() -> None:
    trained = {name: weights for name, weights in torchvision_weights().items() if weights.meta["categories"]}
    kinds = {repr(weights.transforms()): name for name, weights in trained.items()}
    for name in kinds.values():
        preprocessing = Preprocessing.from_torchvision(trained[name].transforms())
        assert opened_without_values([name]).preprocessing == preprocessing, name


@pytest.mark.parametrize("size", [(4000, 2), (2, 4000)])
def test_stripes_become_what_the_libraries_make_of_them(size: tuple[int, int]) -> None:
    config = timm_config("resnet18.a1_in1k", input_size=(3, 48, 48))
    picture = coloured(*size)
    assert torch.equal(evaluated(Preprocessing.from_timm(config), picture), create_transform(**config)(picture))


def test_a_network_itself_tells_its_preprocessing() -> None:
    config = resolve_model_data_config(timm.create_model("test_vit.r160_in1k", pretrained=False))
    picture = coloured(200, 170)
    preprocessing = Preprocessing.from_timm(config)
    assert preprocessing.image_size == (160, 160)
    assert torch.equal(evaluated(preprocessing, picture), create_transform(**config)(picture))


def test_a_batch_is_normalised_as_its_pictures_are_one_by_one() -> None:
    config = CONFIGS["the usual"]
    transform, preprocessing = create_transform(**config), Preprocessing.from_timm(config)
    pictures = [coloured(width, height) for width, height in ODD]
    batch = torch.stack([to_pixels(preprocessing.geometry()(picture)) for picture in pictures])
    expected = torch.stack([transform(picture) for picture in pictures])
    assert torch.equal(preprocessing.normaliser(CPU)(batch), expected)
    assert torch.equal(preprocessing.normaliser(CPU)(batch.to(memory_format=torch.channels_last)), expected)


def test_every_pixel_value_is_normalised_as_torchvision_does() -> None:
    values = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[None, :, :, None]
    preprocessing = Preprocessing.from_torchvision(WEIGHTS["vgg16.IMAGENET1K_FEATURES"].transforms())
    expected = torchvision.transforms.functional.normalize(values / 255, preprocessing.mean, preprocessing.std)
    assert torch.equal(preprocessing.normaliser(CPU)(values), expected)


def test_normalising_leaves_the_batch_as_it_is() -> None:
    images = torch.full((2, 3, 4, 4), 200, dtype=torch.uint8)
    Preprocessing().normaliser(CPU)(images)
    assert images.eq(200).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_float_images_are_final_and_come_back_themselves(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 8, 8).to(dtype)
    before = images.clone()
    assert Preprocessing().normaliser(CPU)(images) is images
    assert torch.equal(images, before)


# Another size


@pytest.mark.parametrize("size", [96, 112, 448, 512])
@pytest.mark.parametrize("tag", ["resnet18.tv_in1k", "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384"])
def test_another_size_is_what_timm_makes_of_it(tag: str, size: int) -> None:
    config = timm_config(tag)
    other = {**config, "input_size": (3, size, size)}
    assert Preprocessing.from_timm(config).at_size(size) == Preprocessing.from_timm(other)


def test_another_size_scales_height_and_width_each_on_its_own() -> None:
    tall = Preprocessing(image_size=(200, 100), resize=(250, 110), crop="squash", interpolation="bicubic")
    assert tall.at_size((100, 100)) == replace(tall, image_size=(100, 100), resize=(125, 110))
    assert tall.at_size(50) == replace(tall, image_size=(50, 50), resize=(62, 55))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_same_size_changes_nothing(weights: Any) -> None:
    preprocessing = Preprocessing.from_torchvision(weights.transforms())
    assert preprocessing.at_size(preprocessing.image_size) == preprocessing


@pytest.mark.parametrize("crop", ["center", "squash", "border"])
def test_at_any_size_pictures_have_that_size(crop: Any) -> None:
    for size in (8, 33, (17, 90)):
        preprocessing = Preprocessing(crop=crop).at_size(size)
        assert evaluated(preprocessing, coloured(60, 40)).shape[1:] == preprocessing.image_size


# Plain values


@pytest.mark.parametrize(
    "preprocessing",
    [Preprocessing(), *map(Preprocessing.from_timm, CONFIGS.values())]
    + [Preprocessing.from_torchvision(weights.transforms()) for weights in WEIGHTS.values()],
)
def test_preprocessing_survives_a_json_file(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


def test_the_interpolation_has_torchvisions_name() -> None:
    assert Preprocessing().mode is InterpolationMode.BILINEAR
    assert Preprocessing(interpolation="bicubic").mode is InterpolationMode.BICUBIC


# Pictures and pixels


def test_pixels_are_those_of_the_picture_channels_first() -> None:
    picture = coloured(7, 5)
    pixels = to_pixels(picture)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 5, 7))
    assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(picture))


def test_a_picture_stays_itself_and_pixels_become_the_picture_they_were() -> None:
    picture = coloured(7, 5)
    assert to_picture(picture) is picture
    assert to_picture(to_pixels(picture)).tobytes() == picture.tobytes()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grey_and_transparent_pixels_become_rgb(channels: int) -> None:
    picture = to_picture(torch.full((channels, 5, 7), 80, dtype=torch.uint8))
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGB", (7, 5), (80, 80, 80))


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (7, 5, 3), (1, 3, 5, 7), (3, 0, 7), ()])
def test_pixels_that_are_no_picture_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        to_picture(torch.zeros(shape, dtype=torch.uint8))
    assert all((caught.value.arrived, caught.value.needed, caught.value.todo))
    assert str(list(shape)) in caught.value.arrived


def test_what_the_network_gets_can_be_looked_at() -> None:
    preprocessing = Preprocessing()
    pixels = to_pixels(coloured(8, 8))[None]
    colours = pixels.float() / 255
    assert torch.equal(preprocessing.visible(pixels), colours)
    seen = preprocessing.visible(preprocessing.normaliser(CPU)(pixels))
    assert torch.allclose(seen, colours, atol=1e-6)
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 1


def test_colours_that_cannot_be_shown_are_cut_off_and_greys_are_shown_as_colours() -> None:
    images = torch.tensor([-50.0, 0.0, 50.0]).view(1, 1, 1, 3).half()
    seen = Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3).visible(images)
    assert seen.tolist() == [[[[0.0, 0.5, 1.0]]] * 3]
    one = Preprocessing(mean=(0.5,), std=(0.25,)).visible(images)
    assert torch.equal(one, seen)
    greys = Preprocessing().visible(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8))
    assert torch.equal(greys, torch.full((2, 3, 4, 4), 0.2))


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_images_of_other_channels_cannot_be_looked_at(channels: int, dtype: torch.dtype) -> None:
    error = refusal(DataError, lambda: Preprocessing().visible(torch.zeros(2, channels, 8, 8, dtype=dtype)))
    assert f"[2, {channels}, 8, 8]" in error.arrived


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (2, 32, 40, 3), (2, 9, 6, 4), (28, 28, 1)])
def test_floats_whose_channels_come_last_are_not_shaped_like_pictures(shape: tuple[int, ...]) -> None:
    assert not are_shaped(torch.zeros(shape))


@pytest.mark.parametrize(
    "shape", [(2, 3, 8, 3), (2, 1, 28, 1), (4, 3, 3), (2, 13, 8, 8), (2, 512, 1, 1), (2, 64, 100, 1), (7, 2, 3)]
)
def test_floats_of_any_number_of_channels_are_shaped_like_pictures(shape: tuple[int, ...]) -> None:
    assert are_shaped(torch.zeros(shape))
