"""Workers on this machine: none but this process, or others of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from bocmdp_gym.errors import RunInterruptedError
from followers.ray_cluster import ONE_THREAD
from leaders.tasks.attempts import FINISHING, Attempt, Function, attempt_task

#: Seconds a worker has to save its work when the run is interrupted.
_GRACE = 30.0


class Pool(Protocol):
    """Workers that are given tasks one by one."""

    size: int

    def start(self, key: str, task: Mapping[str, Any], folder: Path) -> None:
        """Give a free worker a task; at most ``size`` run at a time."""

    def wait(self) -> list[Attempt]:
        """What ended since the last call; waits for the next if nothing did."""

    def close(self) -> None:
        """Stop the workers; a task that runs is interrupted."""


class SerialPool:
    """No workers: tasks run in this process, one after another."""

    size = 1

    def __init__(self, function: Function):
        self._function = function
        self._ended: list[Attempt] = []

    def start(self, key: str, task: Mapping[str, Any], folder: Path) -> None:
        attempt = attempt_task(self._function, key, task, folder)
        if attempt.signal is not None:  # it was this process that was asked to stop
            raise RunInterruptedError(attempt.error.partition(": ")[2], attempt.signal)
        self._ended.append(attempt)

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
        self._context: Any = worker_context(function)
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
        with one_thread():
            process.start()
        theirs.close()  # so that the worker's death closes the pipe
        return _Worker(process, ours)


def worker_context(function: Callable[..., Any]) -> Any:
    """How processes that call a function are started.

    By a server without threads, where there is one: it imports the libraries once, and forks; this process might have threads.
    """
    served = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if served else "spawn")
    if served:
        context.set_forkserver_preload([name for name in (__name__, function.__module__) if name != "__main__"])
    return context


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes that are started meanwhile have one thread each."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class _Worker:
    process: Any
    connection: Connection
    key: str = ""


def _work(connection: Connection, function: Function) -> None:
    """A worker: tasks come in, attempts go out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one stops the others
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
    with FINISHING:
        os.kill(os.getpid(), signal.SIGTERM)


def _exit_reason(code: int | None) -> str:
    return f"exit status {code}" if code is None or code >= 0 else signal.Signals(-code).name
