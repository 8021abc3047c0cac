from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import ConfigurableEnv, errors
from leaders.gradients import ExactEstimator, GeometricEstimator, MonteCarloEstimator
from tests.problems import random_model, random_x

FOLLOWER = followers.SoftPolicyIteration(1.0)


def test_the_table_shows_bias_error_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(0, states=4, dim=3, discount=0.6)
    comparison = leaders.compare_gradients(
        model,
        {
            "exact": leaders.ExactGradient(),
            "geometric": GeometricEstimator(20_000),
            "monte carlo": MonteCarloEstimator(20_000),
            "few steps": MonteCarloEstimator(200),
        },
        random_x(3),
        follower=FOLLOWER,
        repeats=20,
    )
    assert capsys.readouterr().out == f"{comparison}\n"
    assert "few steps" in str(comparison)
    assert "std. error" in str(comparison)
    expected = torch.func.grad(lambda x: model.leader_return(x, 1.0))(random_x(3))
    torch.testing.assert_close(comparison.exact, expected, rtol=1e-7, atol=1e-9)
    exact, geometric, few = comparison["exact"], comparison["geometric"], comparison["few steps"]
    assert exact.bias < 1e-10
    assert exact.error < 1e-12
    assert exact.env_steps == 0
    assert geometric.deviation < 4
    assert 0.0 < geometric.relative_bias < 0.1
    assert geometric.env_steps == 0
    assert geometric.model_draws > 3 * 20_000  # three contexts
    assert 3 * 200 <= few.env_steps < 3 * 500
    assert few.spread > comparison["monte carlo"].spread
    assert few.error == pytest.approx(few.spread * float(comparison.exact.norm()) / 19**0.5)
    assert geometric.seconds > 0.0
    assert geometric.follower_iterations >= 0.0


def test_one_context_and_a_loss() -> None:
    model = random_model(1, states=4, dim=3, discount=0.5)

    def loss(x: torch.Tensor, policy: torch.Tensor, context: int) -> torch.Tensor:
        return (policy**2).sum() + x.sum()

    estimators = {"geometric": GeometricEstimator(50_000), "zero-order": leaders.ZeroOrder(smoothing=0.01, two_sided=True)}
    comparison = leaders.compare_gradients(
        model, estimators, random_x(3), 2, follower=FOLLOWER, repeats=10, loss=loss, show=False
    )
    exact = ExactEstimator()
    oracle = followers.TrajectoryOracle(model, FOLLOWER)
    exact.bind(oracle, loss)
    torch.testing.assert_close(comparison.exact, exact.estimate(oracle, random_x(3), 2, np.random.default_rng(0)).gradient)
    assert comparison["geometric"].deviation < 4


class _NoModel(ConfigurableEnv):
    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self._setup_configuration(gym.spaces.Box(-np.inf, np.inf, (1,), np.float64), gym.spaces.Box(0.0, 1.0), 0.9)

    def sample_context(self, rng: np.random.Generator) -> Any:
        return np.float32(rng.random(1))

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return 0, 0.0, True, False, {"leader_reward": -float((self.leader[0] - 1.0) ** 2), "context": self.context}


class _Random(followers.Follower):
    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        return followers.TabularPolicy(np.full((1, 2), 0.5), task.leader, task.context)


def test_without_a_model_something_to_compare_with_is_asked_for() -> None:
    estimators = {"zero-order": leaders.ZeroOrder(smoothing=1e-3, two_sided=True, env_steps=1, decay=False)}
    with pytest.raises(errors.UnsupportedError, match="exact="):
        leaders.compare_gradients(_NoModel(), estimators, np.zeros(1), np.zeros(1, np.float32), follower=_Random())
    comparison = leaders.compare_gradients(
        _NoModel(),
        estimators,
        np.zeros(1),
        np.zeros(1, np.float32),
        follower=_Random(),
        repeats=200,
        exact=torch.tensor([2.0], dtype=torch.float64),
        show=False,
    )
    assert comparison["zero-order"].deviation < 4
    with pytest.raises(errors.ContextError, match="pass one context"):
        leaders.compare_gradients(_NoModel(), estimators, np.zeros(1), follower=_Random())


def test_bad_settings_are_refused() -> None:
    model = random_model(0)
    with pytest.raises(errors.OptionError, match="repeats is 1"):
        leaders.compare_gradients(model, {"exact": ExactEstimator()}, np.zeros(5), follower=FOLLOWER, repeats=1)
    with pytest.raises(errors.OptionError, match="estimators is empty"):
        leaders.compare_gradients(model, {}, np.zeros(5), follower=FOLLOWER)
    with pytest.raises(errors.ContextError, match="out of range"):
        leaders.compare_gradients(model, {"exact": ExactEstimator()}, np.zeros(5), 7, follower=FOLLOWER)
