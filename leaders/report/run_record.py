"""`RunRecord`: a run as its folder tells it, finished or not."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import DamagedError, OptionError
from bocmdp_gym.options import as_array
from bocmdp_gym.saved_state import array_entry, loading, number_entry
from leaders.checkpoints import Checkpoints
from leaders.history import History
from leaders.run_folder import HISTORY, SUMMARY, versions
from leaders.settings import RunSettings, settings_from_summary

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Attributes:
        folder: where it is.
        settings: its settings.
        x, x0: where it is now, or ended, and where it started, ``(d,)``.
        history: one record per iteration; empty where it was not kept.
        iterations: how many it made.
        leader_return: exact F(x), or the objective's value; None where it is not known.
        finished: whether it ended; else this is its newest checkpoint.
        seconds: wall-clock time it took.
        estimator: where its gradients came from; None while that is not known.
        versions: of everything that can change a number.
    """

    folder: Path
    settings: RunSettings
    x: Array
    x0: Array
    history: History
    iterations: int
    leader_return: float | None
    finished: bool
    seconds: float
    estimator: str | None
    versions: dict[str, str]


def read_summary(folder: Path) -> Any:
    """The summary of a finished run, as JSON.

    Raises:
        OptionError: there is none, or it is damaged.
    """
    path = folder / SUMMARY
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise OptionError(f"{path} does not exist; expected the folder of a finished run.") from None
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}; expected the folder of a finished run.") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is damaged ({error}); run the training again.") from error


def points_of(summary: Any, path: Path) -> tuple[Array, Array]:
    """x and x0 of a summary.

    Raises:
        OptionError: they are no lists of numbers.
    """
    x, x0 = as_array(summary["x"]), as_array(summary["x0"])
    if x is None or x0 is None:
        raise OptionError(f"{path}: x or x0 is not a list of numbers; run the training again.")
    return x, x0


def read_run(folder: Path, module: str | None = None) -> RunRecord:
    """The run in a folder.

    Args:
        folder: where it is.
        module: the module that the user named, which the run may need.

    Raises:
        OptionError: there is none, or it is not of this version.
        DamagedError: a file of it is damaged.
    """
    if not (folder / SUMMARY).exists():
        return _unfinished(folder, module)
    summary = read_summary(folder)
    settings = settings_from_summary(summary, module)
    x, x0 = points_of(summary, folder / SUMMARY)
    history, path = History(), folder / HISTORY
    try:
        if path.exists():
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as columns:
                history.load_state({name: columns[name] for name in columns.files if _is_column(columns, name)})
        return RunRecord(
            folder=folder,
            settings=settings,
            x=x,
            x0=x0,
            history=history,
            iterations=int(summary["iterations"]),
            leader_return=None if summary["leader_return"] is None else float(summary["leader_return"]),
            finished=True,
            seconds=float(summary["seconds"]),
            estimator=summary["estimator"],
            versions=dict(summary["versions"]),
        )
    except (ValueError, KeyError, TypeError, EOFError, OSError, BadZipFile) as error:
        found = f"{type(error).__name__}: {error}"
        raise DamagedError(f"{path} or {SUMMARY} is damaged ({found}); run the training again.") from error


def _is_column(columns: Any, name: str) -> bool:
    """Whether a part of history.npz has one number per iteration; contexts may be points or anything else."""
    try:
        return bool(columns[name].ndim == 1 and columns[name].dtype.kind in "iuf")
    except ValueError:  # Python objects, which are never unpickled
        return False


def _unfinished(folder: Path, module: str | None) -> RunRecord:
    """A run that goes on, or was interrupted, as its newest checkpoint has it."""
    newest = Checkpoints(folder / "checkpoints").peek()
    if newest is None:
        raise OptionError(f"{folder} holds neither {SUMMARY} nor a checkpoint; expected the folder of a run, or of a sweep.")
    fingerprint, state = newest
    with loading(f"the newest checkpoint in {folder}"):
        x, x0 = array_entry(state, "x", (-1,)), array_entry(state, "x0", (-1,))
        seconds, history = number_entry(state, "seconds"), state["history"]
        values = {name: value for name, value in fingerprint.items() if name != "environment"}
        summary = {"x": x, "x0": x0, "name": fingerprint["environment"], "settings": values}
    return RunRecord(
        folder=folder,
        settings=settings_from_summary(summary, module),
        x=x,
        x0=x0,
        history=history,
        iterations=len(history),
        leader_return=None,
        finished=False,
        seconds=seconds,
        estimator=None,
        versions=versions(),
    )
