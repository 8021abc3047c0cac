from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from bocmdp_gym import errors
from bocmdp_gym.wrappers import LeaderReward


def bonus(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
    return x[0] * torch.exp(-((observations[:, 0] - x[1]) ** 2))


def leader_reward(x: Tensor, observations: Any, actions: Any, context: Any, next_observations: Any) -> Tensor:
    return next_observations[:, 1] - 0.1 * bonus(x, observations, actions, context)


def twin(x: Any, observation: Any, action: Any, context: Any, next_observations: Any) -> Any:
    paid = x[0] * np.exp(-((observation[0] - x[1]) ** 2))
    return paid, next_observations[1] - 0.1 * paid


def cart_pole(**options: Any) -> LeaderReward:
    return LeaderReward(gym.make("CartPole-v1"), bonus, 2, leader_reward, 0.99, **options)


def test_a_twin_pays_the_same() -> None:
    envs = cart_pole(), cart_pole(step_rewards=twin)
    for env in envs:
        env.set_leader([1.5, 0.3])
        env.reset(seed=0)
    for action in (0, 1, 1, 1, 0):
        (_, slow, *_, one), (_, fast, *_, other) = (env.step(action) for env in envs)
        assert fast == pytest.approx(slow, rel=1e-6)
        assert other["leader_reward"] == pytest.approx(one["leader_reward"], rel=1e-5)
        assert one["bonus"] > 0.0


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (3, errors.OptionError, "step_rewards is 3"),
        (lambda x, o, a, c, rewrds: (0.0, 0.0), errors.OptionError, "Did you mean 'rewards'"),
        (lambda x, o, a, c: 1.0, errors.ModelError, "returned 1.0; expected two numbers"),
        (lambda x, o, a, c: (0.0, float("nan")), errors.ModelError, r"step_rewards is \(0.0, nan\) at observation"),
        (lambda x, o, a, c: (x[0], 0.0), errors.ModelError, "gives 0 for leader_reward at observation .* itself"),
        (lambda x, o, a, c, next_observations: (0.0, next_observations[1]), errors.ModelError, "gives 0 for bonus"),
    ],
)
def test_twins_that_differ_are_refused(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cart_pole(step_rewards=function)
