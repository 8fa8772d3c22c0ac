"""Batches that memory does not hold go through the network in portions, with the same gradients."""

import gc
import re
import weakref
from collections import Counter

import pytest
import torch
from handmade import At, Noting, made_learner, pairs, plain_network, refusal, same, weights
from torch import nn
from torch.nn import functional

from headstart import HeadstartError, ModelCheckpoint
from headstart.training.portions import OutOfMemory

COST = ", which costs a second forward pass"


class Full(torch.autograd.Function):
    """Runs out of memory on its way back when more than `most` pictures come by."""

    @staticmethod
    def forward(context, values, most):
        context.most = most
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        if len(gradient) > context.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return gradient, None


class Small(nn.Module):
    """A network with memory for `most` pictures at once: in front, or in the middle of its backward pass."""

    def __init__(self, network: nn.Sequential, forward: int = 999, backward: int = 999, evaluation: int = 999):
        super().__init__()
        self.network = network
        self.most = {"forward": forward, "backward": backward, "evaluation": evaluation}
        self.seen: list[int] = []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.most["forward" if self.training else "evaluation"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        for number, layer in enumerate(self.network):
            images = layer(images)
            if number == 1:  # so that half of the layers have their gradients by then
                images = Full.apply(images, self.most["backward"])
        return images


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def gradients(network: nn.Module, train=None, *, callbacks=(), step: int = 0, **options) -> dict[str, torch.Tensor]:
    """Give the gradients of one step."""
    found = {}

    def keep(callback):
        if callback.run.step == step:
            parameters = callback.run.network.named_parameters()
            found.update({n.removeprefix("network."): p.grad.clone() for n, p in parameters if p.grad is not None})

    learner = made_learner(train or pairs(8), network=network, **options.pop("learner", {}))
    learner.fit(1, 0.1, callbacks=[At(on_step_begin=keep), *callbacks], verbose=False, **options)
    return found


def alike(found, expected) -> bool:
    assert list(found) == list(expected)
    return all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-7) for name in expected)


MEMORIES = [
    {"forward": 4},
    {"forward": 3},
    {"forward": 1},
    {"backward": 4},
    {"backward": 3},
    {"backward": 1},
    {"forward": 5, "backward": 2},
]


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
@pytest.mark.parametrize("pictures", [8, 7, 1])
def test_the_gradients_are_those_of_the_whole_batch(memory, pictures):
    found = gradients(Small(plain_network(), **memory), pairs(pictures))
    assert alike(found, gradients(plain_network(), pairs(pictures)))


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_the_gradients_of_other_batches_of_the_step_stay(memory):
    train = pairs(3, 8, 5)
    network = Small(plain_network(), **memory)
    assert alike(gradients(network, train, accumulate=3), gradients(plain_network(), train, accumulate=3))


def test_memory_that_runs_out_late_in_a_step_keeps_what_was_added_before():
    train = pairs(8, 8)
    network = Small(plain_network())
    shrink = At(on_train_batch_begin=lambda c, batch, logs: network.most.update(backward=[8, 2][batch]))
    found = gradients(network, train, accumulate=2, callbacks=[shrink])
    assert alike(found, gradients(plain_network(), train, accumulate=2))


def test_a_loss_that_is_no_mean_over_pictures_gives_the_same_gradients():
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))
    options = {"learner": {"loss": weighted}}
    assert alike(gradients(Small(plain_network(), forward=3), **options), gradients(plain_network(), **options))


@pytest.mark.parametrize("memory", [{"forward": 3}, {"backward": 3}], ids=str)
def test_a_loss_that_a_callback_makes_of_the_outputs_gives_the_same_gradients(memory):
    def distil(callback):
        run = callback.run
        run.loss = run.loss + functional.mse_loss(run.outputs, torch.ones_like(run.outputs))

    found = gradients(Small(plain_network(), **memory), callbacks=[At(on_loss_ready=distil)])
    assert alike(found, gradients(plain_network(), callbacks=[At(on_loss_ready=distil)]))


def penalise(callback):
    run = callback.run
    run.loss = run.loss + sum(parameter.square().sum() for parameter in run.network.parameters())


def test_a_penalty_on_the_weights_is_counted_once():
    found = gradients(Small(plain_network(), forward=3), callbacks=[At(on_loss_ready=penalise)])
    assert alike(found, gradients(plain_network(), callbacks=[At(on_loss_ready=penalise)]))


def test_a_loss_that_could_not_be_had_again_is_told():
    learner = made_learner(pairs(8), network=Small(plain_network(), backward=3))
    error = refusal(OutOfMemory, lambda: learner.fit(1, 0.1, callbacks=[At(on_loss_ready=penalise)], verbose=False))
    assert "a loss that a callback made" in error.arrived
    assert "Batches of 4 with accumulate=2" in error.todo


@pytest.mark.parametrize("memory", [{"forward": 3}, {"backward": 3}], ids=str)
def test_a_gradient_that_a_callback_has_asked_for_is_not_counted(memory):
    def look(callback):
        torch.autograd.backward(callback.run.loss, inputs=[callback.run.outputs], retain_graph=True)

    found = gradients(Small(plain_network(), **memory), callbacks=[At(on_loss_ready=look)])
    assert alike(found, gradients(plain_network()))


def test_a_batch_whose_loss_has_nothing_to_do_with_the_network_is_passed_over():
    def nothing(callback):
        if callback.run.batches_done == 1:
            callback.run.loss = torch.zeros((), requires_grad=True)

    fits = []
    for network in (Small(plain_network(), forward=3), plain_network()):
        learner = made_learner(pairs(8, 8, 8), network=network)
        learner.fit(1, 0.1, callbacks=[At(on_loss_ready=nothing)], verbose=False)
        fits.append({name.removeprefix("network."): value for name, value in weights(learner).items()})
    assert alike(*fits)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_advice_gives_the_same_step(accumulate):
    learner = made_learner(pairs(8, 8, 8), network=Small(plain_network(), forward=3))
    error = refusal(OutOfMemory, lambda: learner.fit(1, 0.1, accumulate=accumulate, on_oom="raise", verbose=False))
    assert f"Batches of 4 with accumulate={2 * accumulate} take half the memory for the same step." in error.todo
    learner = made_learner(val=pairs(8), network=Small(normed_always(), evaluation=3))
    assert "Batches of 4 take half the memory." in refusal(OutOfMemory, learner.evaluate).todo


@pytest.mark.parametrize(("pictures", "normed"), [(7, False), (8, True)])
def test_the_advice_promises_the_same_step_only_where_it_is_one(pictures, normed):
    network = normed_always() if normed else plain_network()
    learner = made_learner(pairs(pictures), network=Small(network, forward=3))
    error = refusal(OutOfMemory, lambda: learner.fit(1, 0.1, on_oom="raise", verbose=False))
    assert "Batches of 4 with accumulate=2 take half the memory." in error.todo


def normed_always() -> nn.Sequential:
    """Make a network whose norm has no running statistics: it looks at the batch in evaluation too."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(64, 3)
    )


def test_norms_that_look_at_one_picture_are_no_reason_against_it():
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        norms = nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), *norms, nn.Flatten(), nn.Linear(64, 3))

    assert alike(gradients(Small(network(), forward=3)), gradients(network()))


def test_a_batch_in_portions_is_one_batch_to_the_callbacks():
    noting, whole = Noting(), Noting()
    made_learner(pairs(8, 8), pairs(8), network=Small(plain_network(), forward=3, evaluation=3)).fit(
        2, 0.1, callbacks=[noting], verbose=False
    )
    made_learner(pairs(8, 8), pairs(8)).fit(2, 0.1, callbacks=[whole], verbose=False)
    assert noting.notes == whole.notes


def test_the_logs_are_those_of_whole_batches():
    small = made_learner(pairs(8, 7), pairs(9), network=Small(plain_network(), backward=2, evaluation=2))
    whole = made_learner(pairs(8, 7), pairs(9))
    found, expected = (learner.fit(2, 0.1, verbose=False).history for learner in (small, whole))
    assert {name: pytest.approx(values) for name, values in expected.items()} == found


def test_evaluation_and_prediction_go_through_in_portions_and_say_the_same():
    small = made_learner(val=pairs(9, 4), network=Small(plain_network(), evaluation=4))
    whole = made_learner(val=pairs(9, 4))
    assert small.evaluate() == pytest.approx(whole.evaluate())
    pictures = pairs(10)[0][0]
    assert torch.allclose(small.predict(pictures).probabilities, whole.predict(pictures).probabilities)


def test_what_fits_is_tried_out_once(capsys):
    network = Small(plain_network(), forward=3, evaluation=4)
    learner = made_learner(pairs(8, 8), pairs(8), network=network)
    learner.fit(2, 0.1, verbose=False)
    learner.evaluate()
    learner.predict(pairs(8)[0][0])
    failed = [size for size in network.seen if size > 4]
    assert failed == [8, 8]  # the first batch of training, the first of evaluation
    told = capsys.readouterr().out.splitlines()
    assert told[1:] == [
        f"out of memory with 8 pictures: training takes 2 at a time through the network{COST}",
        "out of memory with 8 pictures: evaluation takes 4 at a time through the network",
    ]


def test_portions_differ_by_one_picture_at_the_most():
    network = Small(plain_network(), forward=4)
    made_learner(pairs(9), network=network).fit(1, 0.1, verbose=False)
    assert network.seen == [9, 5, 3, 3, 3, 3, 3, 3]


def test_both_passes_of_a_portion_draw_the_same_dropout():
    class Remembering(nn.Dropout):
        def forward(self, values):
            dropped = super().forward(values)
            masks.append(dropped == 0)
            return dropped

    masks: list[torch.Tensor] = []
    layers = list(plain_network())
    layers[3] = Remembering(0.5)
    network = Small(nn.Sequential(*layers), forward=3)
    draw = At(on_loss_ready=lambda callback: torch.rand(5))
    made_learner(pairs(8, 8), network=network).fit(1, 0.1, callbacks=[draw], verbose=False)
    first, second = masks[:4], masks[8:12]
    assert len(masks) == 16
    assert all(torch.equal(one, other) for one, other in zip(first, masks[4:8], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(second, masks[12:], strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_what_the_failed_pass_kept_in_memory_is_gone_when_portions_are_tried():
    class Leaving(nn.Module):
        def forward(self, values):
            gc.disable()  # only what is let go of counts, not what a collection finds
            alive.append(sum(note() is not None for note in notes))
            values = values * 2
            notes.append(weakref.ref(values))
            return values

    notes: list[weakref.ref] = []
    alive: list[int] = []
    for memory in ({"forward": 4}, {"backward": 4}):
        notes.clear()
        alive.clear()
        network = Small(nn.Sequential(nn.Flatten(), nn.Linear(108, 3), Leaving()), **memory)
        try:
            made_learner(pairs(8), network=network).fit(1, 0.1, verbose=False)
        finally:
            gc.enable()
        assert alive[-2:] == [0, 0], memory


def test_norms_in_training_are_no_reason_to_split_unasked():
    network = Small(normed(), forward=3)
    learner = made_learner(pairs(8), network=network)
    before = weights(learner)
    error = refusal(OutOfMemory, lambda: learner.fit(1, 0.1, verbose=False))
    assert error.arrived == "out of memory with 8 pictures (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    assert "BatchNorm" in error.todo
    assert "on_oom='split'" in error.todo
    assert "Batches of 4 with accumulate=2" in error.todo
    assert network.seen == [8]
    assert same(before, weights(learner))
    assert isinstance(error, torch.OutOfMemoryError | HeadstartError)


def test_norms_that_rest_are_no_reason_against_it():
    learner = made_learner(pairs(8), network=Small(normed(), forward=3))
    learner.freeze()
    learner.fit(1, 0.1, verbose=False)
    assert learner.history.history["loss"]


def test_norms_that_train_see_portions_if_asked_to_and_move_by_each_once():
    network = Small(normed(), forward=4)
    learner = made_learner(pairs(8), network=network)
    learner.fit(1, 0.1, on_oom="split", verbose=False)
    expected = normed()
    images = pairs(8)[0][0]
    for portion in images.split(4):
        expected(portion)
    norm = network.network[1]
    assert torch.equal(norm.running_mean, expected[1].running_mean)
    assert torch.equal(norm.running_var, expected[1].running_var)
    assert norm.num_batches_tracked == 2


def test_statistics_of_a_pass_that_failed_are_put_back():
    layers = list(normed())
    network = nn.Sequential(*layers[:2], Small(nn.Sequential(*layers[2:]), forward=4))
    learner = made_learner(pairs(8), network=network)
    learner.fit(1, 0.1, on_oom="split", verbose=False)
    assert learner.model[1].num_batches_tracked == 2
    other = made_learner(pairs(8), network=Small(normed(), forward=4))
    other.fit(1, 0.1, on_oom="split", verbose=False)
    assert torch.equal(learner.model[1].running_mean, other.model.network[1].running_mean)


def test_no_batch_is_split_where_that_was_not_wanted():
    learner = made_learner(pairs(8), pairs(4), network=Small(plain_network(), forward=4))
    error = refusal(OutOfMemory, lambda: learner.fit(1, 0.1, on_oom="raise", verbose=False))
    assert "on_oom='auto'" in error.todo


def test_one_picture_that_does_not_fit_is_an_error_that_tells_what_takes_less():
    learner = made_learner(pairs(8), network=Small(plain_network(), forward=0))
    error = refusal(OutOfMemory, lambda: learner.fit(1, 0.1, verbose=False))
    assert error.arrived.startswith("out of memory with 1 picture (")
    assert "image_size" in error.todo


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ...",
        "MPS backend out of memory (MPS allocated: 8 GB)",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_runs_out_without_a_class_of_its_own_is_known_by_its_words(words):
    class Wordy(Small):
        def forward(self, images):
            if len(images) > 4:
                raise RuntimeError(words)
            return super().forward(images)

    assert alike(gradients(Wordy(plain_network())), gradients(plain_network()))


def test_other_errors_of_the_network_pass():
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    learner = made_learner(pairs(8), network=nn.Sequential(*plain_network(), Broken()))
    with pytest.raises(RuntimeError, match=re.escape("mat1 and mat2")):
        learner.fit(1, 0.1, verbose=False)


def test_what_does_not_fit_in_a_callback_is_its_own_matter():
    def greedy(callback):
        raise torch.OutOfMemoryError("CUDA out of memory")

    learner = made_learner(pairs(8))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        learner.fit(1, 0.1, callbacks=[At(on_loss_ready=greedy)], verbose=False)
    assert not isinstance(caught.value, HeadstartError)


def test_a_fit_that_is_gone_on_with_takes_portions_of_the_same_size(tmp_path):
    class Cut(Exception):  # noqa: N818
        pass

    def cut(callback, batch, logs):
        if callback.run.epoch == 1:
            raise Cut

    first = made_learner(pairs(8, 8, 8), network=Small(plain_network(), forward=4))
    callbacks = [ModelCheckpoint(tmp_path, every_seconds=1e-9), At(on_train_batch_begin=cut)]
    with pytest.raises(Cut):
        first.fit(2, 0.1, callbacks=callbacks, verbose=False)
    network = Small(plain_network())  # more memory than before
    callbacks = [ModelCheckpoint(tmp_path, every_seconds=1e-9), At(on_train_batch_begin=lambda *_: None)]
    made_learner(pairs(8, 8, 8), network=network).fit(2, 0.1, callbacks=callbacks, resume=True, verbose=False)
    assert Counter(network.seen) == {4: 2 * 2 * 3}  # the three batches of the last epoch, each in halves and twice


def test_on_oom_takes_one_of_three_words():
    learner = made_learner()
    error = refusal(HeadstartError, lambda: learner.fit(1, 0.1, on_oom="halve"))
    assert "on_oom='halve'" in error.arrived
    assert "'auto', 'split' or 'raise'" in error.needed
