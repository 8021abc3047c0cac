from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv

from bocmdp_gym import TabularVectorEnv, errors
from followers import TrajectoryOracle
from tests.followers.problems import CountSteps, Point, X, bandit
from tests.followers.sb3.quick import quick, respond, rng


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_copies_of_the_environment(algorithm: str) -> None:
    compiled = quick(algorithm, n_envs=4)
    respond(compiled)
    made = quick(algorithm, n_envs=4, make_env=bandit)
    respond(made)
    copied = quick(algorithm, n_envs=4)
    respond(copied, CountSteps(bandit()))
    for follower in (compiled, made, copied):
        assert follower._envs is not None
        assert follower._envs.num_envs == 4
        assert follower._learners[0].model.n_envs == 4
        assert [leader.tolist() for leader in follower._envs.get_attr("leader")] == [X.tolist()] * 4
        assert follower.training_steps == (128 if algorithm == "PPO" else 64)  # whole rollouts
        follower.close()


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_training_on_a_vector_environment(mode: str) -> None:
    for envs in (
        TabularVectorEnv(bandit(), 3, mode),
        gym.vector.SyncVectorEnv([bandit] * 3, autoreset_mode=mode),
        gym.vector.AsyncVectorEnv([bandit] * 3, autoreset_mode=mode),
    ):
        follower = quick("DQN", total_timesteps=600, learning_rate=5e-3, target_update_interval=50)
        oracle = TrajectoryOracle(envs, follower)
        policy = oracle.respond(X, 0, rng(0))
        assert (policy.table[:, 0] == 1.0).all()
        buffer: Any = follower._learners[0].model.replay_buffer  # type: ignore[attr-defined]
        assert oracle.training_steps == buffer.size() * 3 == 600
        rewards, actions = buffer.rewards[:200], buffer.actions[:200, :, 0]
        np.testing.assert_array_equal(rewards, np.where(actions == 0, 1.0, 0.0))
        cut = buffer.timeouts[:200].astype(bool)
        assert 0.15 < (buffer.dones[:200].astype(bool) & ~cut).mean() < 0.35  # ends: a quarter of all steps
        assert cut.any()
        envs.close()


def test_autoreset_rows_are_no_training_steps() -> None:
    for envs in (TabularVectorEnv(bandit(), 3), gym.vector.SyncVectorEnv([bandit] * 3)):
        with pytest.raises(errors.UnsupportedError, match="SameStep"):
            TrajectoryOracle(envs, quick("DQN"))
    with pytest.raises(errors.OptionError, match="n_envs is 2"):
        TrajectoryOracle(TabularVectorEnv(bandit(), 3, "SameStep"), quick("DQN", n_envs=2))


@pytest.mark.slow
def test_copies_in_processes() -> None:
    follower = quick("PPO", n_envs=2, make_env=bandit, vec_env_class=SubprocVecEnv)
    policy = respond(follower)
    follower.close()
    np.testing.assert_array_equal(policy.table, respond(quick("PPO", n_envs=2, make_env=bandit)).table)


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_an_observation_that_is_not_finite_stops_training_at_once(fault: float) -> None:
    env = Point(faulty_step=7, fault=fault)
    with pytest.raises(errors.ObservationError, match="at training step 7"):
        respond(quick("SAC"), env, [0.5])
    assert env.steps == 7


def test_a_reward_that_is_not_finite_stops_training_at_once() -> None:
    class Broke(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, np.nan, *rest

    with pytest.raises(errors.ObservationError, match="reward at training step 1 is nan in copy 0"):
        respond(quick("PPO"), Broke(bandit()))


class Held(Point):
    """Holds something that can neither be copied nor pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = (i for i in range(3))


def test_what_cannot_be_copied_leads_to_make_env() -> None:
    with pytest.raises(errors.UnsupportedError, match=r"Held cannot be copied \(TypeError.*pass make_env="):
        respond(quick("PPO", n_envs=2), CountSteps(Held()), [0.5])
    with pytest.raises(errors.UnsupportedError, match=r"Held cannot be copied .*pass make_env="):
        respond(quick("PPO", vec_env_class=SubprocVecEnv), Held(), [0.5])
    respond(quick("PPO", n_envs=2, make_env=Held), Held(), [0.5])
    respond(quick("PPO"), Held(), [0.5])  # itself, uncopied
    one = Point()
    with pytest.raises(errors.UnsupportedError, match="builds a new environment at each call"):
        respond(quick("PPO", n_envs=2, make_env=lambda: one), Point(), [0.5])

    def broken() -> Any:
        raise KeyError("no such map")

    with pytest.raises(errors.UnsupportedError, match="no such map"):
        respond(quick("PPO", make_env=broken), Point(), [0.5])
    stream = (i for i in range(3))
    with pytest.raises(errors.UnsupportedError, match="SubprocVecEnv cannot run 1 of make_env"):
        respond(quick("PPO", make_env=lambda: Point() if stream else None, vec_env_class=SubprocVecEnv), Point(), [0.5])
