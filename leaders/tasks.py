"""Many tasks in many processes: each runs once, keeps what it found, and outlives workers that die.

A task is a JSON-able mapping under a stable key; a function turns it into a JSON-able result. Each task has a folder of its own,
FOLDER/KEY, which holds what the function leaves there and

result.json  the task and its result, written whole or not at all: a task that has one is never run again
log.txt      what the function printed
error.txt    the traceback of its last failure, while it has no result

Runs of `leaders.train` over seeds and settings are such tasks (`leaders.sweep`), and so are the cells of a published table.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from tqdm.auto import tqdm

from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_choice, check_count
from followers.ray_cluster import ONE_THREAD

#: What a task runs: (task, its folder) -> a JSON-able result. Importable by name, so that worker processes find it.
Function = Callable[[Mapping[str, Any], Path], Any]
Backend = Literal["processes", "ray", "serial"]
RESULT = "result.json"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,199}")
#: Seconds a worker has to save its work when the run is interrupted.
_GRACE = 30.0


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


class Attempt(NamedTuple):
    """What one attempt at a task came to."""

    key: str
    result: str | None  # as JSON
    error: str = ""  # in one line
    trace: str = ""


class Pool(Protocol):
    """Workers that are given tasks one by one."""

    size: int

    def start(self, key: str, task: Mapping[str, Any], folder: Path) -> None:
        """Give a free worker a task; at most ``size`` run at a time."""

    def wait(self) -> list[Attempt]:
        """What ended since the last call; waits for the next if nothing did."""

    def close(self) -> None:
        """Stop the workers; a task that runs is interrupted."""


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

    A task whose worker dies, or whose function raises, is tried again up to ``retries`` times and then reported; the others go
    on. The function finds its earlier attempt's files in its folder, so one that writes checkpoints can go on from them.

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
        OptionError: a key that is no folder name, a task that is no JSON, a folder that holds a result of another task under the
            same key, or an unknown backend.
    """
    check_choice("backend", backend, ("processes", "ray", "serial"))
    check_count("retries", retries, 0)
    if workers is not None:
        check_count("workers", workers)
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
        with _pool(backend, function, workers, size, address) as pool, bar:
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
                write_whole(folder / key / RESULT, json.dumps({"task": tasks[key], "result": stored[key]}, indent=2) + "\n")
                (folder / key / "error.txt").unlink(missing_ok=True)
            else:
                write_whole(folder / key / "error.txt", attempt.trace or attempt.error + "\n")
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
        raise OptionError(f"the task {key!r} is {task!r}, which is no JSON: {error}.") from error
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


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(text)
    os.replace(scratch, path)


def attempt_task(function: Function, key: str, task: Mapping[str, Any], folder: Path) -> Attempt:
    """One attempt, in whatever process this is; what is printed goes to the task's log.txt."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
            return Attempt(key, json.dumps(function(task, folder)))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - reported, and the other tasks go on
        last = str(error).strip().splitlines()
        return Attempt(key, None, f"{type(error).__name__}: {last[0] if last else ''}", traceback.format_exc())


@contextmanager
def _pool(backend: Backend, function: Function, workers: int | None, size: int, address: str | None) -> Iterator[Pool]:
    pool: Pool
    if backend == "serial":
        pool = SerialPool(function)
    elif backend == "processes":
        pool = ProcessPool(function, size)
    else:
        from leaders.ray_tasks import RayPool  # the extra `distributed`

        pool = RayPool(function, workers, address)
    try:
        yield pool
    finally:
        pool.close()


class SerialPool:
    """No workers: tasks run in this process, one after another."""

    size = 1

    def __init__(self, function: Function):
        self._function = function
        self._ended: list[Attempt] = []

    def start(self, key: str, task: Mapping[str, Any], folder: Path) -> None:
        self._ended.append(attempt_task(self._function, key, task, folder))

    def wait(self) -> list[Attempt]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Nothing to stop."""


class ProcessPool:
    """Worker processes on this machine. One that dies costs the task it was on an attempt, and no other task anything."""

    def __init__(self, function: Function, size: int):
        self.size = size
        self._function = function
        # a server without threads imports the libraries once, and forks into workers; this process might have threads
        served = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if served else "spawn")
        if served:
            self._context.set_forkserver_preload([name for name in (__name__, function.__module__) if name != "__main__"])
        self._free: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}

    def start(self, key: str, task: Mapping[str, Any], folder: Path) -> None:
        worker = self._free.pop() if self._free else self._new_worker()
        worker.key = key
        with suppress(OSError):  # it died waiting: `wait` finds out
            worker.connection.send((key, dict(task), folder))
        self._busy[worker.connection] = worker

    def wait(self) -> list[Attempt]:
        ended = []
        for ready in wait(list(self._busy)):
            assert isinstance(ready, Connection)
            worker = self._busy.pop(ready)
            try:
                ended.append(Attempt(*ready.recv()))
                self._free.append(worker)
            except (EOFError, OSError):
                worker.process.join()
                ready.close()
                ended.append(Attempt(worker.key, None, f"the worker died ({_exit_reason(worker.process.exitcode)})"))
        return ended

    def close(self) -> None:
        for worker in self._busy.values():
            worker.process.terminate()  # a run of `leaders.train` writes a checkpoint and stops
        for worker in (*self._free, *self._busy.values()):
            worker.connection.close()  # it has nobody to report to, and goes
        for worker in (*self._free, *self._busy.values()):
            worker.process.join(_GRACE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._free, self._busy = [], {}

    def _new_worker(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._function))
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)
        try:
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()  # so that the worker's death closes the pipe
        return _Worker(process, ours)


@dataclass
class _Worker:
    process: Any
    connection: Connection
    key: str = ""


def _work(connection: Connection, function: Function) -> None:
    """A worker: tasks come in, attempts go out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one tells the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            key, task, folder = connection.recv()
            connection.send(tuple(attempt_task(function, key, task, folder)))


def _end_with_parent() -> None:
    """Without a parent nobody collects the result, and a restarted one would run the same task a second time."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _exit_reason(code: int | None) -> str:
    return f"exit status {code}" if code is None or code >= 0 else signal.Signals(-code).name
