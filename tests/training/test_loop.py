"""The loop: which hooks come when, what a group's step is, what the logs say, and how a fit ends."""

import ast
import re
from collections import Counter
from itertools import repeat
from pathlib import Path

import pytest
import torch
from handmade import At, Noting, joined, made_learner, pairs, plain_network, refusal, same, weights
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from headstart import BackboneError, ConfigError, DataError, StopTraining
from headstart.training import callback as callback_module
from headstart.training import loop as loop_module
from headstart.training.callback import HOOKS

FIT_HOOKS = [hook for hook in HOOKS if "predict" not in hook]
BATCH = ["on_train_batch_begin", "on_batch_ready", "on_loss_ready", "on_backward_end"]
STEP = ["on_step_begin", "on_step_end"]
VAL_BATCH = ["on_test_batch_begin", "on_test_batch_end"]


def momentum(parameters):
    return torch.optim.SGD(parameters, momentum=0.9)


# Which hooks come when.


def test_a_fit_calls_the_hooks_in_the_order_of_the_page():
    noting = Noting()
    made_learner(pairs(4, 2), pairs(3)).fit(1, 0.1, callbacks=[noting], verbose=False)
    assert noting.notes == [
        ("on_train_begin",),
        ("on_epoch_begin", 0),
        *(
            note
            for number in (0, 1)
            for note in (
                ("on_train_batch_begin", number),
                ("on_batch_ready",),
                ("on_loss_ready",),
                ("on_backward_end",),
                ("on_step_begin",),
                ("on_step_end",),
                ("on_train_batch_end", number),
            )
        ),
        ("on_test_begin",),
        ("on_test_batch_begin", 0),
        ("on_test_batch_end", 0),
        ("on_test_end",),
        ("on_epoch_end", 0),
        ("on_train_end",),
    ]


@pytest.mark.parametrize("module", [loop_module, callback_module])
def test_the_pages_that_draw_a_fit_name_every_hook_in_its_order(module):
    noting = Noting()
    made_learner(pairs(4), pairs(4)).fit(1, 0.1, callbacks=[noting], verbose=False)
    named = dict.fromkeys(name for name in re.findall(r"\bon_\w+", module.__doc__) if name in HOOKS)
    assert list(named) == list(dict.fromkeys(noting.names)) == sorted(FIT_HOOKS, key=list(named).index)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("val", [None, pairs(3, 1)], ids=["no val", "val"])
def test_each_hook_is_called_as_often_as_there_are_epochs_batches_and_steps(accumulate, val):
    noting, epochs, batches = Noting(), 2, 7
    learner = made_learner(pairs(*[2] * batches), val)
    learner.fit(epochs, 0.1, accumulate=accumulate, callbacks=[noting], verbose=False)
    steps = {1: 7, 3: 3}[accumulate]
    expected = {"on_train_begin": 1, "on_train_end": 1, "on_epoch_begin": epochs, "on_epoch_end": epochs}
    expected |= dict.fromkeys([*BATCH, "on_train_batch_end"], epochs * batches)
    expected |= dict.fromkeys(STEP, epochs * steps)
    if val:
        expected |= dict.fromkeys(("on_test_begin", "on_test_end"), epochs)
        expected |= dict.fromkeys(VAL_BATCH, epochs * len(val))
    assert Counter(noting.names) == expected


def test_a_group_closes_when_it_is_full_and_at_the_end_of_an_epoch():
    closing = []
    counting = At(on_step_end=lambda c: closing.append((c.run.epoch, len(seen), c.run.step)))
    seen = []
    count = At(on_train_batch_begin=lambda c, batch, logs: seen.append(batch))
    made_learner(pairs(*[2] * 7)).fit(2, 0.1, accumulate=3, callbacks=[counting, count], verbose=False)
    assert closing == [(0, 3, 1), (0, 6, 2), (0, 7, 3), (1, 10, 4), (1, 13, 5), (1, 14, 6)]


def test_evaluate_calls_the_test_hooks_alone():
    noting = Noting()
    made_learner(val=pairs(3, 1)).evaluate(callbacks=[noting])
    assert noting.notes == [
        ("on_test_begin",),
        ("on_test_batch_begin", 0),
        ("on_test_batch_end", 0),
        ("on_test_batch_begin", 1),
        ("on_test_batch_end", 1),
        ("on_test_end",),
    ]


def test_predict_calls_the_predict_hooks_alone():
    noting = Noting()
    made_learner(val=pairs(3, 1)).predict(torch.zeros(40, 3, 6, 6), callbacks=[noting])
    assert noting.names == [
        "on_predict_begin",
        *["on_predict_batch_begin", "on_predict_batch_end"] * 2,
        "on_predict_end",
    ]


# What a step is.


@pytest.mark.parametrize(
    ("sizes", "accumulate", "groups"),
    [
        ((4, 4, 4), 3, [(0, 3)]),
        ((4, 4, 2), 3, [(0, 3)]),
        ((4, 4, 4, 4, 2), 3, [(0, 3), (3, 5)]),
        ((4, 4, 4, 3), 3, [(0, 3), (3, 4)]),
        ((1, 5, 3), 3, [(0, 3)]),
        ((3, 3, 2), 5, [(0, 3)]),
    ],
)
@pytest.mark.parametrize("soft", [False, True], ids=["class ids", "probabilities"])
def test_a_group_of_small_batches_gives_the_weights_of_one_big_batch(sizes, accumulate, groups, soft):
    small = pairs(*sizes)
    if soft:
        small = [(images, torch.eye(3)[targets] * 0.8 + 0.2 / 3) for images, targets in small]
    big = [joined(small[start:end]) for start, end in groups]
    accumulated, at_once = (made_learner(batches, optimizer=momentum) for batches in (small, big))
    history = accumulated.fit(2, 0.1, accumulate=accumulate, verbose=False)
    expected = at_once.fit(2, 0.1, verbose=False)
    for name, tensor in weights(at_once).items():
        torch.testing.assert_close(accumulated.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert history.history["loss"] == pytest.approx(expected.history["loss"], rel=1e-6)
    assert history.history["accuracy"] == expected.history["accuracy"]


def test_gradients_are_complete_and_whole_when_a_step_begins():
    batches = pairs(4, 4, 2)
    network = plain_network()
    images, targets = joined(batches)
    functional.cross_entropy(network(images), targets).backward()
    found = []
    look = At(on_step_begin=lambda c: found.extend(p.grad.clone() for p in c.run.network.parameters()))
    made_learner(batches).fit(1, 0.1, accumulate=3, callbacks=[look], verbose=False)
    for gradient, parameter in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [torch.optim.SGD, momentum, torch.optim.AdamW], ids=["sgd", "momentum", "adamw"])
def test_a_fit_gives_the_bits_of_a_loop_written_by_hand(make):
    train, val = pairs(4, 4, 3), pairs(4, 2, seed=1)
    learner = made_learner(train, val, optimizer=make)
    history = learner.fit(3, 0.05, verbose=False)

    network = plain_network()
    weighty = [p for p in network.parameters() if p.ndim > 1]
    spared = [{"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = make([{"params": weighty}, *spared])
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    losses, shares, val_losses = [], [], []
    for _ in range(3):
        total, right = 0.0, 0
        for images, targets in train:
            logits = network(images)
            loss = functional.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(images)
            right += int((logits.argmax(1) == targets).sum())
        losses.append(total / 11)
        shares.append(right / 11)
        with torch.no_grad():
            val_losses.append(functional.cross_entropy(*(network(joined(val)[0]), joined(val)[1])).item())

    assert same(weights(learner), network.state_dict())
    assert history.history["loss"] == pytest.approx(losses, rel=1e-12)
    assert history.history["accuracy"] == shares
    assert history.history["val_loss"] == pytest.approx(val_losses, rel=1e-6)
    assert history.history["learning_rate"] == [0.05] * 3


def test_a_replaced_batch_and_a_replaced_loss_are_what_is_trained_on():
    def swap(callback):
        batch = callback.run.batch
        callback.run.batch = type(batch)(batch.images.flip(0), batch.targets.flip(0))

    def double(callback):
        callback.run.loss = callback.run.loss * 2

    changed = made_learner(pairs(4))
    history = changed.fit(1, 0.1, callbacks=[At(on_batch_ready=swap, on_loss_ready=double)], verbose=False)
    images, targets = pairs(4)[0]
    plain = made_learner([(images.flip(0), targets.flip(0))])
    expected = plain.fit(1, 0.2, verbose=False)
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(changed.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-8)
    assert history.history["loss"][0] == pytest.approx(2 * expected.history["loss"][0], rel=1e-6)


# What the logs say.


def test_evaluate_is_exact_for_each_picture_with_a_ragged_last_batch():
    batches = pairs(5, 5, 3)
    learner = made_learner(batches)
    images, targets = joined(batches)
    logits = learner.model(images).detach().double()
    loss = functional.cross_entropy(logits, targets).item()
    accuracy = (logits.argmax(1) == targets).double().mean().item()
    assert learner.evaluate("train") == {"loss": pytest.approx(loss, rel=1e-6), "accuracy": accuracy}


def test_evaluate_does_not_depend_on_how_pictures_are_cut_into_batches():
    images, targets = joined(pairs(13))
    learner = made_learner()
    found = [learner.evaluate(DataLoader(TensorDataset(images, targets), size)) for size in (1, 4, 13)]
    for other in found[1:]:
        assert other["accuracy"] == found[0]["accuracy"]
        assert other["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)


def test_logs_of_an_epoch_have_the_train_keys_then_the_val_keys_then_the_rate():
    seen = []
    look = At(on_epoch_end=lambda c, epoch, logs: seen.append((list(logs), logs is c.run.logs)))
    made_learner(val=pairs(2)).fit(1, 0.1, callbacks=[look], verbose=False)
    assert seen == [(["loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"], True)]


def test_logs_of_a_batch_are_the_means_so_far():
    means, losses = [], []
    look = At(
        on_loss_ready=lambda c: losses.append(c.run.loss.item()),
        on_train_batch_end=lambda c, batch, logs: means.append(logs["loss"]),
    )
    made_learner(pairs(4, 4, 1)).fit(1, 0.1, callbacks=[look], verbose=False)
    expected = [losses[0], (losses[0] + losses[1]) / 2, (4 * losses[0] + 4 * losses[1] + losses[2]) / 9]
    assert means == pytest.approx(expected, rel=1e-12)


def test_probabilities_come_in_the_order_of_the_pictures():
    learner = made_learner()
    images = torch.randn(70, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    probabilities = learner.predict(images).probabilities
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, learner.model(images).softmax(1).detach())


# How a fit ends.


def test_a_polite_stop_finishes_the_batch_validates_and_ends_the_epoch():
    noting = Noting()
    learner = made_learner(pairs(4, 4, 4), pairs(2))
    stop = At(on_batch_ready=lambda c: c.run.stop("enough"))
    history = learner.fit(3, 0.1, callbacks=[stop, noting], verbose=False)
    assert noting.names[2:] == [
        *BATCH,
        *STEP,
        "on_train_batch_end",
        "on_test_begin",
        *VAL_BATCH,
        "on_test_end",
        "on_epoch_end",
        "on_train_end",
    ]
    assert (noting.run.status, noting.run.stop_reason) == ("stopped", "enough")
    assert len(history) == 1
    assert "val_loss" in history.history


def test_a_polite_stop_steps_with_the_batches_of_the_open_group():
    batches = pairs(4, 3, 4, 4)
    stopped = made_learner(batches)
    stop = At(on_train_batch_end=lambda c, batch, logs: c.run.stop("two") if batch == 1 else None)
    stopped.fit(1, 0.1, accumulate=3, callbacks=[stop], verbose=False)
    whole = made_learner([joined(batches[:2])])
    whole.fit(1, 0.1, verbose=False)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(stopped.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("hook", "batches", "epochs"),
    [("on_train_begin", 0, 0), ("on_epoch_begin", 1, 1), ("on_test_begin", 3, 1), ("on_epoch_end", 3, 1)],
)
def test_a_polite_stop_may_come_from_any_hook(hook, batches, epochs):
    stop, noting = At(**{hook: lambda c, *_: c.run.stop("now")}), Noting()
    history = made_learner(val=pairs(2)).fit(3, 0.1, callbacks=[stop, noting], verbose=False)
    assert Counter(noting.names)["on_train_batch_end"] == batches
    assert len(history) == epochs
    assert noting.run.status == "stopped"


def test_the_first_reason_to_stop_stays():
    noting = Noting()
    stop = At(
        on_train_batch_end=lambda c, batch, logs: c.run.stop(f"batch {batch}"),
        on_epoch_end=lambda c, e, g: c.run.stop("end"),
    )
    made_learner().fit(2, 0.1, callbacks=[stop, noting], verbose=False)
    assert noting.run.stop_reason == "batch 0"


def test_no_nested_evaluation_takes_a_stop_back():
    def stop(callback, batch, logs):
        callback.model.stop_training = True
        callback.learner.evaluate()
        callback.learner.predict(torch.zeros(2, 3, 6, 6))
        assert callback.model.stop_training

    history = made_learner(val=pairs(2)).fit(3, 0.1, callbacks=[At(on_train_batch_end=stop)], verbose=False)
    assert len(history) == 1


def test_a_stop_cannot_be_withdrawn():
    def withdraw(callback, epoch, logs):
        callback.model.stop_training = True
        with pytest.raises(ConfigError, match="a stop cannot be taken back"):
            callback.model.stop_training = False

    history = made_learner().fit(3, 0.1, callbacks=[At(on_epoch_end=withdraw)], verbose=False)
    assert len(history) == 1


def test_an_immediate_stop_goes_straight_to_the_end_of_training():
    noting = Noting()

    def stop(callback):
        raise StopTraining("the disk is almost full")

    learner = made_learner(val=pairs(2))
    before = weights(learner)
    history = learner.fit(3, 0.1, callbacks=[noting, At(on_step_begin=stop)], verbose=False)
    assert noting.names[-3:] == ["on_backward_end", "on_step_begin", "on_train_end"]
    assert (noting.run.status, noting.run.stop_reason) == ("stopped", "the disk is almost full")
    assert (len(history), noting.run.step) == (0, 0)
    assert same(before, weights(learner))


def test_gradients_left_by_an_immediate_stop_do_not_reach_the_next_fit():
    stopped, fresh = made_learner(pairs(4, 4)), made_learner(pairs(4, 4))

    def stop(callback):
        raise StopTraining("between two batches of a group")

    stopped.fit(1, 0.1, accumulate=2, callbacks=[At(on_backward_end=stop)], verbose=False)
    for learner in (stopped, fresh):
        learner.fit(1, 0.1, accumulate=2, verbose=False)
    assert same(weights(stopped), weights(fresh))


@pytest.mark.parametrize(
    ("problem", "status"),
    [(KeyboardInterrupt(), "interrupted"), (ZeroDivisionError("mine"), "failed"), (SystemExit(3), "failed")],
)
@pytest.mark.parametrize("hook", [hook for hook in FIT_HOOKS if hook != "on_train_end"])
def test_errors_and_interrupts_in_a_hook_go_their_way_after_the_end_of_training(hook, problem, status):
    def fail(callback, *_):
        raise problem

    learner, noting = made_learner(val=pairs(2)), Noting()
    with pytest.raises(type(problem)) as caught:
        learner.fit(2, 0.1, callbacks=[noting, At(**{hook: fail})], verbose=False)
    assert caught.value is problem
    assert noting.names[-1] == "on_train_end"
    assert Counter(noting.names)["on_train_end"] == 1
    assert noting.run.status == status


def test_the_end_of_training_knows_how_it_came():
    seen = []
    made_learner().fit(1, 0.1, callbacks=[At(on_train_end=lambda c, logs: seen.append(c.run.status))], verbose=False)
    assert seen == ["completed"]


def test_an_error_at_the_end_of_training_goes_its_way():
    def fail(callback, logs):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made_learner().fit(1, 0.1, callbacks=[At(on_train_end=fail)], verbose=False)


# Loaders that do not keep their word.


class Claiming:
    """A loader whose length says one thing and whose batches are others."""

    def __init__(self, length, batches):
        self.length, self.batches = length, batches

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize(
    ("batches", "words"), [(pairs(4), "yielded 1"), (repeat(pairs(4)[0]), "yielded more"), (pairs(4, 4, 4), "more")]
)
def test_a_train_loader_of_another_length_than_it_says_is_refused(batches, words):
    noting = Noting()
    with pytest.raises(DataError) as caught:
        made_learner(Claiming(2, batches)).fit(1, 0.1, callbacks=[noting], verbose=False)
    assert "len() is 2" in caught.value.arrived
    assert words in caught.value.arrived
    assert "len() says" in caught.value.needed
    assert noting.run.status == "failed"
    assert Counter(noting.names)["on_train_batch_begin"] <= 2


def test_a_run_that_trains_nothing_never_steps():
    learner = made_learner()
    run_seen = At(on_test_begin=lambda c, logs: runs.append(c.run))
    runs = []
    learner.evaluate("train", callbacks=[run_seen])
    loop = learner._session._loop(runs[0], (), learner)
    with pytest.raises(RuntimeError, match="trains nothing"):
        loop._train(())


def test_the_loop_stays_one_screen_of_straight_code():
    lines = Path(loop_module.__file__).read_text().splitlines()
    assert len(lines) <= 250
    functions = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.FunctionDef)]
    assert max(node.end_lineno - node.lineno + 1 for node in functions) <= 20


# What a network and a loss may give.


def test_a_loss_of_one_number_in_brackets_is_taken():
    bracketed = made_learner(loss=lambda logits, targets: functional.cross_entropy(logits, targets)[None])
    plain = made_learner()
    for learner in (bracketed, plain):
        learner.fit(1, 0.1, verbose=False)
    assert same(weights(bracketed), weights(plain))


class Giving(torch.nn.Module):
    """A network whose answer is made into something else."""

    def __init__(self, change):
        super().__init__()
        self.inner = plain_network()
        self.change = change

    def forward(self, images):
        return self.change(self.inner(images))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda logits: (logits, logits), "gives tuple"),
        (lambda logits: {"logits": logits}, "gives dict"),
        (lambda logits: logits[:, :2], "gives [4, 2]"),
        (lambda logits: logits[:, :, None, None], "gives [4, 3, 1, 1]"),
    ],
)
def test_a_network_that_gives_no_logits_is_refused_at_its_first_batch(change, told):
    learner = made_learner(pairs(4), pairs(4), network=Giving(change))
    before = weights(learner)
    images = pairs(4)[0][0]
    for ask in (lambda: learner.fit(1, 0.1, verbose=False), learner.evaluate, lambda: learner.predict(images)):
        error = refusal(BackboneError, ask)
        assert told in error.arrived
        assert "[batch, 3]" in error.needed
    assert same(weights(learner), before)


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (torch.nn.CrossEntropyLoss(reduction="none"), "gives [4]"),
        (lambda logits, targets: functional.cross_entropy(logits, targets).item(), "gives float"),
    ],
)
def test_a_loss_that_is_no_mean_is_refused_at_its_first_batch(loss, told):
    learner = made_learner(pairs(4), pairs(4), loss=loss)
    before = weights(learner)
    for ask in (lambda: learner.fit(1, 0.1, verbose=False), learner.evaluate):
        assert told in refusal(ConfigError, ask).arrived
    assert same(weights(learner), before)
