"""Base classes of wrappers: `ConfigurableWrapper`, and `LeaderWrapper`, which has the contexts of the environment inside."""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.env import LEADER_STREAM, RESET_OPTIONS, Configurable, ConfigurableEnv, _Configuration, layer_rng
from bocmdp_gym.errors import FrozenLeaderWarning, OptionError, UnsupportedError, suggest
from bocmdp_gym.forked import limit_threads_after_fork
from bocmdp_gym.hooks import Hooks
from bocmdp_gym.memory import owned
from bocmdp_gym.spaces import check_numeric
from bocmdp_gym.validation import check_wrappable
from bocmdp_gym.wrappers.context import contextual_layer
from bocmdp_gym.wrappers.functions import NO_OUTCOMES, StepFunction, as_batch, as_context


class ConfigurableWrapper(_Configuration, Hooks, Constructed, gym.Wrapper[Any, Any, Any, Any]):
    """Base class of wrappers that make an environment configurable: x and xi live on the wrapper.

    ``leader`` and ``context`` among the reset options are the wrapper's; everything else is passed to the environment.
    Subclasses call ``_setup_configuration`` after ``super().__init__(env)``. Hooks that depend on x (``model``, `benchmark`,
    `constraints`, ...) are the wrapper's own and not those of an environment of ours inside, whose x is another one.

    Attributes:
        accepts_state: whether the environment starts in ``options["state"]``. Most of Gymnasium's ignore that option without
            a word, so it is refused unless a subclass sets this, or the environment is one of ours.
        horizon: steps after which an episode is truncated inside; None: never.

    Raises:
        UnknownOptionError: a keyword that the constructor does not have.
        UnsupportedError: a multi-agent or a vector environment.
    """

    _records = True

    accepts_state = False
    _wrapper_rng: np.random.Generator | None = None

    def __init__(self, env: gym.Env[Any, Any]):
        check_wrappable(env, type(self).__name__)
        limit_threads_after_fork()
        super().__init__(env)
        self.horizon = _limit(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see `ConfigurableEnv.reset`.

        Raises:
            OptionError: a misspelt option.
            UnsupportedError: a start state asked of an environment that cannot be put into one.
        """
        options = dict(options or {})
        own: dict[str, Any] = {name: options.pop(name) for name in ("leader", "context") if name in options}
        for name in options:  # the rest is the environment's, except misspelt options of ours
            if name != "state" and get_close_matches(name, RESET_OPTIONS, n=1, cutoff=0.75):
                raise OptionError(f"unknown reset option {name!r}. {suggest(name, RESET_OPTIONS)}")
        if options.get("state") is not None and not (self.accepts_state or isinstance(self.unwrapped, ConfigurableEnv)):
            raise UnsupportedError(
                f"{type(self.unwrapped).__name__} cannot be put into a state, as far as {type(self).__name__} knows; start "
                "without one, or set accepts_state = True on the wrapper if the environment respects options['state']."
            )
        if seed is not None or self._wrapper_rng is None:
            self._wrapper_rng = layer_rng(seed, LEADER_STREAM)
        self._begin_episode(own, self._wrapper_rng)
        observation, info = self.env.reset(seed=seed, options=options or None)
        return observation, {**info, "context": self._episode_context}


def _limit(env: gym.Env[Any, Any]) -> int | None:
    """Steps after which ``env`` truncates an episode: the smallest limit of its layers."""
    limits: list[int | None] = []
    layer: Any = env
    while isinstance(layer, gym.Wrapper) and not isinstance(layer, Hooks):
        if isinstance(layer, gym.wrappers.TimeLimit):
            limits.append(layer._max_episode_steps)
        layer = layer.env
    if isinstance(layer, Hooks):
        limits.append(layer.horizon)
    return min((limit for limit in limits if limit is not None), default=None)


def _warn_of_inner_leader(env: gym.Env[Any, Any], who: str) -> None:
    """Say that an x inside will be moved by nobody."""
    layer: Any = env
    while not isinstance(layer, Configurable):
        if not isinstance(layer, gym.Wrapper):
            return
        layer = layer.env
    inner, x = type(layer).__name__, np.array2string(np.asarray(getattr(layer, "leader", None)), threshold=8)
    warnings.warn(
        f"{inner} inside {who} has a leader parameter of its own, which no leader moves: it stays at {x}, unless you set it by "
        f"set_leader there. One x for rewards and attributes: LeaderReward(env, ..., parameters=[names], update=...).",
        FrozenLeaderWarning,
        stacklevel=4,
    )


class LeaderWrapper(ConfigurableWrapper):
    """A leader for an environment that has none. Contexts are those of the outermost layer inside that has some.

    Warns:
        FrozenLeaderWarning: the environment has one all the same, whose x nobody will move.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        leader_space: gym.spaces.Box,
        discount: float,
        leader_discount: float | None,
        leader: npt.ArrayLike | None = None,
    ):
        super().__init__(env)
        _warn_of_inner_leader(env, type(self).__name__)
        check_numeric(env.observation_space, type(self).__name__)  # the leader's functions take tensors
        self._contextual = contextual_layer(env)
        inner = self._contextual
        nearest_to_zero = np.clip(np.zeros(leader_space.shape), leader_space.low, leader_space.high)
        self._setup_configuration(
            leader_space,
            gym.spaces.Discrete(1) if inner is None else inner.context_space,
            discount,
            leader_discount,
            None if inner is None else inner.context_probabilities,
            leader=nearest_to_zero if leader is None else leader,
        )
        self._observation: Any = None
        self._outcomes = NO_OUTCOMES
        self._x: tuple[Any, Tensor] = (None, torch.empty(0))

    def sample_context(self, rng: np.random.Generator) -> Any:
        """One draw of xi ~ P_xi; always 0 where nothing inside has contexts."""
        return 0 if self._contextual is None else self._contextual.sample_context(rng)

    def _configured(self) -> None:
        if self._contextual is not None and self._episode_context is not None:
            self._contextual.set_context(self._episode_context)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see `bocmdp_gym.ConfigurableEnv.reset`."""
        observation, info = super().reset(seed=seed, options=options)
        self._observation = owned(observation)
        return observation, info

    def _act(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's own step, with its reward as a float.

        Raises:
            UnsupportedError: the reward is not one number.
        """
        reward: Any
        observation, reward, terminated, truncated, info = self.env.step(action)
        if np.shape(reward) not in ((), (1,)):
            raise UnsupportedError(
                f"{type(self.unwrapped).__name__} rewards with shape {np.shape(reward)}; {type(self).__name__} needs an "
                "environment whose reward is one number for one follower."
            )
        self._observation = owned(observation)
        return observation, float(np.reshape(reward, -1)[0]), bool(terminated), bool(truncated), dict(info)

    def _tensor(self) -> Tensor:
        """x in force, made once per x."""
        if self._x[0] is not self._episode_leader:
            self._x = self._episode_leader, torch.tensor(self._episode_leader)
        return self._x[1]

    def _values(self, action: Any, *functions: StepFunction) -> tuple[tuple[Any, float, bool, bool, dict[str, Any]], list[float]]:
        """The environment's own step (`_act`), and the values of leader's functions there, at the x and context in force."""
        points = as_batch([self._observation]), as_batch([action]), as_context(self._episode_context)
        step = self._act(action)
        outcomes = self._outcomes.of(self._observation, step[1], step[4]) if self._outcomes.names else None
        self._keep(step)
        with torch.no_grad():
            return step, [function.one(self._tensor(), *points, outcomes=outcomes) for function in functions]

    def _keep(self, step: tuple[Any, float, bool, bool, dict[str, Any]]) -> None:
        """Put into info what trajectories must carry for the model's sake."""
        kept = self._outcomes.kept(step[1], step[4])
        if kept:
            step[4]["outcomes"] = kept
