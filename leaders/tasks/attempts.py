"""One attempt at a task, in whatever process it is made."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

#: What a task runs: (task, its folder) -> a JSON-able result. Importable by name, so that worker processes find it.
Function = Callable[[Mapping[str, Any], Path], Any]


class Attempt(NamedTuple):
    """What one attempt at a task came to."""

    key: str
    result: str | None  # as JSON
    error: str = ""  # in one line
    trace: str = ""


def attempt_task(function: Function, key: str, task: Mapping[str, Any], folder: Path) -> Attempt:
    """One attempt, in whatever process this is; what is printed goes to the task's log.txt."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
            return Attempt(key, json.dumps(function(task, folder)))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - reported, and the other tasks continue
        last = str(error).strip().splitlines()
        return Attempt(key, None, f"{type(error).__name__}: {last[0] if last else ''}", traceback.format_exc())
