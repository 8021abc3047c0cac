"""Time of one outer iteration of HPGD and of ExactGradient on Four-Rooms, in units of the yardstick LU.

What a user runs by default is timed: `leaders.optimize` with its history, exact evaluations and progress bar. Run it with
``python -m benchmarks.outer_loop``; results go to ``benchmarks/results/outer_loop.json``.
"""

from __future__ import annotations

import resource
from typing import Any

import gymnasium as gym
import numpy as np

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import best_of, lu_seconds, store

PUBLISHED_LU = {"HPGD": 1100, "AMD": 20_000}  # the published code, CPU, per outer iteration


def outer_iteration(leader: Any, regularization: float, iterations: int = 2000) -> dict[str, float]:
    """Seconds and LU per outer iteration; LU is measured just before and after."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    follower = followers.SoftPolicyIteration(regularization=regularization)
    leaders.optimize(env, leader, follower, 60, progress=True)
    before = lu_seconds()
    runs = [leaders.optimize(env, leader, follower, iterations, seed=seed, progress=True).seconds for seed in range(3)]
    lu = min(before, lu_seconds())
    seconds = float(np.median(runs)) / iterations
    return {"microseconds": 1e6 * seconds, "lu": seconds / lu, "lu_microseconds": 1e6 * lu}


def sampler() -> float:
    """Nanoseconds per step of the compiled sampler: the kernel with its tables, called as the oracle calls it."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(1e-3))
    rng = np.random.default_rng(0)
    policy = oracle.respond(np.zeros(105), 0, rng)
    steps = oracle.sample(policy, 10_000, rng).n_steps
    return 1e9 * best_of(lambda: oracle.sample(policy, 10_000, rng), inner=100) / steps


def env_steps_per_second(env_id: str, steps: int = 100_000) -> float:
    """Steps per second of the unwrapped environment under random actions, resets included."""
    env = gym.make(env_id).unwrapped
    actions = np.random.default_rng(0).integers(0, env.action_space.n, steps).tolist()

    def play() -> None:
        env.reset(seed=0)
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return steps / best_of(play, repeats=5)


def vector_steps_per_second(num_envs: int = 1024, steps: int = 200) -> dict[str, float]:
    """Steps per second of the native vector environment and of gym.make_vec's sync mode."""
    rates = {}
    for mode, n_steps in (("vector_entry_point", steps), ("sync", 5)):
        envs = gym.make_vec("bocmdp/FourRooms-v0", num_envs=num_envs, vectorization_mode=mode)
        actions = np.random.default_rng(0).integers(0, 4, (n_steps, num_envs))
        envs.reset(seed=0)

        def play(envs: Any = envs, actions: Any = actions) -> None:
            for row in actions:
                envs.step(row)

        rates[mode] = num_envs * n_steps / best_of(play, repeats=5 if mode != "sync" else 2)
    return rates


def main() -> None:
    results: dict[str, Any] = {
        "HPGD, 10,000 steps": outer_iteration(leaders.HPGD(learning_rate=0.5, env_steps=10_000), 1e-3),
        "ExactGradient, one context": outer_iteration(leaders.ExactGradient(learning_rate=1.0), 1e-3),
        "published code, LU": PUBLISHED_LU,
        "sampler, ns per step": sampler(),
        "env.step per second": {name: env_steps_per_second(name) for name in ("bocmdp/FourRooms-v0", "FrozenLake-v1")},
        "vector env steps per second, 1,024 copies": vector_steps_per_second(),
    }
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0)
    run = leaders.optimize(env, leaders.HPGD(learning_rate=0.5), followers.SoftPolicyIteration(1e-3), 10_000, seed=0)
    results["HPGD, 10,000 iterations"] = {
        "seconds": run.seconds,
        "leader_return": run.leader_return,
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    store("outer_loop", results)


if __name__ == "__main__":
    main()
