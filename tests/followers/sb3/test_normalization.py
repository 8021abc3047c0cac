from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import followers
import leaders
from bocmdp_gym import TabularVectorEnv, errors
from bocmdp_gym.wrappers import LeaderReward
from followers import TrajectoryOracle
from tests.followers.problems import Point, X, bandit
from tests.followers.sb3.quick import quick, respond, rng
from tests.followers.sb3.test_views import PLACES, Places, with_leader


class Paid(gym.Wrapper[Any, Any, Any, Any]):
    """Rewards a thousand times as large, from far away."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        return observation, 1000.0 * float(reward) + 5.0, *rest


def far(**options: Any) -> LeaderReward:
    return with_leader(Places(**options))


def _statistics(follower: Any, context: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = follower._learners[context].statistics.state()
    return found


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_observations_are_normalised_in_training_and_in_the_answer(algorithm: str) -> None:
    """Places 1000 and 1004: a network that sees them as they are acts as if they were one."""
    settings: dict[str, Any] = {"total_timesteps": 800, "learning_rate": 1e-2, "normalize": "observation"}
    if algorithm == "PPO":
        settings |= {"n_steps": 100, "batch_size": 100}
    else:
        settings |= {"learning_starts": 100, "target_update_interval": 100, "batch_size": 32}
    follower = quick(algorithm, **settings)
    oracle = TrajectoryOracle(far(), follower)
    policy = oracle.respond([0.0], 0, rng(0))
    assert [policy.probabilities(shown)[place] > 0.9 for place, shown in enumerate(PLACES)] == [True, True]
    kept = _statistics(follower)
    np.testing.assert_allclose(kept["observations.mean"], 1002.0, atol=0.5)
    np.testing.assert_allclose(kept["observations.var"], 4.0, atol=0.2)
    before = policy.probabilities_batch(PLACES)
    oracle.sample(policy, 200, rng(1))
    np.testing.assert_equal(_statistics(follower), kept)  # frozen where it only acts
    oracle.respond([1.0], 0, rng(2))
    assert _statistics(follower)["observations.count"] == kept["observations.count"] + follower.training_steps / 2 + 1
    np.testing.assert_array_equal(policy.probabilities_batch(PLACES), before)  # an answer keeps the statistics of its time


def test_rewards_are_normalised_in_training_alone() -> None:
    """The buffer, the trajectories and the leader see rewards as they are; what the learner's targets see has size 1."""
    follower = quick("DQN", normalize="reward")
    oracle = TrajectoryOracle(with_leader(Paid(Places())), follower)
    policy = oracle.respond([0.0], 0, rng(0))
    assert policy.view.normalizer is None
    assert set(np.unique(oracle.sample(policy, 100, rng(0)).rewards)) <= {5.0, 1005.0}
    model: Any = follower._learners[0].model
    stored = model.replay_buffer.rewards[:60, 0]
    assert set(stored.tolist()) == {5.0, 1005.0}
    deviation = np.sqrt(_statistics(follower)["returns.var"])
    assert deviation > 100.0
    assert model.get_vec_normalize_env().gamma == 0.5  # the environment's
    seen = model.replay_buffer.sample(50, env=model.get_vec_normalize_env()).rewards.numpy()
    np.testing.assert_allclose(np.unique(seen), np.array([5.0, 1005.0]) / deviation, rtol=1e-5)


def test_the_leaders_return_is_that_of_the_same_policy_without() -> None:
    """Rewards are divided by what they are worth, so a network from the same seed and learning nothing answers the same."""
    runs = []
    for normalize in (None, "reward"):
        follower = quick("PPO", learning_rate=0.0, normalize=normalize)
        runs.append(leaders.optimize(bandit(), leaders.HPGD(env_steps=200, regularization=0.1), follower, 2, x0=10 * X, seed=0))
    assert runs[0].leader_return == runs[1].leader_return
    np.testing.assert_array_equal(runs[0].history["sampled_return"], runs[1].history["sampled_return"])


def test_each_context_has_statistics_of_its_own() -> None:
    follower = quick("PPO", normalize="both")
    oracle = TrajectoryOracle(Point(), follower)
    oracle.respond([0.5], 0, rng(0))
    first = _statistics(follower)
    oracle.respond([0.5], 1, rng(1))
    np.testing.assert_equal(_statistics(follower), first)
    assert _statistics(follower, 1)["returns.var"] != first["returns.var"]


@pytest.mark.parametrize(("algorithm", "normalize"), [("PPO", "reward"), ("PPO", "both"), ("SAC", "both"), ("TD3", "reward")])
def test_a_saved_follower_goes_on_with_its_statistics(algorithm: str, normalize: Any, tmp_path: Path) -> None:
    def run(responses: range) -> list[Any]:
        policies = [oracle.respond([0.2 * k], k % 2, generator) for k in responses]
        return [p.act_batch(np.linspace(-1, 1, 9, dtype=np.float32)[:, None], rng(0)) for p in policies]

    def made() -> tuple[Any, Any]:
        follower = quick(algorithm, normalize=normalize)
        return follower, TrajectoryOracle(Point(), follower)

    (follower, oracle), generator = made(), rng(0)
    straight = run(range(4))
    (follower, oracle), generator = made(), rng(0)
    run(range(2))
    follower.save(tmp_path)
    kept = [_statistics(follower, context) for context in range(2)]
    assert not list(tmp_path.rglob("*.pkl"))
    follower, oracle = made()
    follower.load(tmp_path)
    np.testing.assert_array_equal(run(range(2, 4)), straight[2:])
    assert _statistics(follower)["returns.count"] > kept[0]["returns.count"]


def test_copies_and_vector_environments_are_normalised_too() -> None:
    for env, options in (
        (far(), {"n_envs": 2}),
        (far(), {"n_envs": 2, "make_env": far}),
        (gym.vector.SyncVectorEnv([far] * 2, autoreset_mode="SameStep"), {}),
    ):
        follower = quick("PPO", total_timesteps=200, normalize="observation", **options)
        policy = TrajectoryOracle(env, follower).respond([0.0], 0, rng(0))
        assert abs(policy.view.observe(PLACES)).max() < 2.0
        follower.close()
    follower = quick("A2C", normalize="reward", n_envs=3)
    respond(follower)  # compiled copies
    assert _statistics(follower)["returns.count"] > 40
    flat = quick("DQN", normalize="both", n_envs=2)
    respond(flat, FlattenObservation(bandit()))
    TrajectoryOracle(TabularVectorEnv(bandit(), 3, "SameStep"), follower).respond(X, 0, rng(0))


def test_of_a_dictionary_what_has_a_size_is_normalised() -> None:
    space = gym.spaces.Dict(
        {
            "far": gym.spaces.Box(0.0, 2000.0, (1,), np.float32),
            "which": gym.spaces.Discrete(2, start=5),
            "picture": gym.spaces.Box(0, 255, (36, 36, 1), np.uint8),
        }
    )
    picture = np.full((36, 36, 1), 200, np.uint8)
    shown = lambda place: {"far": PLACES[place], "which": np.int64(5), "picture": picture}  # noqa: E731
    env = far(space=space, show=shown)
    policy = respond(quick("A2C", normalize="observation"), env, [0.0])
    seen = policy.view.observe(shown(1))
    assert abs(seen["far"]).max() < 3.0
    assert seen["which"] == 0
    np.testing.assert_array_equal(seen["picture"], picture)
    assert space["picture"].dtype == np.uint8


def test_what_cannot_be_normalised_is_refused_at_once() -> None:
    with pytest.raises(errors.OptionError, match="Did you mean 'reward'"):
        quick("PPO", normalize="rewards")
    for follower in (followers.SoftDQNFollower, followers.SACFollower):
        with pytest.raises(errors.UnsupportedError, match=r"another lambda than 0\.1; expected normalize='observation'"):
            follower(0.1, 1000, normalize="both")
        follower(0.1, 1000, normalize="observation")
    with pytest.raises(errors.UnsupportedError, match=r"Discrete\(2\) are no numbers"):
        TrajectoryOracle(bandit(), quick("PPO", normalize="observation"))
    with pytest.raises(errors.UnsupportedError, match="FlattenObservation"):
        TrajectoryOracle(bandit(), quick("DQN", normalize="reward"))
    TrajectoryOracle(bandit(), quick("PPO", normalize="reward"))
    twice = quick("PPO", normalize="both", vec_env_class=lambda makers: VecNormalize(DummyVecEnv(makers)))
    with pytest.raises(errors.UnsupportedError, match="2 times over"):
        respond(twice, Point(), [0.5])
