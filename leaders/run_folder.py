"""A run folder: what a run leaves on disk.

summary.json          settings, versions, what was found ("x", "x_random", "leader_return", ...), whether it finished
progress.csv          one row per evaluation; its columns are explained in `leaders.history.COLUMNS`
events.out.tfevents.* the same for TensorBoard
history.npz           one entry per column of the history, one number per iteration
learning_curve.png    the leader's return over iterations
report.html           all of it on one page, to be opened or sent (`leaders.report`)
and a picture of the result, where the environment has one (Four-Rooms: penalty_map.png)
"""

from __future__ import annotations

import io
import json
import platform
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from bocmdp_gym.errors import OptionError
from bocmdp_gym.files import LOCK, owning, remove_scratch, write_atomically, writing
from leaders.checkpoints import Checkpoints
from leaders.history import History
from leaders.run_log import EVENTS, CSVLog, EventsLog, print_record
from leaders.settings import RunSettings

SUMMARY, HISTORY, REPORT = "summary.json", "history.npz", "report.html"
#: What ``leaders.evaluate`` measured, and its picture.
EVALUATION, EVALUATION_PICTURE = "evaluation.json", "evaluation.png"
#: The follower at the last x and at the first, where ``leaders.evaluate`` was asked to record it.
VIDEO, VIDEO_BEFORE = "follower.gif", "follower_before.gif"
#: From one print of a record to the next.
_PRINT_SECONDS = 10.0
_OURS = (SUMMARY, "progress.csv", HISTORY, "learning_curve.png", REPORT, EVALUATION, "checkpoints")


class RunFolder:
    """A run folder: made and owned from where its run is known to work until `close`, and written into.

    Owning it raises errors, out of `leaders.optimize`:

    Raises:
        OptionError: the folder holds a run already.
        FolderInUseError: another process has a run in the folder.
        FolderError: it cannot be written to.
    """

    def __init__(self, settings: RunSettings):
        self.path = settings.folder()
        self._settings = settings
        self._logs: tuple[CSVLog, EventsLog] | None = None
        self._printed: float | None = None  # when
        self._open = ExitStack()
        self.checkpoints = Checkpoints(self.path / "checkpoints", settings.checkpoint_every, settings.fingerprint())
        self.checkpoints.on_own = self._own
        if settings.overwrite and not settings.resume:
            self.checkpoints.on_begin = self._clear  # an old run is removed only when the new one is known to work

    def _own(self) -> None:
        with ExitStack() as opened:
            opened.enter_context(owning(self.path, "the run folder"))
            old = any((self.path / name).exists() for name in _OURS)
            if old and not (self._settings.resume or self._settings.overwrite):
                raise OptionError(f"{self.path} already holds a run; --resume it, --overwrite it, or choose another --out.")
            for name in (*_OURS, "*.png", EVENTS):
                remove_scratch(self.path, name)
            self._open = opened.pop_all()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _clear(self) -> None:
        """Remove an old run's files, and nothing else."""
        with writing(self.path):
            for entry in [*self.path.iterdir(), *self.checkpoints.folder.glob("*")]:
                checkpoint = entry.parent == self.checkpoints.folder and entry.name != LOCK  # the lock is ours
                if checkpoint or entry.name.startswith(EVENTS) or entry.suffix in (".png", ".gif") or entry.name in _OURS[:-1]:
                    entry.unlink()

    def log(self, record: dict[str, Any], history: History) -> None:
        """Log an iteration: to the files where it was evaluated, and to the screen every ten seconds, the first and the last.

        A resumed run first repeats what it had logged up to its checkpoint; its later rows are void.

        Raises:
            FolderError: a file was removed, or cannot be written.
        """
        iteration, every, now = record["iteration"], self._settings.evaluate_every, monotonic()
        last = iteration == self._settings.iterations - 1
        if iteration % every == 0 or last:
            if self._logs is None:
                self._logs = self._start_logs([history[i] for i in range(len(history) - 1) if i % every == 0])
            for log in self._logs:
                log.write(record)
        if self._printed is None or now - self._printed >= _PRINT_SECONDS or last:
            self._printed = now
            print_record(record)

    def _start_logs(self, records: list[dict[str, Any]]) -> tuple[CSVLog, EventsLog]:
        return CSVLog(self.path / "progress.csv", records), EventsLog(self.path, records)

    def finish_logs(self, history: History) -> None:
        """Write the logs again where a finished run has none: it was resumed with nothing left to do, or they were removed.

        Raises:
            FolderError: they cannot be written.
        """
        if not (self.path / "progress.csv").exists() or not list(self.path.glob(f"{EVENTS}.*")):
            last = len(history) - 1
            self._start_logs([history[i] for i in range(last + 1) if i % self._settings.evaluate_every == 0 or i == last])

    def write_summary(self, found: dict[str, Any]) -> None:
        """Write summary.json."""
        summary = {
            "name": self._settings.name,
            "environment": self._settings.env_id,
            **found,
            "settings": {name: _plain(value) for name, value in asdict(self._settings).items()},
            "versions": versions(),
        }
        write_atomically(self.path / SUMMARY, json.dumps(summary, indent=2, allow_nan=True) + "\n")

    def write_history(self, history: History) -> None:
        """Write history.npz."""
        content = io.BytesIO()
        columns: dict[str, Any] = {name: history[name] for name in history.columns}
        np.savez_compressed(content, **columns)
        write_atomically(self.path / HISTORY, content.getvalue())

    def close(self) -> None:
        """Let others have the folder."""
        self._open.close()


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    found = {"python": platform.python_version()}
    for package in ("bocmdp-gym", "gymnasium", "numba", "numpy", "scipy", "stable-baselines3", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def processor() -> str:
    """The processor's name, as the operating system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
