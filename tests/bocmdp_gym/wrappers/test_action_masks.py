from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from bocmdp_gym import errors
from bocmdp_gym.layers import is_transparent
from bocmdp_gym.wrappers import ActionMasks


def test_masks_are_those_of_the_info() -> None:
    env = ActionMasks(gym.make("Taxi-v4"))
    with pytest.raises(errors.UnsupportedError, match="call reset first"):
        env.action_masks()
    _, info = env.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(50):
        mask = env.action_masks()
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, info["action_mask"])
        mask[:] = False
        assert env.action_masks().any()  # a copy
        *_, info = env.step(int(generator.choice(np.flatnonzero(env.action_masks()))))
    assert is_transparent(env)
    envs = gym.vector.SyncVectorEnv([lambda: ActionMasks(gym.make("Taxi-v4"))] * 2)
    _, infos = envs.reset(seed=1)
    np.testing.assert_array_equal(np.stack(envs.call("action_masks")), infos["action_mask"])


def test_an_environment_that_tells_none_is_named() -> None:
    env: Any = ActionMasks(gym.make("CartPole-v1"))
    with pytest.raises(errors.UnsupportedError, match=r"CartPoleEnv tells no 'action_mask' in its info \(it is empty\)"):
        env.reset(seed=0)
