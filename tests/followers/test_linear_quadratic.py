"""The exact follower of linear-quadratic problems, and its Gaussian policy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import followers
from bocmdp_gym import LinearQuadraticEnv, errors
from bocmdp_gym.wrappers import ObserveContext
from followers import LinearQuadratic, TrajectoryOracle
from followers.checks import Problem
from tests.problems import linear_quadratic

X = np.array([0.3, -0.2])


def _policy(env: Any = None, regularization: float = 0.2, context: int = 1) -> Any:
    env = LinearQuadraticEnv(linear_quadratic()) if env is None else env
    return TrajectoryOracle(env, LinearQuadratic(regularization)).respond(X, context, np.random.default_rng(0))


def test_follower_checks() -> None:
    env = LinearQuadraticEnv(linear_quadratic(), horizon=10)
    followers.check_follower(LinearQuadratic(0.2), problems=[Problem("linear-quadratic", env, (X, -X))])


def test_policy_is_the_models_optimum() -> None:
    """Actions' mean and covariance over 100,000 draws within 5 standard errors; densities as scipy's."""
    policy, solved = _policy(), linear_quadratic().best_response(X, 0.2, 1)
    states, n = np.array([[1.0, -2.0, 0.5]]), 100_000
    mean, covariance = -states[0] @ solved.gain.numpy().T, solved.covariance.numpy()
    actions = policy.act_batch(np.repeat(states, n, 0), np.random.default_rng(0)).astype(np.float64)
    deviation = actions - mean
    assert (np.abs(deviation.mean(0)) < 5 * np.sqrt(np.diag(covariance) / n)).all()
    second = deviation[:, :, None] * deviation[:, None]
    assert (np.abs(second.mean(0) - covariance) < 5 * second.std(0) / n**0.5).all()
    law = multivariate_normal(mean, covariance)
    np.testing.assert_allclose(policy.log_probabilities(np.repeat(states, 5, 0), actions[:5]), law.logpdf(actions[:5]))
    assert policy.entropies(states)[0] == pytest.approx(law.entropy())
    assert policy.values(states)[0] == pytest.approx(float(solved.constant) - states[0] @ solved.value.numpy() @ states[0])
    assert policy.act(states[0], np.random.default_rng(0)).shape == (2,)


def test_actions_stay_within_the_environments_bound() -> None:
    policy = _policy(LinearQuadraticEnv(linear_quadratic(), action_bound=0.5))
    actions = policy.act_batch(np.full((50, 3), 10.0), np.random.default_rng(0))
    assert np.abs(actions).max() == 0.5
    assert actions.dtype == np.float32


def test_states_are_read_beside_a_context_that_is_shown() -> None:
    env = LinearQuadraticEnv(linear_quadratic())
    plain, shown = _policy(env), _policy(ObserveContext(env))
    state = env.reset(seed=0, options={"context": 1})[0]
    seen = ObserveContext(env).reset(seed=0, options={"context": 1})[0]
    assert np.size(seen) > 3 or isinstance(seen, dict)
    np.testing.assert_array_equal(plain.act(state, np.random.default_rng(1)), shown.act(seen, np.random.default_rng(1)))


def test_refuses_what_is_not_linear_quadratic() -> None:
    for env in (gym.make("bocmdp/TaxDesign-v0"), gym.make("bocmdp/FourRooms-v0")):
        with pytest.raises(errors.UnsupportedError, match="solves linear-quadratic problems"):
            TrajectoryOracle(env, LinearQuadratic())
    scaled: Any = gym.wrappers.TransformReward(LinearQuadraticEnv(linear_quadratic()), lambda reward: 2.0 * reward)
    with pytest.raises(errors.UnsupportedError, match="TransformReward around it may change"):
        TrajectoryOracle(scaled, LinearQuadratic())
    with pytest.raises(errors.DiscountError, match=r"was given discount 0\.5"):
        TrajectoryOracle(LinearQuadraticEnv(linear_quadratic()), LinearQuadratic(discount=0.5))
    with pytest.raises(errors.RegularizationError):
        LinearQuadratic(0.0)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_learners_of_stable_baselines3_follow(algorithm: str) -> None:
    """They train on it, act within bounds, and are led by what compares returns; nothing is learnt in so few steps."""
    options: dict[str, Any] = {"n_steps": 32, "batch_size": 32} if algorithm == "PPO" else {"learning_starts": 16}
    env = LinearQuadraticEnv(linear_quadratic(), horizon=10, action_bound=2.0)
    oracle = TrajectoryOracle(env, followers.SB3Follower(algorithm, 32, **options))
    rng = np.random.default_rng(0)
    batch = oracle.sample(oracle.respond(X, 1, rng), 40, rng)
    assert np.abs(batch.actions).max() <= 2.0
    assert batch.n_episodes == 4
