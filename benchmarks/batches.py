"""Time per seed of many runs at once, against one run alone: HPGD and ExactGradient on Four-Rooms, 1 to 256 seeds.

What a user calls is timed: `leaders.optimize_many`, its history and exact evaluations. One run alone and a batch
take turns, so that both see the same machine; ratios are medians over the turns. Fewer than 4 seeds run one after another. Run it
with ``python -m benchmarks.batches``; results go to ``benchmarks/results/batches.json`` and ``batches.png``.
"""

from __future__ import annotations

import os
from time import perf_counter, process_time
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import RESULTS, lu_seconds, store
from bocmdp_gym.threads import available_threads

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Iterations of every run, and how often everything is timed.
ITERATIONS, ROUNDS = 100, 5
LEADERS: dict[str, Any] = {
    "HPGD, 10,000 steps": lambda: leaders.HPGD(learning_rate=0.5, env_steps=10_000),
    "ExactGradient, one context": lambda: leaders.ExactGradient(learning_rate=1.0),
}


def per_seed(leader: Any) -> dict[str, Any]:
    """Microseconds per iteration and seed, alone and in batches."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    follower = followers.SoftPolicyIteration(regularization=1e-3)

    def timed(seeds: Any, n_runs: int) -> tuple[float, float]:
        """Seconds and processor seconds per iteration and seed."""
        began, worked = perf_counter(), process_time()
        if isinstance(seeds, int):
            leaders.optimize(env, leader(), follower, ITERATIONS, seed=seeds, progress=False)
        else:
            leaders.optimize_many(env, leader(), follower, ITERATIONS, seeds=seeds, progress=False)
        total = n_runs * ITERATIONS
        return (perf_counter() - began) / total, (process_time() - worked) / total

    timed(0, 1)
    timed(range(8), 8)
    alone: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    batch: dict[int, list[tuple[float, float]]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size in SIZES:
            alone[size].append(tuple(np.mean([timed(seed, 1) for seed in range(4)], axis=0)))
            batch[size].append(timed(range(size), size))
    pairs = {size: np.array(batch[size]) / np.array(alone[size]) for size in SIZES}
    everything = np.array([pair for size in SIZES for pair in alone[size]])
    return {
        "alone_microseconds": {"best": 1e6 * everything[:, 0].min(), "median": 1e6 * float(np.median(everything[:, 0]))},
        "batch_microseconds": {size: 1e6 * float(np.median(batch[size], axis=0)[0]) for size in SIZES},
        "ratio": {size: float(np.median(pairs[size][:, 0])) for size in SIZES},
        "ratios": {size: pairs[size][:, 0].tolist() for size in SIZES},
        "processor_time_ratio": {size: float(np.median(pairs[size][:, 1])) for size in SIZES},
    }


def picture(results: dict[str, Any]) -> Figure:
    """Time per seed, relative to one run alone."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    ax = figure.subplots()
    for (name, _), colour in zip(LEADERS.items(), ("#2668be", "#c2571a"), strict=True):
        ratios = np.array([results[name]["ratios"][size] for size in SIZES])
        ax.plot(SIZES, np.median(ratios, axis=1), "o-", color=colour, label=name)
        ax.fill_between(SIZES, ratios.min(axis=1), ratios.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.axhline(0.6, color="grey", linewidth=0.8, linestyle="--")
    ax.text(1, 0.61, "aim at 64 seeds: 0.6", color="grey", fontsize=8, va="bottom")
    ax.set_xscale("log", base=2)
    ax.set_xticks(SIZES, [str(size) for size in SIZES])
    ax.set(
        xlabel="seeds at once",
        ylabel="time per seed / one run alone",
        title=f"Batches of seeds on {results['threads']} threads: median and range of {ROUNDS}",
        ylim=(0, None),
    )
    ax.legend(frameon=False)
    return figure


def main() -> None:
    results: dict[str, Any] = {"threads": available_threads(), "load average at the start": os.getloadavg()[0]}
    results["lu_microseconds"] = 1e6 * lu_seconds()
    results |= {name: per_seed(leader) for name, leader in LEADERS.items()}
    results["load average at the end"] = os.getloadavg()[0]
    picture(results).savefig(RESULTS / "batches.png", dpi=130)
    store("batches", results)


if __name__ == "__main__":
    main()
