"""Time of one outer iteration of HPGD and of ExactGradient on Four-Rooms, in units of the yardstick LU.

What a user runs by default is timed: `leaders.optimize` with its history, exact evaluations and progress bar. Run it with
``python -m benchmarks.outer_loop``; results go to ``benchmarks/results/outer_loop.json``,
``.csv`` and a plot.
"""

from __future__ import annotations

import resource
from typing import Any

import gymnasium as gym
from matplotlib.figure import Figure

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import RESULTS, lu_seconds, store, store_table

PUBLISHED_LU = {"HPGD": 1100, "AMD": 20_000}  # the published code, CPU, per outer iteration


def outer_iteration(leader: Any, regularization: float, iterations: int = 2000) -> dict[str, float]:
    """Seconds and LU per outer iteration: the least of five runs, and of LU just before and after, which is a least one too."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    follower = followers.SoftPolicyIteration(regularization=regularization)
    leaders.optimize(env, leader, follower, 60, progress=True)
    before = lu_seconds()
    runs = [leaders.optimize(env, leader, follower, iterations, seed=seed, progress=True).seconds for seed in range(5)]
    lu = min(before, lu_seconds())
    seconds = min(runs) / iterations
    return {"microseconds": 1e6 * seconds, "lu": seconds / lu, "lu_microseconds": 1e6 * lu}


def plot(rows: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    ax = figure.subplots()
    shown = [(row["what"], row["lu"]) for row in rows]
    ax.barh(*zip(*shown, strict=True), color=["#2668be" if row["here"] else "#8a8f99" for row in rows])
    for i, (_, value) in enumerate(shown):
        ax.annotate(f"{value:,.1f}", (value, i), (4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set(xscale="log", xlabel="time of one outer iteration, in LU", xlim=(1, 1e5))
    ax.invert_yaxis()
    figure.savefig(RESULTS / "outer_loop.png", dpi=130)


def main() -> None:
    results: dict[str, Any] = {
        "HPGD, 10,000 steps": outer_iteration(leaders.HPGD(learning_rate=0.5, env_steps=10_000), 1e-3),
        "ExactGradient, one context": outer_iteration(leaders.ExactGradient(learning_rate=1.0), 1e-3),
        "published code, LU": PUBLISHED_LU,
    }
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    run = leaders.optimize(env, leaders.HPGD(learning_rate=0.5), followers.SoftPolicyIteration(1e-3), 10_000, seed=0)
    results["HPGD, 10,000 iterations"] = {
        "seconds": run.seconds,
        "leader_return": run.leader_return,
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    rows = [{"what": name, "here": True, **one} for name, one in results.items() if "lu" in one]
    rows += [{"what": f"{name}, published code", "here": False, "lu": lu} for name, lu in PUBLISHED_LU.items()]
    columns = ("what", "here", "microseconds", "lu", "lu_microseconds")
    store_table("outer_loop", [{name: row.get(name) for name in columns} for row in rows])
    plot(rows)
    store("outer_loop", results)


if __name__ == "__main__":
    main()
