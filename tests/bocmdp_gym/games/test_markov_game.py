from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import bocmdp_gym
from bocmdp_gym import errors
from bocmdp_gym.games import GameStep, MarkovGame
from tests.games import Dilemma, Game, game

ONE = {"a": 1, "b": 1, "c": 1}


def test_it_is_configurable_as_it_says() -> None:
    env = game()
    assert bocmdp_gym.configurable(gym.wrappers.TimeLimit(env, 2)) is env
    assert env.agents == ("a", "b", "c")
    bocmdp_gym.check_configurable_env(env)
    check_env(env, skip_render_check=True)


def test_agents_leave_when_they_leave() -> None:
    env = game()
    env.set_leader([0.5])
    shown, info = env.reset(seed=0)
    assert info["context"] == 0
    assert {agent: one.tolist() for agent, one in shown.items()} == {"a": [0.0], "b": [0.0], "c": [0.0]}

    first, reward, terminated, truncated, info = env.step(ONE)
    assert reward == 4.5  # three are paid 1 and half of it
    assert info["leader_reward"] == 1.5
    assert (terminated, truncated) == (False, False)
    assert info["terminations"] == {"a": True, "b": False, "c": False}
    assert not any(info["truncations"].values())

    second, reward, terminated, truncated, info = env.step(ONE)
    assert reward == 3.0
    assert info["rewards"] == {"a": 0.0, "b": 1.5, "c": 1.5}
    assert info["bonuses"] == {"b": 0.5, "c": 0.5}
    assert info["leader_reward"] == 1.0
    assert info["infos"] == {"b": {"time": 2}, "c": {"time": 2}}
    assert second["a"] == first["a"] == 1.0  # the last thing it saw
    assert second["b"] == 2.0
    assert info["truncations"] == {"a": False, "b": True, "c": False}
    assert (terminated, truncated) == (False, False)

    _, reward, terminated, truncated, info = env.step(ONE)
    assert (reward, terminated, truncated) == (1.5, True, False)  # the last to leave is terminated
    assert env.game.actions[-3:] == [ONE, {"b": 1, "c": 1}, {"c": 1}]
    with pytest.raises(errors.ResetError, match="episode is over"):
        env.step(ONE)


def test_a_game_is_cut_where_the_last_to_leave_are() -> None:
    class Cut(Game):
        signs = {"a": 1, "b": 1, "c": -1}

    env = game(Cut)
    env.reset(seed=0)
    ends = [env.step(ONE)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_the_leader_sees_those_who_acted() -> None:
    steps: list[GameStep] = []

    def remember(x: Any, step: GameStep) -> float:
        steps.append(step)
        return 0.0

    env = game(leader_reward=remember, bonus=None)
    steps.clear()
    env.reset(seed=0)
    env.step(ONE)
    env.step({"a": 0, "b": np.int64(1), "c": 0})
    assert [sorted(step.actions) for step in steps] == [["a", "b", "c"], ["b", "c"]]
    assert steps[0].observations["b"] == 0.0  # although the game returns one array again and again
    assert steps[0].next_observations["b"] == steps[1].observations["b"] == 1.0
    assert steps[1].actions == {"b": 1, "c": 0}
    assert type(steps[1].actions["b"]) is int
    assert steps[1].rewards == {"b": 1.0, "c": 0.0}
    assert steps[1].bonuses == {"b": 0.0, "c": 0.0}


def test_x_sets_rules() -> None:
    env = game(apply=lambda inner, x: inner.rules.__setitem__(slice(None), x), initial_leader=[2.0])
    assert env.initial_leader(np.random.default_rng(0)) == [2.0]
    env.reset(options={"leader": [3.0]})
    assert env.game.rules == [3.0]
    env.reset()
    assert env.game.rules == [2.0]
    env.set_leader([1.0])
    assert env.game.rules == [1.0]


def test_copies_go_on_for_themselves() -> None:
    env = game()
    env.reset(seed=0)
    env.step(ONE)
    copied = deepcopy(env)
    assert copied.game is not env.game
    copied.step(ONE)
    assert (env.game.time, copied.game.time) == (1, 2)
    copied.set_leader([1.0])
    assert env.leader == [0.0]


def test_games_are_seeded_by_the_environment() -> None:
    class Seeded(Game):
        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            self.seed = seed
            return super().reset(seed, options)

    env = game(Seeded)
    seeds = []
    for seed in (1, None, 1, None):
        env.reset(seed=seed)
        seeds.append(env.game.seed)
    assert seeds[:2] == seeds[2:]
    assert seeds[0] != seeds[1]


class Turns:
    possible_agents = agents = ["a"]

    def agent_iter(self) -> None: ...


class Joins(Dilemma):
    def step(self, actions: Any) -> Any:
        answer = super().step(actions)
        self.agents = ["d"]
        return answer


class Vanishes(Game):
    def step(self, actions: Any) -> Any:
        answer = super().step(actions)
        self.agents = self.agents[1:]
        return answer


class Hides(Game):
    def step(self, actions: Any) -> Any:
        observations, *rest = super().step(actions)
        return {"a": observations["a"]}, *rest


class Later(Game):
    def reset(self, seed: Any = None, options: Any = None) -> Any:
        observations, infos = super().reset(seed, options)
        return {"a": observations["a"]}, infos


class Unpaid(Game):
    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, {**rewards, "b": float("nan")}, *rest


class Numbered(Game):
    possible_agents: list[Any] = [0, 1]
    buffers: Any


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"env": gym.make("CartPole-v1")}, errors.UnsupportedError, "one agent acts.*LeaderReward"),
        ({"env": Turns()}, errors.UnsupportedError, r"take turns \(AEC\).*pettingzoo.utils.aec_to_parallel"),
        ({"env": object()}, errors.UnsupportedError, "has no possible_agents"),
        ({"env": Game}, errors.UnsupportedError, "expected a PettingZoo parallel"),
        ({"env": Joins()}, errors.UnsupportedError, "'d'.* joined Joins in the middle"),
        ({"env": Vanishes()}, errors.UnsupportedError, "'b' left Vanishes without being terminated"),
        ({"env": Hides()}, errors.UnsupportedError, "shows 'b' nothing"),
        ({"env": Later()}, errors.UnsupportedError, "begins with agents"),
        ({"env": Unpaid()}, errors.ObservationError, "pays 'b' nan"),
        ({"env": Numbered()}, errors.OptionError, "possible_agents has 0; expected names"),
        ({"bonus": lambda x, step: 1.0}, errors.ModelError, "bonus returned float; expected a dictionary"),
        ({"bonus": lambda x, step: {"aa": 1.0}}, errors.ModelError, "bonus pays 'aa', who did not act.*Did you mean 'a'"),
        ({"bonus": lambda x, step: {"a": float("inf")}}, errors.ModelError, "bonus of 'a' is inf"),
        ({"leader_reward": lambda x, step: None}, errors.ModelError, "leader_reward is"),
        ({"bonus": 3}, errors.OptionError, r"bonus is 3; expected a function of \(x, step\)"),
        ({"leader_space": 0}, errors.OptionError, "leader_space"),
        ({"discount": 2.0}, errors.DiscountError, "discount is 2.0"),
        ({"initial_leader": [9.0]}, errors.LeaderParameterError, "outside"),
    ],
)
def test_mistakes_show_at_once(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        game(**options)


def test_states_and_incomplete_actions_are_refused() -> None:
    env: MarkovGame = game()
    with pytest.raises(errors.UnsupportedError, match="cannot be put into a state"):
        env.reset(options={"state": 3})
    env.reset(seed=0)
    with pytest.raises(errors.ActionError, match=re.escape("expected a dictionary with an action of 'c'")):
        env.step({"a": 0, "b": 0})
    with pytest.raises(errors.ActionError):
        env.step(0)
