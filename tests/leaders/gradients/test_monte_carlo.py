from __future__ import annotations

import numpy as np
import pytest
import torch

import followers
from bocmdp_gym import TabularBOCMDP, TabularEnv
from leaders.gradients import ExactEstimator, MonteCarloEstimator
from tests.problems import random_model, random_x

REWARDS = ("reward", "leader_reward")


def _errors(
    model: TabularBOCMDP, horizon: int | None, steps: int, repeats: int, *, bootstrap: bool = False, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean estimate, its standard error per coordinate, and the exact gradient (context 1)."""
    oracle = followers.TrajectoryOracle(TabularEnv(model, horizon=horizon), followers.SoftPolicyIteration(0.5))
    x, rng = random_x(model.leader_dim), np.random.default_rng(seed)
    exact, estimator = ExactEstimator(), MonteCarloEstimator(steps, bootstrap)
    exact.bind(oracle)
    estimator.bind(oracle)
    draws = torch.stack([estimator.estimate(oracle, x, 1, rng).gradient for _ in range(repeats)])
    truth = exact.estimate(oracle, x, 1, rng).gradient
    return draws.mean(0), draws.std(0) / repeats**0.5, truth


@pytest.mark.parametrize("leader_discount", [None, 0.8])
def test_bias_vanishes_without_a_time_limit(leader_discount: float | None) -> None:
    model = random_model(1, moving=REWARDS, leader_discount=leader_discount)
    mean, error, truth = _errors(model, None, 1_000_000, 20)
    assert float(error.max() / truth.abs().max()) < 0.01
    assert float(((mean - truth).abs() / error).max()) < 4.5


def test_a_time_limit_leaves_a_floor_that_bootstrapping_removes() -> None:
    model = random_model(2, moving=REWARDS, terminating=False, leader_discount=None)
    cut, error, truth = _errors(model, 8, 500_000, 20)
    assert float(((cut - truth).abs() / error).max()) > 20  # the planted fault is seen
    mended, error, truth = _errors(model, 8, 500_000, 20, bootstrap=True)
    assert float(((mended - truth).abs() / error).max()) < 4.5
    assert float(error.max() / truth.abs().max()) < 0.01


def test_bias_shrinks_with_the_batch() -> None:
    model = random_model(3, moving=REWARDS)
    errors = []
    for steps, repeats in ((100, 4000), (10_000, 100)):
        mean, _, truth = _errors(model, None, steps, repeats)
        errors.append(float((mean - truth).norm() / truth.norm()))
    assert errors[0] > 5 * errors[1]


def test_bootstrapping_changes_nothing_where_nothing_is_cut() -> None:
    model = random_model(4, moving=REWARDS)
    plain, *_ = _errors(model, None, 20_000, 2)
    bootstrapped, *_ = _errors(model, None, 20_000, 2, bootstrap=True)
    torch.testing.assert_close(plain, bootstrapped, rtol=1e-9, atol=1e-12)
