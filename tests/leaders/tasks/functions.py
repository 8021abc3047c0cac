"""What the tests of `leaders.tasks` run in other processes, importable by name."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bocmdp_gym.errors import RunInterruptedError

TASKS = {f"square-{i}": {"number": i} for i in range(5)}
SQUARES = {f"square-{i}": {"square": i * i} for i in range(5)}


def square(task: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Squares a number; "die" kills its process the first so many times, "fail" raises."""
    with open(folder / "attempts", "a") as file:
        file.write("x")
    print("squaring", task["number"])
    if len((folder / "attempts").read_text()) <= task.get("die", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.get("fail"):
        raise ZeroDivisionError("one line\nand another")
    return {"square": task["number"] ** 2}


def wait_for_ever(task: Mapping[str, Any], folder: Path) -> None:
    """Ends only on SIGTERM, and saves its work then, as `leaders.train` does."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: asked.set())
    (folder / "pid").write_text(str(os.getpid()))
    while not asked.is_set():
        time.sleep(0.02)
    (folder / "saved").write_text("")
    raise InterruptedError("asked to stop")


def threads(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """How many threads its process uses."""
    import torch

    return {"torch": torch.get_num_threads(), "variable": os.environ["OMP_NUM_THREADS"]}


def not_json(task: Mapping[str, Any], folder: Path) -> Path:
    """Returns what JSON does not know."""
    return folder


def attempts(folder: Path) -> dict[str, int]:
    """How often each task was tried."""
    return {path.parent.name: len(path.read_text()) for path in sorted(folder.glob("*/attempts"))}


def slow_square(task: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Squares a number in a second, whatever becomes of its parent: SIGTERM does not stop it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(folder / "attempts", "a") as file:
        file.write("x")
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(task.get("seconds", 1.0))
    return {"square": task["number"] ** 2}


def print_and_die(task: Mapping[str, Any], folder: Path) -> None:
    """Prints without ending the line, and is killed."""
    print("the last words", end="")
    os.kill(os.getpid(), signal.SIGKILL)


def stop(task: Mapping[str, Any], folder: Path) -> None:
    """A run that was asked to stop."""
    raise RunInterruptedError("the run was asked to stop", signal.SIGTERM)
