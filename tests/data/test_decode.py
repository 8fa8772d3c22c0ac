"""Files and pictures of every kind become RGB, or an error that names them."""

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from handmade import png_header, refusal
from PIL import ExifTags, Image, ImageOps

from headstart.data.decode import demand_readable, open_picture, to_rgb, unreadable, upright
from headstart.errors import DataError


def coloured(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """Make a picture with soft and hard parts, so that a wrong scale, turn or channel shows."""
    low = np.random.default_rng(seed).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str, **settings: object) -> bytes:
    """Give the bytes of a picture file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def plain(path: Path) -> Image.Image:
    """Decode as torchvision's ImageFolder does."""
    with warnings.catch_warnings(), Image.open(path) as picture:
        warnings.simplefilter("ignore")
        return picture.convert("RGB")


def same(one: Image.Image, other: Image.Image) -> bool:
    return (one.mode, one.size, one.tobytes()) == (other.mode, other.size, other.tobytes())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_of_every_8_bit_mode_is_decoded_as_torchvision_does(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    coloured().convert(mode).save(path)
    assert same(open_picture(path), plain(path))


OLD_PILLOW = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="Pillow 12 cannot read what it wrote"
)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", pytest.param("YCbCr", marks=OLD_PILLOW), "LAB"])
def test_tiff_of_every_8_bit_mode_is_decoded_as_torchvision_does(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    (Image.new("LAB", (8, 8), (120, 30, 60)) if mode == "LAB" else coloured().convert(mode)).save(path)
    assert same(open_picture(path), plain(path))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_every_mode_is_decoded_as_torchvision_does(tmp_path: Path, mode: str, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    coloured().convert(mode).save(path, progressive=progressive)
    assert same(open_picture(path), plain(path))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF"])
def test_the_content_counts_and_not_the_suffix(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(coloured(), kind))
    assert same(open_picture(path), plain(path))
    assert unreadable([path]) == []


@pytest.mark.parametrize(("kind", "transparency"), [("PNG", 3), ("PNG", bytes(range(256))), ("GIF", 3)])
def test_a_transparent_palette_keeps_its_colours_without_a_warning(
    tmp_path: Path, kind: str, transparency: int | bytes
) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(encoded(coloured().quantize(256), kind, transparency=transparency))
    assert same(open_picture(path), plain(path))


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "HSV", "RGBX"])
def test_rarer_modes_in_memory_become_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (5, 4))).mode == "RGB"


def test_an_rgb_picture_in_memory_is_returned_itself() -> None:
    picture = coloured()
    assert to_rgb(picture) is picture


def test_transparency_is_dropped_and_not_blended() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (10, 20, 30, 0))).getpixel((0, 0)) == (10, 20, 30)


def test_a_picture_in_memory_is_not_turned() -> None:
    picture = Image.open(io.BytesIO(encoded(coloured(), "PNG", exif=oriented(6))))
    assert to_rgb(picture).size == (64, 48)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_greys_lose_their_lower_byte(tmp_path: Path, suffix: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 256 256 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    channels = np.asarray(open_picture(path))
    assert (channels == (values >> 8)[:, :, None]).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bit_greys_in_memory_are_scaled_whatever_their_byte_order(mode: str) -> None:
    assert to_rgb(Image.new(mode, (1, 1), 40000)).getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_greys_of_formats_that_have_16_bits_at_most_are_scaled_alike_whatever_is_in_them(kind: str) -> None:
    picture = Image.new("I", (1, 2), 500)  # what some releases of Pillow make of a file of 16 bits
    picture.format = kind
    assert to_rgb(picture).getpixel((0, 0)) == (1, 1, 1)
    picture.getexif()[ExifTags.Base.Orientation] = 6
    turned = upright(picture)
    assert (turned.size, to_rgb(turned).getpixel((0, 0))) == ((2, 1), (1, 1, 1))


def test_a_dark_file_of_16_bits_is_not_brightened(tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + np.array([200, 513], ">u2").tobytes())
    assert np.asarray(open_picture(path))[0, :, 0].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("mode", "brightest", "expected"),
    [
        ("I", 200, 200),
        ("I", 40000, 156),
        ("I", 1 << 24, 1),
        ("I", -5, 0),
        ("F", 1.0, 255),
        ("F", 1.01, 255),
        ("F", 0.5, 128),
        ("F", 200.0, 200),
        ("F", 40000.0, 156),
        ("F", float("nan"), 0),
    ],
)
def test_32_bit_values_are_scaled_until_they_fit(mode: str, brightest: float, expected: int) -> None:
    assert to_rgb(Image.new(mode, (1, 1), brightest)).getpixel((0, 0)) == (expected,) * 3


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_stand_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a.{suffix}"
    coloured().save(path, exif=oriented(orientation))
    with Image.open(path) as picture:
        expected = ImageOps.exif_transpose(picture).convert("RGB")
    assert same(open_picture(path), expected)
    assert open_picture(path).size == ((64, 48) if orientation <= 4 else (48, 64))


def test_a_garbled_exif_note_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    coloured().save(path, exif=b"Exif\0\0nonsense and no more")
    assert same(open_picture(path), plain(path))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / "a.img"
    path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    assert open_picture(path).getpixel((8, 8)) == (255, 0, 0)
    assert unreadable([path]) == []


@pytest.mark.parametrize("size", [(1, 1), (1000, 2), (2, 1000)])
def test_extreme_shapes_keep_their_size(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", size).save(path)
    assert open_picture(path).size == size
    assert open_picture(path, least_side=64).size == size


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    ("least_side", "size"),
    [(301, (400, 300)), (300, (400, 300)), (151, (400, 300)), (150, (200, 150)), (75, (100, 75)), (1, (50, 38))],
)
def test_a_jpeg_is_decoded_no_smaller_than_asked_for(
    tmp_path: Path, mode: str, least_side: int, size: tuple[int, int]
) -> None:
    path = tmp_path / "a.jpg"
    coloured(400, 300).convert(mode).save(path, quality=95)
    small = open_picture(path, least_side)
    assert (small.mode, small.size) == ("RGB", size)
    whole = plain(path).resize(size, Image.Resampling.BOX)
    difference = np.asarray(small).astype(int) - np.asarray(whole)
    assert np.abs(difference).mean() < 3


def test_a_jpeg_that_is_decoded_smaller_stands_upright_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    coloured(400, 300).save(path, exif=oriented(6))
    assert open_picture(path, least_side=150).size == (150, 200)


def test_other_formats_are_decoded_fully_whatever_side_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    coloured(400, 300).save(path)
    assert same(open_picture(path, least_side=20), plain(path))


def test_real_pictures_are_decoded_as_torchvision_does_and_found_readable(assets: Path) -> None:
    paths = sorted((assets / "hymenoptera_data" / "val").rglob("*.jpg"))[::10]
    assert paths
    for path in paths:
        assert same(open_picture(path), plain(path))
    assert unreadable(paths) == []


@pytest.mark.parametrize("side", [12000, 20000])
def test_decompression_bombs_are_refused_with_path_and_size(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side))
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        error = refusal(DataError, lambda: open_picture(path))
        reason = dict(unreadable([path]))[path]
    assert leaked == []
    assert "bomb.png" in error.arrived
    assert str(side) in error.arrived or str(side * side) in error.arrived
    assert "bomb" in reason


def test_who_lifts_pillows_limit_may_open_large_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    coloured().save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    refusal(DataError, lambda: open_picture(path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_picture(path).size == (64, 48)


ENDLESS: list[tuple[str, str, dict[str, object]]] = [
    ("BMP", "RGB", {}),
    ("PPM", "RGB", {}),
    ("PPM", "L", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "I;16", {}),
    ("JPEG2000", "RGB", {}),
    ("TGA", "RGB", {}),
]
"""Format, mode and settings of files without an end mark."""


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.97])
@pytest.mark.parametrize(
    ("kind", "mode", "settings"), [(kind, "RGB", {}) for kind in ("JPEG", "PNG", "GIF", "WEBP")] + ENDLESS
)
def test_a_cut_off_file_is_refused_and_found(
    tmp_path: Path, kind: str, mode: str, settings: dict[str, object], share: float
) -> None:
    whole = encoded(coloured(300, 200).convert("L" if mode == "I;16" else mode).convert(mode), kind, **settings)
    path = tmp_path / "cut.img"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "cut.img" in refusal(DataError, lambda: open_picture(path)).arrived
    assert [found for found, _ in unreadable([path])] == [path]


@pytest.mark.parametrize(("kind", "mode", "settings"), ENDLESS)
def test_a_whole_file_without_an_end_mark_is_not_accused(
    tmp_path: Path, kind: str, mode: str, settings: dict[str, object]
) -> None:
    path = tmp_path / "whole.img"
    path.write_bytes(
        encoded(coloured(300, 200).convert("L" if mode == "I;16" else mode).convert(mode), kind, **settings)
    )
    assert unreadable([path]) == []


def test_a_tiff_that_does_not_tell_the_length_of_its_strips_is_not_accused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    whole = encoded(coloured(300, 200), "TIFF")
    lengths, nothing = struct.pack("<HH", 279, 4), struct.pack("<HH", 65000, 4)
    assert whole.count(lengths) == 1
    path.write_bytes(whole.replace(lengths, nothing))
    assert same(open_picture(path), coloured(300, 200))
    assert unreadable([path]) == []


def test_the_end_of_a_preview_in_the_header_does_not_hide_that_a_jpeg_is_cut_off(tmp_path: Path) -> None:
    picture, preview = coloured(300, 200), encoded(coloured(), "JPEG")
    whole = encoded(picture, "JPEG", comment=preview)
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: len(preview) + (len(whole) - len(preview)) // 2])
    assert b"\xff\xd9" in path.read_bytes()
    assert len(unreadable([path])) == 1


@pytest.mark.parametrize("extra", [b"\0" * 4096, b"notes of the camera" * 100, b"\0" * 100_000])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "TIFF"])
def test_what_stands_behind_the_end_of_a_whole_picture_does_no_harm(tmp_path: Path, kind: str, extra: bytes) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(encoded(coloured(), kind) + extra)
    assert unreadable([path]) == []
    assert same(open_picture(path), plain(path))


def test_a_jpeg_without_its_end_mark_is_not_accused_when_every_pixel_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(coloured(), "JPEG")[:-2] + bytes(64))
    assert same(open_picture(path), plain(path))
    assert unreadable([path]) == []


def test_damage_in_the_middle_is_refused_on_opening(tmp_path: Path) -> None:
    broken = bytearray(encoded(coloured(300, 200), "PNG"))
    middle = len(broken) // 2
    broken[middle : middle + 40] = bytes(40)
    path = tmp_path / "broken.png"
    path.write_bytes(broken)
    assert "broken.png" in refusal(DataError, lambda: open_picture(path)).arrived


def test_every_kind_of_bad_file_is_found_in_order_with_its_reason(tmp_path: Path) -> None:
    good, empty, text, folder, missing, dangling, pipe = (
        tmp_path / f"{name}.jpg" for name in ("good", "empty", "text", "folder", "missing", "dangling", "pipe")
    )
    coloured().save(good)
    empty.touch()
    text.write_text("this is no picture")
    folder.mkdir()
    dangling.symlink_to(tmp_path / "nowhere")
    os.mkfifo(pipe)
    assert unreadable([text, good, empty, folder, missing, good, dangling, pipe]) == [
        (text, "not a picture, or cut off in its header"),
        (empty, "empty, 0 bytes"),
        (folder, "not a file"),
        (missing, "No such file or directory"),
        (dangling, "No such file or directory"),
        (pipe, "not a file"),
    ]
    for path in (empty, text, folder, missing, dangling):
        assert path.name in refusal(DataError, lambda path=path: open_picture(path)).arrived


@pytest.mark.parametrize("error", [struct.error("x"), zlib.error("x"), IndexError(), SyntaxError("x"), EOFError("x")])
def test_whatever_a_parser_stumbles_over_becomes_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def stumble(*_: object) -> None:
        raise error

    path = tmp_path / "a.png"
    coloured().save(path)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", stumble)
    assert (str(error) or type(error).__name__) in refusal(DataError, lambda: open_picture(path)).arrived


def test_a_broken_picture_that_was_opened_and_not_yet_read_is_refused_by_the_name_it_is_given() -> None:
    data = encoded(coloured(300, 200), "JPEG")
    picture = Image.open(io.BytesIO(data[: len(data) // 2]))
    assert "picture 7" in refusal(DataError, lambda: to_rgb(picture, "picture 7")).arrived


@pytest.mark.parametrize(
    "name", ["Blüte im März.jpg", "two\nlines.jpg", "花.jpg", "a  b'c\".jpg", os.fsdecode(b"\xff.jpg")]
)
def test_any_name_opens_and_any_name_can_be_printed_in_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(coloured(), "JPEG"))
    assert open_picture(path).size == (64, 48)
    path.write_bytes(b"")
    for error in (refusal(DataError, lambda: open_picture(path)), refusal(DataError, lambda: demand_readable([path]))):
        assert str(error).encode()
        assert "two\nlines" not in str(error)


def test_all_unreadable_files_are_named_in_one_error(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    coloured().save(good)
    missing = [tmp_path / f"missing{number:02}.jpg" for number in range(23)]
    error = refusal(DataError, lambda: demand_readable([good, *missing]))
    assert error.arrived.startswith("23 of 24 pictures cannot be read: ")
    assert all(path.name in error.arrived for path in missing[:20])
    assert error.arrived.endswith("and 3 more")


def test_files_that_are_not_there_are_no_bad_copies(tmp_path: Path) -> None:
    words = tmp_path / "words.jpg"
    words.write_text("no picture")
    missing = tmp_path / "nope.jpg"
    assert "good copies" in refusal(DataError, lambda: demand_readable([words])).todo
    assert refusal(DataError, lambda: demand_readable([missing])).todo == "Check the path."
    both = refusal(DataError, lambda: demand_readable([missing, words])).todo
    assert "Check the paths" in both
    assert "good copies" in both


def test_readable_files_pass_also_in_great_number(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    coloured().save(good)
    demand_readable([])
    demand_readable([good] * 500)


def test_pillows_warnings_do_not_leak_and_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(coloured().quantize(256), "PNG", transparency=bytes(range(256))))
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        workers = [threading.Thread(target=lambda: [open_picture(path) for _ in range(20)]) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert list(warnings.filters) == before
        warnings.warn("somebody else's", stacklevel=1)
    assert [str(warning.message) for warning in leaked] == ["somebody else's"]


def test_decoding_does_not_make_python_repeat_warnings_that_are_shown_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    coloured().save(path)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("only once", stacklevel=1)
            open_picture(path)
    assert len(shown) == 1
