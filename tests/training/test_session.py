"""What a fit leaves alone: the same bits whatever happens beside it, frozen stages, a Learner that was refused."""

import random

import numpy as np
import pytest
import torch
from handmade import At, Noting, made_learner, pairs, plain_network, refusal, same, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from headstart import ConfigError, DataError, EarlyStopping, ImageData, Learner, ModelCheckpoint, ReduceLROnPlateau
from headstart.training.callback import HOOKS
from headstart.training.session import FitPlan

TO_FLOAT = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))
TRAIN_HOOKS = [hook for hook in HOOKS if "predict" not in hook and "test" not in hook]


def shuffled(*sizes: int, seed: int = 0, generator: torch.Generator | None = None) -> DataLoader:
    """Make a loader of the user's own that draws its order from torch's generator, as most do."""
    (images, targets), *_ = pairs(sum(sizes), seed=seed)
    return DataLoader(TensorDataset(images, targets), sizes[0], shuffle=True, generator=generator)


def folder_learner(shapes_folder, network: nn.Module, **settings) -> Learner:
    data = ImageData.from_folder(shapes_folder, image_size=16, batch_size=24, **settings)
    return Learner(network, data, device="cpu")


# The same bits.


@pytest.mark.parametrize("make_train", [lambda: pairs(4, 4, 3), lambda: shuffled(4, 4, 3)], ids=["list", "shuffled"])
def test_two_runs_are_the_same_with_dropout_whatever_the_users_generators_say(make_train):
    found = []
    for chance in (1, 2):
        torch.manual_seed(chance)
        learner = made_learner(make_train(), network=plain_network(dropout=0.5))
        history = learner.fit(3, 0.1, verbose=False)
        found.append((weights(learner), history.history))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_another_seed_is_another_run():
    learners = [made_learner(network=plain_network(dropout=0.5), seed=seed) for seed in (0, 1)]
    for learner in learners:
        learner.fit(1, 0.1, verbose=False)
    assert not same(*map(weights, learners))


def test_dropout_differs_from_batch_to_batch_epoch_to_epoch_and_fit_to_fit():
    batch = pairs(4)[0]
    learner = made_learner([batch, batch], network=plain_network(dropout=0.5))
    masks = []
    learner.model[3].register_forward_hook(lambda module, given, made: masks.append((made == 0).tolist()))
    for _ in range(2):
        learner.fit(2, 0.1, verbose=False)
    assert len(masks) == 8
    assert all(one != other for place, one in enumerate(masks) for other in masks[:place])


def test_a_loader_that_shuffles_has_another_order_in_each_epoch_of_each_fit():
    orders = []
    look = At(on_batch_ready=lambda c: orders.append(c.run.batch.images[0, 0, 0, 0].item()))
    learner = made_learner(shuffled(1, 1, 1, 1, 1, 1))
    for _ in range(2):
        learner.fit(2, 1e-6, callbacks=[look], verbose=False)
    epochs = [tuple(orders[start : start + 6]) for start in range(0, 24, 6)]
    assert len(set(epochs)) == 4
    assert len({frozenset(epoch) for epoch in epochs}) == 1


def test_a_generator_of_the_loaders_own_is_left_to_it():
    learners = [made_learner(shuffled(4, 4, generator=torch.Generator().manual_seed(n))) for n in (3, 3, 4)]
    for learner in learners:
        learner.fit(2, 0.1, verbose=False)
    assert same(weights(learners[0]), weights(learners[1]))
    assert not same(weights(learners[0]), weights(learners[2]))


def test_a_fit_gives_the_users_generators_back_as_they_were():
    learner = made_learner(shuffled(4, 4), shuffled(3), network=plain_network(dropout=0.5))
    for work in (
        lambda: learner.fit(2, 0.1, verbose=False),
        learner.evaluate,
        lambda: learner.predict(torch.zeros(2, 3, 6, 6)),
    ):
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        work()
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.array_equal(np.random.get_state()[1], states[2][1])


@pytest.mark.parametrize("hook", TRAIN_HOOKS)
def test_an_evaluation_and_a_prediction_inside_any_hook_change_nothing(hook, tiny_network):
    def look(callback, *_):
        callback.learner.evaluate()
        callback.learner.evaluate("train")
        callback.learner.predict(torch.zeros(2, 3, 32, 32))
        callback.learner.history.to_csv  # noqa: B018 - joins the fits so far

    def trained(*callbacks):
        network = nn.Sequential(nn.Dropout(0.2), tiny_network())
        (images, targets), *_ = pairs(11, side=32)
        train = DataLoader(TensorDataset(images, targets), 4, shuffle=True)
        learner = made_learner(train, DataLoader(TensorDataset(images, targets), 5, shuffle=True), network=network)
        history = learner.fit(2, 0.1, accumulate=2, callbacks=callbacks, verbose=False)
        return weights(learner), history.history["loss"], history.history["val_accuracy"]

    alone, watched = trained(), trained(At(**{hook: look}))
    assert same(alone[0], watched[0])
    assert alone[1:] == watched[1:]


def test_evaluations_predictions_and_plots_between_fits_change_nothing(shapes_folder, tiny_network):
    alone, watched = (folder_learner(shapes_folder, tiny_network(), workers=0) for _ in range(2))
    for learner in (alone, watched):
        for _ in range(2):
            learner.fit(1, 1e-2, verbose=False)
            if learner is watched:
                learner.evaluate()
                learner.predict(shapes_folder / "val" / "circle")
                learner.show_predictions(4)
                learner.data.show_batch(4)
                learner.history.plot()
    assert same(weights(alone), weights(watched))


def test_the_number_of_workers_changes_nothing(shapes_folder, tiny_network):
    learners = [folder_learner(shapes_folder, tiny_network(), workers=workers) for workers in (0, 1, 2)]
    histories = [learner.fit(2, 1e-2, verbose=False).history for learner in learners]
    assert same(weights(learners[0]), weights(learners[1]))
    assert same(weights(learners[0]), weights(learners[2]))
    assert histories[0] == histories[1] == histories[2]


def test_a_network_is_in_evaluation_mode_after_a_fit_and_as_it_was_after_an_evaluation(tiny_network):
    learner = made_learner(pairs(4, side=32), network=tiny_network())
    learner.fit(1, 0.1, verbose=False)
    assert not any(module.training for module in learner.model.modules())
    learner.model.stage1.train()
    learner.evaluate("train")
    learner.predict(torch.zeros(1, 3, 32, 32))
    modes = {name for name, module in learner.model.named_modules() if module.training}
    assert modes == {"stage1", "stage1.0", "stage1.1", "stage1.2"}


def test_an_error_in_an_evaluation_leaves_the_network_as_it_was(tiny_network):
    def fail(callback, batch, logs):
        raise ZeroDivisionError

    learner = made_learner(pairs(4, side=32), network=tiny_network())
    learner.model.train()
    with pytest.raises(ZeroDivisionError):
        learner.evaluate("train", callbacks=[At(on_test_batch_end=fail)])
    assert all(module.training for module in learner.model.modules())


def test_what_comes_out_carries_no_graph():
    graphs = []
    learner = made_learner(val=pairs(2))
    look = At(
        on_test_batch_end=lambda c, batch, logs: graphs.append(c.run.outputs.requires_grad or c.run.loss.requires_grad),
        on_predict_batch_end=lambda c, batch, logs: graphs.append(c.run.outputs.requires_grad),
    )
    learner.fit(1, 0.1, callbacks=[look], verbose=False)
    learner.evaluate(callbacks=[look])
    learner.predict(torch.zeros(2, 3, 6, 6), callbacks=[look])
    assert graphs == [False] * 3


# Nothing waits for the device.


def test_a_batch_converts_nothing_unless_somebody_reads(monkeypatch):
    reads, inside = [], [False]

    def counting(name):
        plain = getattr(torch.Tensor, name)

        def method(tensor, *arguments, **keywords):
            if inside[0]:
                reads.append(name)
            return plain(tensor, *arguments, **keywords)

        return method

    for name in ("item", "__float__", "__int__", "__bool__", "__index__", "tolist", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, counting(name))
    (images, targets), *_ = pairs(11)
    pixels = (images * 40 + 128).clamp(0, 255).byte()
    data = ImageData.from_datasets(
        TensorDataset(pixels, targets), classes=3, image_size=8, batch_size=4, augment=None, workers=0
    )
    learner = Learner(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)),
        data,
        device="cpu",
        metrics=("accuracy", "f1"),
    )
    batch = {
        "on_train_batch_begin": lambda c, batch, logs: inside.__setitem__(0, True),
        "on_train_batch_end": lambda c, batch, logs: inside.__setitem__(0, "loss" not in logs),
    }
    learner.fit(2, 0.1, accumulate=2, clip_norm=1.0, callbacks=[At(**batch)], verbose=False)
    assert reads == []
    reading = At(on_train_batch_end=lambda c, batch, logs: (logs["loss"], inside.__setitem__(0, False)))
    learner.fit(1, 0.1, callbacks=[At(on_train_batch_begin=batch["on_train_batch_begin"]), reading], verbose=False)
    assert reads.count("__float__") == 3


# Several fits, and fits that were refused or failed.


def test_a_refused_fit_leaves_no_trace(tmp_path):
    learner, noting = made_learner(val=pairs(2)), Noting()
    learner.fit(1, 0.1, 5.0, verbose=False)
    before = weights(learner), repr(learner.layers), learner._session.optimizer, len(learner.history)
    for wrong in (EarlyStopping("val_f1"), ReduceLROnPlateau("val_f1"), ModelCheckpoint(tmp_path / "b", "val_f1")):
        with pytest.raises(ConfigError, match="keys this fit will have: loss, accuracy, val_loss, val_accuracy"):
            learner.fit(1, 0.1, 7.0, callbacks=[noting, ModelCheckpoint(tmp_path / "a"), wrong], verbose=False)
    assert noting.notes == []
    assert list(tmp_path.iterdir()) == []
    assert same(weights(learner), before[0])
    assert repr(learner.layers) == before[1]
    assert learner._session.optimizer is before[2]
    assert len(learner.history) == before[3]
    learner.fit(1, 0.1, callbacks=[noting], verbose=False)
    assert noting.run.fit == 2


def test_after_a_failed_fit_another_one_works():
    def fail(callback, *_):
        raise ZeroDivisionError

    failed, fresh = made_learner(network=plain_network(dropout=0.5)), Noting()
    for hook in ("on_train_begin", "on_loss_ready", "on_epoch_end", "on_train_end"):
        with pytest.raises(ZeroDivisionError):
            failed.fit(1, 0.1, callbacks=[At(**{hook: fail})], verbose=False)
        assert not failed.model.training
        assert not failed.stop_training
    history = failed.fit(2, 0.1, callbacks=[fresh], verbose=False)
    assert (len(history), fresh.run.status, fresh.run.fit) == (2, "completed", 5)


def test_a_fit_inside_a_fit_is_refused():
    def nest(callback, epoch, logs):
        callback.learner.fit(1, 0.1)

    with pytest.raises(ConfigError, match="fit inside a fit"):
        made_learner().fit(1, 0.1, callbacks=[At(on_epoch_end=nest)], verbose=False)


def test_a_run_knows_which_fit_it_is():
    learner, noting = made_learner(), Noting()
    for fit in (1, 2):
        learner.fit(1, 0.1, callbacks=[noting], verbose=False)
        assert noting.run.fit == fit
    assert noting.run.history.params["lr"] == 0.1
    assert len(learner.history) == 2


def test_clipping_bounds_the_joint_norm_of_a_step():
    def norm(callback):
        grads = [p.grad for p in callback.run.network.parameters()]
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())

    norms = []
    learner = made_learner()
    learner.fit(1, 0.1, accumulate=2, clip_norm=0.01, callbacks=[At(on_step_begin=norm)], verbose=False)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-4)
    loose, free = made_learner(), made_learner()
    loose.fit(1, 0.1, clip_norm=1e6, verbose=False)
    free.fit(1, 0.1, verbose=False)
    assert same(weights(loose), weights(free))


def test_a_plan_has_plain_defaults():
    assert vars(FitPlan(2, 0.1)) == {
        "epochs": 2,
        "lr": 0.1,
        "head_lr_mult": 1.0,
        "layer_lr_decay": None,
        "accumulate": 1,
        "clip_norm": None,
        "resume": False,
        "on_oom": "auto",
        "cache_features": "auto",
    }


def test_a_run_that_is_over_holds_no_batch_and_no_graph():
    noting = Noting()
    learner = made_learner(pairs(4), pairs(4))
    learner.fit(1, 0.1, callbacks=[noting], verbose=False)
    assert not vars(noting.run).keys() & {"batch", "outputs", "loss"}
    assert noting.run.params["batch_size"] is None


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_other_channels_than_a_library_network_takes_are_refused(channels):
    train = [(torch.zeros(2, channels, 32, 32), torch.tensor([0, 1]))]
    learner = Learner("test_resnet", ImageData.from_loaders(train, train, classes=2), pretrained=False, device="cpu")
    for ask in (lambda: learner.fit(1, 0.1), learner.evaluate, lambda: learner.predict(train[0][0])):
        error = refusal(DataError, ask)
        assert error.arrived == f"images [2, {channels}, 32, 32], for a network that takes 3 channels"
        assert "Grayscale(3)" in error.todo


def test_a_network_that_fails_tells_what_it_was_given():
    network = nn.Sequential(nn.Flatten(), nn.Linear(7 * 7 * 3, 3))
    learner = made_learner(pairs(4), network=network)
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        learner.fit(1, 0.1, verbose=False)
    assert "[4, 3, 6, 6]" in caught.value.__notes__[0]
    assert "image_size=" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([v2.RandomCrop(16), v2.RandomHorizontalFlip()], []),
        ([v2.Resize((16, 16)), *TO_FLOAT, v2.Normalize([0.5] * 3, [0.5] * 3)], []),
        ([v2.Resize((16, 16)), *TO_FLOAT], ["your pipeline trains on values in [0, 1], evaluation normalises: end it"]),
        (
            [v2.Resize((24, 20)), *TO_FLOAT, v2.Normalize([0.5] * 3, [0.5] * 3)],
            ["your pipeline trains on 24 x 20 pixels, evaluation sees 16 x 16: image_size= sets these"],
        ),
    ],
)
def test_a_pipeline_that_makes_other_pictures_than_evaluation_is_told_once(shapes_folder, capsys, steps, told):
    data = ImageData.from_folder(shapes_folder, image_size=16, batch_size=36, workers=0, augment=v2.Compose(steps))
    learner = Learner("test_resnet", data, pretrained=False, device="cpu")
    capsys.readouterr()
    learner.fit(2, 1e-3, verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(words) for line, words in zip(lines, told, strict=True))


def test_float_pictures_of_a_dataset_are_compared_with_nothing(capsys):
    pictures = TensorDataset(torch.rand(8, 3, 16, 16), torch.randint(2, (8,)))
    data = ImageData.from_datasets(
        pictures, classes=2, image_size=32, batch_size=4, workers=0, augment=v2.RandomHorizontalFlip()
    )
    learner = Learner("test_resnet", data, pretrained=False, device="cpu")
    capsys.readouterr()
    learner.fit(1, 1e-3, verbose=False)
    assert capsys.readouterr().out == ""
