"""Configurable environments: the leader parameter x and the context xi live on the environment.

`Configurable` is the protocol, `ConfigurableEnv` the base class for environments, and `configurable` finds the layer of a
wrapped environment that holds x. `bocmdp_gym.hooks` lists what else an environment may offer;
`bocmdp_gym.wrappers.ConfigurableWrapper` is the base class of wrappers that make an existing environment configurable.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from functools import partial
from types import FunctionType
from typing import Any, Protocol, Self, runtime_checkable

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym.arguments import Constructed, known_options
from bocmdp_gym.errors import ContextError, NotConfigurableError, OptionError, suggest
from bocmdp_gym.forked import limit_threads_after_fork
from bocmdp_gym.hooks import Adapted, Hooks
from bocmdp_gym.memory import owned
from bocmdp_gym.validation import check_context, check_context_probabilities, check_discount, check_leader, refuse_multi_agent

RESET_OPTIONS = ("leader", "context", "state")
#: Streams of a layer's own generator, apart from the wrapped environment's and from each other at the same seed.
LEADER_STREAM, CONTEXT_STREAM = 1, 2


@runtime_checkable
class Configurable(Protocol):
    """What the rest of the library needs of an environment; `bocmdp_gym.hooks.Hooks` has what else it may offer.

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
        """Set x from the next step on, through all resets."""

    def set_context(self, context: Any) -> None:
        """Fix xi from the next reset on; None draws it from P_xi at each reset."""

    def sample_context(self, rng: np.random.Generator) -> Any:
        """One draw of xi ~ P_xi."""


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
        limit_threads_after_fork()
        self._leader = check_leader(x, self.leader_space)
        self._episode_leader = self._leader
        self._configured()

    def _begin_episode(self, options: dict[str, Any] | None, rng: np.random.Generator) -> Any:
        """Settle x and context of the episode that starts now. Returns the requested start state, or None.

        Raises:
            OptionError: an unknown option.
            LeaderParameterError, ContextError: an option outside its space.
        """
        limit_threads_after_fork()
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


class ConfigurableEnv(_Configuration, Hooks, Constructed, gym.Env[Any, Any]):
    """Base class of environments whose reward and transitions depend on a leader parameter x and a context xi.

    Subclasses call ``_setup_configuration`` in their constructor, define ``observation_space``, ``action_space``, ``step`` and
    `_reset`, and put ``info["leader_reward"]`` and ``info["context"]`` into what ``step`` returns.

    Raises:
        UnknownOptionError: a keyword that the constructor does not have.
    """

    _records = True

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the keywords, and keep the arguments for pickles."""
        self = super().__new__(cls, *args, **kwargs)
        limit_threads_after_fork()
        self._arguments = owned((args, kwargs))
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the constructor's arguments, from which the model is built again, and the running episode."""
        rebuilt = ("model", "_mdps", "_figure", "_given_arguments")
        state = {k: v for k, v in self.__dict__.items() if k not in rebuilt and not isinstance(v, FunctionType)}
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

    @abstractmethod
    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        """Put the environment into a start state (``state`` if not None) under the episode's x and context.

        Environments that cannot be put into a state raise `UnsupportedError` when ``state`` is not None.
        """


def layer_rng(seed: int | None, stream: int) -> np.random.Generator:
    """The generator of a layer around an environment that is reset with the same seed, independent of the environment's."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


@known_options()
def configurable(env: gym.Env[Any, Any]) -> Any:
    """The outermost layer of ``env`` with a leader parameter: an environment of ours, or a leader wrapper, at any depth.

    Returns:
        The layer, with every member of `bocmdp_gym.hooks.Hooks`: a layer that derives from none of our base classes is
        returned inside a `bocmdp_gym.hooks.Adapted`.

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
            return layer if isinstance(layer, Hooks) else Adapted(layer)
        if not isinstance(layer, gym.Wrapper):
            break
        layer = layer.env
    raise NotConfigurableError(
        f"no layer of {' > '.join(layers) or type(env).__name__} has a leader_space; expected an environment of bocmdp_gym, or "
        "one made configurable by a wrapper of bocmdp_gym.wrappers or a subclass of ConfigurableWrapper."
    )
