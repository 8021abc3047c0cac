"""Environment steps per second of tax design: copies stepped natively (NumPy) against ``gym.make_vec``'s sync mode.

``python -m benchmarks.tax_design_stepping`` stores ``results/tax_design_stepping.json``. Both step the same number of copies in
the same process with the same actions, autoreset "NextStep"; best of three.
"""

from __future__ import annotations

from time import perf_counter

import gymnasium as gym
import numpy as np

import bocmdp_gym  # noqa: F401 - registers the environments
from benchmarks.common import store

COPIES = (10, 100, 1024)


def steps_per_second(mode: str, copies: int, steps: int) -> float:
    """Best of three runs."""
    envs = gym.make_vec("bocmdp/TaxDesign-v0", copies, vectorization_mode=mode, grid_size=11)
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(8)]
    envs.reset(seed=0)
    envs.step(actions[0])
    best = np.inf
    for _ in range(3):
        began = perf_counter()
        for step in range(steps):
            envs.step(actions[step % 8])
        best = min(best, perf_counter() - began)
    envs.close()
    return copies * steps / best


def main() -> None:
    rows = []
    for copies in COPIES:
        native = steps_per_second("vector_entry_point", copies, 500)
        sync = steps_per_second("sync", copies, max(3, 2000 // copies))
        rows.append({"copies": copies, "native": native, "sync": sync, "ratio": native / sync})
    store("tax_design_stepping", {"steps_per_second": rows})


if __name__ == "__main__":
    main()
