"""How time and memory grow: with the pictures, with the classes, with the parameters of the network.

Each point is a process of its own, on pictures that are generated for it: some epochs of a head on kept features
(`cache_features=1`), and an epoch in which everything trains. A line for each point, and with `--plot` a chart. With
`--budget` as many bytes of pixels and features are kept in memory; 0 keeps neither.

    python examples/benchmarks/growth.py --plot growth.png
    python examples/benchmarks/growth.py --axes pictures --epochs 2 --budget 200_000_000
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from speed import watched

from headstart import Cache, ImageData, Learner

NETWORK, PICTURES, CLASSES = "test_resnet", 2_500, 10
AXES: dict[str, Sequence[tuple[str, int, int]]] = {
    "pictures": [(NETWORK, count, CLASSES) for count in (250, 2_500, 25_000)],
    "classes": [(NETWORK, PICTURES, count) for count in (2, 50, 1_000)],
    "parameters": [
        (name, 250, CLASSES) for name in ("mobilenetv3_small_100", "resnet18", "resnet50", "wide_resnet101_2")
    ],
}
"""What grows: network, pictures and classes of each point."""


def make_pictures(root: Path, pictures: int, classes: int) -> None:
    """Write coloured clouds as JPEG files of 96 pixels; a fifth of each class goes to val."""
    chance = np.random.default_rng(0)
    for number in range(pictures):
        kind, index = number % classes, number // classes
        folder = root / ("val" if index % 5 == 4 or (index == 1 and pictures < 5 * classes) else "train") / f"{kind:04}"
        folder.mkdir(parents=True, exist_ok=True)
        blobs = chance.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(blobs).resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg", quality=90)


def train(model: str, folder: Path, image_size: int, epochs: int, budget: int | None) -> dict[str, float]:
    """Train both ways; give the seconds of each, and the millions of parameters."""
    cache = None if budget == 0 else Cache("auto" if budget is None else "ram", budget=budget)
    data = ImageData.from_folder(folder, image_size=image_size, cache=cache)
    learner = Learner(model, data, pretrained=False)
    learner.freeze()
    began = time.monotonic()
    learner.fit(epochs, lr=1e-3, cache_features=False if budget == 0 else 1, verbose=False)
    kept = time.monotonic() - began
    learner.unfreeze()
    began = time.monotonic()
    learner.fit(1, lr=1e-4, verbose=False)
    parameters = sum(parameter.numel() for parameter in learner.model.parameters()) / 1e6
    return {"kept": kept, "whole": time.monotonic() - began, "parameters": parameters}


def measured(point: tuple[str, int, int], arguments: argparse.Namespace) -> dict[str, float]:
    """Measure a point in a process of its own."""
    model, pictures, classes = point
    pictures = max(2 * classes, round(pictures * arguments.share))
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), pictures, classes)
        command = [sys.executable, __file__, "--model", model, "--folder", folder]
        command += ["--image-size", str(arguments.image_size), "--epochs", str(arguments.epochs)]
        found = watched(command if arguments.budget is None else [*command, "--budget", str(arguments.budget)])
    return {**found, "pictures": pictures, "classes": classes}


def draw(found: dict[str, list[dict[str, float]]], head: str, path: Path) -> None:
    """Draw seconds above, megabytes below, one column for each thing that grows."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, len(found), sharey="row", squeeze=False)
    for (name, points), (above, below) in zip(found.items(), panels.T, strict=True):
        across = [point[name] for point in points]
        above.plot(across, [point["kept"] for point in points], "o-", label=head)
        above.plot(across, [point["whole"] for point in points], "s--", label="everything, 1 epoch")
        below.plot(across, [point["megabytes"] for point in points], "o-", color="gray")
        for panel in (above, below):
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3)
        below.set_xlabel("parameters, millions" if name == "parameters" else name)
    panels[0][0].set_ylabel("seconds")
    panels[1][0].set_ylabel("megabytes at most")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure all points, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10, help="of the head")
    parser.add_argument("--budget", type=int, help="bytes for pixels and features; 0 keeps none, left out any may be")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures, to try it out")
    parser.add_argument("--plot", type=Path, help="the file of a chart")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        settings = (arguments.image_size, arguments.epochs, arguments.budget)
        print(json.dumps(train(arguments.model, arguments.folder, *settings)))
        return
    found: dict[str, list[dict[str, float]]] = {}
    for axis in arguments.axes:
        for point in AXES[axis]:
            one = measured(point, arguments)
            found.setdefault(axis, []).append(one)
            print(
                f"{axis}: {point[0]} ({one['parameters']:.1f} M), {one['pictures']:,.0f} pictures, "
                f"{one['classes']:,.0f} classes: head {one['kept']:.1f} s, everything {one['whole']:.1f} s, "
                f"{one['megabytes']:.0f} MB",
                flush=True,
            )
    if arguments.plot is not None:
        kept = "" if arguments.budget == 0 else " on kept features"
        draw(found, f"a head{kept}, {arguments.epochs} epochs", arguments.plot)


if __name__ == "__main__":
    main()
