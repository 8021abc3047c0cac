from __future__ import annotations

from itertools import product
from pathlib import Path
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


class _Lever(ConfigurableEnv):
    """One step: the follower is paid for pulling, whatever x is, and the leader what its function says of x and the pull."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, leader_reward: Any = lambda x, pulled: float(pulled)) -> None:
        self._leader_reward = leader_reward
        self._setup_configuration(gym.spaces.Box(-9.0, 9.0, (2,), np.float64), gym.spaces.Discrete(2), 0.9)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        return self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        paid = self._leader_reward(self.leader, int(action))
        return np.zeros(1, np.float32), float(action), True, False, {"leader_reward": paid, "context": self.context}


def _learners() -> list[followers.Follower]:
    ppo = followers.SB3Follower("PPO", 32, n_steps=32, batch_size=32, n_epochs=2, learning_rate=0.05)
    dqn = followers.SB3Follower("DQN", 32, learning_starts=8, buffer_size=100, batch_size=8, learning_rate=0.05)
    return [ppo, dqn]


@pytest.mark.parametrize("follower", _learners(), ids=lambda follower: follower.algorithm.__name__)
@pytest.mark.parametrize("two_sided", [False, True])
def test_training_is_no_effect_of_x(follower: followers.Follower, two_sided: bool) -> None:
    leader = leaders.ZeroOrder(0.1, 0.5, two_sided=two_sided, directions=2, env_steps=50)
    run = leaders.optimize(_Lever(), leader, follower, 4, seed=0)
    assert (run.history["gradient_norm"] == 0.0).all()
    assert run.history["sampled_return"].max() > 0.8  # it does learn
    assert run.history["follower_training_steps"].tolist() == [32 * (4 if two_sided else 3) * (i + 1) for i in range(4)]
    alone = leaders.optimize(_Lever(), leader, follower, 4, seed=0, objective=leaders.objectives.Min(), contexts="all")
    assert (alone.history["gradient_norm"] == 0.0).all()


def test_the_difference_is_that_of_x_while_a_follower_learns() -> None:
    """F(x + uz) - F(x - uz) of a parabola is 2 u z F'(x), whatever the follower does on the way."""
    env = _Lever(lambda x, pulled: pulled - float((x**2).sum()))
    oracle = followers.TrajectoryOracle(env, _learners()[0])
    estimator, rng, x = ZeroOrderEstimator(0.3, two_sided=True, env_steps=50), np.random.default_rng(0), random_x(2)
    estimator.bind(oracle)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        z = np.random.default_rng(seed)
        z.integers(2**63)
        direction = torch.from_numpy(z.standard_normal(2))
        gradient = estimator.estimate(oracle, x, 0, rng).gradient
        torch.testing.assert_close(gradient, -2.0 * (x @ direction) * direction, rtol=1e-9, atol=1e-9)


def test_a_follower_continues_from_its_answer_at_x() -> None:
    """One-sided: learners are those of a run without any points beside x."""
    env, x, policies = _Lever(), torch.zeros(2, dtype=F64), []
    for directions in (1, 3):
        oracle = followers.TrajectoryOracle(env, _learners()[0])
        estimator = ZeroOrderEstimator(0.3, directions=directions, env_steps=50, decay=False)
        estimator.bind(oracle)
        for seed in range(2):
            estimator.estimate(oracle, x, 0, np.random.default_rng(seed))
        policy = oracle.respond(x, 0, np.random.default_rng(2))
        policies.append(policy.probabilities(np.zeros(1, np.float32)))
    np.testing.assert_array_equal(*policies)


def test_an_agent_that_cannot_be_put_back_is_named() -> None:
    agent = followers.CallableFollower(lambda observation: 1, train=lambda env, context, rng: None)
    with pytest.warns(UserWarning, match="trains an agent in place, which cannot be put back"):
        leaders.optimize(_Lever(), leaders.ZeroOrder(0.1, env_steps=5), agent, 1)
    fresh = followers.CallableFollower(train=lambda env, context, rng: lambda observation: 1)
    leaders.optimize(_Lever(), leaders.ZeroOrder(0.1, env_steps=5), fresh, 2)


def test_a_killed_run_with_a_learner_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(iterations: int, **options: Any) -> leaders.Result:
        leader = leaders.ZeroOrder(0.1, 0.5, env_steps=20)
        env = _Lever(lambda x, pulled: pulled - float((x**2).sum()))
        return leaders.optimize(env, leader, _learners()[0], iterations, x0=[1.0, 2.0], **options)

    def die(progress: leaders.Progress) -> None:
        if progress.iteration == 2:
            raise KeyboardInterrupt

    kept = leaders.Checkpoints(tmp_path / "checkpoints", every=2)
    straight = run(4)
    with pytest.raises(KeyboardInterrupt):
        run(4, checkpoints=kept, evaluate_every=1, callback=die)
    resumed = run(4, checkpoints=leaders.Checkpoints(tmp_path / "checkpoints", every=2), evaluate_every=1, resume=True)
    assert torch.equal(resumed.x, straight.x)
    for column in ("sampled_return", "follower_training_steps"):
        np.testing.assert_array_equal(resumed.history[column], straight.history[column])


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
