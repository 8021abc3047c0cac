"""The paper's table, 90 runs of HPGD at once: on a CUDA device, and on the cores beside it.

Nine cells (three regularizations of the follower, three penalty costs) of ten seeds each, in one call of
`leaders.optimize_many`: 3,000 iterations of 10,000 steps, learning rate 0.5 (0.1 at lambda = 0.005). What a user waits for is
timed, after a few iterations that compile everything. Runs on the device draw other episodes than those on the cores, from the
same distribution; so for each cell the exact return of the last x is given for both, with its standard error over seeds. Without
a device that numba can use, only the cores are timed, and nothing is stored. Run it with ``python -m benchmarks.device``; results
go to ``benchmarks/results/device.json``.
"""

from __future__ import annotations

import os
import platform
import sys
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import lu_seconds, store
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.threads import available_threads

REGULARIZATIONS, PENALTY_COSTS, SEEDS = (1e-3, 3e-3, 5e-3), (1.0, 3.0, 5.0), 10


def table(iterations: int, device: str | None) -> tuple[float, list[leaders.Result]]:
    """Seconds of a whole table, and its runs."""
    cells = [(lam, cost) for lam in REGULARIZATIONS for cost in PENALTY_COSTS]
    rooms = {cost: gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=cost) for cost in PENALTY_COSTS}
    responders = {lam: followers.SoftPolicyIteration(lam) for lam in REGULARIZATIONS}
    began = perf_counter()
    runs = leaders.optimize_many(
        [rooms[cost] for _, cost in cells for _ in range(SEEDS)],
        [leaders.HPGD(0.1 if lam == 5e-3 else 0.5, 10_000) for lam, _ in cells for _ in range(SEEDS)],
        [responders[lam] for lam, _ in cells for _ in range(SEEDS)],
        iterations,
        seeds=list(range(SEEDS)) * len(cells),
        device=device,
        evaluate_every=iterations,
        progress=False,
    )
    return perf_counter() - began, runs


def measured(iterations: int, device: str | None) -> dict[str, Any]:
    """One row of the results."""
    table(3, device)
    seconds, runs = table(iterations, device)
    ends = np.array([run.leader_return for run in runs]).reshape(len(REGULARIZATIONS), len(PENALTY_COSTS), SEEDS)
    return {
        "seconds": seconds,
        "microseconds per iteration and run": 1e6 * seconds / (iterations * len(runs)),
        "env_steps": int(sum(run.env_steps for run in runs)),
        "leader_return": ends.mean(-1).tolist(),
        "standard_error": (ends.std(-1, ddof=1) / np.sqrt(SEEDS)).tolist(),
    }


def main() -> None:
    iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 3_000
    results: dict[str, Any] = {
        "iterations": iterations,
        "machine": platform.machine(),
        "threads": available_threads(),
        "load average at the start": os.getloadavg()[0],
        "lu_microseconds": 1e6 * lu_seconds(),
    }
    results["cores"] = measured(iterations, None)
    print("cores", results["cores"], flush=True)
    try:
        results["cuda"] = measured(iterations, "cuda")
    except UnsupportedError as error:
        print(error)
        return
    from numba import cuda

    name = cuda.get_current_device().name
    results["device"] = name.decode() if isinstance(name, bytes) else str(name)
    store("device", results)


if __name__ == "__main__":
    main()
