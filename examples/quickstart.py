"""Fine-tune a network on a folder of pictures, look at the result, save it, load it, and use it.

    python examples/quickstart.py
    python examples/quickstart.py --data flowers --model resnet18 --weights resnet18.pth

Without arguments it draws a small set of pictures itself and needs no connection: where the weights cannot be had it
says why and trains from scratch. Everything it makes lies in `runs/quickstart`.
"""

import argparse
import sys
import time
from pathlib import Path

from generated_pictures import make_pictures

from headstart import BackboneError, HeadstartError, ImageData, Learner, LRSchedule, ModelCheckpoint, one_cycle

# A network and a size for which ten epochs from scratch take less than a minute on two cores.
GENERATED_MODEL, GENERATED_SIZE = "resnet10t", 64


def main() -> None:
    """Do what a first day with headstart consists of."""
    arguments = parse_arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    # The pictures: a folder with train/ and val/, or with one folder for each class.
    folder, size = arguments.data, arguments.size
    if folder is None:
        folder = make_pictures(out / "pictures")
        size = GENERATED_SIZE if size is None else size
        print(f"drew pictures into {folder}")
    data = ImageData.from_folder(folder, image_size=size, batch_size=16)
    print(data)

    # The network, with the best weights there are.
    learner, pretrained = open_learner(arguments, data)
    callbacks = [
        LRSchedule(one_cycle()),  # settles in its last epochs; an EarlyStopping beside it could cut them off
        ModelCheckpoint(out / "checkpoints", monitor="val_accuracy", overwrite=True),
    ]
    epochs = (5 if pretrained else 10) if arguments.epochs is None else arguments.epochs
    if pretrained:  # first the new head alone, then everything, gently
        learner.freeze()
        learner.fit(2, lr=1e-3)
        learner.unfreeze()
        learner.fit(epochs, lr=2e-4, head_lr_mult=10, callbacks=callbacks)
    else:  # nothing to be gentle with
        learner.fit(epochs, lr=2e-3, callbacks=callbacks)

    # What came of it.
    print(learner.history)
    print("val:", {name: round(value, 4) for name, value in learner.evaluate().items()})
    learner.history.plot().savefig(out / "curves.png")
    learner.show_predictions().savefig(out / "predictions.png")

    # Keep it, and use it as another program would.
    saved = learner.save(out / "model.safetensors")
    loaded = Learner.load(saved)
    kept_back = folder / "val"
    answers = loaded.predict(kept_back if kept_back.is_dir() else folder)
    print(answers[:: max(1, len(answers) // 6)])
    same = bool((answers.probabilities == learner.predict(answers.paths).probabilities).all())
    print(f"the loaded network answers {'as' if same else 'OTHER THAN'} the trained one did")
    print(f"{time.monotonic() - began:.0f} s; curves.png, predictions.png and {saved.name} are in {out}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of your pictures; default: pictures drawn here")
    parser.add_argument("--model", default=GENERATED_MODEL, help="a timm or torchvision name; default: %(default)s")
    parser.add_argument("--weights", type=Path, help="a file of weights for that network, instead of a download")
    parser.add_argument("--size", type=int, help="height and width of the network's input; default: what it expects")
    parser.add_argument("--epochs", type=int, help="epochs of the last fit")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="where the results go")
    return parser.parse_args()


def open_learner(arguments: argparse.Namespace, data: ImageData) -> tuple[Learner, bool]:
    """Open the network with the given weights, those of its library, or none; say whether it has any."""
    if arguments.weights is not None:
        return Learner(arguments.model, data, pretrained=arguments.weights), True
    try:
        return Learner(arguments.model, data), True
    except BackboneError as error:
        learner = Learner(arguments.model, data, pretrained=False)  # fails likewise if it was not for the weights
        print(f"{arguments.model} is trained from scratch, because its weights cannot be had:\n{error}")
        return learner, False


if __name__ == "__main__":
    try:
        main()
    except (HeadstartError, FileExistsError) as error:
        sys.exit(str(error))
