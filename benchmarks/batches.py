"""Time per seed of many runs at once, against one run alone: HPGD and ExactGradient on Four-Rooms, 1 to 256 seeds.

What a user calls is timed: `leaders.optimize` with a list of seeds, its history and exact evaluations. One run alone and a batch
take turns, so that both see the same machine. Run it with ``python -m benchmarks.batches``; results go to
``benchmarks/results/batches.json`` and ``batches.png``.
"""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numba
import numpy as np
from matplotlib.figure import Figure

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import RESULTS, lu_seconds, store

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Iterations of every run, and how often everything is timed; the fastest is kept.
ITERATIONS, ROUNDS = 100, 3
LEADERS: dict[str, Any] = {
    "HPGD, 10,000 steps": lambda: leaders.HPGD(learning_rate=0.5, env_steps=10_000),
    "ExactGradient, one context": lambda: leaders.ExactGradient(learning_rate=1.0),
}


def per_seed(leader: Any) -> dict[str, Any]:
    """Microseconds per iteration and seed, alone and in batches."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    follower = followers.SoftPolicyIteration(regularization=1e-3)

    def alone() -> float:
        return leaders.optimize(env, leader(), follower, ITERATIONS, seed=0, progress=False).seconds / ITERATIONS

    def batch(size: int) -> float:
        runs = leaders.optimize(env, leader(), follower, ITERATIONS, seed=range(size), progress=False)
        return sum(run.seconds for run in runs) / (size * ITERATIONS)

    alone()
    batch(2)
    single: list[float] = []
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size in SIZES:
            single.append(alone())
            times[size].append(batch(size))
    best = min(single)
    return {
        "alone_microseconds": 1e6 * best,
        "alone_median_microseconds": 1e6 * float(np.median(single)),
        "batch_microseconds": {size: 1e6 * min(t) for size, t in times.items()},
        "batch_median_microseconds": {size: 1e6 * float(np.median(t)) for size, t in times.items()},
        "ratio": {size: min(t) / best for size, t in times.items()},
        "ratio_of_medians": {size: float(np.median(t) / np.median(single)) for size, t in times.items()},
    }


def picture(results: dict[str, Any]) -> Figure:
    """Time per seed, relative to one run alone."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    ax = figure.subplots()
    for (name, _), colour in zip(LEADERS.items(), ("#2668be", "#c2571a"), strict=True):
        ax.plot(SIZES, [results[name]["ratio"][size] for size in SIZES], "o-", color=colour, label=name)
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.axhline(0.6, color="grey", linewidth=0.8, linestyle="--")
    ax.text(1, 0.61, "aim at 64 seeds: 0.6", color="grey", fontsize=8, va="bottom")
    ax.set_xscale("log", base=2)
    ax.set_xticks(SIZES, [str(size) for size in SIZES])
    ax.set(
        xlabel="seeds at once",
        ylabel="time per seed / one run alone",
        title=f"Batches of seeds on {results['threads']} threads",
        ylim=(0, None),
    )
    ax.legend(frameon=False)
    return figure


def main() -> None:
    results: dict[str, Any] = {"threads": numba.get_num_threads(), "load average at the start": os.getloadavg()[0]}
    results["lu_microseconds"] = 1e6 * lu_seconds()
    results |= {name: per_seed(leader) for name, leader in LEADERS.items()}
    results["load average at the end"] = os.getloadavg()[0]
    picture(results).savefig(RESULTS / "batches.png", dpi=130)
    store("batches", results)


if __name__ == "__main__":
    main()
