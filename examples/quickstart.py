"""Fine-tune a network on a folder of pictures, look at the result, save it, load it, and use it.

    python examples/quickstart.py
    python examples/quickstart.py --data flowers --model resnet18 --weights resnet18.pth

Without arguments it draws a small set of pictures itself and needs no network: where the weights cannot be downloaded
it says so and trains from scratch. Everything it makes lies in `runs/quickstart`.
"""

import argparse
import time
from pathlib import Path

from generated_pictures import make_pictures

from headstart import BackboneError, EarlyStopping, ImageData, Learner, LRSchedule, ModelCheckpoint, one_cycle

# A network and a size for which eight epochs from scratch take half a minute on two cores.
GENERATED_MODEL, GENERATED_SIZE = "resnet10t", 64


def main() -> None:
    """Do what a first day with headstart consists of."""
    arguments = parse_arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    # The pictures: a folder with train/ and val/, or with one folder for each class.
    size = arguments.size
    if arguments.data is None:
        arguments.data, size = make_pictures(out / "pictures"), size or GENERATED_SIZE
        print(f"drew pictures into {arguments.data}")
    data = ImageData.from_folder(arguments.data, image_size=size, batch_size=16)
    print(data)

    # The network, with the best weights there are.
    learner, pretrained = open_learner(arguments, data)
    callbacks = [
        LRSchedule(one_cycle()),
        EarlyStopping(monitor="val_loss", patience=5),
        ModelCheckpoint(out / "checkpoints", monitor="val_accuracy", overwrite=True),
    ]
    if pretrained:  # first the new head alone, then everything, gently
        learner.freeze()
        learner.fit(2, lr=1e-3)
        learner.unfreeze()
        learner.fit(arguments.epochs or 5, lr=2e-4, head_lr_mult=10, callbacks=callbacks)
    else:  # nothing to be gentle with
        learner.fit(arguments.epochs or 8, lr=2e-3, callbacks=callbacks)

    # What came of it.
    print(learner.history)
    print("val:", {name: round(value, 4) for name, value in learner.evaluate().items()})
    learner.history.plot().savefig(out / "curves.png")
    learner.show_predictions().savefig(out / "predictions.png")

    # Keep it, and use it as another program would.
    saved = learner.save(out / "model.safetensors")
    loaded = Learner.load(saved)
    pictures = sorted(Path(arguments.data).rglob("*.jpg"))[::25][:6]
    print(loaded.predict(pictures))
    same = bool((loaded.predict(pictures).probabilities == learner.predict(pictures).probabilities).all())
    print(f"the loaded network answers {'as' if same else 'OTHER THAN'} the trained one did")
    print(f"{time.monotonic() - began:.0f} s; curves.png, predictions.png and {saved.name} are in {out}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of your pictures; default: pictures drawn here")
    parser.add_argument("--model", default=None, help="a timm or torchvision name, such as torchvision/mobilenet_v2")
    parser.add_argument("--weights", type=Path, help="a file of weights for that network, instead of a download")
    parser.add_argument("--size", type=int, help="height and width of the network's input; default: what it expects")
    parser.add_argument("--epochs", type=int, help="epochs of the last fit")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="where the results go")
    return parser.parse_args()


def open_learner(arguments: argparse.Namespace, data: ImageData) -> tuple[Learner, bool]:
    """Open the network with the given weights, those of its library, or none; say which."""
    model = arguments.model or GENERATED_MODEL
    if arguments.weights is not None:
        return Learner(model, data, pretrained=arguments.weights), True
    try:
        return Learner(model, data), True
    except BackboneError as error:
        if "no way to the weights" not in error.arrived:
            raise
        print(f"The weights of {model} cannot be downloaded here, so it is trained from scratch.")
        return Learner(model, data, pretrained=False), False


if __name__ == "__main__":
    main()
