"""What is told: one line for each epoch, a bar where somebody can watch it, a CSV file that is always whole."""

import csv
import re
from types import SimpleNamespace

import pytest
from handmade import At, Script, made_learner, pairs, refusal, same, weights

from headstart import CheckpointError, ConfigError, CSVLogger, EarlyStopping, ProgressBar, StopTraining
from headstart.callbacks import reporting

TOLD = r"loss \d+\.\d{4} - accuracy \d\.\d{4}"
EPOCH = TOLD + r" - val_loss \d+\.\d{4} - val_accuracy \d\.\d{4} - learning_rate 1\.0e-02"


class Bar:
    """Stand in for tqdm's bar and note what is asked of it."""

    made: list["Bar"]

    def __init__(self, **settings):
        self.settings, self.updates, self.words, self.closed = settings, 0, [], 0
        Bar.made.append(self)

    def update(self):
        self.updates += 1

    def set_postfix_str(self, words, refresh=True):
        self.words.append((words, refresh))

    def close(self):
        self.closed += 1


@pytest.fixture
def bars(monkeypatch):
    """Pretend that somebody watches; give the bars that were made and the words that were written."""
    Bar.made = []
    lines = []
    Bar.write = staticmethod(lines.append)
    monkeypatch.setattr(reporting, "_is_interactive", lambda: True)
    monkeypatch.setattr(reporting, "tqdm", Bar)
    return SimpleNamespace(made=Bar.made, lines=lines)


@pytest.fixture
def clock(monkeypatch):
    """Give a clock that stands still unless it is moved: `clock.now += 1`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(reporting, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


# ProgressBar.


def test_there_is_one_line_for_each_epoch_where_nobody_watches(capsys):
    learner = made_learner(val=pairs(2))
    capsys.readouterr()
    learner.fit(2, 0.01)
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.fullmatch(rf"epoch {number}/2: {EPOCH} \(\d+\.\d s\)", line)


def test_it_comes_with_verbose_and_only_once(capsys):
    learner = made_learner()
    capsys.readouterr()
    learner.fit(1, 0.01, verbose=False)
    assert capsys.readouterr().out == ""
    for callbacks, verbose in (((), True), ((ProgressBar(),), True), ((ProgressBar(),), False)):
        learner.fit(1, 0.01, callbacks=callbacks, verbose=verbose)
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_keys_of_other_callbacks_are_told_too(capsys):
    made_learner().fit(1, 0.01, callbacks=[Script("mine", [0.123456])])
    assert "mine 0.1235" in capsys.readouterr().out


@pytest.mark.parametrize("watch", [True, False])
def test_it_tells_why_training_stopped_early(capsys, monkeypatch, bars, watch):
    monkeypatch.setattr(reporting, "_is_interactive", lambda: watch)
    callbacks = [Script("val_loss", [1, 2, 3]), EarlyStopping(patience=1), ProgressBar()]
    made_learner(val=pairs(2)).fit(3, 0.01, callbacks=callbacks)
    assert bars.lines[-2:] == [
        "stopped after epoch 2: val_loss has not improved for 1 epoch",
        "the weights of epoch 1 are back (val_loss 1.0000)",
    ]
    assert len(bars.lines) == 4


def test_it_is_told_when_a_whole_fit_ends_with_the_weights_of_an_earlier_epoch(capsys):
    callbacks = [Script("val_loss", [2, 1, 3]), EarlyStopping(patience=5)]
    made_learner(val=pairs(2)).fit(3, 0.01, callbacks=callbacks)
    assert capsys.readouterr().out.endswith("the weights of epoch 2 are back (val_loss 1.0000)\n")
    made_learner(val=pairs(2)).fit(2, 0.01, callbacks=[Script("val_loss", [2, 1]), EarlyStopping()])
    assert "are back" not in capsys.readouterr().out


def test_a_bar_moves_with_each_batch_and_leaves_its_place_to_a_line_with_the_results(bars, clock):
    made_learner(val=pairs(2)).fit(2, 0.01)
    assert [bar.settings["desc"] for bar in bars.made] == ["epoch 1/2", "epoch 2/2"]
    for bar in bars.made:
        assert bar.settings["total"] == bar.updates == 3
        assert bar.closed == 1
        assert not bar.settings["leave"]
    assert len(bars.lines) == 2
    assert all(re.fullmatch(rf"epoch \d/2: {EPOCH} \(0\.0 s\)", line) for line in bars.lines)


def test_a_bar_reads_the_logs_five_times_a_second_at_the_most(bars, clock):
    def tick(callback, batch, logs):
        clock.now += 0.0625

    made_learner(pairs(*[1] * 40)).fit(1, 0.01, callbacks=[At(on_train_batch_begin=tick)])
    during = bars.made[0].words
    assert len(during) == 10  # forty batches in two and a half seconds: every fourth comes 0.2 seconds after the last
    assert not any(refresh for _, refresh in during)
    assert all(re.fullmatch(TOLD, words) for words, _ in during)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, StopTraining])
def test_a_bar_is_closed_however_the_fit_ends(bars, clock, problem):
    def fail(callback, batch, logs):
        raise problem

    try:
        made_learner().fit(1, 0.01, callbacks=[At(on_train_batch_end=fail)])
    except KeyboardInterrupt:
        assert problem is KeyboardInterrupt
    assert [bar.closed for bar in bars.made] == [1]
    assert len(bars.lines) == (problem is StopTraining)


def test_a_bar_left_open_by_a_failing_end_is_closed_by_the_next_fit(bars, clock):
    def fail(callback, *_):
        raise ZeroDivisionError

    bar, learner = ProgressBar(), made_learner()
    with pytest.raises(ZeroDivisionError):
        learner.fit(1, 0.01, callbacks=[At(on_train_batch_end=fail, on_train_end=fail), bar])
    learner.fit(1, 0.01, callbacks=[bar])
    assert [bar.closed for bar in bars.made] == [1, 1]


@pytest.mark.parametrize(
    ("terminal", "notebook", "watched"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_somebody_watches_in_a_terminal_and_in_a_notebook(monkeypatch, terminal, notebook, watched):
    modules = {"ipykernel": None} if notebook else {}
    stream = SimpleNamespace(isatty=lambda: terminal)
    monkeypatch.setattr(reporting, "sys", SimpleNamespace(stderr=stream, modules=modules))
    assert reporting._is_interactive() is watched


def test_nobody_watches_where_there_is_no_output(monkeypatch):
    monkeypatch.setattr(reporting, "sys", SimpleNamespace(stderr=None, modules={}))
    assert not reporting._is_interactive()


def test_the_real_bar_takes_what_it_is_given(monkeypatch, capsys):
    monkeypatch.setattr(reporting, "_is_interactive", lambda: True)
    made_learner().fit(1, 0.01)
    told = capsys.readouterr()
    assert "epoch 1/1:   0%" in told.err
    assert re.search(rf"^epoch 1/1: {TOLD}", told.out, re.MULTILINE)


# CSVLogger.


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_file_holds_the_history(tmp_path):
    path = tmp_path / "logs" / "log.csv"
    history = made_learner(val=pairs(2)).fit(
        3, 0.01, callbacks=[CSVLogger(path), Script("mine", [1, 2, 3])], verbose=False
    )
    assert list(rows(path)[0]) == ["epoch", *history.history]
    assert {key: [float(row[key]) for row in rows(path)] for key in history.history} == history.history
    assert [int(row["epoch"]) for row in rows(path)] == history.epoch
    assert path.read_text() == history.to_csv(tmp_path / "own.csv").read_text()


def test_the_file_is_whole_after_every_epoch(tmp_path):
    path, lengths = tmp_path / "log.csv", []
    look = At(on_epoch_begin=lambda c, epoch, logs: lengths.append(len(rows(path)) if path.exists() else None))
    made_learner().fit(3, 0.01, callbacks=[CSVLogger(path), look], verbose=False)
    assert lengths == [None, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_a_key_that_comes_late_gets_a_column(tmp_path):
    def late(callback, epoch, logs):
        if epoch:
            logs["late"] = epoch

    path = tmp_path / "log.csv"
    made_learner().fit(2, 0.01, callbacks=[CSVLogger(str(path)), At(on_epoch_end=late)], verbose=False)
    assert [row["late"] for row in rows(path)] == ["nan", "1.0"]


def test_another_fit_writes_the_file_anew(tmp_path):
    logger, learner = CSVLogger(tmp_path / "log.csv"), made_learner()
    for epochs in (3, 1):
        learner.fit(epochs, 0.01, callbacks=[logger], verbose=False)
        assert len(rows(logger.path)) == epochs


def test_a_fit_that_fails_keeps_the_epochs_that_ended(tmp_path):
    def fail(callback, epoch, logs):
        if epoch == 2:
            raise ZeroDivisionError

    path = tmp_path / "log.csv"
    with pytest.raises(ZeroDivisionError):
        made_learner().fit(3, 0.01, callbacks=[CSVLogger(path), At(on_epoch_begin=fail)], verbose=False)
    assert len(rows(path)) == 2


def test_a_path_below_a_file_is_refused_before_the_first_batch(tmp_path):
    (tmp_path / "log").write_text("a file")
    learner = made_learner()
    before = weights(learner)
    path = tmp_path / "log" / "log.csv"
    error = refusal(ConfigError, lambda: learner.fit(1, 0.01, callbacks=[CSVLogger(path)], verbose=False))
    assert error.arrived == f"{tmp_path / 'log'}, which is a file"
    assert same(weights(learner), before)


def test_a_path_that_is_a_folder_is_refused_before_the_first_batch(tmp_path):
    with pytest.raises(ConfigError) as caught:
        made_learner().fit(1, 0.01, callbacks=[CSVLogger(tmp_path)], verbose=False)
    assert caught.value.arrived == f"CSVLogger with path={str(tmp_path)!r}, which is a folder"
    assert caught.value.needed == "the path of a file"
    assert "log.csv" in caught.value.todo
    with pytest.raises(ConfigError, match="path=None"):
        CSVLogger(None)


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    block = At(on_epoch_begin=lambda callback, epoch, logs: (tmp_path / "mine").write_text("a file"))
    with pytest.raises(CheckpointError, match="could not be written"):
        made_learner().fit(1, 0.01, callbacks=[CSVLogger(tmp_path / "mine" / "log.csv"), block], verbose=False)
