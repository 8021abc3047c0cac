from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from bocmdp_gym import errors
from bocmdp_gym.envs.four_rooms import FourRooms


def test_every_entry_of_a_list_of_seeds_matters() -> None:
    envs = gym.make_vec("bocmdp/RandomMDP-v0", num_envs=3, n_states=1000)

    def start(seed: Any) -> list[int]:
        observations: list[int] = envs.reset(seed=seed)[0].tolist()
        return observations

    assert start([1, 2, 3]) == start([1, 2, 3])
    assert len({tuple(start(s)) for s in ([1, 2, 3], [1, 2, 4], [1, 5, 3], [1, None, 3], [1, 0, 3], [2, 1, 3], 1)}) == 7
    with pytest.raises(errors.OptionError, match="one per copy"):
        start([1, 2])


def test_stepping_before_reset_is_refused() -> None:
    env = FourRooms()
    with pytest.raises(errors.ResetError, match=r"call reset\(\) first"):
        env.step(0)
    env.set_context(1)
    with pytest.raises(errors.ResetError):
        env.step(0)
    with pytest.raises(errors.ResetError):
        gym.make_vec("bocmdp/FourRooms-v0", num_envs=2).step(np.zeros(2, dtype=int))


@pytest.mark.parametrize("action", [1.7, "up", None, -1, 4])
def test_illegal_actions_are_refused(action: Any) -> None:
    env = FourRooms()
    env.reset(seed=0)
    with pytest.raises(errors.ActionError, match=f"action {action!r} is illegal; expected an integer in 0..3"):
        env.step(action)


def test_every_kind_of_integer_is_an_action() -> None:
    env = FourRooms()
    for action in (1, np.int32(1), np.array(1, dtype=np.uint8)):
        env.reset(seed=0)
        env.step(action)


@pytest.mark.parametrize("actions", [[0.9, 1.7], ["up", "down"], [0, 4], [0]])
def test_illegal_actions_of_copies_are_refused(actions: Any) -> None:
    envs = gym.make_vec("bocmdp/FourRooms-v0", num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(errors.ActionError, match=r"2 integers in 0\.\.3"):
        envs.step(np.array(actions))
