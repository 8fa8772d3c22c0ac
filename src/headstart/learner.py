"""`Learner`: the facade. It checks what it is asked, holds the parts together, and has the opinions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from headstart.callbacks.reporting import ProgressBar
from headstart.data.image_data import ImageData
from headstart.data.unlabelled import PictureList
from headstart.drawing import contact_sheet
from headstart.errors import ConfigError, Demands, is_count, is_number
from headstart.files import as_path
from headstart.insight.predictions import Predictions
from headstart.model.backbone import Backbone, Layers
from headstart.model.head import HeadLike, as_head
from headstart.model.opened import Opened
from headstart.model.zoo import open_network
from headstart.randomness import WEIGHTS, derive, preserved
from headstart.training.callback import Callback
from headstart.training.checkpoint import write_weights
from headstart.training.features import CacheFeatures
from headstart.training.history import History
from headstart.training.metrics import make_metrics
from headstart.training.optimizer import OptimizerFactory, demand_known
from headstart.training.portable import describe, load_into, reopen
from headstart.training.portions import OnOom
from headstart.training.precision import PrecisionName, choose_device, choose_precision
from headstart.training.session import FitPlan, Session, choose_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torchmetrics import Metric

    from headstart.training.loop import Loss

Images = str | Path | Image.Image | Tensor | Sequence[Any]
"""What `predict` takes: a path, a folder, a PIL picture, tensors, or a list of such things."""


class Learner:
    """A network, pictures and an optimizer: fine-tune, evaluate, predict, save.

    Args:
        model: a timm name (`"resnet18"`, `"vit_base_patch16_224.augreg_in21k"`), a torchvision name
            (`"torchvision/mobilenet_v2.IMAGENET1K_V1"`), or a network of your own. A bare name is timm's.
        data: the pictures; stays as it is. `learner.data` is the same data, bound to the preprocessing of the weights.
        pretrained: True downloads the library's weights, False starts from random ones, a path loads a file of the
            original architecture (`.pth`, `.safetensors`).
        head: what replaces the classifier: None is one of the same form (a network of your own keeps its head), a
            `Head`, hidden widths (`256`, `(256, 120)`), a module, or a function `(features, classes) -> module`.
        loss: `"auto"` is cross-entropy; or a function of (logits `[batch, classes]`, targets), the batch's mean.
        metrics: names (`"accuracy"`, `"f1"`, `"auroc"`, ...) or torchmetrics objects.
        optimizer: `"adamw"`, `"sgd"` (momentum 0.9), a name that timm's factory knows, or a function of parameters that
            makes one; the rate it sets is ignored.
        weight_decay: None is 0.01, 0 for sgd, and the own value of a function's optimizer. Norms and biases are spared.
        precision: `"auto"` is bf16 on GPUs that have it and CPUs faster in it, fp16 on older GPUs, fp32 elsewhere; or
            one by name. bf16 and fp16 are mixed precision: weights, losses and sums stay in fp32.
        device: `"auto"` is a CUDA device when there is one, else the CPU; or a name such as `"cuda:1"` or `"mps"`.
        seed: of the head's first values, the order of pictures, augmentation and dropout; 0 or more.
        compile: whether `torch.compile` speeds the network up, after a minute or so in its first batches.

    Raises:
        BackboneError: an unknown model, weights that cannot be had or do not fit, a size the network cannot take.
        ConfigError: an argument is out of range.

    Example:
        >>> data = ImageData.from_folder("flowers", image_size=64)
        >>> learner = Learner("resnet18", data, pretrained=False)
        opened timm resnet18 (random weights), fp32 on cpu
        >>> history = learner.fit(1, lr=5e-4, head_lr_mult=10, verbose=False)
        >>> learner.evaluate().keys()
        dict_keys(['loss', 'accuracy'])
    """

    def __init__(
        self,
        model: str | nn.Module,
        data: ImageData,
        *,
        pretrained: bool | str | Path = True,
        head: HeadLike = None,
        loss: "str | Loss" = "auto",
        metrics: "Sequence[str | Metric]" = ("accuracy",),
        optimizer: str | OptimizerFactory = "adamw",
        weight_decay: float | None = None,
        precision: PrecisionName = "auto",
        device: str | torch.device = "auto",
        seed: int = 0,
        compile: bool = False,  # noqa: A002 - torch's own word
    ) -> None:
        demands = Demands("For example Learner('resnet18', ImageData.from_folder('flowers')).")
        demands.check("model", model, isinstance(model, str | nn.Module), "a name, or a torch.nn.Module")
        demands.check(
            "data", data, isinstance(data, ImageData), "an ImageData, such as ImageData.from_folder('flowers')"
        )
        source = isinstance(pretrained, bool | str | Path)
        demands.check("pretrained", pretrained, source, "True, False, or the path of a file of weights")
        settings = _Settings(loss, metrics, optimizer, weight_decay, precision, device, seed).checked(demands, data)
        with preserved():
            torch.manual_seed(derive(WEIGHTS, settings.seed))
            opened = open_network(
                model, data.classes, pretrained=pretrained, head=as_head(head), image_size=data.image_size
            )
        if compile:
            opened.network.compile()
        self._begin(opened, data, settings)

    def _begin(self, opened: Opened, data: ImageData, settings: "_Settings") -> None:
        """Put the parts together."""
        device = choose_device(settings.device)
        opened.network.to(device).eval()
        bound = data.bind(opened.preprocessing)
        opened.preprocessing = bound.preprocessing or opened.preprocessing  # loaders may bring one of their own
        self._session = Session(
            Backbone(opened),
            bound,
            choose_loss(settings.loss, device),
            make_metrics(settings.metrics, len(data.classes)),
            settings.optimizer,
            settings.weight_decay,
            device,
            choose_precision(settings.precision, device),
            settings.seed,
        )
        self._description = f"{opened.description}, {self._session.precision.name} on {device}"
        self._precision = settings.precision  # as it was asked for: a file tells the next machine
        # On an object the class method would silently make another Learner.
        vars(self)["load"] = _refuse_load
        mixed = settings.precision == "auto" and self._session.precision.name != "fp32"
        print(f"opened {self._description}" + ("; precision='fp32' computes in full" if mixed else ""))
        if opened.reuse is not None:
            print(opened.reuse)

    # What it is made of.

    @property
    def model(self) -> nn.Module:
        """The network itself, a plain module whose `state_dict` has the library's own names."""
        return self._session.backbone.network

    @property
    def data(self) -> ImageData:
        """The pictures, bound to the preprocessing of the weights."""
        return self._session.data

    @property
    def layers(self) -> Layers:
        """The stages of the backbone in order and, last, the head: `.name`, `.parameters`, `.trainable`, `.lr_scale`.

        Example:
            >>> learner.layers[0].name, learner.layers[-1].name
            ('conv1', 'fc')
        """
        return self._session.backbone.layers

    @property
    def history(self) -> History:
        """All fits so far, one after the other."""
        return History.join(self._session.histories)

    def summary(self) -> None:
        """Print what trains: stages, parameters, and the rate of each as the last fit set it.

        Example:
            >>> learner.summary()
            timm resnet18 (random weights), fp32 on cpu
            ...
        """
        print(self._description)
        print(self.layers)
        trains = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        rate = self._session.histories[-1].params["lr"] if self._session.histories else "the rate given to fit"
        print(f"{trains:,} of {sum(row.parameters for row in self.layers):,} parameters train; rate: {rate} x lr scale")

    # What trains.

    def freeze(self) -> None:
        """Freeze the whole backbone: only the head trains.

        Frozen means bit-identical: parameters get no gradient, norms keep their statistics, dropout rests. Called in a
        callback, it takes effect at the next step.

        Example:
            >>> learner.freeze()
            frozen: the whole backbone; training: the head
        """
        self._train_from(len(self._session.backbone.stages))

    def unfreeze(self, from_layer: str | int | None = None) -> None:
        """Train a stage, all after it and the head; freeze the stages before it.

        Args:
            from_layer: name of a stage (`learner.layers` lists them), path of any module, index of a stage (-1 is the
                last one before the head), or None for everything.

        Raises:
            BackboneError: no such layer; the nearest names are given.

        Example:
            >>> learner.unfreeze("layer4")
            frozen: conv1 ... layer3 (4 stages); training: layer4 and the head
            >>> learner.unfreeze()
            training: all 5 stages and the head
        """
        self._train_from(self._session.backbone.locate(from_layer))

    def _train_from(self, boundary: int) -> None:
        names = [stage.name for stage in self._session.backbone.stages]
        self._session.train_from(boundary)
        if not names:
            print("training: the head, which is all there is")
            return
        trained = " ... ".join(dict.fromkeys((names[boundary], names[-1]))) if boundary < len(names) else ""
        if boundary == 0:
            whole = f"all {len(names)} stages" if len(names) > 1 else names[0]
            print(f"training: {whole} and the head")
        elif trained:
            frozen = " ... ".join(dict.fromkeys((names[0], names[boundary - 1])))
            print(f"frozen: {frozen} ({boundary} stage{'s' * (boundary > 1)}); training: {trained} and the head")
        else:
            print("frozen: the whole backbone; training: the head")

    def fit(
        self,
        epochs: int,
        lr: float,
        head_lr_mult: float = 1.0,
        *,
        layer_lr_decay: float | None = None,
        callbacks: Sequence[Callback] | Callback = (),
        accumulate: int = 1,
        clip_norm: float | None = None,
        resume: bool = False,
        on_oom: OnOom = "auto",
        cache_features: CacheFeatures = "auto",
        verbose: bool = True,
    ) -> History:
        """Train, as often as you like; the optimizer's state goes on from fit to fit.

        Args:
            epochs: passes over the train part, 1 or more.
            lr: the backbone's rate, above 0. It stays as it is unless a callback schedules it.
            head_lr_mult: the head's rate is `lr * head_lr_mult`, above 0.
            layer_lr_decay: each stage's rate is this times that of the next one, in (0, 1]; the last stage has `lr`.
            callbacks: a list, or one alone; called in the order of their bands, then of the list.
            accumulate: batches that share one step, 1 or more; the step is that of one big batch.
            clip_norm: the largest joint norm of a step's gradients, above 0; None does not clip.
            resume: whether to go on where an earlier process left this fit: the states are in the directory of the
                ModelCheckpoint that is among the callbacks. Where there are none, the fit begins; where it has come to
                its end, nothing is trained and its end is loaded. So a script that was cut short is run again.
            on_oom: what to do with a batch that memory does not hold. `"auto"` takes it through the network in halves,
                quarters, ... and still makes one step of it, with the same gradient; it prints so. Where BatchNorm
                trains, that would change what it sees, so the batch is refused; `"split"` splits it all the same.
                `"raise"` always refuses.
            cache_features: what of the frozen stages' work is kept from epoch to epoch. `"auto"` is what they make of
                val pictures, and of train pictures without augmentation: that changes nothing beyond rounding. 1 is
                what they make of train pictures as evaluation sees them, 4 of four augmented views of each, which take
                turns from epoch to epoch: less variety, in much less time. False is nothing.
            verbose: whether a progress bar is shown (one line for each epoch where there is no terminal).

        Returns:
            What happened, epoch by epoch: `.history` is a dict of lists, as in Keras.

        Raises:
            ConfigError: an argument is out of range, everything is frozen, or callbacks cannot work.
            DataError: pictures cannot be read (all of them are listed before the first batch), or a loader yields
                something else than batches.
            CheckpointError: a run to go on with was asked for something else (all differences are listed) or has no
                state that is whole; or a file cannot be written.
            torch.OutOfMemoryError: memory does not hold a batch, and it may not be split, or is one picture.

        Example:
            >>> history = learner.fit(2, lr=1e-3, verbose=False)
            >>> list(history.history)
            ['loss', 'accuracy', 'val_loss', 'val_accuracy', 'learning_rate']
        """
        demands = Demands("For example learner.fit(5, lr=5e-4, head_lr_mult=10).")
        demands.check("epochs", epochs, is_count(epochs), "a whole number, 1 or more")
        demands.check("lr", lr, _is_positive(lr), "a rate above 0")
        demands.check("head_lr_mult", head_lr_mult, _is_positive(head_lr_mult), "a factor above 0")
        decays = layer_lr_decay is None or (_is_positive(layer_lr_decay) and layer_lr_decay <= 1)
        demands.check("layer_lr_decay", layer_lr_decay, decays, "a factor in (0, 1], or None")
        demands.check("accumulate", accumulate, is_count(accumulate), "a whole number of batches, 1 or more")
        demands.check("clip_norm", clip_norm, clip_norm is None or _is_positive(clip_norm), "a norm above 0, or None")
        demands.check("resume", resume, isinstance(resume, bool), "True or False; a ModelCheckpoint has the folder")
        demands.check("on_oom", on_oom, on_oom in get_args(OnOom), "'auto', 'split' or 'raise'")
        kept = cache_features == "auto" or cache_features is False or is_count(cache_features)
        demands.check("cache_features", cache_features, kept, "'auto', False, or a number of views such as 4")
        demands.check("callbacks", callbacks, isinstance(callbacks, Iterable | Callback), "a list of callbacks")
        demands.settle()
        callbacks = _listed(callbacks)
        if self._session.run is not None:
            raise ConfigError("fit inside a fit", "one fit at a time", "Call it after the first one has returned.")
        shown = any(isinstance(callback, ProgressBar) for callback in callbacks)
        watching = [ProgressBar()] if verbose and not shown else []
        views: CacheFeatures = "auto" if cache_features == "auto" else int(cache_features)
        rates = float(lr), float(head_lr_mult), _plain(layer_lr_decay)
        plan = FitPlan(int(epochs), *rates, int(accumulate), _plain(clip_norm), resume, on_oom, views)
        return self._session.fit(plan, [*callbacks, *watching], self)

    @property
    def stop_training(self) -> bool:
        """Whether the fit that is going on has been asked to stop. A callback sets it to True, as in Keras."""
        run = self._session.run
        return run is not None and run.stop_reason is not None

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        run = self._session.run
        if not stop and not self.stop_training:
            return  # as it is
        if run is None or not stop:
            raise ConfigError(
                f"stop_training={stop} " + ("outside a fit" if run is None else "after a stop was asked for"),
                "True, in a callback of a fit; a stop cannot be taken back",
                "Set it in a hook such as on_epoch_end, or call self.run.stop(reason) there.",
            )
        if stop:
            run.stop("stop_training was set")

    # What comes out.

    def evaluate(
        self,
        data: "str | Path | ImageData | Iterable[Any] | None" = None,
        *,
        callbacks: Sequence[Callback] | Callback = (),
    ) -> dict[str, float]:
        """Give loss and metrics, exact for every picture, without augmentation.

        Args:
            data: None or `"val"`, `"train"`, `"test"`; a folder with one sub-folder per class; an ImageData (its val
                part, or its train part if it has no other); or a loader of your own.
            callbacks: their on_test hooks are called.

        Returns:
            `{"loss": ..., "accuracy": ...}` and the other metrics.

        Raises:
            ConfigError: the data has no such part.
            DataError: pictures cannot be read, or classes are not the Learner's.

        Example:
            >>> sorted(learner.evaluate("train"))
            ['accuracy', 'loss']
        """
        given = _listed(callbacks)
        part, name, source = self.data.find(data)
        return self._session.evaluate(part, name, source, given, self)

    def predict(self, images: Images, *, callbacks: Sequence[Callback] | Callback = ()) -> Predictions:
        """Say what pictures show.

        Args:
            images: the path of a picture or of a folder (all pictures below it, sorted), a PIL picture, a tensor
                `[channels, height, width]` or `[batch, channels, height, width]` (uint8 is prepared for the weights,
                float is final), or a list of any of these.
            callbacks: their on_predict hooks are called.

        Returns:
            Class names and probabilities, in the order of the pictures.

        Raises:
            DataError: there is no picture, or some cannot be read (all of them are listed).

        Example:
            >>> predictions = learner.predict("flowers/val/rose")
            >>> predictions.probabilities.shape
            torch.Size([9, 3])
        """
        given = _listed(callbacks)
        pictures = PictureList.of(images)
        batches = self.data.unlabelled_batches(pictures, for_gpu=self._session.device.type == "cuda")
        probabilities = self._session.predict(batches.epoch(0, 0), len(pictures), given, self)
        return Predictions(probabilities, self.data.classes, pictures.paths)

    def show_predictions(self, pictures: int = 12, *, part: str = "val") -> "Figure":
        """Draw pictures with what they show and how sure the network is; a wrong answer is marked and stands below.

        Args:
            pictures: how many at the most, taken evenly from the whole part (of a loader, the first ones).
            part: `"val"`, `"train"` or `"test"`.

        Returns:
            A Matplotlib figure; a notebook shows it, `figure.savefig("answers.png")` keeps it.

        Raises:
            ConfigError: the data has no such part.

        Example:
            >>> figure = learner.show_predictions(6)
        """
        images, truths = self.data.examples(part, pictures)
        probabilities = self._session.predict([(images, torch.tensor(truths))], len(truths), (), self)
        answers = Predictions(probabilities, self.data.classes)
        names = [self.data.classes[truth] for truth in truths]
        right = [name == answer for name, answer in zip(names, answers.labels, strict=True)]
        titles = [
            f"{name} {confidence:.0%}" if is_right else f"{name}\nsaid {answer} {confidence:.0%}"
            for name, answer, confidence, is_right in zip(names, answers.labels, answers.confidence, right, strict=True)
        ]
        heading = f"{sum(right)} of {len(right)} {part} pictures right"
        return contact_sheet(self._session.backbone.preprocessing.visible(images), titles, right, heading=heading)

    # What is kept.

    def save(self, path: str | Path) -> Path:
        """Write weights, classes, preprocessing and architecture into one safetensors file, whole or not at all.

        Args:
            path: the file, usually `something.safetensors`.

        Returns:
            The path.

        Raises:
            CheckpointError: the folder cannot be written to or the disk is full.

        Example:
            >>> learner.save("flowers.safetensors").name
            'flowers.safetensors'
        """
        target = as_path(path)
        description = describe(self._session.backbone, self.data, self._precision)
        write_weights(target, self.model.state_dict(), description)
        return target

    @classmethod
    def load(
        cls,
        file: str | Path,
        data: ImageData | None = None,
        device: str | torch.device = "auto",
        *,
        loss: "str | Loss" = "auto",
        metrics: "Sequence[str | Metric]" = ("accuracy",),
        optimizer: str | OptimizerFactory = "adamw",
        weight_decay: float | None = None,
        seed: int = 0,
    ) -> Self:
        """Make a Learner of a file that `save` or a ModelCheckpoint wrote; it predicts as the saved one did.

        Network, classes, preprocessing and precision are in the file. Loss, metrics and optimizer may be code, so they
        are not, nor are history and what trains: give them anew to go on as before.

        Args:
            file: the file. Nothing in it is executed, and a changed bit is noticed.
            data: pictures to go on training with; their classes must be the file's. None is enough to predict.
            device: as in `Learner`, and so are all that follow.
            loss: from logits and targets to the mean over the batch.
            metrics: names or torchmetrics objects.
            optimizer: a name, or a function of parameters that makes one.
            weight_decay: None is the optimizer's usual one.
            seed: of order, augmentation and dropout.

        Raises:
            CheckpointError: the file is missing, damaged, not headstart's, of other classes or another image size, or
                of a network or head of your own making (make the Learner anew and call `load_weights`).
            ConfigError: an argument is out of range.

        Example:
            >>> loaded = Learner.load("flowers.safetensors")
            opened timm resnet18 (weights from flowers.safetensors), fp32 on cpu
            >>> loaded.predict("flowers/val/rose").labels == learner.predict("flowers/val/rose").labels
            True
        """
        demands = Demands("For example Learner.load('flowers.safetensors', data, metrics=('accuracy', 'f1')).")
        settings = _Settings(loss, metrics, optimizer, weight_decay, "auto", device, seed).checked(demands, data)
        reopened = reopen(as_path(file), data, choose_device(device))
        learner = cls.__new__(cls)
        begin = learner._begin  # noqa: SLF001 - a constructor's own business
        begin(reopened.opened, reopened.data, settings._replace(precision=reopened.precision))
        return learner

    def load_weights(self, path: str | Path) -> None:
        """Load the weights of the same network into this Learner.

        Args:
            path: a file that `save` or a ModelCheckpoint wrote, or a state_dict with the same names and shapes.

        Raises:
            CheckpointError: the file cannot be read, is damaged, or is of another network or other classes.

        Example:
            >>> learner.load_weights("flowers.safetensors")
        """
        load_into(self.model, self.data.classes, as_path(path))

    def __repr__(self) -> str:
        return f"Learner({self._description}; {self.data!r})"

    def __getattr__(self, name: str) -> Any:
        """Tell who looks for something of the network's where to find it."""
        message = f"{type(self).__name__!r} object has no attribute {name!r}"
        session = vars(self).get("_session")
        if session is not None and hasattr(session.backbone.network, name):
            message += f"; the network has it: learner.model.{name}, or self.run.network.{name} in a callback"
        raise AttributeError(message)


class _Settings(NamedTuple):
    """How a Learner trains, as the user put it."""

    loss: "str | Loss"
    metrics: "Sequence[str | Metric]"
    optimizer: str | OptimizerFactory
    weight_decay: float | None
    precision: PrecisionName
    device: str | torch.device
    seed: int

    def checked(self, demands: Demands, data: ImageData | None) -> Self:
        """Refuse what cannot work, together with what the demands have noted before; give plain values."""
        metrics, decay = self.metrics, self.weight_decay
        if isinstance(metrics, Iterable) and not isinstance(metrics, str):
            metrics = list(metrics)
        means = self.loss == "auto" or (callable(self.loss) and not isinstance(self.loss, type))
        demands.check("loss", self.loss, means, "'auto', a function of (logits, targets), or a module that is one")
        counted = isinstance(metrics, str) or (isinstance(metrics, list) and all(map(_is_metric, metrics)))
        demands.check("metrics", metrics, counted, "a list of names such as 'f1', or of torchmetrics objects")
        decays = decay is None or (is_number(decay) and decay >= 0)
        demands.check("weight_decay", decay, decays, "0 or more, or None")
        demands.check("seed", self.seed, is_count(self.seed, 0), "a whole number, 0 or more")
        demands.settle()
        choose_precision(self.precision, choose_device(self.device))
        demand_known(self.optimizer)
        if data is not None:
            make_metrics(metrics, len(data.classes))
        return self._replace(metrics=metrics, weight_decay=_plain(decay), seed=int(self.seed))


def _is_positive(value: object) -> bool:
    return is_number(value) and value > 0  # type: ignore[operator]


def _plain(value: float | None) -> float | None:
    return None if value is None else float(value)  # NumPy has numbers of its own


def _is_metric(metric: object) -> bool:
    return isinstance(metric, str) or hasattr(metric, "update")


def _listed(callbacks: Iterable[Callback] | Callback) -> list[Callback]:
    """Give callbacks as a list; one alone needs none, as in Keras."""
    if isinstance(callbacks, Callback):
        return [callbacks]
    demands = Demands("For example callbacks=[CSVLogger('log.csv')].")
    demands.check("callbacks", callbacks, isinstance(callbacks, Iterable), "a list of callbacks")
    demands.settle()
    return list(callbacks)


def _refuse_load(file: object = "file", *_: object, **__: object) -> None:
    raise ConfigError(
        f"learner.load({str(file)!r}) on a Learner that exists",
        "Learner.load(file), which makes a new Learner",
        "Call learner.load_weights(file) to load weights into this one.",
    )
