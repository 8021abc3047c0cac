"""`check_follower` on network followers, in environments without tables."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from bocmdp_gym.errors import CheckError
from bocmdp_gym.wrappers import LeaderReward
from followers import CallableFollower, Follower, SACFollower, SB3Follower, SoftDQNFollower, check_follower
from followers.checks import Problem
from tests.followers.problems import Point

PPO: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "device": "cpu"}


def reward(x: Any, observations: Any, actions: Any, context: Any) -> Any:
    return x[0] * torch.exp(-observations[:, 0].square())


def problem(name: str) -> Problem:
    if name == "bocmdp/TaxDesign-v0":
        env = gym.make(name, horizon=20)
        return Problem(name, env, (np.zeros(4), np.ones(4)))
    if name == "point":
        return Problem(name, Point(), (np.array([0.5]), np.array([-0.5])))
    space = gym.spaces.Box(0.0, 1.0, (1,), np.float64)
    env = LeaderReward(gym.make(name, max_episode_steps=20), reward, space, reward, 0.9)
    return Problem(name, env, (np.array([0.2]), np.array([0.9])))


@pytest.mark.parametrize(
    ("name", "follower"),
    [
        ("Pendulum-v1", SB3Follower("PPO", 128, **PPO)),
        ("CartPole-v1", SB3Follower("PPO", 256, **PPO)),
        ("CartPole-v1", SoftDQNFollower(1.0, 300, learning_starts=50, learning_rate=3e-3, device="cpu")),
        ("point", SACFollower(0.5, 40, learning_starts=32, buffer_size=200, device="cpu")),
        ("bocmdp/TaxDesign-v0", SB3Follower("PPO", 128, **PPO)),
    ],
)
def test_networks_keep_the_contract_in_environments_without_tables(name: str, follower: Follower) -> None:
    check_follower(follower, problems=[problem(name)])


def test_worse_than_acting_at_random_fails() -> None:
    worst = CallableFollower(lambda observation: np.array([-2.0], np.float32))
    with pytest.raises(CheckError, match=r"no less than one that acts at random; on 'point' at x = \[0\.5\], context 0 it earns"):
        check_follower(worst, problems=[problem("point")])


def test_a_policy_that_draws_otherwise_than_it_says_fails() -> None:
    liar = CallableFollower(lambda observation, rng: int(rng.integers(2)), probabilities=lambda observation: [0.9, 0.1])
    with pytest.raises(CheckError, match=r"act must draw from probabilities\(observation\)"):
        check_follower(liar, problems=[problem("CartPole-v1")])
