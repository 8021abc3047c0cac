from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

import bocmdp_gym
from bocmdp_gym import errors
from bocmdp_gym.games import EscapeRoom, paid_escape_room

LEVER, START, DOOR = range(3)


def play(env: EscapeRoom, *chosen: int) -> tuple[list[float], bool, bool]:
    _, rewards, terminations, truncations, _ = env.step(dict(zip(env.possible_agents, chosen, strict=True)))
    assert len(set(terminations.values())) == len(set(truncations.values())) == 1
    return list(rewards.values()), any(terminations.values()), any(truncations.values())


def test_it_is_a_parallel_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PettingZoo's own games, which its tests import
        from pettingzoo.test import parallel_api_test
    parallel_api_test(EscapeRoom(3, 2), 50)
    assert "Passed" in capsys.readouterr().out


def test_the_door_opens_while_enough_are_at_the_lever() -> None:
    env = EscapeRoom(3, 2)
    env.reset()
    assert play(env, LEVER, START, DOOR) == ([-1.0, 0.0, -1.0], False, False)  # one is not enough
    assert play(env, LEVER, LEVER, START) == ([0.0, -1.0, -1.0], False, False)  # staying is free
    assert play(env, LEVER, LEVER, DOOR) == ([0.0, 0.0, 10.0], True, False)
    assert env.agents == []
    with pytest.raises(errors.ResetError):
        play(env, LEVER, LEVER, DOOR)


@pytest.mark.parametrize(("n", "m", "best"), [(2, 1, 9.0), (3, 2, 8.0)])
def test_the_best_totals_are_those_of_the_paper(n: int, m: int, best: float) -> None:
    env = EscapeRoom(n, m)
    env.reset()
    assert sum(play(env, *[LEVER] * m, *[DOOR] * (n - m))[0]) == best


def test_episodes_end_after_five_steps() -> None:
    env = EscapeRoom()
    env.reset()
    assert [play(env, START, START)[1:] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]


def test_agents_see_themselves_first() -> None:
    env = EscapeRoom(3, 1)
    env.reset()
    shown, *_ = env.step(dict(zip(env.possible_agents, (LEVER, LEVER, START), strict=True)))
    assert [one.reshape(3, 3).argmax(-1).tolist() for one in shown.values()] == [[0, 0, 1], [0, 0, 1], [1, 0, 0]]


def test_the_leader_pays_for_actions() -> None:
    env = paid_escape_room(3, 2, highest=2.0)
    bocmdp_gym.check_configurable_env(env)
    np.testing.assert_array_equal(env.leader_space.high, [2.0] * 3)
    env.set_leader([1.5, 0.25, 0.5])
    env.reset(seed=0)
    *_, info = env.step({"agent_0": LEVER, "agent_1": START, "agent_2": DOOR})
    assert info["rewards"] == {"agent_0": 0.5, "agent_1": 0.25, "agent_2": -0.5}
    assert info["leader_reward"] == -2.25
    *_, terminated, truncated, info = env.step({"agent_0": LEVER, "agent_1": LEVER, "agent_2": DOOR})
    assert info["rewards"]["agent_2"] == 10.5
    assert info["leader_reward"] == 10.0 - 3.5
    assert (terminated, truncated) == (True, False)


@pytest.mark.parametrize("arguments", [(2, 2), (1, 1), (3, 0), (2, 1, 0)])
def test_rooms_nobody_can_leave_are_refused(arguments: Any) -> None:
    with pytest.raises(errors.OptionError):
        EscapeRoom(*arguments)


def test_a_missing_pettingzoo_is_named() -> None:
    code = """
import sys
sys.modules["pettingzoo"] = None
import bocmdp_gym.games
bocmdp_gym.games.MarkovGame
try:
    bocmdp_gym.games.EscapeRoom
except bocmdp_gym.errors.OptionError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'bocmdp-gym[multi-agent]'" in said
