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
from leaders.gradients.registry import ESTIMATORS
from tests.problems import random_model, random_x
from tests.registries import restored

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


def test_without_a_model_differences_are_taken() -> None:
    """The leader is paid -(x - 1)^2, whatever the follower does: differences of any size are exact."""
    estimators = {"zero-order": leaders.ZeroOrder(smoothing=1e-3, two_sided=True, env_steps=1, decay=False)}
    context, x = np.zeros(1, np.float32), np.zeros(1)
    options: dict[str, Any] = {"follower": _Random(), "repeats": 200, "show": False}
    found = leaders.compare_gradients(_NoModel(), estimators, x, context, difference_steps=1, **options)
    assert found.source == "differences"
    torch.testing.assert_close(found.exact, torch.tensor([2.0], dtype=torch.float64), rtol=1e-9, atol=0.0)
    assert float(found.exact_error) < 1e-9
    assert found["zero-order"].deviation < 4
    given = leaders.compare_gradients(_NoModel(), estimators, x, context, exact=torch.tensor([2.0]).double(), **options)
    assert given.source == "given"
    assert given["zero-order"].bias == pytest.approx(found["zero-order"].bias, rel=1e-6)
    with pytest.raises(errors.ContextError, match="pass one context"):
        leaders.compare_gradients(_NoModel(), estimators, x, follower=_Random())
    with pytest.raises(errors.UnsupportedError, match="tabular model"):
        leaders.compare_gradients(_NoModel(), estimators, x, context, follower=_Random(), reference="exact", regularization=1.0)


def test_differences_of_a_planner_are_the_exact_gradient() -> None:
    model = random_model(2, states=4, dim=3, discount=0.6)
    options: dict[str, Any] = {"follower": FOLLOWER, "repeats": 2, "show": False}
    found = leaders.compare_gradients(model, {"e": ExactEstimator()}, random_x(3), reference="differences", **options)
    assert found.source == "differences"
    assert float(found.exact_error.norm()) == 0.0
    assert found["e"].relative_error < 1e-6
    one = leaders.compare_gradients(model, {"e": ExactEstimator()}, random_x(3), 1, reference="differences", **options)
    assert one["e"].relative_error < 1e-6

    def loss(x: torch.Tensor, policy: torch.Tensor, context: int) -> torch.Tensor:
        return (policy**2).sum() + x.square().sum()

    general = leaders.compare_gradients(
        model, {"e": ExactEstimator()}, random_x(3), reference="differences", loss=loss, **options
    )
    assert general["e"].relative_error < 1e-6


def test_differences_of_a_learner_have_an_error_that_covers() -> None:
    """Q-learning that comes close to the optimum: its response's gradient is the exact one, up to noise and h^2."""
    model = random_model(3, contexts=2, states=3, dim=2, discount=0.5, moving=("reward", "leader_reward"))
    follower = followers.SoftQLearning(1.0, iterations=3000)
    found = leaders.compare_gradients(
        model, {"e": ExactEstimator()}, random_x(2), follower=follower, repeats=2, reference="differences", difference=0.3,
        difference_steps=4000, difference_repeats=10, show=False,
    )  # fmt: skip
    size = float(found.exact.norm())
    assert 0.0 < float(found.exact_error.norm()) < 0.2 * size
    assert found["e"].deviation < 4
    again = leaders.compare_gradients(
        model, {"e": ExactEstimator()}, random_x(2), follower=follower, repeats=2, reference="differences", difference=0.3,
        difference_steps=4000, difference_repeats=10, show=False,
    )  # fmt: skip
    assert torch.equal(found.exact, again.exact)


def test_every_estimator_with_a_name_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that can work here, at equal steps; the others say why not."""
    model = random_model(0, states=4, dim=3, discount=0.5, leader_discount=0.5)

    class Mine(MonteCarloEstimator):
        """Another estimator."""

    with restored():
        leaders.register_estimator("mine", Mine)
        found = leaders.compare_gradients(model, None, random_x(3), follower=FOLLOWER, repeats=3, env_steps=4000)
    assert {*ESTIMATORS, "exact", "amd", "zero-order", "mine"} <= found.rows.keys() | found.left_out.keys()
    assert {"monte_carlo", "mine", "geometric", "exact", "amd", "zero-order"} <= found.rows.keys()
    assert {"pooled", "multilevel"} <= found.left_out.keys()
    assert "x does not move" in found.left_out["pooled"]
    printed = capsys.readouterr().out
    assert "multilevel is left out: MultilevelEstimator stops its follower" in printed
    assert "cosine" in printed
    for name in ("monte_carlo", "geometric", "mine"):
        row = found[name]
        assert (row.env_steps + row.model_draws) / 3 == pytest.approx(4000, rel=0.2)  # three contexts
        assert row.cosine > 0.5
        assert row.relative_error >= row.relative_bias - 1e-12
    assert found["exact"].cosine == pytest.approx(1.0)
    assert found["mine"].relative_error == found["monte_carlo"].relative_error


def test_what_is_thrown_away_lets_estimators_settle() -> None:
    model = random_model(1, states=4, dim=3, discount=0.6)
    options: dict[str, Any] = {"follower": FOLLOWER, "repeats": 2, "show": False}
    cold, warm = (
        leaders.compare_gradients(model, {"amd": leaders.AMD(sweeps=1)}, random_x(3), discard=discard, **options)["amd"]
        for discard in (0, 30)
    )
    assert cold.relative_error > 0.1
    assert warm.relative_error < 0.01


def test_bad_settings_are_refused() -> None:
    model = random_model(0)
    with pytest.raises(errors.OptionError, match="repeats is 1"):
        leaders.compare_gradients(model, {"exact": ExactEstimator()}, np.zeros(5), follower=FOLLOWER, repeats=1)
    with pytest.raises(errors.OptionError, match="estimators is empty"):
        leaders.compare_gradients(model, {}, np.zeros(5), follower=FOLLOWER)
    with pytest.raises(errors.ContextError, match="out of range"):
        leaders.compare_gradients(model, {"exact": ExactEstimator()}, np.zeros(5), 7, follower=FOLLOWER)
