"""What is told while training goes on."""

import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from tqdm.auto import tqdm

from headstart.errors import ConfigError, Demands
from headstart.files import as_path, demand_writable
from headstart.training.callback import Callback, Order
from headstart.training.metrics import Logs
from headstart.training.run import Run

_SECONDS_BETWEEN_READS = 0.2  # reading the logs waits for the device, so the bar does it five times a second at most


class ProgressBar(Callback):
    """Show how training goes: one line for each epoch and, where there is a terminal or a notebook, a bar until then.

    `fit(verbose=True)` brings one along.

    Example:
        >>> callbacks = [ProgressBar()]
    """

    order: ClassVar[Order] = Order.REPORT

    def __init__(self) -> None:
        self._bar: Any = None
        self._began = 0.0
        self._read = 0.0

    def on_train_begin(self, logs: Logs) -> None:
        """Close a bar that another fit left open; open that of an epoch which another process has begun."""
        self._close()
        if self.run.batches_done:
            self._open(self.run.epoch)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Open the epoch's bar."""
        self._open(epoch)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Move the bar on."""
        if self._bar is not None:
            self._bar.update()
            now = time.monotonic()
            if now - self._read >= _SECONDS_BETWEEN_READS:
                self._bar.set_postfix_str(_words(logs), refresh=False)
                self._read = now

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Put the epoch's results, on a line of their own, in the place of the bar."""
        self._close()
        seconds = time.monotonic() - self._began
        tqdm.write(f"{self._title(epoch)}: {_words(logs)} ({seconds:.1f} s)")

    def on_train_end(self, logs: Logs) -> None:
        """Say why training stopped early, if it did, and what callbacks want known."""
        self._close()
        if self.run.stop_reason is not None:
            tqdm.write(f"stopped after epoch {len(self.run.history)}: {self.run.stop_reason}")
        for remark in self.run.remarks:
            tqdm.write(remark)

    def _open(self, epoch: int) -> None:
        self._began = self._read = time.monotonic()
        if _is_interactive():
            # It goes when the epoch ends: a terminal of 80 columns would cut the results off it.
            self._bar = tqdm(
                total=self.run.batches,
                initial=self.run.batches_done,
                desc=self._title(epoch),
                unit="batch",
                leave=False,
                dynamic_ncols=True,
            )

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch + 1}/{self.run.epochs}"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _is_interactive() -> bool:
    return (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules


def _words(logs: Logs) -> str:
    return " - ".join(f"{name} {_short(name, value)}" for name, value in logs.items())


def _short(name: str, value: float) -> str:
    return f"{value:.1e}" if name == "learning_rate" else f"{value:.4f}"


class CSVLogger(Callback):
    """Write the history of each fit into a CSV file, whole after every epoch.

    Args:
        path: the file; another fit writes it anew.

    Raises:
        ConfigError: `path` is no path; or, when a fit begins, a folder, or in none that can be written to.

    Example:
        >>> callbacks = [CSVLogger("log.csv")]
    """

    order: ClassVar[Order] = Order.REPORT

    def __init__(self, path: str | Path) -> None:
        demands = Demands("For example CSVLogger('log.csv').")
        demands.check("path", path, isinstance(path, str | Path), "the path of a file")
        demands.settle()
        self.path = self.writes_to = as_path(path)

    def check(self, run: Run) -> None:
        """Refuse a folder, and a path where no file can be made."""
        if self.path.is_dir():
            raise ConfigError(
                f"CSVLogger with path={str(self.path)!r}, which is a folder",
                "the path of a file",
                f"For example CSVLogger({str(self.path / 'log.csv')!r}).",
            )
        demand_writable(self.path.parent, "CSVLogger")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write all epochs so far."""
        self.run.history.to_csv(self.path)
