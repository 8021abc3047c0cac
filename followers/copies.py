"""Copies of a single environment, to play several episodes at once."""

from __future__ import annotations

from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import gymnasium as gym
import numpy as np

from bocmdp_gym import configurable
from bocmdp_gym.env import ConfigurableEnv

#: Episodes played at once by policies that answer batches: a network's forward pass takes hardly longer for 32 than for one.
COPIES = 32
#: Steps by which a copy must prove to be one.
_STEPS = 8

_known: WeakKeyDictionary[gym.Env[Any, Any], bool] = WeakKeyDictionary()


def copied(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """A copy of an environment, with x and the context as they are set there. It shares the model, which nothing changes."""
    base = env.unwrapped
    shared = [getattr(layer, "model", None) for layer in (configurable(env), base)]
    memo: dict[int, Any] = {id(part): part for part in shared if part is not None}
    if type(base).__reduce__ is ConfigurableEnv.__reduce__ and not hasattr(base, "__deepcopy__"):
        # else it is built anew from its arguments, as for another process, which may take a second
        twin = memo[id(base)] = object.__new__(type(base))
        vars(twin).update(deepcopy(vars(base), memo))
    made: gym.Env[Any, Any] = deepcopy(env, memo)
    return made


def can_be_copied(env: gym.Env[Any, Any]) -> bool:
    """Whether copies of an environment play as it does, each for itself.

    Not where somebody watches (``render_mode``) or statistics are gathered over the episodes; nor where a copy that is seeded
    alike plays otherwise, or two of them meet in something that they share. That is found out by playing a few steps in the
    environment and in two copies in turn, once per environment.
    """
    if env.render_mode is not None or any(getattr(layer, "update_running_mean", False) for layer in _layers(env)):
        return False
    if env not in _known:
        try:
            _known[env] = _plays_alike(env)
        except Exception:  # noqa: BLE001 - what cannot be copied or played at random may say so in any way: it is played alone
            _known[env] = False
    return _known[env]


def _layers(env: gym.Env[Any, Any]) -> list[gym.Env[Any, Any]]:
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _plays_alike(env: gym.Env[Any, Any]) -> bool:
    space = deepcopy(env.action_space)
    space.seed(0)
    actions = [space.sample() for _ in range(_STEPS)]
    expected = _Recorded(env, 0)
    for action in actions:
        expected.step(action)
    one, other = _Recorded(copied(env), 0), _Recorded(copied(env), 1)
    for action, another in zip(actions, reversed(actions), strict=True):
        other.step(another)
        one.step(action)
    return _same(expected.seen, one.seen)


class _Recorded:
    """What an environment shows and pays, from a seed on."""

    def __init__(self, env: gym.Env[Any, Any], seed: int):
        self._env = env
        self.seen: list[Any] = [deepcopy(env.reset(seed=seed)[0])]
        self._ended = False

    def step(self, action: Any) -> None:
        if self._ended:
            self.seen.append(deepcopy(self._env.reset()[0]))
        observation, reward, terminated, truncated, info = self._env.step(action)
        self._ended = bool(terminated or truncated)
        self.seen.append(deepcopy((observation, float(reward), terminated, truncated, info["leader_reward"])))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(np.array_equal(a, b))
