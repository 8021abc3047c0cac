from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import followers
import leaders
from bocmdp_gym import TabularBOCMDP, errors
from bocmdp_gym.wrappers import LeaderReward
from followers import _regularization_returns as sampled
from followers import estimate_regularization
from tests.problems import four_rooms, random_model, random_x, small_rooms


def _answer(env: Any, follower: followers.Follower, dim: int, context: int = 1) -> tuple[followers.TrajectoryOracle, Any]:
    oracle = followers.TrajectoryOracle(env, follower)
    return oracle, oracle.respond(random_x(dim), context, np.random.default_rng(0))


@pytest.mark.parametrize("regularization", [0.01, 0.3, 2.0])
def test_a_softmax_of_its_own_values_tells_its_lambda(regularization: float) -> None:
    """Exactly: entropies of what follows are part of the values."""
    for env, dim in ((random_model(0), 5), (four_rooms(), 105)):
        oracle, policy = _answer(env, followers.SoftPolicyIteration(regularization), dim)
        found = estimate_regularization(oracle, policy)
        assert found.regularization == pytest.approx(regularization, rel=1e-6)
        assert found.standard_error < 1e-6 * regularization
        assert found.misfit < 1e-9


def test_sampled_actions_tell_it_within_their_standard_error() -> None:
    oracle, policy = _answer(random_model(0), followers.SoftPolicyIteration(0.3), 5)
    draws = [estimate_regularization(oracle, policy, env_steps=1000, rng=np.random.default_rng(seed)) for seed in range(200)]
    deviations = np.array([(one.regularization - 0.3) / one.standard_error for one in draws])
    assert abs(deviations.mean()) < 4 / 200**0.5
    assert 0.85 < deviations.std() < 1.15


def test_values_without_the_entropy_of_what_follows_would_mislead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted error that the exact test would see."""
    from followers import regularization as module

    whole = module.evaluate

    def plain(arrays: Any, table: Any, reward: Any, continuation: Any, lambda_: float = 0.0) -> Any:
        return whole(arrays, table, reward, continuation, 0.0)

    monkeypatch.setattr(module, "evaluate", plain)
    oracle, policy = _answer(random_model(0), followers.SoftPolicyIteration(0.3), 5)
    found = estimate_regularization(oracle, policy)
    assert found.regularization != pytest.approx(0.3, rel=1e-4)
    assert found.misfit > 1e-5


def test_best_actions_alone_are_lambda_0_and_no_preference_is_infinity() -> None:
    oracle, policy = _answer(random_model(0), followers.LinearProgramming(), 5)
    assert estimate_regularization(oracle, policy)[:2] == (0.0, 0.0)
    task = oracle.task(random_x(5), 1)
    model = oracle.model
    assert isinstance(model, TabularBOCMDP)
    q = model.solve(random_x(5), 0.1).q[1].numpy()
    worst = task.tabular_policy(np.eye(model.n_actions)[q.argmin(-1)])
    assert estimate_regularization(oracle, worst).regularization == np.inf


def test_agents_that_expose_nothing_are_judged_by_what_they_do() -> None:
    planner, policy = _answer(small_rooms(), followers.SoftPolicyIteration(0.3), 21)
    rng = np.random.default_rng(0)
    agent = followers.CallableFollower(lambda observation, rng: policy.act(observation, rng))
    oracle, answer = _answer(small_rooms(), agent, 21)
    with pytest.raises(errors.UnsupportedError, match="give env_steps and rng"):
        estimate_regularization(oracle, answer)
    found = estimate_regularization(oracle, answer, env_steps=20_000, rng=rng)
    assert found.regularization == pytest.approx(0.3, abs=max(5 * found.standard_error, 0.03))
    assert planner.follower.regularization == 0.3


@pytest.mark.parametrize("regularization", [0.5, 2.0])
def test_returns_tell_the_lambda_of_a_softmax_without_the_table(regularization: float) -> None:
    """Within the standard error: 4 of the mean of 40 draws; entropies of what follows are part of it."""
    oracle, policy = _answer(random_model(0), followers.SoftPolicyIteration(regularization), 5)
    found = []
    for seed in range(40):
        batch = oracle.sample(policy, 8000, np.random.default_rng(seed))
        log_p, entropy = sampled.preferences(policy, batch)
        features = np.eye(oracle.model.n_states)[batch.states]  # type: ignore[union-attr]
        found.append(sampled.ratio(batch, log_p, entropy, oracle.core.discount, features))
    estimates, errors_ = np.array(found).T
    deviations = (estimates - regularization) / errors_
    assert abs(deviations.mean()) < 4 / 40**0.5
    assert 0.7 < deviations.std() < 1.4
    assert errors_.mean() < 0.2 * regularization


def _coins() -> tuple[LeaderReward, followers.CallableFollower]:
    """A player paid for one side of a coin, pi(1) = sigmoid(x / lambda) at x = 0.5 and lambda = 0.3, on what is no table."""
    env = LeaderReward(
        _Coin(),
        bonus=lambda x, observations, actions, context: x[0] * actions,
        leader_space=1,
        leader_reward=lambda x, observations, actions, context: x[0] * actions,
        discount=0.9,
    )
    chance = 1.0 / (1.0 + np.exp(-0.5 / 0.3))
    agent = followers.CallableFollower(
        lambda observation, rng: int(rng.random() < chance),
        probabilities=lambda observation: np.array([1.0 - chance, chance]),
    )
    return env, agent


@pytest.mark.filterwarnings("ignore::bocmdp_gym.errors.CriticWarning")
def test_beyond_tables_returns_tell_lambda_in_a_run_too() -> None:
    env, agent = _coins()
    leader = leaders.HPGD(1e-12, 2000, "critic", regularization=1.0, hidden=())
    history = leaders.optimize(env, leader, agent, 3, x0=[0.5], seed=0).history
    assert (np.abs(history["follower_lambda"] - 0.3) < 4 * history["follower_lambda_error"]).all()
    assert (history["follower_lambda_error"] < 0.05).all()


def test_beyond_tables_returns_tell_lambda() -> None:
    env, agent = _coins()
    oracle = followers.TrajectoryOracle(env, agent)
    policy = oracle.respond(np.array([0.5]), 0, np.random.default_rng(0))
    found = estimate_regularization(oracle, policy, env_steps=2000, rng=np.random.default_rng(1))
    assert found.regularization == pytest.approx(0.3, abs=4 * found.standard_error)
    assert found.standard_error < 0.05
    with pytest.raises(errors.OptionError, match="a number of steps to sample"):
        estimate_regularization(oracle, policy)
    rng = np.random.default_rng(0)
    silent = followers.TrajectoryOracle(env, followers.CallableFollower(lambda observation, rng: 0))
    with pytest.raises(errors.UnsupportedError, match="exposes no action probabilities"):
        estimate_regularization(silent, silent.respond(np.array([0.5]), 0, rng), env_steps=100, rng=rng)


class _Coin(gym.Env[Any, Any]):
    """Two actions, two steps: the first pays a random sum, which is noise."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    _step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._step = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return np.full(1, 0.5 * self._step, np.float32), float(self.np_random.normal()), self._step == 2, False, {}


def test_episodes_that_are_all_cut_are_refused() -> None:
    oracle, policy = _answer(random_model(0), followers.SoftPolicyIteration(0.3), 5)
    batch = oracle.sample(policy, 300, np.random.default_rng(0), horizon=5)
    batch = replace(batch, terminated=np.zeros(batch.n_episodes, dtype=np.bool_))
    with pytest.raises(errors.OptionError, match="was cut by a time limit before a return at discount"):
        sampled.ratio(batch, np.zeros(batch.n_steps), np.zeros(batch.n_steps), 0.9, np.ones((batch.n_steps, 1)))


def test_what_cannot_be_judged_is_refused() -> None:
    oracle, policy = _answer(random_model(0), followers.SoftPolicyIteration(0.3), 5)
    with pytest.raises(errors.OptionError, match="rng is None"):
        estimate_regularization(oracle, policy, env_steps=10)
    with pytest.raises(errors.OptionError, match="env_steps is -1"):
        estimate_regularization(oracle, policy, env_steps=-1)


def test_runs_log_it_for_followers_without_a_lambda() -> None:
    class Unknown(followers.SoftPolicyIteration):
        def __init__(self) -> None:
            super().__init__(0.3)
            self.regularization = None  # type: ignore[assignment]

        def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
            solution = self._solver.solve(task.mdps, task.context, 0.3)
            return task.tabular_policy(solution.policy, solution.value)

    many: list[leaders.Leader] = [leaders.HPGD(0.1, 200, regularization=1.0), leaders.FirstOrder(0.1, 0.01, env_steps=200)]
    for leader in many:
        result = leaders.optimize(small_rooms(), leader, Unknown(), 2, evaluate_every=1)
        np.testing.assert_allclose(result.history["follower_lambda"], 0.3, rtol=1e-6)
    plain = leaders.optimize(small_rooms(), leaders.HPGD(0.1, 200), followers.SoftPolicyIteration(0.3), 2, evaluate_every=1)
    assert "follower_lambda" not in plain.history
