from __future__ import annotations

from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import ConfigurableEnv, TabularBOCMDP, errors
from leaders.gradients import Estimate, ZeroOrderEstimator
from tests.problems import F64, four_rooms, random_model, random_x

REGULARIZATION = 0.5


def _estimate(model: Any, estimator: ZeroOrderEstimator, x: torch.Tensor, seed: int = 0, loss: Any = None) -> Estimate:
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(REGULARIZATION))
    estimator.bind(oracle, loss)
    return estimator.estimate(oracle, x, 0, np.random.default_rng(seed))


def _smoothed_gradient(f: Any, x: torch.Tensor, u: float, points: int = 12) -> torch.Tensor:
    """E grad f(x + u z) by Gauss-Hermite quadrature in every coordinate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = weights / weights.sum()
    total = torch.zeros_like(x)
    for index in product(range(points), repeat=len(x)):
        z = torch.tensor(nodes[list(index)])
        total += float(np.prod(weights[list(index)])) * torch.func.grad(f)(x + u * z)
    return total


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_mean_is_the_smoothed_gradient(two_sided: bool) -> None:
    model = random_model(0, contexts=1, states=4, dim=2, moving=("reward", "leader_reward", "transition", "initial"))
    x, u = random_x(2), 0.7
    estimate = _estimate(model, ZeroOrderEstimator(u, 3000, two_sided), x)
    smoothed = _smoothed_gradient(lambda z: model.leader_return(z, REGULARIZATION), x, u)
    plain = torch.func.grad(lambda z: model.leader_return(z, REGULARIZATION))(x)
    assert estimate.standard_error is not None
    assert float(((estimate.gradient - smoothed).abs() / estimate.standard_error).max()) < 4
    assert float(((estimate.gradient - plain).abs() / estimate.standard_error).max()) > 6  # the test can tell them apart


def test_two_sided_differences_find_the_gradient_of_a_line() -> None:
    """In d = 1, (F(x + uz) - F(x - uz)) z / (2 u) is z^2 dF/dx, up to u^2."""
    model = random_model(1, contexts=1, dim=1)
    x, rng = random_x(1), np.random.default_rng(0)
    z2 = rng.standard_normal(1) ** 2
    estimate = _estimate(model, ZeroOrderEstimator(1e-4, two_sided=True), x)
    gradient = torch.func.grad(lambda z: model.leader_return(z, REGULARIZATION))(x)
    torch.testing.assert_close(estimate.gradient, gradient * torch.tensor(z2), rtol=1e-6, atol=1e-7)


def test_a_loss_is_minimised() -> None:
    model = random_model(3, contexts=1, dim=2)

    def loss(x: torch.Tensor, policy: torch.Tensor, context: int) -> torch.Tensor:
        return (policy**2).sum() + (x**2).sum()

    x = random_x(2)
    estimate = _estimate(model, ZeroOrderEstimator(0.01, 1500, two_sided=True), x, loss=loss)
    exact = torch.func.grad(lambda z: model.loss(z, loss, regularization=REGULARIZATION))(x)
    assert estimate.standard_error is not None
    assert float(((estimate.gradient + exact).abs() / estimate.standard_error).max()) < 4


def test_smoothing_decays_with_every_new_x() -> None:
    model = random_model(0)
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(REGULARIZATION))
    estimator, rng = ZeroOrderEstimator(2.0), np.random.default_rng(0)
    for _ in range(2):  # binding starts from scratch
        estimator.bind(oracle)
        used = [estimator.estimate(oracle, random_x(5, seed), c, rng).metrics["smoothing"] for seed in range(3) for c in range(2)]
        assert used == [2.0, 2.0, 1.0, 1.0, 2.0 / 3.0, 2.0 / 3.0]
    constant = ZeroOrderEstimator(2.0, decay=False)
    constant.bind(oracle)
    assert [constant.estimate(oracle, random_x(5, s), 0, rng).metrics["smoothing"] for s in range(2)] == [2.0, 2.0]


def test_common_random_numbers_reduce_the_spread() -> None:
    model = random_model(0, moving=("reward", "leader_reward"))
    spreads = []
    for common in (True, False):
        estimator = ZeroOrderEstimator(0.05, 200, exact=False, env_steps=200, common_random_numbers=common)
        estimate = _estimate(model, estimator, random_x(5))
        assert estimate.standard_error is not None
        assert estimate.env_steps >= 201 * 200
        spreads.append(float(estimate.standard_error.norm()))
    assert spreads[0] < 0.7 * spreads[1]


def test_the_leader_improves() -> None:
    leader = leaders.ZeroOrder(learning_rate=0.1)
    result = leaders.optimize(four_rooms(), leader, followers.SoftPolicyIteration(0.003), 400, seed=0)
    assert result.leader_return is not None
    assert result.leader_return > result.history["leader_return"][0] + 0.05
    assert result.env_steps == 0


class _Slope(ConfigurableEnv):
    """One step from a continuous state: the follower goes where x pays, and the leader wants it near 1."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Box(-5.0, 5.0, (1,))

    def __init__(self) -> None:
        self._setup_configuration(gym.spaces.Box(-2.0, 2.0, (1,), np.float64), gym.spaces.Discrete(1), 0.9)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        return self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(self.leader[0] * action[0] - action[0] ** 2 / 2)
        leader_reward = -float((action[0] - 1.0) ** 2)
        observation = np.zeros(1, dtype=np.float32)
        return observation, reward, True, False, {"leader_reward": leader_reward, "context": self.context}


class _Follows(followers.Follower):
    """Plays the optimum a = x, and has no lambda."""

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        class Policy:
            leader, context = task.leader, task.context

            def act(self, observation: Any, rng: np.random.Generator) -> Any:
                return task.leader

        return Policy()


def test_any_environment_and_any_follower_will_do() -> None:
    leader = leaders.ZeroOrder(learning_rate=0.1, smoothing=0.2, decay=False, two_sided=True, env_steps=5)
    result = leaders.optimize(_Slope(), leader, _Follows(), 100, seed=0)
    assert result.x.item() == pytest.approx(1.0, abs=0.05)
    assert result.env_steps == 100 * 2 * 5
    assert result.leader_return is None


def test_points_stay_inside_a_bounded_leader_space() -> None:
    leader = leaders.ZeroOrder(learning_rate=0.01, smoothing=3.0, decay=False, two_sided=True, env_steps=5)
    result = leaders.optimize(_Slope(), leader, _Follows(), 20, seed=0)  # 3 |z| leaves [-2, 2] often
    assert result.x.item() > 0.0


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(errors.UnsupportedError, match=r"no tabular model; use sampled returns.*exact=False"):
        leaders.optimize(_Slope(), leaders.ZeroOrder(exact=True), _Follows(), 5)
    with pytest.raises(errors.UnsupportedError, match="reads the policy as a table"):
        leaders.optimize(_Slope(), leaders.ZeroOrder(), _Follows(), 5, loss=lambda x, policy, context: x.sum())
    model = random_model(0)
    assert isinstance(model, TabularBOCMDP)
    with pytest.raises(errors.UnsupportedError, match=r"cannot be sampled; use ZeroOrder\(exact=True\)"):
        _estimate(model, ZeroOrderEstimator(exact=False), torch.zeros(5, dtype=F64), loss=lambda x, policy, context: x.sum())
    with pytest.raises(errors.OptionError, match="smoothing is 0"):
        leaders.ZeroOrder(smoothing=0.0)
    with pytest.raises(errors.OptionError, match="directions is 0"):
        leaders.ZeroOrder(directions=0)


def test_learning_followers_share_random_numbers_too() -> None:
    model = random_model(0, moving=("reward", "leader_reward"))
    spreads = []
    for common in (True, False):
        follower = followers.SoftQLearning(REGULARIZATION, iterations=2000, warm_start=False)
        oracle = followers.TrajectoryOracle(model, follower)
        estimator = ZeroOrderEstimator(0.02, 100, common_random_numbers=common)
        estimator.bind(oracle)
        estimate = estimator.estimate(oracle, random_x(5), 0, np.random.default_rng(0))
        assert estimate.standard_error is not None
        spreads.append(float(estimate.standard_error.norm()))
    assert spreads[0] < 0.7 * spreads[1]
