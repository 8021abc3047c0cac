"""`run_tasks`: hands tasks to workers, and keeps what they find."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from bocmdp_gym.errors import DamagedError, OptionError
from bocmdp_gym.files import owning, write_atomically, writing
from bocmdp_gym.options import check_choice, check_count
from leaders.tasks.attempts import ERROR, Function
from leaders.tasks.pools import Pool, ProcessPool, SerialPool
from leaders.tasks.ray_pool import RayPool
from leaders.tasks.results import read_result

Backend = Literal["processes", "ray", "serial"]
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,199}")


@dataclass
class Outcomes:
    """What became of the tasks.

    Attributes:
        results: the result of every task that has one, by key, in the order of the tasks whatever finished first.
        failures: for every other task the last error, in one line; its traceback is in the task's error.txt.
        ran: keys of the tasks that were run now; those finished before are not among them.
        retried: how many attempts were lost to dead workers or errors and repeated.
        damaged: for every task whose result was damaged, and which was therefore run again, what was found.
    """

    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    retried: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def run_tasks(
    tasks: Mapping[str, Mapping[str, Any]],
    function: Function,
    folder: Path | str,
    backend: Backend = "processes",
    workers: int | None = None,
    retries: int = 2,
    progress: bool = True,
    address: str | None = None,
    finish: Callable[[Outcomes], None] | None = None,
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
        finish: called with the outcomes while the folder is still owned, to write tables, say.

    Returns:
        Results and failures in the order of the tasks, after the last of them.

    Raises:
        OptionError: a key that is no folder name, a task that is not JSON, a folder that holds a result of another task under the
            same key, or an unknown backend.
        FolderInUseError: another process runs tasks in the folder.
        FolderError: the folder cannot be written to.
    """
    check_choice("backend", backend, ("processes", "ray", "serial"))
    check_count("retries", retries, 0)
    if workers is not None:
        check_count("workers", workers)
    if address is not None and backend != "ray":
        raise OptionError(f"address is {address!r}, and the backend {backend!r} has none; it belongs to backend='ray'.")
    folder = Path(folder).absolute()
    for key, task in tasks.items():
        _check(key, task)
    with owning(folder, "the folder of tasks"):
        outcomes = _run_owned(tasks, function, folder, backend, workers, retries, progress, address)
        if finish is not None:
            finish(outcomes)
    return outcomes


def _run_owned(
    tasks: Mapping[str, Mapping[str, Any]],
    function: Function,
    folder: Path,
    backend: Backend,
    workers: int | None,
    retries: int,
    progress: bool,
    address: str | None,
) -> Outcomes:
    """As `run_tasks`, in a folder that is ours."""
    outcomes, stored, failures = Outcomes(), dict[str, Any](), dict[str, str]()
    for key, task in tasks.items():
        try:
            if found := read_result(folder / key, task):
                (stored[key],) = found
        except DamagedError as error:
            outcomes.damaged[key] = str(error)
    waiting = deque(key for key in tasks if key not in stored)
    outcomes.ran = list(waiting)
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
                with writing(folder / key / ERROR):
                    (folder / key / ERROR).unlink(missing_ok=True)
            else:
                write_atomically(folder / key / ERROR, attempt.trace or attempt.error + "\n")
                tried[key] += 1
                if tried[key] <= retries:
                    outcomes.retried += 1
                    waiting.append(key)
                    continue
                failures[key] = attempt.error
                bar.set_postfix_str(f"{len(failures)} failed", refresh=False)
            bar.update()


def _check(key: str, task: Mapping[str, Any]) -> None:
    """Refuse keys that name no folder, and tasks that are not JSON.

    Raises:
        OptionError: naming them.
    """
    if not _KEY.fullmatch(key):
        raise OptionError(f"the task's key {key!r} cannot name a folder; expected letters, digits and . _ = , + - in it.")
    try:
        json.dumps(task)
    except (TypeError, ValueError) as error:
        raise OptionError(f"the task {key!r} is {task!r}, which is not JSON: {error}.") from error


def _open_pool(backend: Backend, function: Function, workers: int | None, size: int, address: str | None) -> Pool:
    if backend == "serial":
        return SerialPool(function)
    if backend == "processes":
        return ProcessPool(function, size)
    return RayPool(function, workers, address)
