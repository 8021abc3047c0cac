"""Workers on Ray: on this machine, or on all machines of a cluster."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

from followers.ray_cluster import ONE_THREAD, RayCluster
from leaders.tasks.attempts import Attempt, Function, attempt_task


class RayPool:
    """One Ray task per attempt, on one core each. Ray itself repeats nothing: `run_tasks` counts the attempts.

    Args:
        function: what a task runs.
        workers: attempts at a time; as many as the cluster has cores if None.
        address: see `followers.ray_cluster.RayCluster`.

    Raises:
        UnsupportedError: Ray is not installed.
        OptionError: no cluster answers at that address.
    """

    def __init__(self, function: Function, workers: int | None, address: str | None):
        with ExitStack() as opened:
            opened.enter_context(redirect_stdout(io.StringIO()))  # Ray prints a paragraph for every worker that dies
            self._cluster = RayCluster(workers, address)
            opened.callback(self._cluster.close)
            self._open = opened.pop_all()
        ray = self._cluster.ray
        self.size = workers or self._cluster.size
        self._function = ray.put(function)
        attempt = ray.remote(num_cpus=1, max_retries=0, runtime_env={"env_vars": ONE_THREAD})
        self._attempt = attempt(attempt_task)
        self._running: dict[Any, str] = {}

    def start(self, key: str, task: Mapping[str, Any], folder: Path) -> None:
        self._running[self._attempt.remote(self._function, key, dict(task), folder)] = key

    def wait(self) -> list[Attempt]:
        ray = self._cluster.ray
        ready, _ = ray.wait(list(self._running), num_returns=1)
        ended = []
        for reference in ready:
            key = self._running.pop(reference)
            try:
                ended.append(ray.get(reference))
            except ray.exceptions.RayError as error:
                reason = type(error).__name__
                ended.append(Attempt(key, None, f"the worker died ({reason})", f"{reason}: {error}\n"))
        return ended

    def close(self) -> None:
        for reference in self._running:
            self._cluster.ray.cancel(reference, force=True)
        self._open.close()
