from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.wrappers import LeaderReward
from leaders.gradients import AutoEstimator, CriticEstimator, MonteCarloEstimator
from tests.problems import random_model, small_rooms


def _cart_pole(leader_discount: float | None = None) -> LeaderReward:
    def bonus(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * observations[:, 0]

    def leader_reward(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return -(observations[:, 0] ** 2)

    return LeaderReward(gym.make("CartPole-v1"), bonus, 1, leader_reward, 0.9, leader_discount)


class _Coin(followers.Follower):
    """Answers at random, and has no lambda."""

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        return lambda observation: int(np.random.default_rng(0).integers(2))


def test_on_tables_it_is_the_monte_carlo_estimator_number_for_number() -> None:
    follower = followers.SoftPolicyIteration(0.03)
    options = {"seed": 3, "evaluate_every": 5}
    chosen = leaders.optimize(small_rooms(), leaders.HPGD(0.5, 300), follower, 8, **options)
    named = leaders.optimize(small_rooms(), leaders.HPGD(0.5, 300, "monte_carlo"), follower, 8, **options)
    assert torch.equal(chosen.x, named.x)
    assert chosen.estimator == named.estimator == "MonteCarloEstimator(env_steps=300)"
    many = [
        leaders.optimize_many(small_rooms(), leaders.HPGD(0.5, 300, estimator), follower, 5, seeds=range(4))
        for estimator in ("auto", "monte_carlo")
    ]
    assert all(torch.equal(one.x, other.x) for one, other in zip(*many, strict=True))
    leader, oracle = leaders.HPGD(0.5, 300), followers.TrajectoryOracle(small_rooms(), follower)
    leader.estimator.bind(oracle)
    alike = [leader.estimator, *(leaders.HPGD(0.5, 300).estimator for _ in range(7))]
    assert AutoEstimator.batched(oracle, alike) is not None  # many runs at once, as the one it chose


def test_without_tables_it_is_the_critic() -> None:
    ppo = followers.SB3Follower("PPO", 64, n_steps=64)
    leader = leaders.HPGD(env_steps=60, regularization=0.1)
    assert repr(leader.estimator) == "AutoEstimator(env_steps=60, regularization=0.1)"
    oracle = followers.TrajectoryOracle(_cart_pole(), ppo)
    leader.estimator.bind(oracle)
    assert isinstance(leader.estimator.working, CriticEstimator)
    assert leader.estimator.regularization == 0.1
    assert repr(leader.estimator) == repr(CriticEstimator(60, error_groups=0, regularization=0.1))
    assert leader.estimator.bind(followers.TrajectoryOracle(random_model(0), followers.SoftPolicyIteration(0.1))) is None
    assert isinstance(leader.estimator.working, MonteCarloEstimator)


def test_what_is_missing_is_said_at_once() -> None:
    with pytest.raises(errors.RegularizationError, match=r"HPGD\(regularization=1e-3\), or use FirstOrder") as found:
        leaders.optimize(_cart_pole(), leaders.HPGD(), _Coin(), 1)
    assert "tabular" not in str(found.value)
    other = _cart_pole(leader_discount=0.8)
    with pytest.raises(errors.RegularizationError, match="or use ZeroOrder"):  # FirstOrder would be refused
        leaders.optimize(other, leaders.HPGD(), _Coin(), 1)
    message = r"or use FirstOrder, which needs none\. Besides, MonteCarloEstimator needs a tabular model"
    with pytest.raises(errors.RegularizationError, match=message):
        leaders.optimize(_cart_pole(), leaders.HPGD(estimator="monte_carlo"), _Coin(), 1)


def test_it_must_be_bound() -> None:
    oracle = followers.TrajectoryOracle(random_model(0), followers.SoftPolicyIteration(0.1))
    with pytest.raises(errors.OptionError, match=re.escape("before bind(oracle)")):
        AutoEstimator().estimate(oracle, torch.zeros(5, dtype=torch.float64), 0, np.random.default_rng(0))
