"""What a step of the oracle costs where a network acts: one environment played alone, and many copies at once (the default).

``python -m benchmarks.oracle_sampling`` stores results (JSON, CSV). Played alone, an episode follows the other and each step is
a forward pass of its own. The bare step is the environment's, with actions drawn beforehand. All are of the same run, as is LU,
and in processor time, which is less disturbed by what else the machine does.
"""

from __future__ import annotations

from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
from benchmarks.common import lu_seconds, store, store_table
from bocmdp_gym.wrappers import LeaderReward

ENV_STEPS = 4000
REPEATS = 3
PPO = {"n_steps": 128, "batch_size": 64, "device": "cpu"}
SAC = {"learning_starts": 64, "buffer_size": 1000, "device": "cpu"}
PROBLEMS = [
    ("Pendulum-v1", "PPO", PPO),
    ("Pendulum-v1", "SAC", SAC),
    ("CartPole-v1", "PPO", PPO),
    ("bocmdp/TaxDesign-v0", "PPO", PPO),
]


def make_env(name: str) -> gym.Env[Any, Any]:
    """One of ours, or one of Gymnasium's whose cart or tip the leader wants at rest."""
    if name.startswith("bocmdp/"):
        return gym.make(name)

    def bonus(x: torch.Tensor, observations: torch.Tensor, actions: Any, context: Any) -> torch.Tensor:
        return x[0] * torch.exp(-observations[:, 0].square())

    def leader_reward(x: torch.Tensor, observations: torch.Tensor, actions: Any, context: Any) -> torch.Tensor:
        return -observations[:, 0].square()

    return LeaderReward(gym.make(name), bonus, 1, leader_reward, 0.95)


def bare_step(env: gym.Env[Any, Any]) -> float:
    """Seconds of a step, resets included."""
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(ENV_STEPS)]
    best = float("inf")
    for _ in range(REPEATS):
        env.reset(seed=0)
        began = process_time()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        best = min(best, process_time() - began)
    return best / ENV_STEPS


def measure(name: str, algorithm: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Microseconds per step of one problem."""
    env = make_env(name)
    x = bocmdp_gym.configurable(env).initial_leader(np.random.default_rng(0))
    row: dict[str, Any] = {"problem": name, "algorithm": algorithm, "bare_step": 1e6 * bare_step(env)}
    policy = None
    for column, options in (("alone", {"copies": 1}), ("at_once", {})):
        oracle = followers.TrajectoryOracle(env, followers.SB3Follower(algorithm, 128, **settings), **options)
        policy = policy or oracle.respond(x, 0, np.random.default_rng(0))
        best = float("inf")
        for seed in range(REPEATS + 1):  # the first warms up
            rng = np.random.default_rng(seed)
            began = process_time()
            steps = oracle.sample(policy, ENV_STEPS, rng).n_steps
            best = min(best, (process_time() - began) / steps) if seed else best
        row[column] = 1e6 * best
    share = oracle.idle_steps / (oracle.idle_steps + oracle.env_steps)
    return {**row, "times_faster": row["alone"] / row["at_once"], "dropped_share": share}


def main() -> None:
    torch.set_num_threads(1)
    lu = lu_seconds()
    rows = [measure(*problem) for problem in PROBLEMS]
    store_table("oracle_sampling", rows)
    store("oracle_sampling", {"lu_microseconds": 1e6 * lu, "env_steps": ENV_STEPS, "rows": rows})


if __name__ == "__main__":
    main()
