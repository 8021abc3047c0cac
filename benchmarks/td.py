"""`HPGD(estimator="td")` on Four-Rooms: the paper's table, and the single-goal benchmark.

``python -m benchmarks.td [PART ...]`` stores for each part a JSON file in ``results/``; cells that are stored already, with the
same settings, are not run again:

- ``table``: the nine cells of Table 1 with one dynamics, at 100 steps per update (``td_table.json``), one setting for all cells;
- ``table_1000``: the same at 1,000 steps per update, x moved by Adam at a rate that falls to 0 (``td_table_1000.json``);
- ``table_annealed``: and with a follower whose lambda falls to the cell's from 1.1 times it (``td_table_annealed.json``);
- ``single_goal``: the benchmark of BC-HG (2025): one goal, 100 to 1,000 steps per update, with the setting of
  ``table_annealed`` in all of its cells (``td_single_goal.json``).

A run's value is the mean over its last tenth of the exact leader's return, as in `leaders.reproduce`. Steps per update are those
asked for; the last episode is finished on top, and what was used is stored beside. Settings were found on seeds 100 to 109,
which are not reported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import RESULTS, store
from leaders.reproduce.paper import BEST_KNOWN, CELLS, ITERATIONS, PLANNED_SLIP, SEEDS
from leaders.reproduce.runs import EVALUATE_EVERY
from leaders.sweep_table import mean_and_error

#: What all cells have in common.
SETTING: dict[str, Any] = {"learning_rate": 0.1, "td_rate": 0.5}
#: What suits 1,000 steps per update better, and a single goal with any number of them.
ADAM: dict[str, Any] = {"learning_rate": 0.15, "optimizer": "Adam", "schedule": "cosine", "td_rate": 0.5}
#: Where lambda falls from, in units of the cell's own (`leaders.Annealing`).
ANNEALED_FROM = 1.1
#: The single-goal benchmark, and the figures published for it, digitised (Table 1's update, N steps, 10 seeds).
SINGLE_GOAL: dict[str, Any] = {"penalty_cost": 5.0, "goals": [[1, 9]]}
SINGLE_GOAL_STEPS = (100, 200, 400, 1000)
PUBLISHED: dict[float, dict[str, tuple[float, ...]]] = {
    0.001: {"BC-HG": (0.667, 0.647, 0.546, 0.199), "HPGD": (0.010, -0.103, 0.010, 0.205), "oracle": (0.692, 0.699, 0.699, 0.699)},
    0.003: {"BC-HG": (0.545, 0.550, 0.520, 0.265), "HPGD": (0.099, 0.198, 0.235, 0.257), "oracle": (0.526, 0.526, 0.527, 0.531)},
    0.005: {"BC-HG": (1.339, 1.298, 1.313, 1.032), "HPGD": (1.165, 1.213, 1.256, 1.212), "oracle": (0.845, 0.779, 0.789, 0.953)},
}
_SEARCH: dict[str, Any] = {"iterations": 300, "starts": 64, "rounds": 4, "keep": 0.25, "scale": 3.0, "seed": 0}


def environment(**options: Any) -> gym.Env[Any, Any]:
    """Four-Rooms with the published table's dynamics."""
    return gym.make("bocmdp/FourRooms-v0", slip_probability=PLANNED_SLIP, **options)


def runs(
    env: gym.Env[Any, Any],
    regularization: float,
    env_steps: int,
    seeds: Sequence[int],
    setting: dict[str, Any],
    annealed_from: float | None = None,
) -> dict[str, Any]:
    """Runs of one setting: the value of each seed, their mean, its standard error, and the steps used per update."""
    leader = leaders.HPGD(env_steps=env_steps, estimator="td", **setting)
    follower = followers.SoftPolicyIteration(regularization)
    found = leaders.optimize_many(
        env,
        leader,
        follower,
        ITERATIONS,
        seeds=list(seeds),
        evaluate_every=EVALUATE_EVERY,
        regularization_schedule=None if annealed_from is None else leaders.Annealing(annealed_from * regularization),
        progress=False,
    )
    values = []
    for result in found:
        iterations, returns = result.history["iteration"], result.history["leader_return"]
        values.append(float(returns[np.isfinite(returns) & (iterations >= 0.9 * ITERATIONS)].mean()))
    mean, error = mean_and_error(values)
    steps = sum(result.env_steps for result in found) / len(found) / ITERATIONS
    return {"mean": mean, "standard_error": error, "values": values, "env_steps_per_update": steps}


def stored(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What an earlier, interrupted run has stored with the same settings."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text())["results"] if path.exists() else {}
    return found if found.get("settings") == json.loads(json.dumps(settings)) else {"settings": settings, "cells": {}}


def fill(name: str, settings: dict[str, Any], cells: dict[str, Callable[[], Any]]) -> None:
    """Compute the cells that are not stored yet, and store each as soon as it is known."""
    results = stored(name, settings)
    for key, compute in cells.items():
        if key not in results["cells"]:
            results["cells"][key] = compute()
            store(name, results)


def table(
    name: str = "td_table",
    env_steps: int = 100,
    seeds: Sequence[int] = SEEDS,
    setting: dict[str, Any] = SETTING,
    annealed_from: float | None = None,
) -> None:
    """Table 1."""
    settings = {**setting, "env_steps": env_steps, "iterations": ITERATIONS, "seeds": list(seeds)}
    if annealed_from is not None:
        settings["annealed_from"] = annealed_from

    def cell(regularization: float, penalty_cost: float) -> dict[str, Any]:
        found = runs(environment(penalty_cost=penalty_cost), regularization, env_steps, seeds, setting, annealed_from)
        best = BEST_KNOWN[regularization, penalty_cost]  # type: ignore[index]
        return {"lambda": regularization, "beta": penalty_cost, "best_known": best, "share": found["mean"] / best, **found}

    fill(name, settings, {f"{c.regularization}/{c.penalty_cost}": partial(cell, *c) for c in CELLS})


def table_1000() -> None:
    """The same with 1,000 steps per update."""
    table("td_table_1000", 1000, SEEDS, ADAM)


def table_annealed() -> None:
    """The same with a lambda that falls to the cell's."""
    table("td_table_annealed", 1000, SEEDS, ADAM, ANNEALED_FROM)


def search(regularization: float) -> float:
    """What random starts and exact gradients find in the single-goal benchmark."""
    leader = leaders.ExactGradient(0.2, optimizer="Adam")
    found = leaders.multistart(
        environment(**SINGLE_GOAL),
        leader,
        followers.SoftPolicyIteration(regularization),
        contexts="all",
        progress=False,
        **_SEARCH,
    )
    assert found.best.leader_return is not None
    return found.best.leader_return


def single_goal() -> None:
    """The single-goal benchmark."""
    settings = {**ADAM, "annealed_from": ANNEALED_FROM, **SINGLE_GOAL, "search": _SEARCH, "iterations": ITERATIONS}
    settings |= {"seeds": list(SEEDS), "steps": SINGLE_GOAL_STEPS}
    settings |= {"published": {str(lam): columns for lam, columns in PUBLISHED.items()}}
    cells: dict[str, Callable[[], Any]] = {}
    for lam in PUBLISHED:
        for env_steps in SINGLE_GOAL_STEPS:
            options = (lam, env_steps, SEEDS, ADAM, ANNEALED_FROM)
            cells[f"{lam}/{env_steps}"] = partial(runs, environment(**SINGLE_GOAL), *options)
        cells[f"{lam}/random starts"] = partial(search, lam)
    fill("td_single_goal", settings, cells)


PARTS: dict[str, Callable[[], None]] = {
    "table": table,
    "single_goal": single_goal,
    "table_1000": table_1000,
    "table_annealed": table_annealed,
}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
