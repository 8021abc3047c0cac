"""One attempt at a task, in whatever process it is made."""

from __future__ import annotations

import io
import json
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any, NamedTuple

from bocmdp_gym.errors import DamagedError, RunInterruptedError
from bocmdp_gym.files import owning, remove_scratch
from leaders.tasks.results import RESULT, read_result, write_result

#: The file with the traceback of a task's last failure.
ERROR = "error.txt"
#: Of the attempt; what the function does in the folder may have a lock of its own.
TASK_LOCK = ".task-lock"
#: Held while a result is written: a worker does not end in between because its parent did.
FINISHING = threading.Lock()
#: Seconds to wait for the worker of a killed parent, which saves its work and ends.
_PATIENCE = 60.0

#: What a task runs: (task, its folder) -> a JSON-able result. Importable by name, so that worker processes find it.
Function = Callable[[Mapping[str, Any], Path], Any]


class Attempt(NamedTuple):
    """What one attempt at a task came to."""

    key: str
    result: str | None  # as JSON
    error: str = ""  # in one line
    trace: str = ""
    signal: int | None = None  # that asked it to stop


def attempt_task(function: Function, key: str, task: Mapping[str, Any], folder: Path) -> Attempt:
    """One attempt, in whatever process this is; what is printed goes to the task's log.txt, as soon as it is printed.

    The result is on disk when this returns, whether or not anybody waits for it. A worker whose parent was killed may still be
    at work on the task: its end is waited for, and its result, if it has one, is taken.
    """
    try:
        with owning(folder, "the task's folder", wait=_PATIENCE, name=TASK_LOCK):
            if (found := _finished(folder, task)) is not None:
                return Attempt(key, json.dumps(*found))
            for name in (RESULT, ERROR):
                remove_scratch(folder, name)
            with _open_log(folder / "log.txt") as log, redirect_stdout(log), redirect_stderr(log):
                result = json.dumps(function(task, folder))
            with FINISHING:
                write_result(folder, task, json.loads(result))
            return Attempt(key, result)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - reported, and the other tasks continue
        last = str(error).strip().splitlines()
        signal = error.signal if isinstance(error, RunInterruptedError) else None
        return Attempt(key, None, f"{type(error).__name__}: {last[0] if last else ''}", traceback.format_exc(), signal)


def _finished(folder: Path, task: Mapping[str, Any]) -> tuple[Any] | None:
    try:
        return read_result(folder, task)
    except DamagedError:  # `run_tasks` has said so
        return None


def _open_log(path: Path) -> IO[str]:
    """Without a buffer, so that what was printed outlives the process."""
    return io.TextIOWrapper(open(path, "ab", buffering=0), encoding="utf-8", errors="backslashreplace", write_through=True)
