from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import bocmdp_gym
from bocmdp_gym import errors
from bocmdp_gym.wrappers import ObserveContext
from followers import SoftPolicyIteration, TrajectoryOracle
from tests.problems import four_rooms


@pytest.mark.parametrize(("observation", "size"), [("index", 104 + 2), ("coordinates", 2 + 2)])
def test_the_context_is_appended(observation: str, size: int) -> None:
    env = ObserveContext(four_rooms(observation=observation))
    assert env.observation_space.shape == (size,)
    assert env.observation_space.dtype == np.float32
    for context in range(2):
        seen, _ = env.reset(seed=0, options={"context": context})
        assert env.observation_space.contains(seen)
        np.testing.assert_array_equal(seen[-2:], np.eye(2)[context])
        seen, *_ = env.step(0)
        np.testing.assert_array_equal(seen[-2:], np.eye(2)[context])
        np.testing.assert_array_equal(env.combine(env.unwrapped._observe_one(env.unwrapped.state), context), seen)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_it_is_an_environment_of_ours() -> None:
    env = ObserveContext(four_rooms())
    bocmdp_gym.check_configurable_env(env)
    check_env(env, skip_render_check=True)
    with pytest.raises(errors.NotConfigurableError):
        ObserveContext(gym.make("CartPole-v1"))


def test_exact_policies_are_played_through_it() -> None:
    """A table answers what the wrapper shows, on the compiled path and on the plain one."""
    oracles = [
        TrajectoryOracle(ObserveContext(four_rooms(horizon=30)), SoftPolicyIteration(0.01), compiled=c) for c in (True, False)
    ]
    for oracle in oracles:
        rng = np.random.default_rng(0)
        policy = oracle.respond(np.zeros(105), 1, rng)
        batch = oracle.sample(policy, 300, rng)
        assert batch.states is not None
        np.testing.assert_array_equal(batch.observations[:, :104].argmax(1), batch.states)
        assert (batch.observations[:, -1] == 1.0).all()
        np.testing.assert_array_equal(policy.probabilities(batch.observations[3]), policy.table[batch.states[3]])  # type: ignore[attr-defined]
