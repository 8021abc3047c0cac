"""A leader pays two or three learners for opening a door: the Escape Room of Yang et al. (2020).

ER(2, 1) and ER(3, 2) (`bocmdp_gym.games.paid_escape_room`): the leader pays x = (lever, start, door), in [0, 3]^3, to each agent
for each choice, and earns 10 for an escape less what it pays. Each agent is a PPO of its own (`followers.IndependentLearners`).

Led from the leader's seat, `leaders.LeaderEnv`: a grid search looks at its ``values`` at no payments and at payments of several
sizes for one action alone, each answered by new learners, all with the same random numbers; the best is x. Afterwards learners
with seeds that no search has used answer x = 0 and the x found. Reported: the share of episodes that somebody escapes from, and
the leader's discounted return, over seeds, with standard errors. PPO's settings were chosen with two other seeds in ER(2, 1), on
payments of 0 to 3 for the lever.

Run it with ``python -m benchmarks.escape_room`` (``--seeds 1 2 3`` for others, ``--workers 2`` to use two processes, ``--quick``
for a short trial that shows nothing); results go to ``benchmarks/results/escape_room.json``.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from time import process_time
from typing import Any

import numpy as np
import torch

import followers
import leaders
from benchmarks.common import store
from bocmdp_gym.games import paid_escape_room

#: Agents, and how many must be at the lever.
ROOMS = ((2, 1), (3, 2))
ACTIONS = ("lever", "start", "door")
PPO: dict[str, Any] = {
    "n_envs": 8,
    "n_steps": 16,
    "batch_size": 64,
    "n_epochs": 4,
    "learning_rate": 3e-3,
    "ent_coef": 0.05,
    "policy_kwargs": {"net_arch": [16]},
    "device": "cpu",
}
#: Searches and evaluations are seeded from here on: smaller seeds were for choosing settings.
FIRST_SEARCH, FIRST_EVALUATION = 100, 1_000_000


@dataclass(frozen=True)
class Budget:
    """Sizes of payments; rounds of a response, of 128 steps for each learner; steps to judge it; evaluations of each x."""

    sizes: tuple[float, ...] = (2.0, 3.0)
    rounds: int = 48
    env_steps: int = 400
    evaluations: int = 1


QUICK = Budget(sizes=(2.0,), rounds=1, env_steps=50, evaluations=1)


def make_follower(budget: Budget) -> followers.IndependentLearners:
    """New learners for each response."""
    return followers.IndependentLearners(followers.SB3Follower("PPO", 128, warm_start=False, **PPO), rounds=budget.rounds)


def search(room: tuple[int, int], seed: int, budget: Budget) -> tuple[np.ndarray[Any, Any], float]:
    """The best point of the grid, with its value in the search."""
    env = leaders.LeaderEnv(paid_escape_room(*room), make_follower(budget), value="sampled", env_steps=budget.env_steps)
    env.reset(seed=FIRST_SEARCH + seed)
    points = [np.zeros(3), *(size * one for size in budget.sizes for one in np.eye(len(ACTIONS)))]
    values = env.values(points)
    best = int(np.argmax(values))
    return points[best], float(values[best])


def judge(room: tuple[int, int], x: np.ndarray[Any, Any], seed: int, budget: Budget) -> dict[str, float]:
    """How often somebody escapes at x, and what the leader gets, under learners of a seed."""
    oracle = followers.TrajectoryOracle(paid_escape_room(*room), make_follower(budget))
    rng = np.random.default_rng(FIRST_EVALUATION + seed)
    batch = oracle.sample(oracle.respond(x, 0, rng), 1000, rng)
    returns = batch.discounted_returns(oracle.core.leader_discount, leader=True)
    return {"escapes": float(batch.terminated.mean()), "leader_return": float(returns.mean())}


def learn(room: tuple[int, int], seed: int, budget: Budget) -> dict[str, Any]:
    """One search, and its evaluation."""
    torch.set_num_threads(1)
    began = process_time()
    x, value = search(room, seed, budget)
    fresh = [seed * budget.evaluations + i for i in range(budget.evaluations)]
    result: dict[str, Any] = {"seed": seed, "x": x.tolist(), "value_in_search": value}
    for name, leader in (("unpaid", np.zeros(3)), ("paid", x)):
        judged = [judge(room, leader, s, budget) for s in fresh]
        result[name] = {key: float(np.mean([one[key] for one in judged])) for key in judged[0]}
    result["seconds"] = process_time() - began
    print(room, result, flush=True)
    return result


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with standard errors."""
    made: dict[str, Any] = {"runs": runs}
    for name in ("unpaid", "paid"):
        for key in runs[0][name]:
            values = np.array([run[name][key] for run in runs])
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
            made[f"{name} {key}"] = {"mean": float(values.mean()), "standard_error": float(error)}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a short trial, stored nowhere")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    budget = QUICK if options.quick else Budget()
    tasks = [(room, seed) for room in ROOMS for seed in options.seeds]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(learn, *zip(*tasks, strict=True), [budget] * len(tasks)))
    results = {
        f"ER({n}, {m})": summary([run for (room, _), run in zip(tasks, runs, strict=True) if room == (n, m)]) for n, m in ROOMS
    }
    if not options.quick:
        store("escape_room", {"budget": asdict(budget), **results})


if __name__ == "__main__":
    main()
