"""How a learner sees an environment: spaces counted from 0, joint actions, observations normalised. A policy acts through it too.

Stable-Baselines3 counts the elements of Discrete and MultiDiscrete spaces from 0, whatever their ``start``, and takes
MultiDiscrete and MultiBinary spaces of one axis alone, so those of several are laid out in one row, the last axis fastest; its
Q-learners take Discrete actions alone, so combinations of a MultiDiscrete space are numbered for them, the last fastest;
and where training copies are wrapped in `VecNormalize`, its networks have only ever seen normalised observations.
"""

from __future__ import annotations

from copy import deepcopy
from math import prod
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.spaces import check_numeric
from followers.environments import AnyEnv

_TAKEN = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)


def check_observation_space(space: gym.Space[Any], name: str) -> None:
    """Refuse observations that no network of Stable-Baselines3 can read; it would notice in the first step.

    Raises:
        UnsupportedError: a space other than Box, Discrete, MultiDiscrete, MultiBinary, and Dict of these.
    """
    check_numeric(space, name)
    parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]
    for part in parts:
        if not isinstance(part, _TAKEN):
            raise UnsupportedError(
                f"{name} cannot read observations from {space}; expected Box, Discrete, MultiDiscrete or MultiBinary, or a Dict "
                "of these. Flatten it, e.g. with gymnasium.wrappers.FlattenObservation."
            )


def counted_from_zero(space: gym.Space[Any]) -> gym.Space[Any]:
    """The same space with parts that start at 0 and have one axis, where they are discrete; itself where they do."""
    if isinstance(space, gym.spaces.Discrete) and space.start != 0:
        return gym.spaces.Discrete(int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete) and (space.start.any() or _has_axes(space)):
        return gym.spaces.MultiDiscrete(space.nvec.reshape(-1), dtype=space.dtype.type)
    if isinstance(space, gym.spaces.MultiBinary) and _has_axes(space):
        return gym.spaces.MultiBinary(prod(space.shape))
    if isinstance(space, gym.spaces.Dict):
        parts = {name: counted_from_zero(part) for name, part in space.spaces.items()}
        if any(parts[name] is not part for name, part in space.spaces.items()):
            return gym.spaces.Dict(parts)
    return space


def _has_axes(space: gym.spaces.MultiDiscrete | gym.spaces.MultiBinary) -> bool:
    """Whether its elements have several axes, or one that Stable-Baselines3 would not take for one: ``MultiBinary([4])``."""
    return len(space.shape) > 1 or (isinstance(space, gym.spaces.MultiBinary) and not isinstance(space.n, int))


def to_zero(space: gym.Space[Any], value: Any) -> Any:
    """Elements of ``space``, one or several, as those of `counted_from_zero`."""
    if isinstance(space, gym.spaces.Dict):
        return {name: to_zero(part, value[name]) for name, part in space.spaces.items()}
    if isinstance(space, (gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)) and _has_axes(space):
        several = np.asarray(value)
        value = several.reshape(*several.shape[: several.ndim - len(space.shape)], -1)
    return _moved(space, value, -1)


def from_zero(space: gym.Space[Any], value: Any) -> Any:
    """The inverse of `to_zero`."""
    if isinstance(space, gym.spaces.Dict):
        return {name: from_zero(part, value[name]) for name, part in space.spaces.items()}
    moved = _moved(space, value, 1)
    if isinstance(space, (gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)) and _has_axes(space):
        moved = np.asarray(moved)
        return moved.reshape(*moved.shape[:-1], *space.shape)
    return moved


def _moved(space: gym.Space[Any], value: Any, sign: int) -> Any:
    """Elements in one row, moved by the start of their space."""
    if isinstance(space, gym.spaces.Discrete) and space.start != 0:
        return value + sign * space.start
    if isinstance(space, gym.spaces.MultiDiscrete) and space.start.any():
        return np.asarray(value) + sign * space.start.reshape(-1)
    return value


class Normalizer(NamedTuple):
    """What `VecNormalize` does to observations, with statistics that stay.

    Attributes:
        statistics: running means, or one for each part that is normalised of a dictionary.
        clip, epsilon: ``clip_obs`` and ``epsilon`` of `VecNormalize`.
    """

    statistics: RunningMeanStd | dict[str, RunningMeanStd]
    clip: float
    epsilon: float

    def __call__(self, observations: Any) -> Any:
        """Observations, one or several, normalised."""
        if isinstance(self.statistics, dict):
            return {**observations, **{k: self._normalised(observations[k], part) for k, part in self.statistics.items()}}
        return self._normalised(observations, self.statistics)

    def _normalised(self, values: Any, statistics: RunningMeanStd) -> Any:
        scaled = (values - statistics.mean) / np.sqrt(statistics.var + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)


class View(NamedTuple):
    """How a learner sees an environment.

    Attributes:
        observation_space, action_space: the environment's own.
        joint: whether the combinations of a MultiDiscrete action are the learner's actions.
        normalizer: what normalises observations, its statistics frozen; None if nothing does.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    joint: bool = False
    normalizer: Normalizer | None = None

    @property
    def seen(self) -> gym.Space[Any]:
        """The learner's observations, before they are normalised."""
        return counted_from_zero(self.observation_space)

    @property
    def done(self) -> gym.Space[Any]:
        """The learner's actions."""
        if self.joint:
            return gym.spaces.Discrete(prod(self.factors))
        return counted_from_zero(self.action_space)

    @property
    def is_single(self) -> bool:
        """Whether the learner's action is one number, an index."""
        return self.joint or isinstance(self.action_space, gym.spaces.Discrete)

    @property
    def factors(self) -> tuple[int, ...]:
        """How many choices each factor of a discrete action has."""
        space = self.action_space
        return (int(space.n),) if isinstance(space, gym.spaces.Discrete) else tuple(int(n) for n in space.nvec.reshape(-1))  # type: ignore[attr-defined]

    def frozen(self, normalizer: VecNormalize | None) -> View:
        """The same with the statistics as they are now."""
        if normalizer is None or not normalizer.norm_obs:
            return self
        return self._replace(normalizer=Normalizer(deepcopy(normalizer.obs_rms), normalizer.clip_obs, normalizer.epsilon))

    def observe(self, observations: Any) -> Any:
        """The environment's observations, one or several, as the networks take them."""
        seen = to_zero(self.observation_space, observations)
        return seen if self.normalizer is None else self.normalizer(seen)

    def act(self, actions: Any) -> Any:
        """The networks' actions, one or several, as the environment takes them."""
        if self.joint:
            actions = np.stack(np.unravel_index(np.asarray(actions, dtype=np.int64), self.factors), axis=-1)
        return from_zero(self.action_space, actions)

    def applied(self, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        """An environment as the learner sees it; itself where that is no different."""
        same = self.seen is self.observation_space and self.done is self.action_space
        return env if same else Viewed(env, self)


def view_of(env: AnyEnv, needs_discrete: bool = False) -> View:
    """The view of a learner that trains on copies of ``env``, but for statistics.

    Args:
        env: the oracle's environment.
        needs_discrete: whether the learner takes Discrete actions alone.
    """
    if isinstance(env, gym.vector.VectorEnv):
        view = View(env.single_observation_space, env.single_action_space)
    else:
        view = View(env.observation_space, env.action_space)
    return view._replace(joint=needs_discrete and isinstance(view.action_space, gym.spaces.MultiDiscrete))


class Viewed(gym.Wrapper[Any, Any, Any, Any]):
    """An environment as a learner sees it."""

    def __init__(self, env: gym.Env[Any, Any], view: View):
        super().__init__(env)
        self._view, self.observation_space, self.action_space = view, view.seen, view.done

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._view.observe(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(self._view.act(action))
        return self._view.observe(observation), *rest
