"""`run_tasks`: hands tasks to workers, and keeps what they find."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from bocmdp_gym.errors import OptionError
from bocmdp_gym.files import write_atomically
from bocmdp_gym.options import check_choice, check_count
from leaders.tasks.attempts import Function
from leaders.tasks.pools import Pool, ProcessPool, SerialPool
from leaders.tasks.ray_pool import RayPool

Backend = Literal["processes", "ray", "serial"]
#: The file with a task's result, in its folder.
RESULT = "result.json"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,199}")


@dataclass
class Outcomes:
    """What became of the tasks.

    Attributes:
        results: the result of every task that has one, by key, in the order of the tasks whatever finished first.
        failures: for every other task the last error, in one line; its traceback is in the task's error.txt.
        ran: keys of the tasks that were run now; those finished before are not among them.
        retried: how many attempts were lost to dead workers or errors and repeated.
    """

    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    retried: int = 0


def run_tasks(
    tasks: Mapping[str, Mapping[str, Any]],
    function: Function,
    folder: Path | str,
    backend: Backend = "processes",
    workers: int | None = None,
    retries: int = 2,
    progress: bool = True,
    address: str | None = None,
) -> Outcomes:
    """Run every task that has no result yet, in worker processes of one thread each.

    A task whose worker dies, or whose function raises, is tried again up to ``retries`` times and then reported; the others
    continue. The function finds its earlier attempt's files in its folder, so one that writes checkpoints can resume from them.

    Args:
        tasks: JSON-able mappings by key; a key names a folder.
        function: what a task runs. It must be importable by name, and is called with the task and its folder.
        folder: where the tasks' folders are; on a cluster a folder that all machines share.
        backend: "processes" on this machine; "ray", on a cluster or on this machine; "serial", in this process.
        workers: processes at a time; as many as this machine (or the cluster) has cores if None.
        retries: further attempts at a task that failed.
        progress: show a progress bar, with the time left.
        address: of a running Ray cluster; one is started on this machine if None.

    Returns:
        Results and failures in the order of the tasks, after the last of them.

    Raises:
        OptionError: a key that is no folder name, a task that is not JSON, a folder that holds a result of another task under the
            same key, or an unknown backend.
    """
    check_choice("backend", backend, ("processes", "ray", "serial"))
    retries = check_count("retries", retries, 0)
    if workers is not None:
        workers = check_count("workers", workers)
    if address is not None and backend != "ray":
        raise OptionError(f"address is {address!r}, and the backend {backend!r} has none; it belongs to backend='ray'.")
    folder = Path(folder).absolute()
    stored: dict[str, Any] = {}
    for key, task in tasks.items():
        if found := _read(key, task, folder):
            stored[key] = found["result"]
    waiting = deque(key for key in tasks if key not in stored)
    outcomes = Outcomes(ran=list(waiting))
    failures: dict[str, str] = {}
    if waiting:
        size = min(workers or os.cpu_count() or 1, len(waiting))
        bar = tqdm(total=len(tasks), initial=len(stored), unit="task", disable=not progress)
        with closing(_open_pool(backend, function, workers, size, address)) as pool, bar:
            _run(pool, waiting, tasks, folder, retries, outcomes, stored, failures, bar)
    outcomes.results = {key: stored[key] for key in tasks if key in stored}
    outcomes.failures = {key: failures[key] for key in tasks if key in failures}
    return outcomes


def _run(
    pool: Pool,
    waiting: deque[str],
    tasks: Mapping[str, Mapping[str, Any]],
    folder: Path,
    retries: int,
    outcomes: Outcomes,
    stored: dict[str, Any],
    failures: dict[str, str],
    bar: Any,
) -> None:
    """Keep the workers busy until nothing waits."""
    tried = dict.fromkeys(waiting, 0)
    running = 0
    while waiting or running:
        while waiting and running < pool.size:
            key = waiting.popleft()
            pool.start(key, tasks[key], folder / key)
            running += 1
        for attempt in pool.wait():
            running -= 1
            key = attempt.key
            if attempt.result is not None:
                stored[key] = json.loads(attempt.result)
                write_atomically(folder / key / RESULT, json.dumps({"task": tasks[key], "result": stored[key]}, indent=2) + "\n")
                (folder / key / "error.txt").unlink(missing_ok=True)
            else:
                write_atomically(folder / key / "error.txt", attempt.trace or attempt.error + "\n")
                tried[key] += 1
                if tried[key] <= retries:
                    outcomes.retried += 1
                    waiting.append(key)
                    continue
                failures[key] = attempt.error
                bar.set_postfix_str(f"{len(failures)} failed", refresh=False)
            bar.update()


def _read(key: str, task: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """A finished task's file; None if there is none."""
    if not _KEY.fullmatch(key):
        raise OptionError(f"the task's key {key!r} cannot name a folder; expected letters, digits and . _ = , + - in it.")
    try:
        wanted = json.loads(json.dumps(task))
    except (TypeError, ValueError) as error:
        raise OptionError(f"the task {key!r} is {task!r}, which is not JSON: {error}.") from error
    path = folder / key / RESULT
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        before = found["task"], found["result"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path} cannot be read ({error}); delete it to run the task again.") from error
    if before[0] != wanted:
        names = before[0].keys() | wanted.keys() if isinstance(before[0], dict) else wanted.keys()
        old = before[0] if isinstance(before[0], dict) else {}
        shown = "; ".join(f"{n} was {old.get(n)!r}, is {wanted.get(n)!r}" for n in sorted(names) if old.get(n) != wanted.get(n))
        raise OptionError(f"{path} is the result of another task: {shown}. Use another folder, or delete this one's.")
    return found


def _open_pool(backend: Backend, function: Function, workers: int | None, size: int, address: str | None) -> Pool:
    if backend == "serial":
        return SerialPool(function)
    if backend == "processes":
        return ProcessPool(function, size)
    return RayPool(function, workers, address)
