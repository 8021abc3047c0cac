"""A run folder: what a run leaves on disk.

summary.json          settings, versions, what was found ("x", "x_random", "leader_return", ...), whether it finished
progress.csv          one row per evaluation; its columns are explained in `leaders.history.COLUMNS`
events.out.tfevents.* the same for TensorBoard
history.npz           one entry per column of the history, one number per iteration
learning_curve.png    the leader's return over iterations
and a picture of the result, where the environment has one (Four-Rooms: penalty_map.png)
"""

from __future__ import annotations

import io
import json
import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocmdp_gym.errors import OptionError
from bocmdp_gym.files import write_atomically
from leaders.checkpoints import Checkpoints
from leaders.history import History
from leaders.settings import RunSettings

if TYPE_CHECKING:  # Stable-Baselines3 and TensorBoard take seconds to import: only runs that are logged do
    from stable_baselines3.common.logger import Logger

SUMMARY = "summary.json"
_OURS = (SUMMARY, "progress.csv", "history.npz", "learning_curve.png", "checkpoints")


class RunFolder:
    """Opens a run folder and writes into it.

    Raises:
        OptionError: the folder holds a run already, or cannot be written to.
    """

    def __init__(self, settings: RunSettings):
        self.path = settings.folder()
        try:
            old = any((self.path / name).exists() for name in _OURS)
            if old and not (settings.resume or settings.overwrite):
                raise OptionError(f"{self.path} already holds a run; --resume it, --overwrite it, or choose another --out.")
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise OptionError(f"cannot write to the run folder {self.path}: {error.strerror}; choose another --out.") from error
        self._settings = settings
        self._files: Logger | None = None
        self._screen: Logger | None = None
        self._next_print = 0
        self.checkpoints = Checkpoints(self.path / "checkpoints", settings.checkpoint_every, settings.fingerprint())
        if settings.overwrite and not settings.resume:
            self.checkpoints.on_begin = self._clear  # an old run is removed only when the new one is known to work

    def _open_files(self, earlier: Iterable[dict[str, Any]]) -> Logger:
        """Start the logs, and repeat what a resumed run had logged up to its checkpoint (its later rows are void)."""
        for old in self.path.glob("events.out.tfevents.*"):
            old.unlink()
        files = _file_logger(self.path)
        for record in earlier:
            if record["iteration"] % self._settings.evaluate_every == 0:
                _dump(files, record)
        return files

    def _clear(self) -> None:
        """Remove an old run's files, and nothing else."""
        for entry in self.path.iterdir():
            if entry.name == "checkpoints":
                shutil.rmtree(entry)
            elif entry.name in _OURS or entry.suffix == ".png" or entry.name.startswith("events.out.tfevents"):
                entry.unlink()

    def log(self, record: dict[str, Any], history: History) -> None:
        """Log one evaluation: always to the files, ten times per run to the screen."""
        if self._files is None:
            self._files = self._open_files(list(history)[:-1])
        _dump(self._files, record)
        last = record["iteration"] == self._settings.iterations - 1
        if record["iteration"] >= self._next_print or last:
            self._next_print = record["iteration"] + max(1, self._settings.iterations // 10)
            self._screen = self._screen or _screen_logger()
            _dump(self._screen, record)

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
        np.savez_compressed(content, **{name: history[name] for name in history.columns})
        write_atomically(self.path / "history.npz", content.getvalue())

    def close(self) -> None:
        """Close the logs."""
        for logger in (self._files, self._screen):
            if logger is not None:
                logger.close()


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


def _screen_logger() -> Logger:
    from stable_baselines3.common.logger import HumanOutputFormat, Logger

    return Logger(None, [HumanOutputFormat(sys.stdout)])


def _file_logger(folder: Path) -> Logger:
    """Writes progress.csv and TensorBoard's events."""
    from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat

    class OrderedCSV(CSVOutputFormat):
        """A CSV whose columns come in the order they were first logged, the same in every process."""

        def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
            new = [key for key in key_values if key not in self.keys]
            if new:
                self.keys.extend(new)
                self.file.seek(0)
                rows = self.file.readlines()[1:]
                self.file.seek(0)
                self.file.write(",".join(self.keys) + "\n")
                for row in rows:
                    self.file.write(row[:-1] + self.separator * len(new) + "\n")
            super().write(key_values, key_excluded, step)

    return Logger(str(folder), [OrderedCSV(str(folder / "progress.csv")), TensorBoardOutputFormat(str(folder))])


def _dump(logger: Logger, record: dict[str, Any]) -> None:
    for name, value in record.items():
        logger.record(name, value)
    logger.dump(int(record["iteration"]))
