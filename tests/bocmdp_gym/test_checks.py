from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from bocmdp_gym import check_configurable_env
from bocmdp_gym.errors import CheckError
from bocmdp_gym.wrappers import LeaderReward


class Noisy(gym.Env[Any, Any]):
    """Draws from a generator of its own, which no seed reaches, in one part of what it says."""

    action_space = gym.spaces.Discrete(2)
    observation_space = gym.spaces.Dict({"a": gym.spaces.Box(-9, 9, (2, 2)), "b": gym.spaces.Discrete(3)})

    def __init__(self, part: str, first: int = 3):
        self._own, self._part, self._first = np.random.default_rng(), part, first

    def _seen(self) -> Any:
        value = np.zeros((2, 2), np.float32)
        if self._part == "observation" and self._age >= self._first:
            value[1, 0] = self._own.uniform(1, 9)
        return {"a": value, "b": 0}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._age = 0
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        self._age += 1
        noisy = self._age >= self._first
        reward = self._own.random() if self._part == "reward" and noisy else 1.0
        ends = self._part == "end" and noisy and self._own.random() < 0.5
        return self._seen(), reward, bool(ends), False, {}


def led(env: gym.Env[Any, Any]) -> LeaderReward:
    def pay(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * actions

    return LeaderReward(env, pay, 1, pay, 0.9)


@pytest.mark.parametrize(
    ("part", "first", "said"),
    [
        ("observation", 3, r"at step 3, observation\['a'\]\[1, 0\] is \d"),
        ("observation", 0, r"at the first reset, observation\['a'\]\[1, 0\] is \d"),
        ("reward", 5, r"at step 5, reward is 0\.\d+ and then 0\."),
        ("end", 2, r"at step \d+, terminated is (True|False) and then"),
    ],
)
def test_the_layer_that_forgets_its_seed_is_named(part: str, first: int, said: str) -> None:
    env = gym.wrappers.TimeLimit(led(gym.wrappers.TimeLimit(Noisy(part, first), 50)), 50)
    with pytest.raises(CheckError, match=f"equal seeds must .* and Noisy itself, inside TimeLimit, plays others: {said}"):
        check_configurable_env(env)


def test_a_layer_that_keeps_what_it_saw_is_named() -> None:
    calm = gym.wrappers.TimeLimit(Noisy("nothing"), 20)
    check_configurable_env(led(calm))
    with pytest.raises(CheckError, match=r"NormalizeReward itself, inside LeaderReward, plays others: at step \d+, reward is"):
        check_configurable_env(led(gym.wrappers.NormalizeReward(calm)))


def test_the_outermost_layer_is_named_where_none_inside_is_at_fault() -> None:
    class Shaky(LeaderReward):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, reward + float(np.random.default_rng().random()), *rest

    def pay(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * actions

    with pytest.raises(CheckError, match="and Shaky plays others: at step 1, reward is"):
        check_configurable_env(Shaky(gym.wrappers.TimeLimit(Noisy("nothing"), 20), pay, 1, pay, 0.9))
