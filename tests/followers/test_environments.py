from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.wrappers import vector as vector_wrappers

import leaders
from bocmdp_gym import TabularEnv, TabularVectorEnv, configurable, errors
from bocmdp_gym.wrappers import LeaderReward, ObserveContext
from followers import (
    CallableFollower,
    LinearProgramming,
    SB3Follower,
    SoftPolicyIteration,
    SoftQLearning,
    TrajectoryOracle,
    VanillaPolicyGradient,
)
from followers.environments import inspect_layers, rows
from leaders.evaluator import Evaluator, evaluator
from tests.followers.problems import CountSteps, Point, X, bandit
from tests.problems import random_model, small_rooms


class Unknown(gym.Wrapper[Any, Any, Any, Any]):
    """A step of its own."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, float(reward) / 2, *rest


class Shorter(wrappers.TimeLimit):
    """Derived from one that is known, with a step of its own."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(1 - action)
        return observation, reward, *rest


class Narrow(wrappers.DtypeObservation):
    """Derived from one that shows the same, and shows another."""

    def observation(self, observation: Any) -> Any:
        return super().observation(1 - observation)


CHANGING: dict[str, Any] = {
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: -reward),
    "NormalizeReward": wrappers.NormalizeReward,
    "ClipReward": lambda env: wrappers.ClipReward(env, -0.5, 0.5),
    "TransformAction": lambda env: wrappers.TransformAction(env, lambda action: 1 - action, env.action_space),
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "RepeatAction": lambda env: wrappers.RepeatAction(env, 2),
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 1),
    "TimeAwareObservation": lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 5)),
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 2),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda state: 1 - state, env.observation_space),
    "Unknown": Unknown,
    "Shorter": lambda env: Shorter(env, 5),
    "Narrow": lambda env: Narrow(env, np.int32),
    "Unknown inside": lambda env: wrappers.TimeLimit(Unknown(env), 5),
}
SAME: dict[str, Any] = {
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 5),
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "OrderEnforcing": wrappers.OrderEnforcing,
    "PassiveEnvChecker": wrappers.PassiveEnvChecker,
    "FlattenObservation": wrappers.FlattenObservation,
    "ObserveContext": ObserveContext,
    "its own, watching": CountSteps,
}


@pytest.mark.parametrize("name", CHANGING)
def test_planners_do_not_plan_for_another_problem(name: str) -> None:
    said = {"Unknown inside": "Unknown"}.get(name, name)
    planners = (
        SoftPolicyIteration(0.5),
        SoftQLearning(0.5, iterations=10),
        VanillaPolicyGradient(0.5, iterations=10),
        LinearProgramming(),
    )
    for follower in planners:
        with pytest.raises(errors.UnsupportedError, match=rf"reads the model of TabularEnv, and {said} around it may change"):
            TrajectoryOracle(CHANGING[name](bandit()), follower)


@pytest.mark.parametrize("name", sorted(CHANGING.keys() - {"RepeatAction"}))  # which no oracle takes
def test_nothing_reads_the_model_of_another_problem(name: str) -> None:
    """One rule for exact leaders, estimators, constraints and exact values: learning followers alone are left."""
    env = CHANGING[name](bandit())
    learner = CallableFollower(lambda observation: 0, regularization=0.5)
    for leader in (
        leaders.ExactGradient(),
        leaders.AMD(),
        leaders.HPGD(env_steps=50),
        leaders.HPGD(estimator="geometric", samples=10),
        leaders.HPGD(estimator="pooled", env_steps=50),
        leaders.HPGD(estimator="critic", env_steps=50),
        leaders.ZeroOrder(exact=True),
    ):
        with pytest.raises(errors.UnsupportedError, match="around it may change"):
            leaders.optimize(env, leader, learner, 1, progress=False)
    with pytest.raises(errors.UnsupportedError, match="LeaderEnv"):
        leaders.LeaderEnv(env, learner, bounds=(-1.0, 1.0))
    sampled = leaders.ZeroOrder(exact=False, env_steps=20)
    with pytest.warns(UserWarning, match="the exact leader_return"):
        result = leaders.optimize(env, sampled, learner, 2, evaluate_every=1, progress=False)
    assert result.leader_return is None
    assert "leader_return" not in result.history[-1]
    limits = [leaders.Constraint("c", "follower", 0.0)]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(errors.UnsupportedError, match="a constraint"):
        leaders.optimize(env, sampled, learner, 1, constraints=limits, progress=False)


@pytest.mark.parametrize("name", SAME)
def test_wrappers_that_change_nothing_are_planned_under(name: str) -> None:
    env = SAME[name](bandit())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = leaders.optimize(env, leaders.ExactGradient(), SoftPolicyIteration(0.5), 3, x0=X, progress=False)
    expected = leaders.optimize(bandit(), leaders.ExactGradient(), SoftPolicyIteration(0.5), 3, x0=X, progress=False)
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=0)
    assert found.leader_return == expected.leader_return
    oracle, rng = TrajectoryOracle(env, SoftPolicyIteration(0.5)), np.random.default_rng(0)
    policy = oracle.respond(X, 0, rng)
    batch = oracle.sample(policy, 3000, rng)
    exact = float(configurable(env).model.leader_return(X, 0.5, per_context=True)[0])
    sampled = batch.discounted_returns(0.5, leader=True)
    assert abs(sampled.mean() - exact) < 5 * sampled.std() / len(sampled) ** 0.5 + 0.5**5


def test_states_that_look_alike_are_another_problem() -> None:
    two, nine = bandit(), TabularEnv(random_model())
    assert inspect_layers(wrappers.DtypeObservation(two, np.bool_), two).changing is None  # two states, two truth values
    assert inspect_layers(wrappers.DtypeObservation(nine, np.uint8), nine).changing is None
    coarse = wrappers.DtypeObservation(small_rooms(observation="coordinates"), np.int8)  # from [0, 1], truncated
    assert inspect_layers(coarse, configurable(coarse)).changing == "DtypeObservation"
    with pytest.raises(errors.UnsupportedError, match="DtypeObservation around it may change"):
        TrajectoryOracle(coarse, SoftPolicyIteration(0.5))


@pytest.mark.parametrize(
    ("make", "changing"),
    [
        (lambda: vector_wrappers.TransformReward(TabularVectorEnv(bandit(), 2), lambda r: 2 * r), "TransformReward"),
        (lambda: vector_wrappers.NormalizeReward(TabularVectorEnv(bandit(), 2)), "NormalizeReward"),
        (lambda: vector_wrappers.RecordEpisodeStatistics(TabularVectorEnv(bandit(), 2)), None),
        (lambda: gym.vector.SyncVectorEnv([bandit, lambda: Unknown(bandit())]), "Unknown"),
        (lambda: gym.vector.SyncVectorEnv([lambda: CountSteps(bandit())] * 2), None),
    ],
)
def test_layers_of_copies_and_around_them_are_seen(make: Any, changing: str | None) -> None:
    if changing is None:
        TrajectoryOracle(make(), SoftPolicyIteration(0.5))
        return
    with pytest.raises(errors.UnsupportedError, match=f"{changing} around it may change"):
        TrajectoryOracle(make(), SoftPolicyIteration(0.5))


def test_models_of_observations_are_not_read_through_other_observations() -> None:
    def wrapped() -> Any:
        return LeaderReward(
            gym.make("CartPole-v1", max_episode_steps=10),
            lambda x, o, a, c: x[0] * o[:, 2] + x[1] * a,
            2,
            lambda x, o, a, c: -o[:, 2].abs(),
            0.9,
        )

    follower = CallableFollower(lambda observation: 0, regularization=0.5)
    wraps: tuple[Any, ...] = (
        wrappers.NormalizeReward,
        wrappers.NormalizeObservation,
        lambda env: wrappers.FrameStackObservation(env, 2),
        lambda env: wrappers.DtypeObservation(env, np.float64),
        Unknown,
    )
    for wrap in wraps:
        estimator = leaders.HPGD(estimator="critic", env_steps=50).estimator
        with pytest.raises(errors.UnsupportedError, match="CriticEstimator reads the model of LeaderReward"):
            estimator.bind(TrajectoryOracle(wrap(wrapped()), follower))
    watched = TrajectoryOracle(wrappers.RecordEpisodeStatistics(wrapped()), follower)
    leaders.HPGD(estimator="critic", env_steps=50).estimator.bind(watched)


def test_an_evaluation_leaves_the_exact_number_out() -> None:
    learner = SB3Follower("PPO", 64, n_steps=32, batch_size=32)
    oracle = TrajectoryOracle(wrappers.TransformReward(bandit(), lambda reward: -reward), learner)
    with pytest.warns(UserWarning, match="TransformReward may change"):
        assert evaluator(oracle, 0.5) is None
    assert isinstance(evaluator(TrajectoryOracle(bandit(), learner), 0.5), Evaluator)


def test_other_problems_are_still_learnt() -> None:
    oracle = TrajectoryOracle(Unknown(Point()), CallableFollower(lambda observation: np.zeros(1, np.float32)))
    rng = np.random.default_rng(0)
    batch = oracle.sample(oracle.respond([0.5], 0, rng), 20, rng)
    np.testing.assert_allclose(batch.rewards, -0.125)


def test_rows_of_dicts_and_tuples_are_copies() -> None:
    stack: Any = ({"a": np.arange(2.0)}, np.zeros((2, 3)))
    split = rows(stack)
    stack[0]["a"][:], stack[1][:] = 7.0, 7.0
    assert split[1][0] == {"a": 1.0}
    np.testing.assert_array_equal(split[1][1], np.zeros(3))
