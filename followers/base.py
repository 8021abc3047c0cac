"""What a follower is: something that, given a task M_{x, xi}, comes back with a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from bocmdp_gym import ConfiguredMDPs
from bocmdp_gym.errors import UnsupportedError

Array = npt.NDArray[np.float64]


@runtime_checkable
class Policy(Protocol):
    """A follower's behaviour at one (x, context). Frozen: acting does not change it.

    Attributes:
        leader, context: the x ``(d,)`` and xi it answers.
    """

    leader: Array
    context: Any

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        """An action for one observation."""


class TabularPolicy:
    """A policy as a table of probabilities.

    Attributes:
        table: ``(S, A)``.
        leader, context: the x and xi it answers.
        value: the follower's regularised values V ``(S,)``, where it knows them.
        metrics: numbers about the solve, by name; they go into the history.
    """

    def __init__(
        self,
        table: Array,
        leader: Array,
        context: int,
        *,
        value: Array | None = None,
        metrics: dict[str, float] | None = None,
        states_of: Callable[[Any], Any] | None = None,
    ):
        self.table, self.leader, self.context = table, leader, context
        self.value, self.metrics = value, metrics or {}
        self._states_of = states_of

    def probabilities(self, observation: Any) -> Array:
        """Action probabilities ``(A,)`` for one observation."""
        state = observation if self._states_of is None else self._states_of(observation)
        probabilities: Array = self.table[int(state)]
        return probabilities

    def act(self, observation: Any, rng: np.random.Generator) -> int:
        """An action for one observation."""
        cumulative = self.probabilities(observation).cumsum()
        return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


class Task:
    """The problem M_{x, xi} a follower is asked to solve.

    Attributes:
        leader, context: x ``(d,)`` and xi.
        discount: gamma.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        core: Any,
        leader: Array,
        context: Any,
        configure: Callable[[], ConfiguredMDPs] | None,
    ):
        self.leader, self.context, self.discount = leader, context, core.discount
        self._env, self._core, self._configure = env, core, configure

    @property
    def env(self) -> gym.Env[Any, Any]:
        """The environment, with x and the context set: what a learning follower trains on."""
        self._core.set_leader(self.leader)
        self._core.set_context(self.context)
        return self._env

    @property
    def is_tabular(self) -> bool:
        """Whether the model is known as arrays."""
        return self._configure is not None

    @property
    def mdps(self) -> ConfiguredMDPs:
        """The model's arrays at x: what a planning follower solves.

        Raises:
            UnsupportedError: the environment has no tabular model.
        """
        if self._configure is None:
            raise UnsupportedError(
                f"{type(self._core).__name__} has no tabular model, which this follower plans with; use a learning follower "
                "(SB3Follower, CallableFollower), or an environment whose .model is a TabularBOCMDP."
            )
        return self._configure()

    def tabular_policy(self, table: Array, value: Array | None = None, **metrics: float) -> TabularPolicy:
        """A policy for this task from a table of probabilities ``(S, A)``."""
        return TabularPolicy(
            table,
            self.leader,
            self.context,
            value=value,
            metrics=metrics,
            states_of=getattr(self._core, "states_of", None),
        )


class Follower(ABC):
    """Base class of followers. A subclass says how it responds to a task; warm starts live in it, keyed by context.

    Attributes:
        regularization: the lambda of the objective it maximises; None if it has none (leaders then need their own).
        needs_model: whether it plans with the tabular model, rather than learning from the environment.
        exact: whether its policies are optimal up to a residual it reports, so that no one need measure their distance.
        discount: a gamma it was given explicitly, which must be the environment's; None: it takes the environment's.
    """

    regularization: float | None = None
    needs_model: bool = False
    exact: bool = False
    discount: float | None = None

    @abstractmethod
    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        """The policy it answers ``task`` with."""

    def reset(self) -> None:  # noqa: B027 - optional hook
        """Forget everything learnt: called once when a run starts, so that equal seeds give equal runs."""
