"""Leaders of linear-quadratic followers: every estimator that can work there against the exact gradient."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import BOCMDP, LinearQuadraticEnv, LinearQuadraticVectorEnv, errors
from bocmdp_gym.wrappers import ObserveContext
from followers import LinearQuadratic, TrajectoryOracle
from leaders.gradients import CriticEstimator, ExactEstimator, FirstOrderEstimator, ZeroOrderEstimator
from tests.problems import F64, finite_difference, linear_quadratic, relative_error

X = torch.tensor([0.3, -0.2], dtype=F64)
LAMBDA = 0.2


def _copies(**options: Any) -> LinearQuadraticVectorEnv:
    return LinearQuadraticVectorEnv(LinearQuadraticEnv(linear_quadratic(**options), horizon=60), 50, "SameStep")


def _exact(model: Any, context: int = 1) -> torch.Tensor:
    return finite_difference(lambda x: model.context_return(x, LAMBDA, context), X)


def test_exact_estimator_is_the_models_derivative() -> None:
    env = LinearQuadraticEnv(linear_quadratic())
    oracle, estimator = TrajectoryOracle(env, LinearQuadratic(LAMBDA)), ExactEstimator()
    estimator.bind(oracle)
    estimate = estimator.estimate(oracle, X, 1, np.random.default_rng(0))
    assert relative_error(estimate.gradient, _exact(env.model)) < 1e-6
    assert estimate.leader_return == pytest.approx(float(env.model.context_return(X, LAMBDA, 1)))
    with pytest.raises(errors.UnsupportedError, match="reads the policy as a table"):
        estimator.bind(oracle, lambda x, policy, context: x.sum())


@pytest.mark.parametrize("moving", [None, ("state_matrix",), ("initial_mean",)])
def test_critic_with_the_models_features_has_the_exact_mean(moving: tuple[str, ...] | None) -> None:
    """Mean of 10 estimates of 4,000 steps within 4.5 standard errors, which are below a quarter of the gradient."""
    env, estimator = _copies(moving=moving), CriticEstimator(4_000)
    found = leaders.compare_gradients(env, {"it": estimator}, X, 1, follower=LinearQuadratic(LAMBDA), repeats=10, show=False)
    assert found.source == "exact"
    assert estimator._known
    assert found["it"].deviation < 4.5
    assert found["it"].error < 0.25 * float(found.exact.norm())


def test_critic_reads_states_beside_a_context_that_is_shown() -> None:
    oracle, estimator = TrajectoryOracle(ObserveContext(_copies().env), LinearQuadratic(LAMBDA)), CriticEstimator(1_000)
    estimator.bind(oracle)
    assert estimator._known
    estimate = estimator.estimate(oracle, X, 1, np.random.default_rng(0))
    assert float(torch.nn.functional.cosine_similarity(estimate.gradient, _exact(oracle.model), dim=0)) > 0.5


def test_first_order_pays_exact_followers() -> None:
    """Mean of 10 estimates at equal discounts within 4.5 standard errors."""
    env = _copies(leader_discount=0.8)
    found = leaders.compare_gradients(
        env,
        {"it": FirstOrderEstimator("auto", env_steps=8_000)},
        X,
        1,
        follower=LinearQuadratic(LAMBDA),
        repeats=10,
        show=False,
    )
    assert found["it"].deviation < 4.5
    assert found["it"].error < 0.5 * float(found.exact.norm())


def test_zero_order_compares_exact_returns() -> None:
    oracle, estimator = TrajectoryOracle(_copies(), LinearQuadratic(LAMBDA)), ZeroOrderEstimator(1e-4, 60, True, False)
    estimator.bind(oracle)
    estimate = estimator.estimate(oracle, X, 1, np.random.default_rng(0))
    assert estimate.env_steps == 0
    assert estimate.standard_error is not None
    assert (((estimate.gradient - _exact(oracle.model)).abs() / estimate.standard_error) < 4).all()


@pytest.mark.parametrize("leader", [leaders.HPGD(estimator="monte_carlo"), leaders.HPGD(estimator="geometric"), leaders.AMD()])
def test_estimators_of_tables_are_refused(leader: leaders.Leader) -> None:
    with pytest.raises(errors.UnsupportedError, match="needs a tabular model"):
        leaders.optimize(LinearQuadraticEnv(linear_quadratic()), leader, LinearQuadratic(LAMBDA), 1)


def test_exact_gradient_is_refused_without_exact_returns() -> None:
    class Plain(BOCMDP):
        leader_dim, discount, leader_discount = 2, 0.8, 0.7

        def rewards(self, *at: Any) -> Any:
            raise AssertionError

        leader_rewards = rewards

    env = LinearQuadraticEnv(linear_quadratic())
    env.model = Plain()  # type: ignore[assignment]
    with pytest.raises(errors.UnsupportedError, match="another with exact solutions"):
        ExactEstimator(0.1).bind(TrajectoryOracle(env, followers.CallableFollower(lambda seen: np.zeros(2))))
    with pytest.raises(errors.UnsupportedError, match="give it exact_returns"):
        Plain().context_return(X, 0.1, 0)


def test_runs_are_evaluated_exactly_and_searched_from_many_starts() -> None:
    """Building control: the best of four starts comes within a thousandth of the best known, of which nothing is told."""
    env = gym.make("bocmdp/BuildingControl-v0")
    leader = leaders.ExactGradient(0.5, optimizer="Adam", max_gradient_norm=None)
    found = leaders.multistart(env, leader, LinearQuadratic(), 50, starts=4, rounds=2, progress=False)
    assert found.best.leader_return == pytest.approx(-162.510768, rel=1e-3)
    result = leaders.optimize(env, leader, LinearQuadratic(), 3, progress=False)
    assert result.history["leader_return"][0] == pytest.approx(-261.963, abs=1e-3)
    evaluated = leaders.evaluate_policy(env, LinearQuadratic(), np.zeros(8), env_steps=100)
    assert evaluated.exact_leader_return == pytest.approx(-261.963, abs=1e-3)
    seat = leaders.LeaderEnv(env, LinearQuadratic())
    assert seat.value(np.zeros(8)) == pytest.approx(-261.963, abs=1e-3)


def test_hpgd_leads_building_control_from_trajectories() -> None:
    """25 iterations of 2,000 steps end above the published -196.7, which is after 2,000 iterations of 10,000 steps."""
    envs = gym.make_vec("bocmdp/BuildingControl-v0", 50, vectorization_mode="vector_entry_point", autoreset_mode="SameStep")
    leader = leaders.HPGD(0.5, 2_000, "critic", optimizer="Adam", max_gradient_norm=None)
    result = leaders.optimize(envs, leader, LinearQuadratic(), 25, progress=False)
    assert result.leader_return is not None
    assert result.leader_return > -185.0
