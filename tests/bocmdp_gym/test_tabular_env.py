from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from bocmdp_gym import TabularEnv, errors
from bocmdp_gym.checks import check_configurable_env
from bocmdp_gym.envs.four_rooms import FourRooms
from bocmdp_gym.tabular_env import TabularVectorEnv
from tests.problems import corridor


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


# ----------------------------------------------------------------------------------------------- actions that do not exist


def test_info_tells_the_actions_that_exist() -> None:
    env = TabularEnv(corridor())
    _, info = env.reset(seed=0, options={"context": 1, "state": 2})
    assert info["action_mask"].dtype == np.int8
    assert info["action_mask"].tolist() == [1, 0, 1]
    assert env.get_wrapper_attr("action_masks")().tolist() == [True, False, True]
    assert env.action_space.sample(info["action_mask"]) in (0, 2)
    with pytest.raises(errors.ActionError, match=r"action 1 does not exist in state 2; expected one of \[0, 2\]"):
        env.step(1)
    state = env.step(0)[0]
    assert env.step(0)[-1]["action_mask"].tolist() == env.model.mask.of(1)[env.state].tolist()  # type: ignore[union-attr]
    assert state in (1, 2)


def test_what_has_all_actions_tells_none() -> None:
    env = TabularEnv(corridor(action_mask=None))
    assert "action_mask" not in env.reset(seed=0)[1]
    assert not env.has_wrapper_attr("action_masks")


def test_masks_are_asked_for_after_a_reset() -> None:
    with pytest.raises(errors.ResetError, match="call reset"):
        TabularEnv(corridor()).action_masks()


def test_random_play_by_the_masks_is_that_of_the_arrays() -> None:
    env = TabularEnv(corridor(), horizon=30)
    check_configurable_env(env)
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=1)
    for _ in range(300):
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        before = observation
        observation, _, terminated, truncated, info = env.step(action)
        assert abs(observation - before) <= 1
        assert (info["action_mask"] == env.model.mask.of(info["context"])[observation]).all()  # type: ignore[union-attr]
        if terminated or truncated:
            observation, info = env.reset()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_copies_tell_what_one_tells(mode: str) -> None:
    """Of the state shown; where an episode ended in the same step, of its last state in ``final_info`` too."""
    model = corridor(3)
    native = TabularVectorEnv(TabularEnv(model, horizon=4), 6, mode)
    sync = gym.vector.SyncVectorEnv([lambda: TabularEnv(model, horizon=4)] * 6, autoreset_mode=AutoresetMode(mode))
    for envs in (native, sync):
        rng = np.random.default_rng(0)
        observations, infos = envs.reset(seed=0)
        for _ in range(40):
            told = infos["action_mask"]
            expected = np.array([model.mask.of(c)[s] for c, s in zip(infos["context"], observations, strict=True)])  # type: ignore[union-attr]
            np.testing.assert_array_equal(told, expected)
            assert infos["_action_mask"].all()
            np.testing.assert_array_equal(np.stack(envs.call("action_masks")), expected)
            actions = np.array([rng.choice(np.flatnonzero(row)) for row in told])
            observations, _, terminations, truncations, infos = envs.step(actions)
            ended = terminations | truncations
            if mode == "SameStep" and ended.any():
                final = infos["final_info"]
                for i in np.flatnonzero(ended):
                    mask = model.mask.of(final["context"][i])[infos["final_obs"][i]]  # type: ignore[union-attr]
                    np.testing.assert_array_equal(final["action_mask"][i], mask)
            if mode == "Disabled" and ended.any():
                observations, fresh = envs.reset(options={"reset_mask": ended})
                infos = {k: fresh[k] if k.startswith("_") else np.where(ended.reshape(-1, *[1] * (np.ndim(v) - 1)), fresh[k], v)
                         for k, v in infos.items() if k.removeprefix("_") in ("context", "action_mask")}  # fmt: skip
                infos["_action_mask"] = np.ones(6, dtype=np.bool_)
    native.reset(options={"state": 0})
    with pytest.raises(errors.ActionError, match=r"action 0 does not exist in state 0; expected one of \[1, 2\]"):
        native.step(np.zeros(6, dtype=np.int64))
