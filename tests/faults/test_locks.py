"""Two fits in one folder: the second is refused, and a dead owner's lock is taken over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import At, made_learner, refusal

from headstart import CheckpointError, ModelCheckpoint
from headstart.files import locked

HOLD = """
import sys, time
from pathlib import Path
from headstart.files import locked

with locked(Path(sys.argv[1])) as owner:
    print(owner, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the lock of `fit-1`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "fit-1" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stdout.readline() == "None\n"
        yield process
        process.kill()


def fit(folder: Path, *callbacks) -> None:
    made_learner().fit(1, 0.1, callbacks=[ModelCheckpoint(folder), *callbacks], resume=True, verbose=False)


def test_another_process_is_refused_with_the_owners_number(tmp_path, holder):
    error = refusal(CheckpointError, lambda: fit(tmp_path))
    assert error.arrived == f"{tmp_path / 'fit-1'}, in which process {holder.pid} is training"
    assert [path.name for path in (tmp_path / "fit-1").iterdir()] == ["lock"]
    fit(tmp_path / "another")


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "fit-1" / "lock").exists()
    fit(tmp_path)
    assert not (tmp_path / "fit-1" / "lock").exists()


def test_a_second_fit_of_this_process_is_refused_too(tmp_path):
    errors = []
    inside = At(on_train_begin=lambda callback, logs: errors.append(refusal(CheckpointError, lambda: fit(tmp_path))))
    fit(tmp_path, inside)
    assert f"process {os.getpid()} is training" in errors[0].arrived


def test_a_fit_that_is_refused_leaves_no_folder(tmp_path):
    with locked(tmp_path / "runs" / "x" / "fit-1" / "lock") as owner:
        assert owner is None
        assert (tmp_path / "runs" / "x" / "fit-1" / "lock").read_text() == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


def test_a_lock_where_no_file_can_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be made"), locked(tmp_path / "file" / "lock"):
        pass
