"""Followers who learn alone and meet on the loads they make (`followers.FictitiousPlay`), beside the exact equilibrium.

- ``learning``: soft Q-learning on the networks "braess" and "grid" without tolls, lambda 1: exploitability, and the largest
  difference of a flow from the exact equilibrium's over the largest flow, by steps of each class per round and rounds. Means over
  three seeds; from scratch each. The last rows: an exact follower.
- ``leading``: tolls on all links of "braess" for a short travel time, from none: `leaders.ZeroOrder` and CMA-ES through
  `leaders.LeaderEnv` lead soft Q-learning; `leaders.ExactGradient` knows the model. Travel times are those of the exact
  equilibrium under the tolls found.
- ``ppo``: PPO of Stable-Baselines3 on "braess" without tolls, which has no lambda: gains are plain ones, and the equilibrium
  beside it is that of lambda 0.1. Round n weighs n, so that what it did before it had learnt is soon forgotten.

Run all of them with ``python -m benchmarks.population_oracle``, or name some; each is stored in
``benchmarks/results/population_oracle_PART.json``. It needs cma.
"""

from __future__ import annotations

import sys
from itertools import count
from time import perf_counter
from typing import Any

import cma
import gymnasium as gym
import numpy as np

import bocmdp_gym
import followers
import leaders
from benchmarks.common import store
from followers import FictitiousPlay, PopulationOracle, SoftPolicyIteration, SoftQLearning, StepSize

LAMBDA = 1.0
STEPS, ROUNDS, SEEDS = [100, 1_000, 10_000], [2, 5, 10, 20, 40], [0, 1, 2]
ITERATIONS = 60


def learner(steps: int) -> SoftQLearning:
    return SoftQLearning(LAMBDA, iterations=steps, step_size=StepSize.visits(20.0))


def difference(model: Any, response: followers.PopulationResponse, regularization: float = LAMBDA) -> float:
    """The largest difference of a load from the exact equilibrium's, over the largest load."""
    exact = model.equilibrium(response.leader, regularization).loads.numpy()
    return float(np.abs(response.loads - exact).max() / exact.max())


def learning() -> dict[str, Any]:
    rows = []
    for network in ("braess", "grid"):
        env = gym.make("bocmdp/RoadTolls-v0", network=network)
        model = bocmdp_gym.configurable(env).population
        for steps in (*STEPS, None):
            for rounds in ROUNDS:
                gaps, differences, began = [], [], perf_counter()
                for seed in SEEDS if steps else SEEDS[:1]:
                    follower = SoftPolicyIteration(LAMBDA) if steps is None else learner(steps)
                    oracle = PopulationOracle(env, follower, rounds=rounds)
                    found = oracle.play(np.zeros(model.leader_dim), np.random.default_rng(seed))
                    gaps.append(found.exploitability)
                    differences.append(difference(model, found))
                rows.append(
                    {
                        "network": network,
                        "steps per class and round": steps,
                        "rounds": rounds,
                        "steps": None if steps is None else steps * rounds * model.n_contexts,
                        "exploitability": float(np.mean(gaps)),
                        "largest difference of a flow": float(np.mean(differences)),
                        "seconds": (perf_counter() - began) / len(gaps),
                    }
                )
    return {"rows": rows}


def leading() -> dict[str, Any]:
    env = gym.make("bocmdp/RoadTolls-v0", network="braess")
    core = bocmdp_gym.configurable(env)
    model, d = core.population, core.leader_space.shape[0]
    start, found = np.zeros(d), {}

    def row(x: Any, follower: FictitiousPlay | None, responses: int, began: float) -> dict[str, Any]:
        """What tolls bring at the exact equilibrium, and how far the followers who learn under them are from it in the end."""
        return {
            "travel time": -float(model.leader_return(x, LAMBDA)),
            "exploitability": None if follower is None or follower.response is None else follower.response.exploitability,
            "responses": responses,
            "seconds": perf_counter() - began,
        }

    settings: dict[str, Any] = {"optimizer": "Adam", "schedule": "linear", "max_gradient_norm": None}
    options: dict[str, Any] = {"x0": start, "seed": 0, "evaluate_every": ITERATIONS, "progress": False}
    began = perf_counter()
    exact = leaders.optimize(env, leaders.ExactGradient(2.0, **settings), SoftPolicyIteration(LAMBDA), ITERATIONS, **options)
    found["ExactGradient"] = row(exact.x.numpy(), None, ITERATIONS, began)
    follower, began = FictitiousPlay(learner(500), rounds=10), perf_counter()
    zero = leaders.ZeroOrder(2.0, smoothing=1.0, decay=False, two_sided=True, **settings)
    result = leaders.optimize(env, zero, follower, ITERATIONS, **options)
    found["ZeroOrder"] = row(result.x.numpy(), follower, 2 * ITERATIONS, began)
    follower, began = FictitiousPlay(learner(500), rounds=10), perf_counter()
    seat = leaders.LeaderEnv(env, follower)
    seat.reset(seed=0)
    evolution = cma.CMAEvolutionStrategy(-0.9 * np.ones(d), 0.3, {"bounds": [-1, 1], "seed": 1, "verbose": -9})
    responses = 0
    while responses < 2 * ITERATIONS:
        points = evolution.ask()
        evolution.tell(points, (-seat.values([seat.to_x(point) for point in points])).tolist())
        responses += len(points)
    found["LeaderEnv, CMA-ES"] = row(seat.to_x(evolution.result.xbest), follower, responses, began)
    return {"without tolls": -float(model.leader_return(start, LAMBDA)), "leaders": found}


def ppo() -> dict[str, Any]:
    env = gym.make("bocmdp/RoadTolls-v0", network="braess")
    model = bocmdp_gym.configurable(env).population
    settings: dict[str, Any] = {"n_steps": 512, "batch_size": 128, "n_epochs": 5, "learning_rate": 1e-3, "gae_lambda": 1.0}
    follower, rounds = followers.SB3Follower("PPO", 2_048, normalize="reward", **settings), count(1)
    oracle = PopulationOracle(env, follower, rounds=2, step=lambda _: 2.0 / (next(rounds) + 2.0))
    rows, rng, began = [], np.random.default_rng(0), perf_counter()
    for played in range(2, 25, 2):
        found = oracle.play(np.zeros(model.leader_dim), rng)
        rows.append(
            {
                "rounds": played,
                "steps": oracle.training_steps,
                "exploitability": found.exploitability,
                "largest difference of a flow": difference(model, found, 0.1),
                "seconds": perf_counter() - began,
            }
        )
    return {"rows": rows, "flows": found.loads.tolist(), "equilibrium": model.equilibrium(found.leader, 0.1).loads.tolist()}


PARTS = {"learning": learning, "leading": leading, "ppo": ppo}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        store(f"population_oracle_{part}", PARTS[part]())


if __name__ == "__main__":
    main()
