"""Typos, swapped arguments and values out of range, over the constructors of environments, wrappers and incentives."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import bocmdp_gym
from bocmdp_gym import ConfigurableWrapper, TabularEnv, TabularVectorEnv, errors
from bocmdp_gym.envs import TaxDesign, static_tax
from bocmdp_gym.envs.tax_design_vector import TaxDesignVectorEnv
from bocmdp_gym.incentives import IncentiveProblem
from bocmdp_gym.registration import ENVIRONMENTS, Entry
from bocmdp_gym.wrappers import ContextWrapper, LeaderParameters, LeaderReward, ObserveContext

#: What nobody means: each is refused by name, or (a small number, None) legal for some argument.
WRONG: list[Any] = [
    -1, 0, 1.5, -0.5, float("nan"), float("inf"), "a", "", b"x", 1 + 2j, [], (), {}, [1], [[1, 2]], ["a", "b"], [-1, 2],
    [1.5, 2.5], [float("nan")] * 4, np.array([1.0, 2.0]), object(), TabularEnv, lambda *arguments: None, gym.spaces.Discrete(2),
]  # fmt: skip
#: Numbers that no argument of any constructor takes in the place of one.
NEVER = ["a", "", b"x", 1 + 2j, {}, object(), [float("nan")] * 4, TabularEnv, float("nan"), float("inf")]


def _point(x: Any, observations: Any, actions: Any, context: Any) -> Any:
    return x[0] * observations[:, 0]


def _cart() -> Any:
    return gym.make("CartPole-v1")


def _agents() -> Any:
    return bocmdp_gym.configurable(gym.make("bocmdp/PrincipalAgent-v0"))


def _problem() -> dict[str, Any]:
    problem = _agents().incentives()
    return {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}


REWARDED: dict[str, Any] = {"bonus": _point, "leader_space": 1, "leader_reward": _point, "discount": 0.9}
SET_BY_X: dict[str, Any] = {"names": ["length"], "low": 0.1, "high": 1.0, "leader_reward": _point, "discount": 0.9}
SAMPLED: dict[str, Any] = {"space": gym.spaces.Box(0.0, 1.0, (1,), np.float64), "sample": lambda rng: rng.random(1)}


def _environment(entry: Entry) -> Any:
    module, name = entry.entry_point.split(":")
    return getattr(importlib.import_module(module), name)


#: Every constructor with keywords it takes.
CASES: list[tuple[Any, Callable[[], dict[str, Any]]]] = [
    *((_environment(entry), dict) for entry in ENVIRONMENTS),
    (LeaderReward, lambda: {"env": _cart(), **REWARDED}),
    (LeaderParameters, lambda: {"env": _cart(), **SET_BY_X}),
    (ContextWrapper, lambda: {"env": _cart(), "contexts": [[0.1], [0.2]], "names": ["length"]}),
    (ContextWrapper, lambda: {"env": _cart(), **SAMPLED}),
    (ObserveContext, lambda: {"env": _agents()}),
    (TabularEnv, lambda: {"model": _agents().model}),
    (TabularVectorEnv, lambda: {"env": _agents(), "num_envs": 2}),
    (TaxDesignVectorEnv, lambda: {"env": TaxDesign(), "num_envs": 2}),
    (IncentiveProblem, _problem),
]
FUNCTIONS: list[tuple[Any, Callable[[], dict[str, Any]]]] = [
    (static_tax.static_household, dict),
    (static_tax.linear_income_tax, dict),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "keywords"), CASES + FUNCTIONS)
def test_wrong_values_are_refused_by_name(kind: Any, keywords: Callable[[], dict[str, Any]]) -> None:
    """Nothing but the library's own errors comes out of a constructor, and some values pass for no argument at all."""
    given = keywords()
    names = [name for name in inspect.signature(kind.__init__ if isinstance(kind, type) else kind).parameters if name != "self"]
    for name in names:
        for value in WRONG:
            try:
                kind(**{**given, name: value})
            except errors.BOCMDPError:
                continue
            assert not any(value is never for never in NEVER), f"{name}={value!r} was taken"


@pytest.mark.parametrize(("kind", "keywords"), CASES)
def test_misspelt_keywords_are_refused(kind: Any, keywords: Callable[[], dict[str, Any]]) -> None:
    known = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    longest = max(known, key=len)
    with pytest.raises(errors.UnknownOptionError, match=f"Did you mean {longest!r}"):
        kind(**keywords(), **{longest + "s": 1})


def test_a_wrapper_of_a_user_refuses_too() -> None:
    class Tariff(ConfigurableWrapper):
        def __init__(self, env: Any, price: float = 1.0):
            super().__init__(env)

    with pytest.raises(errors.UnknownOptionError, match="Did you mean 'price'"):
        Tariff(gym.make("CartPole-v1"), prise=2.0)  # type: ignore[call-arg]


def test_swapped_arguments_are_refused() -> None:
    cart, model = gym.make("CartPole-v1"), bocmdp_gym.configurable(gym.make("bocmdp/RandomMDP-v0")).model
    with pytest.raises(errors.OptionError, match="expected a function of"):
        LeaderReward(cart, 1, _point, _point, 0.9)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="expected a function of"):
        LeaderReward(cart, LeaderReward, 1, _point, 0.9)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="low < high"):
        LeaderParameters(cart, ["length"], 1.0, 0.1, _point, 0.9)
    with pytest.raises(errors.OptionError, match="model is 200"):
        TabularEnv(200, model)  # type: ignore[arg-type]
