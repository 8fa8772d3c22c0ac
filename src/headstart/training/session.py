"""A session: the parts of a Learner, assembled into runs.

`fit`, `evaluate` and `predict` all start here. A session knows the parts and never the Learner, which it only hands on
to the callbacks.
"""

import functools
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from headstart.data.image_data import ImageData
from headstart.data.loading import Batches, Pair, SourceBatches, accounting
from headstart.data.own_loader import OwnLoader, Part
from headstart.data.sources import FolderSource
from headstart.errors import CheckpointError, ConfigError, listing
from headstart.machine import memory_held
from headstart.model.backbone import Backbone
from headstart.randomness import STEP, derive, preserved, seed_step
from headstart.training.batch import Preparer, choose_memory_format, preparer
from headstart.training.callback import Callback, Hooks, added_keys, check_callbacks, looks_at_batches
from headstart.training.companions import ClipNorm, Comparison, Doctor, Recorder
from headstart.training.features import CacheFeatures, FeatureBatches, sources_of
from headstart.training.feed import Feed
from headstart.training.fingerprint import SIZES, of_callbacks, of_data, of_machine, of_network, of_weights
from headstart.training.history import History
from headstart.training.keeping import Keeping, find_folder
from headstart.training.loop import Loop, Loss
from headstart.training.metrics import Direction, Tally, directions
from headstart.training.optimizer import (
    OptimizerFactory,
    carry_over,
    demand_trainable,
    forget,
    lr_scales,
    make_optimizer,
)
from headstart.training.portions import OnOom, Portions
from headstart.training.precision import Precision
from headstart.training.run import LearnerLike, Run, no_names
from headstart.training.signals import listening
from headstart.training.words import words_for

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class FitPlan:
    """What `fit` was asked for, checked."""

    epochs: int
    lr: float
    head_lr_mult: float = 1.0
    layer_lr_decay: float | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    resume: bool = False
    on_oom: OnOom = "auto"
    cache_features: CacheFeatures = "auto"


@dataclass
class Session:
    """The parts that all runs of a Learner share.

    Args:
        backbone: the network, its head and stages, on `device`.
        data: bound to the network's preprocessing.
        loss: from logits and targets to the mean over the batch.
        metrics: by name; None stands for accuracy.
        optimizer_choice: a name or a factory.
        weight_decay: None is the optimizer's usual one.
        device: where the network is.
        precision: the arithmetic of the forward pass.
        seed: of order, augmentation and dropout.
    """

    backbone: Backbone
    data: ImageData
    loss: Loss
    metrics: "dict[str, Metric | None]"
    optimizer_choice: str | OptimizerFactory
    weight_decay: float | None
    device: torch.device
    precision: Precision
    seed: int
    optimizer: Optimizer | None = field(default=None, init=False)
    histories: list[History] = field(default_factory=list, init=False)
    run: Run | None = field(default=None, init=False)
    _was_cut_short: bool = field(default=False, init=False)
    _pictures_at_once: dict[bool, int] = field(default_factory=dict, init=False)
    _start: str = field(default="", init=False)  # digest of the weights that the last fit began with
    _prepare: Preparer = field(init=False)

    def __post_init__(self) -> None:
        memory_format = choose_memory_format(self.backbone.network, self.device)
        self.backbone.network.to(memory_format=memory_format)
        normalise = self.backbone.preprocessing.normaliser(self.device)
        channels = 3 if self.backbone.architecture else None  # the libraries' networks see colours
        self._prepare = preparer(self.device, normalise, memory_format=memory_format, channels=channels)

    def fit(self, plan: FitPlan, callbacks: Sequence[Callback], learner: LearnerLike) -> History:
        """Train as planned and give what happened, epoch by epoch."""
        self.backbone.take_stock()
        self._pictures_at_once.pop(True, None)  # what trains may take more memory, or less, than in the last fit
        demand_trainable(self.backbone)
        before = self.backbone.lr_scales
        with ExitStack() as open_files:
            try:
                run = self._fit_run(plan, self.data.steps, callbacks)
                check_callbacks(callbacks, run)
                keeping = self._keeping(plan, run, callbacks)
                if keeping is not None:
                    open_files.enter_context(keeping.opened())
                is_over = keeping is not None and self._is_over(keeping, run)
                feed = self._feed(plan, run, callbacks)
                if not is_over:
                    feed.prepare()
                train, val = feed.batches()
                own = self._own_callbacks(plan, train)
                loop = self._loop(run, [*own, *callbacks, *([keeping] if keeping else [])], learner, plan.on_oom)
                if keeping is not None:
                    keeping.begin(loop)
            except BaseException:
                self.backbone.lr_scales = before
                raise
            self._go(loop, train, val, keeping if is_over else None)
        return run.history

    def _feed(self, plan: FitPlan, run: Run, callbacks: Sequence[Callback]) -> Feed:
        asked = plan.cache_features
        if asked == "auto" and any(map(looks_at_batches, callbacks)):
            asked = 0  # it would find features where pictures are expected
        parts = self.backbone, self.data, self._prepare, self.device, self.precision, self.seed
        return Feed(*parts, asked, run)

    def _go(self, loop: Loop, train: Batches, val: Batches | None, over: Keeping | None) -> None:
        """Train, or let the callbacks remember the end of a fit that is over; leave no trace of batches."""
        run = loop.run
        if isinstance(train, SourceBatches | FeatureBatches):
            run.pictures = lambda batch: train.pictures(run.fit, run.epoch, batch)
        self.optimizer, self.run = run.optimizer, run
        del self.histories[run.fit - 1 :]
        self.histories.append(run.history)
        self._was_cut_short = True
        try:
            with accounting(*sources_of(train, val)), loop.hooks.bound(), preserved(), self._memory(), listening(run):
                if over is not None:
                    over.load_callbacks()
                else:
                    loop.fit(train, val)
            self._was_cut_short = False
        finally:
            if told := loop.scaler.told():
                print(told)  # noqa: T201 - what was not learned must not go unseen
            self.run = None
            run.pictures = no_names  # those of a loader, whose processes would stay as long as somebody has the run
            for name in ("batch", "outputs", "loss"):
                vars(run).pop(name, None)  # callbacks keep the run, and it would keep the last batch's graph
            run.apply_deferred()
            self.backbone.network.eval()

    def _is_over(self, keeping: Keeping, run: Run) -> bool:
        """Look for what an earlier process left; say whether it had come to its end."""
        try:
            return keeping.find(run)
        except CheckpointError:
            self.data.check(*self.data.fitted)  # pictures that broke say more than that they are not the same
            raise

    def _keeping(self, plan: FitPlan, run: Run, callbacks: Sequence[Callback]) -> Keeping | None:
        """Give what keeps the states of a fit, if anything does, with what must be the same to go on from them."""
        folder = find_folder(callbacks, run)
        if folder is None:
            return None
        asked = {
            **run.params,
            **of_network(self.backbone.network, self.backbone.frozen),
            "loss": words_for(self.loss),
            "metrics": {name: words_for(metric) for name, metric in self.metrics.items()},
            "optimizer": f"{words_for(self.optimizer_choice)} ({type(run.optimizer).__name__})",
            "weight_decay": self.weight_decay,
            "precision": self.precision.name,
            "seed": self.seed,
            **of_data(self.data),
            "callbacks": of_callbacks(callbacks),
        }
        if self._was_cut_short and not plan.resume:
            print(  # noqa: T201 - in a notebook this is seldom what was meant
                f"fit {len(self.histories)} was cut short: this is fit {run.fit}, which begins with its weights. "
                "resume=True would go on with it; a new Learner would begin anew"
            )
        if run.fit > len(self.histories):  # else it is the fit that was cut short in this process, begun with others
            self._start = of_weights(self.backbone.network) if run.fit > 1 else ""
        facts = {
            "asked": asked,
            "machine": of_machine(self.device),
            "start": self._start,
            "may_differ": [*SIZES.values()] if self.data.skips else [],
        }
        return Keeping(folder, facts, callbacks, whole_epochs=isinstance(self.data.train, OwnLoader))

    def _own_callbacks(self, plan: FitPlan, train: Batches) -> list[Callback]:
        own: list[Callback] = [Recorder()]
        if plan.clip_norm is not None:
            own.append(ClipNorm(plan.clip_norm))
        from_files = isinstance(self.data.train, FolderSource)  # datasets and loaders may give what is final
        of_pictures = isinstance(train, SourceBatches)  # and not of features
        if from_files and of_pictures and callable(self.data.augment) and self.data.eval_transform is None:
            own.append(Comparison(self.backbone.preprocessing))
        live = train.live if isinstance(train, FeatureBatches) else train
        if isinstance(live, SourceBatches):
            own.append(Doctor(self.data, live))
        return own

    def evaluate(
        self, part: Part, name: str, data: ImageData, callbacks: Sequence[Callback], learner: LearnerLike
    ) -> dict[str, float]:
        """Give loss and metrics on a part of some data; what is being trained is left as it is."""
        batches = data.eval_batches(part, name, for_gpu=self.device.type == "cuda")
        run = Run(self.backbone, {"steps": len(batches)}, self._directions(val=False, callbacks=callbacks))
        check_callbacks(callbacks, run)
        loop = self._loop(run, callbacks, learner)
        with accounting(batches), loop.hooks.bound(), preserved(), self._memory():
            return dict(loop.evaluate(batches))

    def predict(
        self, batches: Iterable[Pair], pictures: int, callbacks: Sequence[Callback], learner: LearnerLike
    ) -> Tensor:
        """Give the probabilities of so many pictures, float32 `[pictures, classes]`, on the CPU."""
        # Room for all at once: kept one by one they would lie between large batches in memory, and cut it to pieces.
        answers = torch.empty(pictures, len(self.data.classes), device=self.device)
        run = Run(self.backbone)
        check_callbacks(callbacks, run)
        loop = self._loop(run, callbacks, learner)
        with loop.hooks.bound(), preserved(), self._memory(several=pictures > self.data.batch_size):
            loop.predict(batches, answers)
        return answers.cpu()

    def _memory(self, *, several: bool = True) -> AbstractContextManager[None]:
        """Hold memory where batches are computed in it; to give it back after each of single ones would cost more."""
        return memory_held() if several and self.device.type == "cpu" else nullcontext()

    def train_from(self, boundary: int) -> None:
        """Freeze the stages before `boundary`; inside a fit, from the next step on."""

        def change() -> None:
            thawed = self.backbone.train_from(boundary)
            if self.optimizer is not None:
                forget(self.optimizer, thawed)
            if self.run is not None:
                self.run.refrozen |= self.run.batches_done > 0
                self.backbone.train()  # norms that rested until now take part from the next batch on

        if self.run is None:
            change()
        else:
            self.run.defer(change)

    def _fit_run(self, plan: FitPlan, batches: int, callbacks: Sequence[Callback]) -> Run:
        self.backbone.lr_scales = lr_scales(len(self.backbone.stages), plan.head_lr_mult, plan.layer_lr_decay)
        optimizer = make_optimizer(self.optimizer_choice, self.backbone, plan.lr, self.weight_decay, self.device)
        carry_over(self.optimizer, optimizer)
        own = isinstance(self.data.train, OwnLoader)
        asked = {name: value for name, value in vars(plan).items() if name not in ("resume", "on_oom")}
        params = {**asked, "steps": batches, "batch_size": None if own else self.data.batch_size}
        return Run(
            self.backbone,
            params,
            self._directions(val=self.data.val is not None, callbacks=callbacks),
            optimizer,
            History(params=params),
            # In a notebook the call that was interrupted is made once more, and goes on with the same fit.
            fit=len(self.histories) + (0 if plan.resume and self._was_cut_short else 1),
            epochs=plan.epochs,
            batches=batches,
            accumulate=plan.accumulate,
            resume=plan.resume,
        )

    def _directions(self, *, val: bool, callbacks: Sequence[Callback]) -> dict[str, Direction]:
        """Name the log keys that a run will have, and which way is better."""
        own = directions(self.metrics)
        return {
            **own,
            **({f"val_{name}": better for name, better in own.items()} if val else {}),
            "learning_rate": None,
            **added_keys(callbacks),
        }

    def _loop(self, run: Run, callbacks: Sequence[Callback], learner: LearnerLike, on_oom: OnOom = "auto") -> Loop:
        @functools.cache
        def epoch_seed(epoch: int) -> int:
            return derive(STEP, self.seed, run.fit, epoch)

        def seed(epoch: int, batch: int) -> None:
            seed_step(derive(epoch_seed(epoch), batch), self.device)

        def reseed() -> None:
            seed(run.epoch, -1 - run.batches_done)  # not as the batch was seeded: MixUp may have drawn from that

        return Loop(
            run,
            Hooks(callbacks, run, learner),
            self.loss,
            self._prepare,
            len(self.data.classes),
            self.precision,
            self.precision.scaler(),
            Portions(run, on_oom, reseed, self._pictures_at_once),
            seed,
            Tally(self.metrics, self.device),
            Tally(self.metrics, self.device),
        )


def choose_loss(loss: str | Loss, device: torch.device) -> Loss:
    """Settle the loss: `"auto"` is cross-entropy, for class ids or probabilities; a module moves along.

    Raises:
        ConfigError: a module that would have to be trained itself.
    """
    if isinstance(loss, nn.Module):
        if trained := [name for name, parameter in loss.named_parameters() if parameter.requires_grad]:
            raise ConfigError(
                f"the loss {type(loss).__name__} with parameters that train: {listing(trained, 3)}",
                "a loss without parameters; those of the network are trained and saved",
                "Put them into the network, or freeze them: loss.requires_grad_(False).",
            )
        loss.to(device)
    return functional.cross_entropy if isinstance(loss, str) else loss
