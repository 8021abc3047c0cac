"""Time of one outer iteration of AMD and zero-order leaders on Four-Rooms, in units of the yardstick LU.

``python -m benchmarks.estimators`` stores ``results/estimators.json``. As in `benchmarks.outer_loop`, what a user runs is
timed: `leaders.optimize` with its history and exact evaluations. The published code takes about 20,000 LU for an iteration of
AMD and 430 for one of its zero-order algorithm (CPU).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import best_of, lu_seconds, store
from benchmarks.outer_loop import outer_iteration
from leaders.gradients import GeometricEstimator

REGULARIZATION = 1e-3
LEADERS: dict[str, tuple[leaders.Leader, int]] = {
    "ExactGradient, one context": (leaders.ExactGradient(learning_rate=1.0), 2000),
    "AMD, K = 100, both contexts swept": (leaders.AMD(learning_rate=1.0, sweeps=100), 200),
    "ZeroOrder, one-sided": (leaders.ZeroOrder(learning_rate=0.1), 2000),
    "ZeroOrder, two-sided": (leaders.ZeroOrder(learning_rate=0.1, two_sided=True), 2000),
}


def geometric_draw() -> float:
    """Microseconds per draw of the geometric estimator: a random MDP, gamma 0.6, everything moving."""
    env = gym.make("bocmdp/RandomMDP-v0", seed=0, n_states=20, n_contexts=1, discount=0.6)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(1.0))
    estimator, rng = GeometricEstimator(100_000), np.random.default_rng(0)
    estimator.bind(oracle)
    x = torch.from_numpy(rng.standard_normal(10))
    return 1e6 * best_of(lambda: estimator.estimate(oracle, x, 0, rng)) / 100_000


def main() -> None:
    results: dict[str, Any] = {}
    for name, (leader, iterations) in LEADERS.items():
        results[name] = outer_iteration(leader, REGULARIZATION, iterations)
    results["geometric draw, microseconds"] = geometric_draw()
    results["yardstick LU, microseconds"] = 1e6 * lu_seconds()
    store("estimators", results)


if __name__ == "__main__":
    main()
