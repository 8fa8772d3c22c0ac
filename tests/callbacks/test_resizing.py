"""ProgressiveResize: which sizes, seen by whom, and what is refused before anything is trained."""

import itertools

import pytest
import timm
import torch
from conftest import SHAPES
from handmade import At, made_learner, pairs, same, weights
from torch import nn

from headstart import ConfigError, Head, ImageData, Learner, ModelCheckpoint, ProgressiveResize
from headstart.callbacks.resizing import side_of_epoch


def seen_by(learner, resize, epochs, **options):
    """Fit; give the shapes that the network was given in each epoch of training, and in validation."""
    train, val = [], []

    def note(module, given):
        if len(given[0]) > 1:  # one picture alone is asked about before the fit
            (train if module.training else val).append(tuple(given[0].shape[-2:]))

    hook = learner.model.register_forward_pre_hook(note)
    learner.fit(epochs, 1e-3, callbacks=[resize], verbose=False, **options)
    hook.remove()
    return train, val


@pytest.fixture
def pictures(shapes):
    return ImageData.from_datasets(**shapes, classes=SHAPES, image_size=32, batch_size=8, workers=0)


@pytest.mark.parametrize(
    ("epochs", "until", "expected"),
    [
        (1, 0.75, [224]),
        (2, 0.75, [128, 224]),
        (5, 0.75, [128, 160, 192, 224, 224]),
        (4, 0.99, [128, 160, 192, 224]),
        (8, 0.75, [128, 128, 160, 160, 192, 192, 224, 224]),
    ],
)
def test_sides_grow_to_the_whole_one_and_the_last_epoch_has_it(epochs, until, expected):
    assert [side_of_epoch(epoch, epochs, [128, 160, 192, 224], until) for epoch in range(epochs)] == expected


@pytest.mark.parametrize("epochs", [3, 7, 40, 100])
@pytest.mark.parametrize("until", [0.29, 0.3, 0.75, 0.9])
def test_every_side_below_the_whole_one_has_as_many_epochs_as_the_others(epochs, until):
    sides = [side_of_epoch(epoch, epochs, [96, 128, 160, 192], until) for epoch in range(epochs)]
    assert sides == sorted(sides)
    counts = [len(list(group)) for side, group in itertools.groupby(sides) if side < 192]
    assert sum(counts) == round(until * epochs, 6) // 1
    assert max(counts, default=0) - min(counts, default=0) <= 1


@pytest.mark.parametrize(
    ("resize", "sides"),
    [
        (ProgressiveResize(8, step=8), [8, 16, 24, 32]),
        (ProgressiveResize(16, until=0.5, step=96), [16, 16, 32, 32]),
        (ProgressiveResize(16, 24, step=4), [16, 16, 20, 24]),
        (ProgressiveResize(16, 64, until=0.6), [16, 16, 32, 32]),
    ],
)
def test_training_sees_them_and_validation_whole_pictures(tiny_network, pictures, resize, sides):
    learner = Learner(tiny_network(), pictures, device="cpu")
    train, val = seen_by(learner, resize, 4)
    assert train == [(side, side) for side in sides for _ in range(pictures.steps)]
    assert set(val) == {(32, 32)}


def test_a_batch_is_shrunk_as_torch_does_it_and_keeps_its_layout_and_targets():
    resize, batches, seen = ProgressiveResize(8, step=8), pairs(4, 4, side=32), []
    look = At(on_loss_ready=lambda c: seen.append((c.run.batch.images, c.run.batch.targets)))
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))
    learner = made_learner(batches, network=network)
    learner.fit(2, 0.1, callbacks=[resize, look], verbose=False)
    first, second = seen[:2], seen[2:]
    for (images, targets), (whole, labels) in zip(first, batches, strict=True):
        # To less than a half with antialiasing, or pixels would be passed over.
        expected = nn.functional.interpolate(whole, size=(8, 8), mode="bilinear", antialias=True)
        assert torch.equal(images, expected)
        assert torch.equal(targets, labels)
    assert all(torch.equal(images, whole) for (images, _), (whole, _) in zip(second, batches, strict=True))


def test_pictures_that_are_not_square_keep_their_shape():
    learner = made_learner(
        [(torch.rand(2, 3, 64, 96), torch.tensor([0, 1]))],
        network=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)),
    )
    train, _ = seen_by(learner, ProgressiveResize(32, step=16), 3)
    assert train == [(32, 48), (48, 72), (64, 96)]


def test_batches_of_ones_own_that_are_smaller_stay_as_they_are(tiny_network):
    learner = made_learner(pairs(4, side=32), network=tiny_network())
    assert seen_by(learner, ProgressiveResize(), 4)[0] == [(32, 32)] * 4


def test_it_says_where_no_epoch_is_left_for_smaller_pictures(tiny_network, pictures, capsys):
    learner = Learner(tiny_network(), pictures, device="cpu")
    capsys.readouterr()
    learner.fit(2, 1e-3, callbacks=[ProgressiveResize(16)], verbose=False)
    assert "ProgressiveResize" not in capsys.readouterr().out
    learner.fit(1, 1e-3, callbacks=[ProgressiveResize(16)], verbose=False)
    told = "ProgressiveResize has nothing to do: until=0.75 leaves none of epochs=1 to it\n"
    assert told in capsys.readouterr().out


def test_a_run_that_is_gone_on_with_has_the_same_sizes_and_ends_with_the_same_bits(tmp_path, make):
    resize = {"start": 16, "step": 8}
    whole = make()
    whole.fit(3, 1e-3, callbacks=[ProgressiveResize(**resize)], verbose=False)
    cut = make()
    stop = At(on_epoch_begin=lambda c, epoch, logs: (_ for _ in ()).throw(KeyboardInterrupt) if epoch == 1 else None)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(3, 1e-3, callbacks=[ProgressiveResize(**resize), ModelCheckpoint(tmp_path), stop], verbose=False)
    again = make()
    again.fit(
        3, 1e-3, callbacks=[ProgressiveResize(**resize), ModelCheckpoint(tmp_path), At()], resume=True, verbose=False
    )
    assert same(weights(whole), weights(again))


def test_nothing_is_kept_of_frozen_stages_whose_pictures_grow(tiny_network, shapes_folder):
    data = ImageData.from_folder(shapes_folder, image_size=32, batch_size=8, augment=None, workers=0)
    learner = Learner(tiny_network(), data, device="cpu")
    learner.freeze()
    seen = []

    class Noting(nn.Identity):
        def forward(self, images):
            seen.append((self.training, images.shape[-1], len(images)))
            return images

    learner.model.stem = nn.Sequential(Noting(), learner.model.stem)
    learner.fit(4, 1e-3, callbacks=[ProgressiveResize(16, step=16, until=0.5)], verbose=False)
    train = [(side, count) for training, side, count in seen if training]
    assert train == [(16, 8)] * 18 + [(32, 8)] * 18


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "arrived"),
    [
        ({"start": 0}, "start=0"),
        ({"start": 64.0}, "start=64.0"),
        ({"start": 128, "end": 128}, "end=128"),
        ({"end": True}, "end=True"),
        ({"until": 1}, "until=1"),
        ({"until": 0}, "until=0"),
        ({"step": 0}, "step=0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, arrived):
    with pytest.raises(ConfigError) as caught:
        ProgressiveResize(**arguments)
    assert caught.value.arrived == arrived


def demand_untouched(learner, resize, match, **options):
    before = weights(learner)
    with pytest.raises(ConfigError, match=match):
        learner.fit(4, 1e-3, callbacks=[resize], verbose=False, **options)
    assert same(before, weights(learner))
    assert not len(learner.history)


def test_a_start_that_is_no_smaller_is_refused(tiny_network, pictures):
    learner = Learner(tiny_network(), pictures, device="cpu")
    demand_untouched(learner, ProgressiveResize(32), r"pictures of 32 x 32 pixels[\s\S]*ProgressiveResize\(16\)")


def test_features_of_one_size_are_refused(tiny_network, shapes_folder):
    data = ImageData.from_folder(shapes_folder, image_size=32, batch_size=8, workers=0)
    learner = Learner(tiny_network(), data, device="cpu")
    learner.freeze()
    demand_untouched(learner, ProgressiveResize(16), "cache_features=2", cache_features=2)


@pytest.mark.parametrize("model", ["torchvision/vit_b_32", "swin_tiny_patch4_window7_224"])
def test_a_network_for_pictures_of_one_size_is_refused_before_training(shapes, model):
    data = ImageData.from_datasets(**shapes, classes=SHAPES, batch_size=8, workers=0)
    learner = Learner(model, data, pretrained=False, head=Head(init="xavier"), device="cpu")
    demand_untouched(learner, ProgressiveResize(96), "cannot take pictures of 96 x 96 pixels")


def test_a_network_for_any_size_is_asked_without_a_trace(shapes):
    data = ImageData.from_datasets(**shapes, classes=SHAPES, batch_size=8, image_size=64, workers=0)
    learner = Learner(timm.create_model("test_resnet", num_classes=3), data, device="cpu")
    before, chance = weights(learner), torch.default_generator.get_state()
    modes = [module.training for module in learner.model.modules()]

    def leave(callback, logs):
        assert same(before, weights(learner))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.fit(4, 1e-3, callbacks=[ProgressiveResize(32), At(on_train_begin=leave)], verbose=False)
    assert torch.equal(chance, torch.default_generator.get_state())
    assert [module.training for module in learner.model.modules()] == modes
