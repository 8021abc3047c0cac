"""Environments of several agents are refused wherever one can enter, with the same sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.wrappers import ContextWrapper, LeaderParameters, LeaderReward, ObserveContext


class Parallel:
    """In the style of PettingZoo's ParallelEnv."""

    agents = possible_agents = ("a", "b")


class Turns:
    """In the style of PettingZoo's AECEnv before its reset, as a bare minimum."""

    agents: tuple[str, ...] = ()


class Disguised(gym.Env[Any, Any]):
    """A Gymnasium environment for several agents."""

    possible_agents = ("a", "b")
    observation_space = action_space = gym.spaces.Discrete(2)


def _nothing(*arguments: Any) -> Any:
    return 0.0


def _optimize(env: Any) -> Any:
    return leaders.optimize(env, leaders.ZeroOrder(), followers.CallableFollower(_nothing), 1)


ENTRANCES: dict[str, Callable[[Any], Any]] = {
    "configurable": bocmdp_gym.configurable,
    "check_configurable_env": bocmdp_gym.check_configurable_env,
    "LeaderReward": lambda env: LeaderReward(env, _nothing, 1, _nothing, 0.9),
    "LeaderParameters": lambda env: LeaderParameters(env, ["gravity"], 0.0, 1.0, _nothing, 0.9),
    "ContextWrapper": lambda env: ContextWrapper(env, [0, 1], names=["gravity"]),
    "ObserveContext": ObserveContext,
    "from_gymnasium": bocmdp_gym.TabularBOCMDP.from_gymnasium,
    "optimize": _optimize,
    "multistart": lambda env: leaders.multistart(env, leaders.ZeroOrder(), followers.CallableFollower(_nothing)),
    "TrajectoryOracle": lambda env: followers.TrajectoryOracle(env, followers.CallableFollower(_nothing)),
    "LeaderEnv": lambda env: leaders.LeaderEnv(env, followers.CallableFollower(_nothing), bounds=(0.0, 1.0)),
}


@pytest.mark.parametrize("make", [Parallel, Turns, Disguised, lambda: gym.wrappers.TimeLimit(Disguised(), 3)])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_several_agents_are_refused(entrance: str, make: Callable[[], Any]) -> None:
    several = r"multi-agent.*Several followers who interact at once \(Markov games\).*MarkovGame.*IndependentLearners"
    with pytest.raises(errors.UnsupportedError, match=several):
        ENTRANCES[entrance](make())


def test_agents_who_take_turns_are_told_how_to_act_at_once() -> None:
    class TakesTurns(Turns):
        def agent_iter(self) -> None: ...

    with pytest.raises(errors.UnsupportedError, match=r"pettingzoo\.utils\.aec_to_parallel"):
        bocmdp_gym.configurable(TakesTurns())
    with pytest.raises(errors.UnsupportedError) as told:
        bocmdp_gym.configurable(Parallel())
    assert "aec_to_parallel" not in str(told.value)
