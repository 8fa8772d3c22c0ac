"""Frozen means bit-identical while a fit goes on, thawing works at once, and one picture alone moves no statistics."""

import pytest
import torch
from handmade import At, made_learner, pairs, weights
from torch import nn

from headstart import ImageData, Learner

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def changed(learner, before) -> set[str]:
    """Name what is no longer as it was, by the first part of its name."""
    return {name for name, tensor in weights(learner).items() if not torch.equal(tensor, before[name])}


def stages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


class Meddling:
    """Keras and torch users call `train()` wherever they like."""

    def __new__(cls):
        def train(callback, *_):
            callback.run.network.train()

        return At(on_train_batch_begin=train, on_batch_ready=train, on_step_end=train, on_epoch_begin=train)


@pytest.mark.parametrize("meddling", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_backbone_keeps_every_bit(tiny_network, optimizer, meddling):
    learner = made_learner(pairs(4, 4, side=32), network=tiny_network(), optimizer=optimizer, weight_decay=0.5)
    learner.fit(1, 0.1, verbose=False)
    learner.freeze()
    before = weights(learner)
    callbacks = [Meddling()] if meddling else []
    learner.fit(2, 0.1, callbacks=callbacks, verbose=False)
    assert changed(learner, before) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("meddling", [False, True])
def test_stages_before_the_boundary_keep_every_bit_and_the_others_train(tiny_network, meddling):
    learner = made_learner(pairs(4, 4, side=32), network=tiny_network())
    learner.unfreeze("stage2")
    before = weights(learner)
    learner.fit(2, 0.1, callbacks=[Meddling()] if meddling else [], verbose=False)
    names = changed(learner, before)
    assert stages(names) == {"stage2", "fc"}
    assert names == {name for name in before if name.startswith(("stage2", "fc"))}


def test_the_dropout_of_a_frozen_stage_rests_and_that_of_the_head_does_not():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(108, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    learner = made_learner(network=network)
    learner.freeze()
    modes = []
    look = At(on_loss_ready=lambda c: modes.append((network[2].training, network[4].training)))
    learner.fit(1, 0.1, callbacks=[Meddling(), look], verbose=False)
    assert set(modes) == {(False, True)}


def test_frozen_norms_normalise_by_what_they_have_seen_before_and_not_by_the_batch(tiny_network):
    batch = (pairs(4, side=32)[0][0] * 3 + 5, torch.tensor([0, 1, 2, 0]))
    learner, seen = made_learner([batch], network=tiny_network()), []
    learner.freeze()
    learner.model.stage2.register_forward_hook(lambda module, given, made: seen.append(made.detach()))
    learner.fit(1, 0.1, verbose=False)
    learner.evaluate("train")
    assert torch.equal(*seen)


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_epoch_end"])
def test_what_thaws_inside_a_fit_trains_from_the_next_step_on_norms_included(tiny_network, hook):
    learner = made_learner(pairs(4, 4, 4, side=32), network=tiny_network())
    learner.freeze()
    modes = []

    def thaw(callback, *_):
        if not learner.layers[0].trainable and not callback.run._deferred:
            learner.unfreeze()

    def look(callback):
        modes.append(all(module.training for module in learner.model.modules()))

    before = weights(learner)
    learner.fit(2, 0.1, callbacks=[At(**{hook: thaw}), At(on_loss_ready=look)], verbose=False)
    waiting = {"on_train_begin": 0, "on_epoch_begin": 0, "on_train_batch_begin": 1, "on_epoch_end": 3}[hook]
    assert modes == [False] * waiting + [True] * (6 - waiting)
    tracked = weights(learner)["stem.1.num_batches_tracked"] - before["stem.1.num_batches_tracked"]
    assert tracked == 6 - waiting
    assert changed(learner, before) == set(before)


def test_a_change_waits_for_the_end_of_its_group(tiny_network):
    learner = made_learner(pairs(4, 4, 4, 4, side=32), network=tiny_network())
    trains = []

    def freeze(callback, batch, logs):
        if batch == 0:
            learner.freeze()

    look = At(on_loss_ready=lambda c: trains.append(learner.layers[0].trainable))
    learner.fit(1, 0.1, accumulate=2, callbacks=[At(on_train_batch_end=freeze), look], verbose=False)
    assert trains == [True, True, False, False]


def test_a_change_asked_for_at_the_very_end_is_made(tiny_network):
    learner = made_learner(pairs(4, side=32), network=tiny_network())
    freeze = At(on_train_end=lambda c, logs: learner.freeze())
    learner.fit(1, 0.1, callbacks=[freeze], verbose=False)
    assert [row.trainable for row in learner.layers] == [False, False, False, True]


# One picture alone.


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trailing_batch_of_one_picture_neither_fails_nor_moves_running_statistics(tiny_network, accumulate):
    """At 8 pixels the last norm sees one value a channel, of which there is no variance."""
    learner = made_learner(pairs(4, 1, side=8), network=tiny_network())
    before, after = [], []
    look = At(
        on_batch_ready=lambda c: before.append(weights(learner)),
        on_loss_ready=lambda c: after.append(weights(learner)),
    )
    start = weights(learner)
    learner.fit(1, 0.1, accumulate=accumulate, callbacks=[look], verbose=False)
    moved = [
        {name.rpartition(".")[2] for name in old if not torch.equal(old[name], new[name])}
        for old, new in zip(before, after, strict=True)
    ]
    assert moved == [set(RUNNING), set()]
    trained = {name for name in changed(learner, start) if not name.endswith(RUNNING)}
    assert trained == {name for name, _ in learner.model.named_parameters()}
    assert torch.isfinite(torch.cat([tensor.flatten().float() for tensor in weights(learner).values()])).all()


def test_norms_are_back_in_training_mode_after_one_picture_alone(tiny_network):
    learner = made_learner(pairs(1, 4, 1, side=8), network=tiny_network())
    modes = []
    look = At(on_train_batch_end=lambda c, batch, logs: modes.append(learner.model.stage1[1].training))
    learner.fit(1, 0.1, callbacks=[look], verbose=False)
    assert modes == [True] * 3


def test_a_folder_whose_last_batch_holds_one_picture_trains(shapes_folder, tiny_network):
    data = ImageData.from_folder(shapes_folder, image_size=8, batch_size=71, workers=0)
    learner, sizes = Learner(tiny_network(), data, device="cpu"), []
    look = At(on_train_batch_end=lambda c, batch, logs: sizes.append(len(c.run.batch)))
    history = learner.fit(1, 1e-3, callbacks=[look], verbose=False)
    assert sizes == [71, 1]
    assert int(learner.model.stem[1].num_batches_tracked) == 1
    assert history.history["accuracy"][0] * 72 == pytest.approx(round(history.history["accuracy"][0] * 72))


class Recurrent(nn.Module):
    """Rows of a picture as a sequence, through parts whose noise or statistics are in no module of their own."""

    def __init__(self, part):
        super().__init__()
        self.enter = nn.Linear(18, 8)
        self.part = part
        self.fc = nn.Linear(8, 3)

    def forward(self, images):
        rows = self.enter(images.transpose(1, 2).flatten(2))
        if isinstance(self.part, nn.MultiheadAttention):
            rows, _ = self.part(rows, rows, rows)
        elif isinstance(self.part, nn.LSTM):
            rows, _ = self.part(rows)
        else:
            rows = self.part(rows)
        return self.fc(rows.mean(1))


@pytest.mark.parametrize(
    "part",
    [
        nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True),
        nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    ],
    ids=["attention", "lstm", "spectral norm"],
)
def test_parts_with_noise_or_statistics_of_their_own_rest_while_frozen(part):
    learner = made_learner(pairs(4, 4), network=Recurrent(part))
    learner.freeze()
    before, features = weights(learner), []
    part.register_forward_hook(
        lambda module, given, made: features.append(made[0] if isinstance(made, tuple) else made)
    )
    images, targets = pairs(4)[0]
    learner = made_learner([(images, targets), (images, targets)], network=learner.model)
    learner.freeze()
    learner.fit(1, 0.1, verbose=False)
    assert torch.equal(features[0], features[1])
    assert changed(learner, before) == {"fc.weight", "fc.bias"}


def test_complex_parameters_freeze_and_train_as_others_do():
    class Rotating(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn = nn.Parameter(torch.ones(8, dtype=torch.complex64))
            self.enter = nn.Linear(108, 8)
            self.fc = nn.Linear(8, 3)

        def forward(self, images):
            return self.fc((self.enter(images.flatten(1)) * self.turn).real)

    for optimizer in ("adamw", "sgd"):
        learner = made_learner(network=Rotating(), optimizer=optimizer)
        learner.freeze()
        before = weights(learner)
        learner.fit(1, 0.1, verbose=False)
        assert changed(learner, before) == {"fc.weight", "fc.bias"}
        learner.unfreeze()
        learner.fit(1, 0.1, verbose=False)
        assert changed(learner, before) == set(before)
