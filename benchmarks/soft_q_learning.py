"""Nanoseconds per update of soft Q-learning on one core, beside the yardstick LU of the same run.

Run it with ``python -m benchmarks.soft_q_learning``; results go to ``benchmarks/results/soft_q_learning.json``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
from benchmarks.common import best_of, lu_seconds, store
from followers import SoftQLearning, StepSize, TrajectoryOracle

UPDATES = 1_000_000
GOAL = 60.0  # nanoseconds per update


def random_problem(states: int, actions: int, successors: int) -> bocmdp_gym.TabularBOCMDP:
    """Unstructured transitions, so that updates jump about in memory."""
    rng = np.random.default_rng(0)
    shape = (states, actions, successors)
    transition = bocmdp_gym.SuccessorTransitions(
        rng.integers(0, states, shape), torch.from_numpy(rng.dirichlet(np.ones(successors), shape[:2]))
    )
    return bocmdp_gym.TabularBOCMDP(
        reward=rng.random((1, *shape[:2])),
        leader_reward=np.zeros((1, *shape[:2])),
        transition=transition,
        initial=np.full(states, 1.0 / states),
        leader_dim=1,
        discount=0.95,
    )


def nanoseconds(env: Any, regularization: float, **options: Any) -> float:
    """Per update: one run of 1,000,000 updates, started from Q = 0 and warmed up by the call before."""
    follower = SoftQLearning(regularization, iterations=UPDATES, **options)
    oracle = TrajectoryOracle(env, follower)
    run = follower.start(oracle.task(np.zeros(oracle.core.leader_space.shape), 0), np.random.default_rng(0))
    return 1e9 * best_of(lambda: run.advance(UPDATES), repeats=5) / UPDATES


def main() -> None:
    rooms = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44)
    settings: dict[str, dict[str, Any]] = {
        "default": {},
        "softmax behaviour, no exploration": {"exploration": 0.0},
        "uniform behaviour": {"behaviour": "uniform"},
        "random pairs": {"sampling": "pairs"},
        "uniform behaviour, steps h / (t + t0)": {"behaviour": "uniform", "step_size": StepSize.harmonic(1e4, 4e4)},
        "uniform behaviour, constant step": {"behaviour": "uniform", "step_size": 0.1},
    }
    before = lu_seconds()
    results: dict[str, Any] = {
        "Four-Rooms, 104 states x 4 actions, ns per update": {
            f"lambda {lam}": {name: nanoseconds(rooms, lam, **options) for name, options in settings.items()}
            for lam in (1e-3, 0.1)
        },
        "random, ns per update": {
            f"{s} states x {a} actions, {k} successors": nanoseconds(random_problem(s, a, k), 0.1)
            for s, a, k in ((100, 4, 4), (10_000, 4, 4), (100, 32, 4), (100, 4, 100))
        },
    }
    worst = max(max(row.values()) for row in results["Four-Rooms, 104 states x 4 actions, ns per update"].values())
    results |= {"goal, ns": GOAL, "worst on Four-Rooms, ns": worst, "lu_microseconds": 1e6 * min(before, lu_seconds())}
    store("soft_q_learning", results)


if __name__ == "__main__":
    main()
