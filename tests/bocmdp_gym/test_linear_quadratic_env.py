"""The simulator of linear-quadratic models: what the model says, one copy or many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import bocmdp_gym
from bocmdp_gym import LinearQuadraticEnv, LinearQuadraticVectorEnv, errors
from followers import LinearQuadratic, TrajectoryOracle
from tests.problems import linear_quadratic

X = np.array([0.3, -0.2])


def test_environment_keeps_the_contract() -> None:
    bocmdp_gym.check_configurable_env(LinearQuadraticEnv(linear_quadratic(), horizon=5))


def test_simulator_pays_what_the_model_says() -> None:
    env = LinearQuadraticEnv(linear_quadratic(), horizon=7)
    env.action_space.seed(0)
    seen, _ = env.reset(seed=0, options={"leader": X, "context": 1})
    for step in range(7):
        action = env.action_space.sample()
        at = torch.tensor(X), seen[None], action[None], 1
        seen, reward, terminated, truncated, info = env.step(action)
        assert reward == pytest.approx(float(env.model.rewards(*at)), rel=1e-12)
        assert info["leader_reward"] == pytest.approx(float(env.model.leader_rewards(*at)), rel=1e-12)
        assert (terminated, truncated) == (False, step == 6)


def _copies(n: int, **options: Any) -> LinearQuadraticVectorEnv:
    envs = LinearQuadraticVectorEnv(LinearQuadraticEnv(linear_quadratic(), **options), n)
    envs.set_leader(X)
    return envs


def test_copies_start_and_move_as_the_model_says() -> None:
    """Contexts, means and covariances of 40,000 copies, within 5 standard errors."""
    n = 40_000
    envs = _copies(n)
    starts, infos = envs.reset(seed=0)
    contexts = infos["context"]
    assert abs(contexts.mean() - 0.75) < 5 * (0.75 * 0.25 / n) ** 0.5
    actions = np.ones((n, 2))
    following, rewards, *_, infos = envs.step(actions)
    for context in (0, 1):
        parts = envs.env.model.parts(X, context)
        own = contexts == context
        noise = following[own] - starts[own] @ parts.state_matrix.numpy().T - parts.input_matrix.numpy().sum(-1)
        for values, mean, covariance in (
            (starts[own], parts.initial_mean.numpy(), parts.initial_covariance.numpy()),
            (noise, np.zeros(3), parts.noise_covariance.numpy()),
        ):
            assert (np.abs(values.mean(0) - mean) < 5 * values.std(0) / own.sum() ** 0.5).all()
            second = (values - mean)[:, :, None] * (values - mean)[:, None]
            assert (np.abs(second.mean(0) - covariance) < 5 * second.std(0) / own.sum() ** 0.5).all()
        at = torch.tensor(X), starts[own], actions[own], context
        np.testing.assert_allclose(rewards[own], envs.env.model.rewards(*at), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(infos["leader_reward"][own], envs.env.model.leader_rewards(*at), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("copies", [0, 50])
def test_sampled_returns_agree_with_the_exact_ones(copies: int) -> None:
    """Leader's and follower's returns of the optimal policy within 4 standard errors, from episodes that leave 1e-5 of them."""
    model = linear_quadratic()
    env: Any = _copies(copies, horizon=50) if copies else LinearQuadraticEnv(model, horizon=50)
    oracle, rng = TrajectoryOracle(env, LinearQuadratic(0.2)), np.random.default_rng(1)
    policy = oracle.respond(X, 1, rng)
    batch = oracle.sample(policy, 50_000, rng)
    leader = batch.discounted_returns(model.leader_discount, leader=True)
    exact = float(model.context_return(X, 0.2, 1))
    assert abs(leader.mean() - exact) < 4 * leader.std() / len(leader) ** 0.5
    entropies = policy.entropies(batch.observations)
    assert entropies is not None
    own = batch.discounted_returns(model.discount) + 0.2 * entropies[0] / (1.0 - model.discount)
    parts, solved = model.parts(X, 1), model.best_response(X, 0.2, 1)
    second = parts.initial_covariance + torch.outer(parts.initial_mean, parts.initial_mean)
    value = float(solved.constant - (solved.value * second).sum())
    assert abs(own.mean() - value) < 4 * own.std() / len(own) ** 0.5


def test_states_are_cut_and_actions_bounded() -> None:
    env = LinearQuadraticEnv(linear_quadratic(), clip=0.5, action_bound=2.0)
    seen, _ = env.reset(seed=0, options={"leader": X})
    assert (np.abs(seen) <= 0.5).all()
    seen, *_ = env.step([2.0, -2.0])
    assert np.abs(seen).max() == 0.5
    for action in ([2.1, 0.0], [0.0], [np.nan, 0.0], "a"):
        with pytest.raises(errors.ActionError, match="expected elements of"):
            env.step(action)
    with pytest.raises(errors.StateError, match="start state"):
        env.reset(options={"state": [0.6, 0.0, 0.0]})
    seen, _ = env.reset(options={"state": [0.4, 0.0, 0.0]})
    np.testing.assert_array_equal(seen, [0.4, 0.0, 0.0])


def test_refused() -> None:
    with pytest.raises(errors.ResetError, match="call reset"):
        LinearQuadraticEnv(linear_quadratic()).step([0.0, 0.0])
    with pytest.raises(errors.OptionError, match="expected an instance of LinearQuadraticBOCMDP"):
        LinearQuadraticEnv(None)  # type: ignore[arg-type]
    for options in ({"clip": 0.0}, {"action_bound": 0.0}, {"horizon": 0}):
        with pytest.raises(errors.OptionError):
            LinearQuadraticEnv(linear_quadratic(), **options)  # type: ignore[arg-type]
