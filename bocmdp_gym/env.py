"""Configurable environments: the leader parameter x and the context xi live on the environment.

`Configurable` is the protocol, `ConfigurableEnv` the base class for environments, `ConfigurableWrapper` the base class for
wrappers that make an existing environment configurable, and `configurable` finds the layer of a wrapped environment that
holds x.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from difflib import get_close_matches
from functools import partial
from inspect import signature
from types import FunctionType
from typing import Any, Protocol, Self, runtime_checkable

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.errors import (
    ContextError,
    DiscountError,
    LeaderParameterError,
    NotConfigurableError,
    OptionError,
    UnknownOptionError,
    UnsupportedError,
    suggest,
)

RESET_OPTIONS = ("leader", "context", "state")
#: Streams of a layer's own generator, apart from the wrapped environment's and from each other at the same seed.
LEADER_STREAM, CONTEXT_STREAM = 1, 2


@runtime_checkable
class Configurable(Protocol):
    """What the rest of the library needs of an environment.

    Attributes:
        leader_space: space of x, a float64 ``Box`` of shape ``(d,)``.
        context_space: space of xi: ``Discrete``, or any other space together with `sample_context`.
        discount: the follower's discount gamma.
        leader_discount: the leader's discount gamma_L.
    """

    leader_space: gym.spaces.Box
    context_space: gym.Space[Any]
    discount: float
    leader_discount: float

    def set_leader(self, x: npt.ArrayLike | Tensor) -> None:
        """Set x, for every step and episode to come."""

    def set_context(self, context: Any) -> None:
        """Fix xi, for every episode to come; None draws it from P_xi at each reset."""

    def sample_context(self, rng: np.random.Generator) -> Any:
        """One draw of xi ~ P_xi."""

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """A sensible starting point x_0 for a leader."""


class _Contextual:
    """The context xi: its space and distribution, what `set_context` fixed, and what holds in the running episode."""

    context_space: gym.Space[Any]
    context_probabilities: npt.NDArray[np.float64] | None = None
    _context: Any = None
    _episode_context: Any = None
    _cumulative: list[float] | None = None

    def _setup_context(self, context_space: gym.Space[Any], context_probabilities: npt.ArrayLike | None) -> None:
        self.context_space = context_space
        if isinstance(context_space, gym.spaces.Discrete):
            n = int(context_space.n)
            uniform = np.full(n, 1.0 / n)
            given = uniform if context_probabilities is None else context_probabilities
            self.context_probabilities = check_context_probabilities(given, n)

    @property
    def context(self) -> Any:
        """The context of the running episode; None before the first reset if it is drawn at each reset."""
        return self._episode_context

    def set_context(self, context: Any) -> None:
        """Fix the context from the next reset on; None draws it from P_xi at each reset.

        Raises:
            ContextError: outside ``context_space``.
        """
        self._context = None if context is None else check_context(context, self.context_space)

    def sample_context(self, rng: np.random.Generator) -> Any:
        """One draw of xi ~ P_xi; environments with other than finitely many contexts override this."""
        if self.context_probabilities is None or not isinstance(self.context_space, gym.spaces.Discrete):
            raise ContextError(
                f"{type(self).__name__} has context_space {self.context_space} but no sample_context(rng); define it to "
                "draw xi from its distribution."
            )
        if self._cumulative is None:
            self._cumulative = np.cumsum(self.context_probabilities)[:-1].tolist()
        return int(self.context_space.start) + bisect_right(self._cumulative, rng.random())

    def _begin_context(self, requested: Any, rng: np.random.Generator) -> None:
        """Settle the context of the episode that starts now: the requested one, the fixed one, or a draw."""
        if requested is not None:
            self._episode_context = check_context(requested, self.context_space)
        else:
            self._episode_context = self.sample_context(rng) if self._context is None else self._context


class _Configuration(_Contextual):
    """x, the context and the reset options: the part that environments and wrappers share.

    Keeps two things apart: what persists (`set_leader`, `set_context`) and what holds for the running episode
    (``options={"leader": ..., "context": ...}`` of one reset).
    """

    leader_space: gym.spaces.Box
    discount: float
    leader_discount: float
    _episode_leader: npt.NDArray[np.float64]

    def _setup_configuration(
        self,
        leader_space: gym.spaces.Box,
        context_space: gym.Space[Any],
        discount: float,
        leader_discount: float | None = None,
        context_probabilities: npt.ArrayLike | None = None,
        leader: npt.ArrayLike | None = None,
    ) -> None:
        self.leader_space = leader_space
        self.discount = check_discount(discount)
        self.leader_discount = self.discount if leader_discount is None else check_discount(leader_discount, "leader_")
        self._setup_context(context_space, context_probabilities)
        self._leader = check_leader(np.zeros(leader_space.shape) if leader is None else leader, leader_space)
        self._episode_leader = self._leader

    @property
    def leader(self) -> npt.NDArray[np.float64]:
        """The leader parameter x in force (a read-only view)."""
        return self._episode_leader

    def set_leader(self, x: npt.ArrayLike | Tensor) -> None:
        """Set the leader parameter x, from the next step on and through all resets.

        Args:
            x: ``(d,)``, finite, inside ``leader_space``.

        Raises:
            LeaderParameterError: wrong shape, NaN, or outside the space.
        """
        self._leader = check_leader(x, self.leader_space)
        self._episode_leader = self._leader
        self._configured()

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """A starting point x_0 for a leader: the point of ``leader_space`` nearest to zero."""
        del rng
        return np.clip(np.zeros(self.leader_space.shape), self.leader_space.low, self.leader_space.high)

    def _begin_episode(self, options: dict[str, Any] | None, rng: np.random.Generator) -> Any:
        """Settle x and context of the episode that starts now. Returns the requested start state, or None.

        Raises:
            OptionError: an unknown option.
            LeaderParameterError, ContextError: an option outside its space.
        """
        options = options or {}
        for name in options:
            if name not in RESET_OPTIONS:
                raise OptionError(f"unknown reset option {name!r}. {suggest(name, RESET_OPTIONS)}")
        if options.get("leader") is not None:
            self._episode_leader = check_leader(options["leader"], self.leader_space)
        else:
            self._episode_leader = self._leader
        self._begin_context(options.get("context"), rng)
        self._configured()
        return options.get("state")

    def _configured(self) -> None:
        """Hook: x or the context in force changed."""


class ConfigurableEnv(_Configuration, gym.Env[Any, Any]):
    """Base class of environments whose reward and transitions depend on a leader parameter x and a context xi.

    Subclasses call ``_setup_configuration`` in their constructor, define ``observation_space``, ``action_space``, ``step`` and
    `_reset`, and put ``info["leader_reward"]`` and ``info["context"]`` into what ``step`` returns.

    Raises:
        UnknownOptionError: a keyword that the constructor does not have.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse unknown keywords before the constructor does, with the nearest known one."""
        parameters = list(signature(cls).parameters.values())
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
            for name in kwargs:
                if name not in known:
                    raise UnknownOptionError(f"{cls.__name__} has no option {name!r}. {suggest(name, known)}")
        self = super().__new__(cls)
        self._arguments = (args, kwargs)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the constructor's arguments, which make the model anew, and the running episode."""
        made_anew = ("model", "_mdps", "_figure")
        state = {k: v for k, v in self.__dict__.items() if k not in made_anew and not isinstance(v, FunctionType)}
        args, kwargs = self._arguments
        return partial(type(self), *args, **kwargs), (), state

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds the environment's own generator.
            options: ``leader``, ``context`` and ``state`` hold for this episode only.

        Returns:
            The first observation, and ``info`` with ``info["context"]``.
        """
        super().reset(seed=seed)
        state = self._begin_episode(options, self.np_random)
        observation, info = self._reset(state)
        return observation, {"context": self._episode_context, **info}

    def benchmark(self) -> Benchmark | None:
        """The best value known for a leader here, and its source; None where none is known at these settings."""
        return None

    @abstractmethod
    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        """Put the environment into a start state (``state`` if not None) under the episode's x and context.

        Environments that cannot be put into a state raise `UnsupportedError` when ``state`` is not None.
        """


class ConfigurableWrapper(_Configuration, gym.Wrapper[Any, Any, Any, Any]):
    """Base class of wrappers that make an environment configurable: x and xi live on the wrapper.

    ``leader`` and ``context`` among the reset options are the wrapper's; everything else goes on to the environment.
    Subclasses call ``_setup_configuration`` after ``super().__init__(env)``.

    Attributes:
        accepts_state: whether the environment starts in ``options["state"]``. Most of Gymnasium's ignore that option without
            a word, so it is refused unless a subclass sets this, or the environment is one of ours.

    Raises:
        UnsupportedError: a multi-agent or a vector environment.
    """

    accepts_state = False
    _wrapper_rng: np.random.Generator | None = None

    def __init__(self, env: gym.Env[Any, Any]):
        check_wrappable(env, type(self).__name__)
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see `ConfigurableEnv.reset`.

        Raises:
            OptionError: a misspelt option.
            UnsupportedError: a start state asked of an environment that cannot be put into one.
        """
        options = dict(options or {})
        own: dict[str, Any] = {name: options.pop(name) for name in ("leader", "context") if name in options}
        for name in options:  # the rest is the environment's, except what is surely meant for us
            if name != "state" and get_close_matches(name, RESET_OPTIONS, n=1, cutoff=0.75):
                raise OptionError(f"unknown reset option {name!r}. {suggest(name, RESET_OPTIONS)}")
        if options.get("state") is not None and not (self.accepts_state or isinstance(self.unwrapped, ConfigurableEnv)):
            raise UnsupportedError(
                f"{type(self.unwrapped).__name__} cannot be put into a state, as far as {type(self).__name__} knows; start "
                "without one, or set accepts_state = True on the wrapper if the environment heeds options['state']."
            )
        if seed is not None or self._wrapper_rng is None:
            self._wrapper_rng = layer_rng(seed, LEADER_STREAM)
        self._begin_episode(own, self._wrapper_rng)
        observation, info = self.env.reset(seed=seed, options=options or None)
        return observation, {**info, "context": self._episode_context}


def layer_rng(seed: int | None, stream: int) -> np.random.Generator:
    """The generator of a layer around an environment that is reset with the same seed, independent of the environment's."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


def refuse_multi_agent(env: Any) -> None:
    """Refuse environments in the style of PettingZoo, at any depth of Gymnasium's wrappers.

    Raises:
        UnsupportedError: a multi-agent environment.
    """
    layer = env
    while isinstance(layer, gym.Wrapper):
        layer = layer.env
    names = (
        ("possible_agents", "max_num_agents") if isinstance(layer, gym.Env) else ("possible_agents", "max_num_agents", "agents")
    )
    if any(hasattr(layer, name) for name in names):
        raise UnsupportedError(
            f"{type(layer).__name__} is a multi-agent environment: several followers who interact at once (Markov games) are "
            "outside this theory, and not built yet. Many followers who do not meet are contexts of one environment."
        )


def check_wrappable(env: Any, wrapper: str) -> None:
    """Refuse what a wrapper of ours cannot wrap, in the name of ``wrapper``.

    Raises:
        UnsupportedError: a multi-agent or a vector environment, or no Gymnasium environment at all.
    """
    refuse_multi_agent(env)
    if isinstance(env, gym.vector.VectorEnv):
        raise UnsupportedError(
            f"{wrapper} got a vector environment, whose copies' rewards it cannot reach; wrap each copy: "
            "gym.make_vec(id, num_envs, vectorization_mode='sync', wrappers=[lambda env: ...])."
        )
    if not isinstance(env, gym.Env):
        raise UnsupportedError(f"{wrapper} got {env!r}; expected a gymnasium.Env.")


def configurable(env: gym.Env[Any, Any]) -> Any:
    """The outermost layer of ``env`` with a leader parameter: an environment of ours, or a leader wrapper, at any depth.

    Raises:
        NotConfigurableError: no layer has one, or ``env`` is a vector environment.
        UnsupportedError: a multi-agent environment.
    """
    refuse_multi_agent(env)
    if isinstance(env, gym.vector.VectorEnv):
        raise NotConfigurableError(
            "got a vector environment; its copies are configured together, by "
            "envs.call('set_leader', x) and envs.call('set_context', context)."
        )
    layers = []
    layer: Any = env
    while isinstance(layer, gym.Env):
        layers.append(type(layer).__name__)
        if isinstance(layer, Configurable):
            return layer
        if not isinstance(layer, gym.Wrapper):
            break
        layer = layer.env
    raise NotConfigurableError(
        f"no layer of {' > '.join(layers) or type(env).__name__} has a leader_space; expected an environment of bocmdp_gym, or "
        "one made configurable by a wrapper of bocmdp_gym.wrappers or a subclass of ConfigurableWrapper."
    )


def check_leader(x: npt.ArrayLike | Tensor, space: gym.spaces.Box) -> npt.NDArray[np.float64]:
    """A read-only float64 copy of x.

    Raises:
        LeaderParameterError: wrong shape, not finite, or outside ``space``.
    """
    if isinstance(x, Tensor):  # numpy.array warns of tensors, and refuses those that require gradients
        x = x.detach().cpu().numpy()
    try:
        value = np.array(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LeaderParameterError(f"leader parameter {x!r} is not an array of numbers: {error}") from error
    if value.shape != space.shape:
        raise LeaderParameterError(f"leader parameter has shape {value.shape}; expected {space.shape}.")
    if not np.isfinite(value).all():
        where = int(np.flatnonzero(~np.isfinite(value))[0])
        raise LeaderParameterError(
            f"leader parameter is {value.reshape(-1)[where]} at entry {where}; expected finite numbers. If a leader "
            "produced it, lower its learning rate or clip its gradient."
        )
    outside = (value < space.low) | (value > space.high)
    if outside.any():
        where = int(np.flatnonzero(outside)[0])
        raise LeaderParameterError(
            f"leader parameter is {value.reshape(-1)[where]:.6g} at entry {where}, outside "
            f"[{space.low.reshape(-1)[where]:.6g}, {space.high.reshape(-1)[where]:.6g}]; project it onto leader_space."
        )
    value.flags.writeable = False
    return value


def check_context(context: Any, space: gym.Space[Any]) -> Any:
    """The context as an int (Discrete) or a read-only array.

    Raises:
        ContextError: outside ``space``.
    """
    if isinstance(space, gym.spaces.Discrete):
        if isinstance(context, (int, np.integer)) and not isinstance(context, bool) and 0 <= context - space.start < space.n:
            return int(context)
        low, high = int(space.start), int(space.start + space.n - 1)
        raise ContextError(f"context {context!r} is out of range; expected an integer in {low}..{high}.")
    value = np.array(context, dtype=space.dtype)
    if not space.contains(value):
        raise ContextError(f"context {context!r} is outside {space}.")
    value.flags.writeable = False
    return value


def check_context_probabilities(p: npt.ArrayLike, n: int | None = None) -> npt.NDArray[np.float64]:
    """P_xi as a float64 array.

    Raises:
        ContextError: not a distribution over n contexts.
    """
    value = np.array(p, dtype=np.float64)
    if value.ndim != 1 or (n is not None and len(value) != n):
        raise ContextError(f"context_probabilities has shape {value.shape}; expected ({'C' if n is None else n},).")
    if not ((value >= 0).all() and abs(value.sum() - 1.0) <= 1e-8):
        raise ContextError(f"context_probabilities {value} is not a distribution: it sums to {value.sum():.8g}.")
    return value


def check_discount(value: float, prefix: str = "") -> float:
    """The discount as a float in [0, 1].

    Raises:
        DiscountError: anything else.
    """
    try:
        number = float("nan") if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 <= number <= 1.0:
        raise DiscountError(f"{prefix}discount is {value!r}; expected a number in [0, 1].")
    return number
