"""Going on where an earlier process left a fit: the same bits, as if nothing had happened."""

import random
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import At, Noting, made_learner, pairs, plain_network, refusal, same, weights
from interrupted import ALWAYS, NEVER, Death, DiedError, differences, fit, left
from torch import nn

from headstart import (
    Callback,
    CheckpointError,
    ConfigError,
    DataError,
    EarlyStopping,
    ImageData,
    Learner,
    LRSchedule,
    ModelCheckpoint,
    ReduceLROnPlateau,
    cosine,
)
from headstart.training.callback import Order
from headstart.training.checkpoint import read_weights

MOMENTS = [
    ("on_train_begin", 0),
    ("on_train_batch_begin", 0),
    ("on_train_batch_begin", 1),
    ("on_train_batch_begin", 2),
    ("on_train_batch_begin", 4),
    ("on_train_batch_end", 6),
    ("on_train_batch_begin", 11),
    ("on_step_begin", 5),
    ("on_step_end", 5),
    ("on_test_begin", 1),
    ("on_test_batch_begin", 3),
    ("on_epoch_end", 0),
    ("on_epoch_begin", 1),
    ("on_epoch_end", 2),
    ("on_train_end", 0),
]


@pytest.mark.parametrize(("hook", "call"), MOMENTS)
def test_a_fit_that_dies_at_any_moment_ends_as_if_it_had_not(make, tmp_path, hook, call):
    whole = make()
    fit(whole, tmp_path / "whole")
    with pytest.raises(DiedError):
        fit(make(), tmp_path / "cut", Death(hook, call))
    again = make()
    fit(again, tmp_path / "cut")
    assert differences(left(again), left(whole)) == []
    assert not same(weights(whole), weights(make()))
    assert (tmp_path / "cut" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    for name in ("best", "best-2", "last"):
        there = [
            Learner.load_weights(learner := make(), tmp_path / kind / "fit-1" / f"{name}.safetensors")
            or weights(learner)
            for kind in ("cut", "whole")
        ]
        assert same(*there)


def died(
    learner: Learner,
    folder: Path,
    hook: str = "on_train_batch_begin",
    call: int = 8,
    more: Sequence[Callback] = (),
    **options: Any,
) -> Learner:
    """Let a fit die, by default in its second epoch."""
    with pytest.raises(DiedError):
        fit(learner, folder, Death(hook, call), *more, **options)
    return learner


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
@pytest.mark.parametrize("counts", [(0, 2), (2, 0), (1, 4)])
def test_the_number_of_workers_may_be_another(make, tmp_path, counts):
    whole = make()
    fit(whole, tmp_path / "whole")
    died(make(workers=counts[0]), tmp_path / "cut")
    again = make(workers=counts[1])
    fit(again, tmp_path / "cut")
    assert differences(left(again), left(whole)) == []


def test_it_may_die_again_and_again_and_trains_no_batch_twice(make, tmp_path):
    whole, batches = make(), []
    fit(whole, tmp_path / "whole")
    for call in (2, 3, 0, 4, NEVER):
        learner, noting = make(), Noting()
        noting.order = Order.REPORT
        with suppress(DiedError):
            fit(learner, tmp_path / "cut", noting, Death("on_step_end", call), accumulate=1)
        batches += [note[1] for note in noting.notes if note[0] == "on_train_batch_end"]
    assert batches == [*range(5)] * 3
    fit(straight := make(), tmp_path / "straight", accumulate=1)
    assert differences(left(learner), left(straight)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {"optimizer": "lamb"},
        {"optimizer": lambda parameters: torch.optim.RMSprop(parameters, momentum=0.5)},
        {"precision": "bf16"},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
    ],
    ids=["sgd", "lamb", "a factory's", "bf16", "a module"],
)
def test_every_optimizer_precision_and_loss_goes_on(make, tmp_path, options):
    whole = make(**options)
    fit(whole, tmp_path / "whole", clip_norm=0.5, layer_lr_decay=0.7)
    died(make(**options), tmp_path / "cut", clip_norm=0.5, layer_lr_decay=0.7)
    again = make(**options)
    fit(again, tmp_path / "cut", clip_norm=0.5, layer_lr_decay=0.7)
    assert differences(left(again), left(whole)) == []


class Thaw(Callback):
    """Freeze the backbone, and train one stage more with each epoch, from its second batch on."""

    def on_train_begin(self, logs: Any) -> None:
        if not self.run.resumed:
            self.learner.freeze()

    def on_train_batch_end(self, batch: int, logs: Any) -> None:
        if batch == 1:
            self.learner.unfreeze(max(0, 2 - self.run.epoch))


def plateau_fit(learner: Learner, folder: Path, *more: Callback) -> None:
    """Train with callbacks that change what trains and how fast, and look at other pictures in between."""
    checkpoint = ModelCheckpoint(folder, monitor="loss", every_seconds=ALWAYS)
    reduce = ReduceLROnPlateau(monitor="val_loss", patience=1, factor=0.5)
    learner.fit(4, 1e-2, callbacks=[Thaw(), reduce, checkpoint, *more], resume=True, verbose=False)


@pytest.mark.parametrize("call", [1, 6, 7, 13, 17])
def test_what_callbacks_freeze_and_the_rate_that_they_set_go_on(make, tmp_path, call):
    whole = make()
    plateau_fit(whole, tmp_path / "whole")
    with pytest.raises(DiedError):
        plateau_fit(make(), tmp_path / "cut", Death("on_train_batch_begin", call))
    again = make()
    again.evaluate("train")
    again.predict(torch.rand(2, 3, 32, 32))
    plateau_fit(again, tmp_path / "cut")
    assert differences(left(again), left(whole)) == []


class Restless(Callback):
    """Look at pictures in the middle of everything, and draw from every generator."""

    order = Order.REPORT

    def look(self) -> None:
        torch.rand(3)
        random.random()  # noqa: S311 - nothing is hidden by it
        np.random.rand()

    def on_train_batch_end(self, batch, logs):
        self.look()
        if batch == 2:
            self.model.evaluate("train")
            self.model.predict(torch.rand(2, 3, 32, 32))

    def on_epoch_end(self, epoch, logs):
        self.look()
        self.model.show_predictions(2)
        self.model.data.show_batch(2)
        self.run.history.plot()


@pytest.mark.parametrize("restless", ["whole", "first", "second"])
def test_looking_at_pictures_in_between_changes_nothing(make, tmp_path, restless):
    def looking(who: str) -> list[Callback]:
        return [Restless()] if who == restless else []

    whole = make()
    fit(whole, tmp_path / "whole", *looking("whole"))
    died(make(), tmp_path / "cut", more=looking("first"))
    again = make()
    torch.rand(7)
    again.evaluate()
    fit(again, tmp_path / "cut", *looking("second"))
    assert differences(left(again), left(whole)) == []


def two_phases(learner: Learner, folder: Path, *more: Callback, seconds: float = NEVER) -> Learner:
    """Run the recipe of many scripts; death comes in the second phase."""
    learner.freeze()
    fit(learner, folder, seconds=seconds, epochs=2)
    learner.unfreeze(1)
    fit(learner, folder, *more, seconds=seconds, lr=1e-3)
    return learner


def test_a_script_of_several_fits_is_run_again(make, tmp_path, capsys):
    whole = two_phases(make(), tmp_path / "whole")
    with pytest.raises(DiedError):
        two_phases(make(), tmp_path / "cut", Death("on_epoch_begin", 2))
    capsys.readouterr()
    again = two_phases(make(), tmp_path / "cut")
    assert differences(left(again), left(whole)) == []
    said = capsys.readouterr().out
    assert "fit 1 came to its end before, after 2 epochs" in said
    assert "fit 2 goes on at epoch 3 of 3" in said


def test_a_finished_script_trains_nothing_and_ends_with_the_same(make, tmp_path):
    whole = two_phases(make(), tmp_path)
    noting = Noting()
    noting.order = Order.REPORT
    again = two_phases(make(), tmp_path, noting)
    assert noting.notes == []
    assert differences(left(again), left(whole)) == []
    assert again.evaluate() == whole.evaluate()


def test_callbacks_of_a_finished_fit_know_what_they_knew(make, tmp_path):
    def run() -> tuple[EarlyStopping, ModelCheckpoint]:
        stopping, checkpoint = EarlyStopping(patience=1), ModelCheckpoint(tmp_path)
        make().fit(3, 1e-3, callbacks=[stopping, checkpoint], resume=True, verbose=False)
        return stopping, checkpoint

    (stopping, checkpoint), (stopping_again, checkpoint_again) = run(), run()
    assert (stopping_again.best, stopping_again.best_epoch) == (stopping.best, stopping.best_epoch)
    assert (checkpoint_again.best, checkpoint_again.folder) == (checkpoint.best, checkpoint.folder)


def test_a_finished_fit_may_have_more_epochs(make, tmp_path):
    for epochs in (2, 4):
        learner = make()
        learner.fit(epochs, 1e-3, callbacks=ModelCheckpoint(tmp_path / "more"), resume=True, verbose=False)
    straight = make()
    straight.fit(4, 1e-3, callbacks=ModelCheckpoint(tmp_path / "straight"), verbose=False)
    assert differences(left(learner), left(straight)) == []
    error = refusal(CheckpointError, lambda: fit_plainly(make(), tmp_path / "more", epochs=3))
    assert "epochs: 4 there, 3 here" in error.arrived


def test_a_stop_that_was_asked_for_is_not_forgotten(make, tmp_path):
    class Enough(Callback):
        def on_train_batch_end(self, batch: int, logs: Any) -> None:
            if self.run.epoch == 1 and batch == 2:
                self.run.stop("enough")

    def stopped(folder: Path, *more: Callback) -> Learner:
        learner = make()
        callbacks = [Enough(), ModelCheckpoint(folder, every_seconds=ALWAYS), *more]
        learner.fit(3, 1e-3, callbacks=callbacks, resume=True, verbose=False)
        return learner

    whole = stopped(tmp_path / "whole")
    for hook, call in (("on_test_begin", 1), ("on_epoch_end", 1), ("on_train_end", 0)):
        with pytest.raises(DiedError):
            stopped(tmp_path / hook, Death(hook, call))
        again = stopped(tmp_path / hook)
        assert differences(left(again), left(whole)) == []


def test_batches_of_ones_own_loader_go_on_at_the_ends_of_epochs(tmp_path):
    images, targets = torch.randn(20, 3, 6, 6), torch.arange(20) % 3

    def run(folder: Path, *more: Callback) -> tuple[Learner, Noting]:
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(images, targets), batch_size=4, shuffle=True
        )
        data = ImageData.from_loaders(loader, loader, classes=("a", "b", "c"))
        learner, noting = Learner(plain_network(dropout=0.2), data, device="cpu"), Noting()
        noting.order = Order.REPORT
        callbacks = [ModelCheckpoint(folder, every_seconds=ALWAYS), noting, *more]
        with suppress(DiedError):
            learner.fit(3, 1e-2, callbacks=callbacks, resume=True, verbose=False)
        return learner, noting

    whole, _ = run(tmp_path / "whole")
    for call, first in ((8, 0), (5, 0), (14, 0)):
        run(tmp_path / f"{call}", Death("on_train_batch_end", call))
        again, noting = run(tmp_path / f"{call}")
        assert next(note[1] for note in noting.notes if note[0] == "on_train_batch_begin") == first
        assert differences(left(again), left(whole)) == []


# What is refused


def fit_plainly(learner: Learner, folder: Path, *more: Callback, epochs: int = 2, **options: Any) -> Any:
    callbacks = [EarlyStopping(patience=3), ModelCheckpoint(folder), *more]
    return learner.fit(
        **{"epochs": epochs, "lr": 1e-3, "callbacks": callbacks, "verbose": False, "resume": True, **options}
    )


def test_resuming_needs_a_folder_to_resume_from(make):
    error = refusal(ConfigError, lambda: make().fit(1, 1e-3, resume=True, verbose=False))
    assert error.arrived == "resume=True without a ModelCheckpoint"
    assert "resume='yes'" in refusal(ConfigError, lambda: make().fit(1, 1e-3, resume="yes")).arrived


def test_a_run_is_not_written_over_unless_told_to(make, tmp_path):
    fit_plainly(make(), tmp_path)
    error = refusal(CheckpointError, lambda: fit_plainly(make(), tmp_path, resume=False))
    assert "resume=True" in error.todo
    anew = make(seed=1)
    anew.fit(1, 1e-3, callbacks=ModelCheckpoint(tmp_path, overwrite=True), verbose=False)
    assert sorted(path.name for path in (tmp_path / "fit-1").iterdir()) == [
        "best.safetensors",
        "finished.safetensors",
        "last.safetensors",
        "state-000001.safetensors",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lr": 2e-3}, "lr: 0.001 there, 0.002 here"),
        ({"accumulate": 2}, "accumulate: 1 there, 2 here"),
        ({"epochs": 1}, "epochs: 2 there, 1 here"),
        (
            {"callbacks": EarlyStopping(patience=4)},
            "callbacks: ...0, patience=3, mode='auto', baseline=None",
        ),
        (
            {"callbacks": LRSchedule(cosine(0.1))},
            "callbacks: EarlyStopping(monitor='val_loss', min_delta=0.0, patience=3",
        ),
    ],
)
def test_a_fit_that_was_asked_for_something_else_is_not_gone_on_with(make, tmp_path, change, told):
    fit_plainly(make(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    if "callbacks" in change:
        change = {"callbacks": [change["callbacks"], ModelCheckpoint(tmp_path)]}
    learner = make()
    held = weights(learner)
    error = refusal(CheckpointError, lambda: fit_plainly(learner, tmp_path, **change))
    assert told in error.arrived
    assert same(weights(learner), held)
    assert len(learner.history) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": 3}, "seed: 0 there, 3 here"),
        ({"optimizer": "sgd"}, "optimizer: 'adamw' (AdamW) there, 'sgd' (SGD) here"),
        ({"weight_decay": 0.5}, "weight_decay: None there, 0.5 here"),
        ({"loss": nn.CrossEntropyLoss(label_smoothing=0.2)}, "loss: cross_entropy"),
    ],
)
def test_neither_is_one_of_another_learner(make, tmp_path, options, told):
    fit_plainly(make(), tmp_path)
    assert told in refusal(CheckpointError, lambda: fit_plainly(make(**options), tmp_path)).arrived


def test_neither_is_one_with_other_pictures_or_another_start(make, tmp_path, shapes_folder):
    fit_plainly(make(root=shapes_folder), tmp_path / "run")
    frozen = make(root=shapes_folder)
    frozen.unfreeze(1)
    told = refusal(CheckpointError, lambda: fit_plainly(frozen, tmp_path / "run")).arrived
    assert "frozen: 0 parameters" in told
    assert told.count(" there, ") == 1
    shutil.copytree(shapes_folder, tmp_path / "moved")
    fit_plainly(moved := make(root=tmp_path / "moved"), tmp_path / "run")
    assert len(moved.history) == 2
    picture = tmp_path / "moved" / "train" / "circle" / "03.jpg"
    picture.write_bytes(picture.read_bytes() + b"\0")
    told = refusal(CheckpointError, lambda: fit_plainly(make(root=tmp_path / "moved"), tmp_path / "run")).arrived
    assert "sizes of the train files: " in told


def test_another_machine_is_told(make, tmp_path, monkeypatch):
    fit_plainly(make(), tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    with pytest.warns(UserWarning, match="goes on elsewhere, its last bits may differ: threads 1 there, 64 here"):
        fit_plainly(make(), tmp_path)


def test_what_a_callback_cannot_keep_in_a_file_is_refused_by_name(make, tmp_path):
    class Keeps(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"when": object()}

    callbacks = [Keeps(), ModelCheckpoint(tmp_path)]
    error = refusal(CheckpointError, lambda: make().fit(1, 1e-3, callbacks=callbacks, verbose=False))
    assert error.arrived == "state.callbacks.Keeps.when, of type object"


# Files that are not whole


def test_a_damaged_state_is_named_and_the_one_before_is_gone_on_with(make, tmp_path):
    whole = make()
    fit(whole, tmp_path / "whole")
    died(make(), tmp_path / "cut")
    states = sorted((tmp_path / "cut" / "fit-1").glob("state-*"))
    assert len(states) == 2
    states[1].write_bytes(states[1].read_bytes()[:-100])
    again = make()
    with pytest.warns(UserWarning, match=f"{states[1].name} .* damaged; going on from {states[0].name}"):
        fit(again, tmp_path / "cut")
    assert differences(left(again), left(whole)) == []


def test_a_damaged_end_is_reached_once_more(make, tmp_path):
    fit(whole := make(), tmp_path)
    end = tmp_path / "fit-1" / "finished.safetensors"
    data = bytearray(end.read_bytes())
    data[len(data) // 2] ^= 4
    end.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=r"finished.safetensors .* damaged; going on from state-"):
        fit(again := make(), tmp_path)
    assert differences(left(again), left(whole)) == []


def test_where_no_state_is_whole_nothing_is_trained(make, tmp_path):
    died(make(), tmp_path)
    for state in (tmp_path / "fit-1").glob("state-*"):
        state.write_bytes(b"")
    error = refusal(CheckpointError, lambda: fit(make(), tmp_path))
    assert "state-000004.safetensors" in error.arrived
    assert "The weights in best.safetensors, last.safetensors may be whole: learner.load_weights" in error.todo


def test_what_a_write_left_that_was_cut_short_is_swept_away(make, tmp_path):
    died(make(), tmp_path)
    stray = tmp_path / "fit-1" / ".state-000009.safetensors.0123abcd"
    stray.write_bytes(b"half")
    mine = tmp_path / "fit-1" / ".notes"
    mine.write_text("mine")
    fit(make(), tmp_path)
    assert not stray.exists()
    assert mine.read_text() == "mine"


def test_the_time_of_an_epoch_that_another_process_began_is_that_of_this_one(make, tmp_path, capsys):
    died(make(), tmp_path, verbose=True)
    capsys.readouterr()
    fit(make(), tmp_path, verbose=True)
    seconds = [float(found) for found in re.findall(r"\((\d+\.\d) s\)", capsys.readouterr().out)]
    assert len(seconds) == 2
    assert max(seconds) < 60


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_models_without_a_state_to_go_on_from_are_left_alone(make, tmp_path):
    fit_plainly(make(), tmp_path)
    folder = tmp_path / "fit-1"
    for state in [*folder.glob("state-*"), folder / "finished.safetensors"]:
        state.unlink()  # to have the space back
    kept = (folder / "best.safetensors").read_bytes()
    error = refusal(CheckpointError, lambda: fit_plainly(make(), tmp_path))
    assert "of a run without a state" in error.arrived
    assert (folder / "best.safetensors").read_bytes() == kept
    learner = make()
    learner.fit(1, 1e-3, callbacks=[ModelCheckpoint(tmp_path, overwrite=True)], resume=True, verbose=False)
    assert (folder / "best.safetensors").read_bytes() != kept


def test_a_second_checkpoints_models_of_another_run_are_left_alone(make, tmp_path):
    second = tmp_path / "second"
    make().fit(1, 1e-3, callbacks=[ModelCheckpoint(second)], verbose=False)
    (second / "fit-1" / "finished.safetensors").unlink()
    before = names(second / "fit-1")
    both = [ModelCheckpoint(tmp_path / "first"), ModelCheckpoint(second)]
    refusal(CheckpointError, lambda: make().fit(1, 1e-3, callbacks=both, resume=True, verbose=False))
    assert names(second / "fit-1") == before


def test_a_run_that_died_before_its_first_state_begins_again(make, tmp_path, monkeypatch):
    """Models of the first epoch are there, no state is, and only the mark tells whose they are."""
    saving = ModelCheckpoint(tmp_path)
    monkeypatch.setattr(saving, "_save_state", lambda: None)
    with pytest.raises(DiedError):
        make().fit(2, 1e-3, callbacks=[saving, Death("on_epoch_begin", 1)], verbose=False)
    assert "last.safetensors" in names(tmp_path / "fit-1")
    assert not any(name.startswith("state") for name in names(tmp_path / "fit-1"))
    fit_plainly(again := make(), tmp_path)
    fit_plainly(whole := make(), tmp_path / "whole")
    assert differences(left(again), left(whole)) == []


def test_a_lock_that_is_left_is_no_run(make, tmp_path):
    (tmp_path / "fit-1").mkdir()
    (tmp_path / "fit-1" / "lock").write_text("123")
    make().fit(1, 1e-3, callbacks=[ModelCheckpoint(tmp_path)], verbose=False)


def test_in_a_notebook_the_call_that_was_cut_short_is_made_once_more(make, tmp_path):
    whole = make()
    fit(whole, tmp_path / "whole")
    learner = make()
    with pytest.raises(DiedError):
        fit(learner, tmp_path / "cut", Death("on_train_batch_begin", 8))
    fit(learner, tmp_path / "cut")
    assert differences(left(learner), left(whole)) == []
    assert names(tmp_path / "cut") == {"fit-1", "log.csv"}


def test_so_is_one_of_a_second_fit(make, tmp_path, recwarn):
    whole = two_phases(make(), tmp_path / "whole")
    learner = make()
    with pytest.raises(DiedError):
        two_phases(learner, tmp_path / "cut", Death("on_train_batch_begin", 8))
    fit(learner, tmp_path / "cut", seconds=NEVER, lr=1e-3)
    assert differences(left(learner), left(whole)) == []
    assert not recwarn.list


def test_a_later_fit_that_began_with_other_weights_says_so(make, tmp_path, capsys):
    two_phases(make(), tmp_path)
    again = make()
    again.freeze()
    fit(again, tmp_path, seconds=NEVER, epochs=3)
    assert "2 epochs were planned, a schedule is laid out over 3 now" in capsys.readouterr().out
    again.unfreeze(1)
    with pytest.warns(UserWarning, match="began with other weights than those at hand"):
        fit(again, tmp_path, seconds=NEVER, lr=1e-3)


def test_what_a_callback_was_given_may_change_while_it_works(make, tmp_path):
    class Counting(Callback):
        def __init__(self, seen: dict[str, int]) -> None:
            self.seen = seen

        def on_train_batch_end(self, batch, logs):
            self.seen["batches"] += 1

    def script() -> Learner:
        learner, counting = make(), Counting({"batches": 0})
        fit_plainly(learner, tmp_path, counting)
        fit_plainly(learner, tmp_path, counting)
        return learner

    assert differences(left(script()), left(script())) == []


def test_python_and_numpy_draw_the_same_in_a_callback(make, tmp_path):
    class Mixing(Callback):
        def on_batch_ready(self):
            batch = self.run.batch
            share = np.random.beta(1, 1) + random.random()  # noqa: S311 - nothing is hidden by it
            self.run.batch = type(batch)(batch.images * share, batch.targets)

    fits = []
    for workers in (0, 2):
        fit(whole := make(workers=workers), tmp_path / f"whole{workers}", Mixing())
        fits.append(left(whole))
    assert differences(*fits) == []
    died(make(), tmp_path / "cut", more=[Mixing()])
    fit(again := make(), tmp_path / "cut", Mixing())
    assert differences(left(again), fits[0]) == []


def test_what_cannot_be_kept_is_refused_before_the_first_batch(make, tmp_path):
    class Hoarding(Callback):
        def state_dict(self):
            return {"seen": np.zeros(3)}

    noting = Noting()
    error = refusal(CheckpointError, lambda: fit_plainly(make(), tmp_path, Hoarding(), noting))
    assert "state.callbacks.Hoarding.seen" in error.arrived
    assert "on_epoch_begin" not in noting.names


def test_a_fit_that_is_refused_leaves_the_run_before_it_and_the_network_alone(make, tmp_path, monkeypatch):
    fit_plainly(make(), tmp_path)
    before = names(tmp_path / "fit-1")
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    overwriting = {"callbacks": [ModelCheckpoint(tmp_path, overwrite=True)], "verbose": False}
    refusal(CheckpointError, lambda: make().fit(1, 1e-3, **overwriting))
    assert names(tmp_path / "fit-1") == before


def test_the_damaged_state_goes_when_a_fit_goes_on(make, tmp_path):
    died(make(), tmp_path)
    states = sorted((tmp_path / "fit-1").glob("state-*"))
    states[-1].write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged; going on from"):
        died(make(), tmp_path, "on_train_batch_begin", 1)
    assert states[-1].name not in names(tmp_path / "fit-1") or states[-1].read_bytes() != b"damaged"


def test_a_state_of_another_kind_is_passed_over(make, tmp_path):
    fit(whole := make(), tmp_path / "whole")
    died(make(), tmp_path / "cut")
    newest = max((tmp_path / "cut" / "fit-1").glob("state-*"))
    shutil.copy(tmp_path / "whole" / "fit-1" / "last.safetensors", newest)
    with pytest.warns(UserWarning, match="going on from"):
        fit(again := make(), tmp_path / "cut")
    assert differences(left(again), left(whole)) == []


def test_two_checkpoints_keep_one_state_of_each_moment(make, tmp_path):
    both = [ModelCheckpoint(tmp_path / "one", every_seconds=ALWAYS), ModelCheckpoint(tmp_path / "two")]
    with pytest.raises(DiedError):
        make().fit(2, 1e-3, callbacks=[*both, Death("on_epoch_begin", 1)], verbose=False)
    moments = [
        read_weights(path)[1]["state"]["run"]["epoch"] * 100 + read_weights(path)[1]["state"]["run"]["batches_done"]
        for path in sorted((tmp_path / "one" / "fit-1").glob("state-*"))
    ]
    assert moments == [5, 100]


class Remembering(nn.Linear):
    """A layer that keeps something beside its tensors, as torch lets it."""

    seen = 0

    def forward(self, values):
        self.seen += self.training
        return super().forward(values)

    def get_extra_state(self):
        return torch.tensor(self.seen)

    def set_extra_state(self, state):
        self.seen = int(state)


def test_what_a_layer_keeps_beside_its_tensors_comes_back(tmp_path):
    def learner() -> Learner:
        network = nn.Sequential(*list(plain_network())[:-1], Remembering(8, 3))
        nn.init.zeros_(network[-1].weight)
        nn.init.zeros_(network[-1].bias)
        return made_learner(pairs(4, 4), pairs(2), network=network)

    fit(whole := learner(), tmp_path / "whole", epochs=4, accumulate=1)
    with pytest.raises(DiedError):
        fit(learner(), tmp_path / "cut", Death("on_train_batch_begin", 5), epochs=4, accumulate=1)
    fit(again := learner(), tmp_path / "cut", epochs=4, accumulate=1)
    assert again.model[-1].seen == whole.model[-1].seen == 8


@pytest.mark.parametrize("name", ["adafactorbv", "lion", "adopt"])
def test_optimizers_with_state_of_every_kind_go_on(make, tmp_path, name):
    fit(whole := make(optimizer=name), tmp_path / "whole")
    died(make(optimizer=name), tmp_path / "cut")
    fit(again := make(optimizer=name), tmp_path / "cut")
    assert differences(left(again), left(whole)) == []


def test_a_finished_fit_says_why_it_ended(make, tmp_path, capsys):
    stopping = type("Stopping", (Callback,), {"on_epoch_end": lambda self, epoch, logs: self.run.stop("good enough")})
    fit_plainly(make(), tmp_path, stopping())
    fit_plainly(make(), tmp_path, stopping())
    assert "came to its end before, after 1 epoch (good enough): " in capsys.readouterr().out


def test_no_state_is_promised_that_could_not_be_written(make, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise CheckpointError("the disk is full", "space", "Free some space.")

    monkeypatch.setattr("headstart.training.run_folder.write_weights", full)
    refusal(CheckpointError, lambda: fit(make(), tmp_path))
    assert "goes on at" not in capsys.readouterr().out


def test_broken_pictures_say_more_than_that_they_are_other_ones(make, tmp_path, shapes_folder):
    root = Path(shutil.copytree(shapes_folder, tmp_path / "shapes"))
    died(make(root=root), tmp_path / "run")
    bad = root / "train" / "circle" / "03.jpg"
    bad.write_text("words")
    error = refusal(DataError, lambda: fit(make(root=root), tmp_path / "run"))
    assert str(bad) in error.arrived
    passing_over = ImageData.from_folder(root, image_size=32, batch_size=8, workers=0, on_error="skip")
    with pytest.warns(UserWarning, match="goes on with files that have changed: sizes of the train files"):
        fit(again := make(data=passing_over), tmp_path / "run")
    assert len(again.history) == 3


def test_a_call_that_begins_another_fit_after_one_that_was_cut_short_says_so(make, tmp_path, capsys):
    def stop(callback, epoch, logs):
        raise KeyboardInterrupt

    learner = make()
    with pytest.raises(KeyboardInterrupt):
        learner.fit(2, 0.1, callbacks=[At(on_epoch_end=stop), ModelCheckpoint(tmp_path)], resume=True, verbose=False)
    capsys.readouterr()
    learner.fit(1, 0.1, callbacks=[ModelCheckpoint(tmp_path)], verbose=False)
    told = "fit 1 was cut short: this is fit 2, which begins with its weights. resume=True would go on"
    assert told in capsys.readouterr().out
    learner.fit(1, 0.1, callbacks=[ModelCheckpoint(tmp_path)], verbose=False)
    assert "cut short" not in capsys.readouterr().out


def test_a_fit_that_failed_goes_on_when_the_cause_is_gone(make, tmp_path, capsys):
    def fail(callback, epoch, logs):
        if epoch == 1:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        make().fit(2, 0.1, callbacks=[At(on_epoch_end=fail), ModelCheckpoint(tmp_path)], verbose=False)
    assert "failed; when its cause is gone, the same script goes on at" in capsys.readouterr().out
