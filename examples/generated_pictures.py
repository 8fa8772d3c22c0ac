"""A small set of pictures to learn from, drawn here, so that an example needs no download.

Four kinds of cloth, striped, checked, dotted and ringed, photographed carelessly: another scale, angle, dye and light
every time, creases, things that lie on it, noise. Easy for an eye, half a minute's work for a small network.
Only numpy and Pillow are needed, and nothing here knows headstart.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Plane = NDArray[np.float32]


def make_pictures(root: Path, seed: int = 0, per_class: int = 80) -> Path:
    """Draw the pictures as JPEG files in `root/train/<class>/` and `root/val/<class>/`.

    The folder appears when all of it is drawn, so one that is there is complete, and is left as it is.

    Args:
        root: the folder to make.
        seed: another seed draws other pictures of the same four kinds.
        per_class: pictures of each kind; a quarter of them goes to val.

    Returns:
        `root`.

    Raises:
        FileExistsError: `root` holds something else; choose another folder or remove it.

    Example:
        >>> folder = make_pictures(Path(tempfile.mkdtemp()) / "cloth", per_class=4)
        >>> sorted(path.name for path in folder.glob("val/*"))
        ['checks', 'dots', 'rings', 'stripes']
    """
    label = f"generated pictures, seed {seed}, {per_class} of each kind\n"
    note = root / ".generated"
    if note.is_file() and note.read_text() == label:
        return root
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} holds something else. Choose another folder, or remove it first.")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
        folder = Path(temporary) / root.name
        for number, kind in enumerate(WEAVES):
            for index in range(per_class):
                part = "val" if index < per_class // 4 else "train"
                path = folder / part / kind / f"{index:03}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                chance = np.random.default_rng([seed, number, index])
                picture(kind, chance).save(path, quality=int(chance.integers(70, 96)))
        (folder / note.name).write_text(label)
        folder.replace(root)
    return root


def picture(kind: str, chance: np.random.Generator) -> Image.Image:
    """Draw one photograph of a kind of cloth, 120 to 320 pixels a side."""
    width, height = (int(side) for side in chance.integers(120, 321, size=2))
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    cloth = WEAVES[kind](*_threads(across, down, chance))[..., None]

    ground, pattern = _two_colours(chance)
    grain = chance.normal(0, chance.uniform(6, 20), (height, width, 1)).astype(np.float32)
    colours = ground + (pattern - ground) * cloth + grain
    image = _with_patches(Image.fromarray(colours.clip(0, 255).astype(np.uint8)), chance)

    angle = chance.uniform(0, 2 * np.pi)
    slope = (across / width - 0.5) * np.cos(angle) + (down / height - 0.5) * np.sin(angle)
    light = 1 + chance.uniform(0, 0.8) * slope[..., None]
    return Image.fromarray((np.asarray(image) * light).clip(0, 255).astype(np.uint8))


def _threads(across: Plane, down: Plane, chance: np.random.Generator) -> tuple[Plane, Plane]:
    """Turn pixel positions into positions along the two threads of a turned, creased cloth; one repeat is 1 long."""
    angle = chance.uniform(0, 2 * np.pi)
    repeat = chance.uniform(0.15, 0.45) * min(across.shape)
    along = (across * np.cos(angle) + down * np.sin(angle)) / repeat
    over = (down * np.cos(angle) - across * np.sin(angle)) / repeat
    crease, deep = chance.uniform(0.08, 0.25), chance.uniform(0, 0.35)
    phase, shift, lift = chance.uniform(0, 1, size=3)
    moved = along + deep * _wave(crease * over + phase) + shift
    lifted = over + deep * _wave(crease * along + phase) + lift
    return moved.astype(np.float32), lifted.astype(np.float32)


def _two_colours(chance: np.random.Generator) -> NDArray[np.float32]:
    """Choose the colours of the ground and of the pattern: light and dark, dyed a little."""
    light, dark = chance.uniform(150, 220), chance.uniform(40, 120)
    dye = chance.normal(0, 20, size=(2, 3))
    return (np.array([[light], [dark]]) + dye).astype(np.float32)


def _with_patches(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Hide parts of a picture under a few plain ellipses and rectangles."""
    draw = ImageDraw.Draw(image)
    for _ in range(chance.integers(1, 6)):
        left, top = chance.uniform(-0.1, 0.9, size=2) * image.size
        wide, high = chance.uniform(0.08, 0.4, size=2) * image.size
        colour = chance.integers(90, 170) + chance.integers(-20, 20, size=3)
        shape = draw.ellipse if chance.random() < 0.5 else draw.rectangle
        shape((left, top, left + wide, top + high), fill=tuple(colour.tolist()))
    return image


def _wave(position: Plane) -> Plane:
    """Swing between -1 and 1, once a repeat."""
    return cast("Plane", np.sin(2 * np.pi * position))


def _to_knot(along: Plane, over: Plane) -> Plane:
    """Give the distance to the nearest knot, where two threads of a repeat cross."""
    return cast("Plane", np.hypot(along - np.round(along), over - np.round(over)))


def _stripes(along: Plane, over: Plane) -> Plane:  # noqa: ARG001 (stripes run along one thread, the others need both)
    return (_wave(along) > 0).astype(np.float32)


def _checks(along: Plane, over: Plane) -> Plane:
    return (_wave(along) * _wave(over) > 0).astype(np.float32)


def _dots(along: Plane, over: Plane) -> Plane:
    return (_to_knot(along, over) < 0.3).astype(np.float32)


def _rings(along: Plane, over: Plane) -> Plane:
    return (abs(_to_knot(along, over) - 0.29) < 0.09).astype(np.float32)


WEAVES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "stripes": _stripes,
}
