"""Followers of Stable-Baselines3 that learn something in a few dozen steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from followers import SB3Follower, TrajectoryOracle
from tests.followers.problems import X, bandit

#: Settings with which an algorithm learns something, or at least updates, in a few dozen steps.
QUICK: dict[str, dict[str, Any]] = {
    "A2C": {"total_timesteps": 40},
    "ARS": {"total_timesteps": 60, "n_delta": 2, "zero_policy": False, "policy_kwargs": {"net_arch": [8]}},
    "CrossQ": {
        "total_timesteps": 60,
        "learning_starts": 20,
        "train_freq": 4,
        "batch_size": 16,
        "policy_kwargs": {"net_arch": [16]},
    },
    "DDPG": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "DQN": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16},
    "PPO": {"total_timesteps": 64, "n_steps": 32, "batch_size": 32},
    "QRDQN": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16},
    "SAC": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "SoftDQN": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16, "regularization": 0.1},
    "TD3": {"total_timesteps": 60, "learning_starts": 20, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "TQC": {"total_timesteps": 60, "learning_starts": 20, "train_freq": 4, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}},
    "TRPO": {"total_timesteps": 64, "n_steps": 32, "batch_size": 32},
}
DISCRETE = ["A2C", "ARS", "DQN", "PPO", "QRDQN", "SoftDQN", "TRPO"]
CONTINUOUS = ["A2C", "ARS", "CrossQ", "DDPG", "PPO", "SAC", "TD3", "TQC", "TRPO"]


def quick(algorithm: str, **options: Any) -> SB3Follower:
    return SB3Follower(algorithm, **{**QUICK[algorithm], **options})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def respond(follower: SB3Follower, env: Any = None, x: Any = X, context: int = 0, seed: int = 0) -> Any:
    return TrajectoryOracle(bandit() if env is None else env, follower).respond(x, context, rng(seed))
