"""Every estimator where some actions do not exist: about the exact gradient, which finite differences confirm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import TabularEnv
from leaders.gradients import Estimator
from leaders.gradients.adaptive_model_design import AdaptiveModelDesignEstimator
from leaders.gradients.exact import ExactEstimator
from tests.leaders.gradients.test_all import ALL, _make
from tests.problems import corridor, finite_difference, random_mask, random_model, random_x, restricted_solution

EVERYTHING = ("reward", "leader_reward", "transition", "initial", "termination")
REWARDS = ("reward", "leader_reward")
X = random_x(3)


def _models(moving: tuple[str, ...], leader_discount: float = 0.6) -> tuple[Any, Any, Any]:
    """A random model, a mask, and the model with it."""
    plain = random_model(1, contexts=2, states=4, actions=4, dim=3, discount=0.5, leader_discount=leader_discount, moving=moving)
    mask = random_mask(plain, 4)
    return plain, mask, plain.replace(action_mask=mask)


@pytest.mark.parametrize("moving", [EVERYTHING, REWARDS])
def test_exact_weights_are_the_derivative(moving: tuple[str, ...]) -> None:
    plain, mask, model = _models(moving)
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(0.3))
    estimator = ExactEstimator(tolerance=1e-14)
    estimator.bind(oracle)
    for context in range(2):
        estimate = estimator.estimate(oracle, X, context, np.random.default_rng(0))

        def f(z: torch.Tensor, context: int = context) -> torch.Tensor:
            return torch.tensor(restricted_solution(plain, mask, z, 0.3)[2][context])

        torch.testing.assert_close(estimate.gradient, finite_difference(f, X, 1e-5), atol=1e-7, rtol=1e-6)
        assert estimate.leader_return == pytest.approx(float(f(X)), abs=1e-9)


@pytest.mark.parametrize("kind", ALL)
def test_estimates_are_about_the_exact_gradient(kind: type[Estimator]) -> None:
    """Within 4 standard errors, and the fifth of its size that small samples, few iterations and smoothing may bias it by."""
    moving = REWARDS if kind.needs_fixed else EVERYTHING
    _, _, model = _models(moving, 0.5 if kind.needs_equal_discounts else 0.6)
    follower: Any = followers.SoftPolicyIteration(1.0)
    if kind.needs_iterative:
        follower = followers.SoftValueIteration(1.0, iterations=100, warm_start=False)
    oracle, estimator, rng = followers.TrajectoryOracle(model, follower), _make(kind), np.random.default_rng(0)
    estimator.bind(oracle)
    gradients = torch.stack([estimator.estimate(oracle, X, 1, rng).gradient for _ in range(40)])
    exact = torch.func.grad(lambda x: model.leader_return(x, 1.0, per_context=True)[1])(X)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert float(((gradients.mean(0) - exact).abs() - 4.0 * error).max() / exact.norm()) < 0.2


MANY = [leaders.ExactGradient(0.1), leaders.HPGD(0.1, env_steps=200), leaders.HPGD(0.1, estimator="td", env_steps=200)]


@pytest.mark.parametrize("leader", MANY, ids=repr)
def test_many_runs_at_once_are_those_alone(leader: Any) -> None:
    model, follower = TabularEnv(corridor(), horizon=50), followers.SoftPolicyIteration(0.2)
    many = leaders.optimize_many(model, leader, follower, 5, seeds=[0, 1, 2, 3])
    for seed, result in enumerate(many):
        alone = leaders.optimize(model, leader, follower, 5, seed=seed)
        torch.testing.assert_close(result.x, alone.x, rtol=1e-12, atol=1e-14)
    device = leaders.optimize_many(model, leaders.ExactGradient(0.1), follower, 5, seeds=[0, 1], device="cpu")
    exact = leaders.optimize(model, leaders.ExactGradient(0.1), follower, 5, seed=1)
    torch.testing.assert_close(device[1].x, exact.x, rtol=1e-7, atol=1e-9)


def test_what_adaptive_model_design_carries_is_kept() -> None:
    """It is finite, also of actions that do not exist, so that a checkpoint takes it; and goes on bit for bit."""
    oracle = followers.TrajectoryOracle(corridor(), followers.SoftPolicyIteration(0.2))
    whole, again = _make(AdaptiveModelDesignEstimator), _make(AdaptiveModelDesignEstimator)
    for estimator in (whole, again):
        estimator.bind(oracle)
    x = torch.zeros(5, dtype=torch.float64)
    for _ in range(2):
        whole.estimate(oracle, x, 1, np.random.default_rng(0))
    again.load_state(whole.state())
    one, other = (e.estimate(oracle, x + 0.1, 1, np.random.default_rng(0)).gradient for e in (whole, again))
    assert torch.equal(one, other)
