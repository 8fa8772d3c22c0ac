"""The loop: what happens in a fit, with every hook in its place.

    on_train_begin
    for each epoch:
        on_epoch_begin
        for each batch of the train part:
            on_train_batch_begin
            the batch goes to the device                            on_batch_ready
            outputs = network(images), loss = loss(outputs, targets)  on_loss_ready
            gradients of the loss are added up                      on_backward_end
            if the batch closes its group:
                the gradients become those of the group's mean      on_step_begin
                the optimizer moves the weights                     on_step_end
            on_train_batch_end
        if there is a val part:
            on_test_begin
            for each batch: on_test_batch_begin, network, loss, on_test_batch_end
            on_test_end
        on_epoch_end
    on_train_end

A *group* is the batches that share one step: `accumulate` of them, fewer at the end of an epoch. Its gradient is that
of the mean over all its pictures, as if they had been one big batch.

A *polite* stop, `run.stop(reason)`, finishes the batch, validates and ends the epoch. An *immediate* one,
`raise StopTraining(reason)`, goes straight to on_train_end. So does an error or Ctrl-C, which then goes on its way.

Not here: devices, memory, optimizers, schedules, clipping, printing, paths. Only this file calls `backward` and steps
an optimizer, and nothing in it waits for the device while training.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.data.loading import Batches, Pair
from headstart.data.own_loader import demand_length
from headstart.training.batch import Preparer, answer, demand_mean
from headstart.training.callback import Hooks
from headstart.training.metrics import Logs, Tally
from headstart.training.optimizer import drop_gradients
from headstart.training.portions import Portions
from headstart.training.precision import Precision, Scaler
from headstart.training.run import Run, StopTraining, Terminated
from headstart.training.signals import heeding

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits `[batch, classes]` and targets to the mean loss, a scalar."""


@dataclass(frozen=True)
class Loop:
    """What does not change while a run goes on.

    Args:
        run: the state of the run.
        hooks: who is called when.
        loss: from logits and targets to the mean over the batch.
        prepare: from what a loader yields to a batch on the device.
        classes: how many logits the network gives for a picture.
        precision: the arithmetic of the forward pass.
        scaler: keeps the gradients of fp16 from vanishing.
        portions: takes batches through the network, in portions where memory does not hold them.
        seed: makes chance depend on the epoch and the batch alone.
        train_tally: sums over the train part.
        val_tally: sums over the val part.
    """

    run: Run
    hooks: Hooks
    loss: Loss
    prepare: Preparer
    classes: int
    precision: Precision
    scaler: Scaler
    portions: Portions
    seed: Callable[[int, int], None]
    train_tally: Tally
    val_tally: Tally

    # Three ways in.

    def fit(self, train: Batches, val: Batches | None) -> None:
        """Train and validate, epoch after epoch."""
        run = self.run
        try:
            self.hooks.call("on_train_begin", run.logs)
            while run.has_epochs:
                self._epoch(train, val)
            run.status = "completed" if run.stop_reason is None else "stopped"
        except StopTraining as stop:
            run.stop(str(stop))
            run.status = "stopped"
        except BaseException as error:
            run.status = "interrupted" if isinstance(error, KeyboardInterrupt | Terminated) else "failed"
            raise
        finally:
            self.hooks.call("on_train_end", run.logs)

    def evaluate(self, batches: Batches) -> Logs:
        """Sum up loss and metrics over the batches; the network is left as it was."""
        run, tally = self.run, self.val_tally
        tally.reset()
        logs = tally.logs()
        with run.backbone.evaluating():
            self.hooks.call("on_test_begin", logs)
            for number, pair in enumerate(heeding(run, batches.epoch(run.fit, run.epoch))):
                self.hooks.call("on_test_batch_begin", number, logs)
                run.batch = self.prepare(pair)
                with torch.no_grad():
                    self._forward()
                tally.add(run.loss, run.outputs, run.batch.targets)
                self.hooks.call("on_test_batch_end", number, logs)
                run.leave_if_told()
            self.hooks.call("on_test_end", logs)
        return logs

    def predict(self, batches: Iterable[Pair], answers: Tensor) -> None:
        """Write the probabilities of all pictures into `answers`, float32 `[pictures, classes]`."""
        run, done = self.run, 0
        with run.backbone.evaluating():
            self.hooks.call("on_predict_begin", run.logs)
            for number, pair in enumerate(batches):
                self.hooks.call("on_predict_batch_begin", number, run.logs)
                run.batch = self.prepare(pair)
                with torch.no_grad():
                    run.outputs = self.portions.outputs(self._answer, run.batch.images)
                answers[done : done + len(run.batch)] = run.outputs.float().softmax(1)
                done += len(run.batch)
                self.hooks.call("on_predict_batch_end", number, run.logs)
            self.hooks.call("on_predict_end", run.logs)

    # From the outside in.

    def _epoch(self, train: Batches, val: Batches | None) -> None:
        run = self.run
        if run.batches_done == 0:
            self.hooks.call("on_epoch_begin", run.epoch, run.logs)
        self._train(train)
        logs = Logs(dict(self.train_tally.logs()))
        if val is not None:
            logs.update({f"val_{name}": value for name, value in self.evaluate(val).items()})
        logs["learning_rate"] = run.lr
        run.logs = logs
        self.hooks.call("on_epoch_end", run.epoch, logs)
        run.epoch, run.batches_done, run.refrozen = run.epoch + 1, 0, False
        run.reach_border()

    def _train(self, batches: Batches) -> None:
        run = self.run
        run.backbone.train()
        drop_gradients(self.optimizer)
        if run.batches_done == 0:
            self.train_tally.reset()
        run.logs = self.train_tally.logs()
        if not run.has_trained:
            self._pass(batches)

    def _pass(self, batches: Batches) -> None:
        run = self.run
        group: list[int] = []  # pictures in each batch of the open group
        self.seed(run.epoch, run.batches)  # a loader of the user's own may draw its order; no batch has this number
        came = run.batches_done
        run.apply_deferred()
        for number, pair in enumerate(heeding(run, batches.epoch(run.fit, run.epoch, came), group), came):
            if (came := number + 1) > run.batches:
                break
            self._batch(number, pair, group)
            if run.stop_reason is not None:
                break
        demand_length(came, run.batches, is_cut=run.stop_reason is not None)
        if group:
            self._step(group)
            run.reach_border()

    def _batch(self, number: int, pair: Pair, group: list[int]) -> None:
        run = self.run
        self.hooks.call("on_train_batch_begin", number, run.logs)
        run.batch = self.prepare(pair)
        self.seed(run.epoch, number)
        self.hooks.call("on_batch_ready")
        run.backbone.keep_resting()
        self._forward()
        self.hooks.call("on_loss_ready")
        self._backward(group)
        self.hooks.call("on_backward_end")
        if self._closes_group(number, group):
            self._step(group)
        self.train_tally.add(run.loss, run.outputs, run.batch.targets)
        self.hooks.call("on_train_batch_end", number, run.logs)
        run.batches_done = number + 1
        if not group:
            run.reach_border()

    def _forward(self) -> None:
        run = self.run
        run.outputs = self.portions.outputs(self._answer, run.batch.images)
        with self.precision.autocast():
            run.loss = demand_mean(self.loss(self.precision.in_full(run.outputs), run.batch.targets))

    def _answer(self, images: Tensor) -> Tensor:
        # One picture alone has no statistics of its own: normalising it by them would leave nothing, or fail.
        resting = self.run.backbone.norms_resting() if images.shape[0] == 1 else nullcontext()
        with resting, self.precision.autocast():
            return answer(self.run.batch.through or self.run.network, images, self.classes)

    def _backward(self, group: list[int]) -> None:
        """Add the gradients of this batch, weighed by its pictures against those of the group's first batch."""
        run = self.run
        group.append(len(run.batch))
        weight = group[-1] / group[0]
        with self.portions.adding(group[-1], to_none=len(group) == 1):
            self.scaler.scale(run.loss if weight == 1 else run.loss * weight).backward()  # type: ignore[no-untyped-call]
        for images, gradient, lacking in self.portions.left():
            with self.portions.adding(images.shape[0]):
                torch.autograd.backward(self._answer(images), gradient, inputs=lacking)

    def _step(self, group: list[int]) -> None:
        """Move the weights by the gradient of the mean over the group, and open the next group."""
        run, optimizer = self.run, self.optimizer
        self.scaler.unscale_(optimizer)
        if len(group) > 1:
            self._divide_gradients(sum(group) / group[0])
        group.clear()
        self.hooks.call("on_step_begin")
        self.scaler.step(optimizer)
        self.scaler.update()
        drop_gradients(optimizer)
        run.step += 1
        self.hooks.call("on_step_end")

    # Small questions, each asked in one place.

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of a run that trains."""
        if self.run.optimizer is None:
            raise RuntimeError("A run that trains nothing has reached a step.")
        return self.run.optimizer

    def _closes_group(self, number: int, group: list[int]) -> bool:
        return len(group) == self.run.accumulate or number + 1 == self.run.batches

    def _divide_gradients(self, count: float) -> None:
        gradients = [p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        torch._foreach_div_(gradients, count)
