"""What a follower is: something that, given a task M_{x, xi}, comes back with a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bocmdp_gym import ConfiguredMDPs
from bocmdp_gym.errors import DiscountError, UnsupportedError
from followers.environments import AnyEnv, Layers, configure, inspect_layers, observations_of_states, single

Array = npt.NDArray[np.float64]


@runtime_checkable
class Policy(Protocol):
    """A follower's behaviour at one (x, context). Frozen: acting does not change it.

    A policy may offer more: ``probabilities(observation)``, a ``table`` of them ``(S, A)`` (None where states are no table),
    ``act_batch(observations, rng)`` and ``probabilities_batch(observations)`` for many observations at once, an ``estimate``
    (`EmpiricalPolicy`) where it is only known from trajectories, ``value`` ``(S,)``, and ``metrics`` for the history.

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


class InterpolatedPolicy(TabularPolicy):
    """A table made on a grid of a continuous problem: between grid points it acts as the weighted mean of its neighbours.

    Args:
        table, leader, context, value, metrics: as for `TabularPolicy`; states and actions are those of the grid.
        core: the environment, which says by ``neighbours(observation)`` which grid states are near and what they weigh, and by
            ``joint_action(index)`` what action an action of the grid is; both take many at once.

    An action is drawn by drawing a neighbour first, then an action of its row.
    """

    def __init__(
        self,
        table: Array,
        leader: Array,
        context: int,
        *,
        core: Any,
        value: Array | None = None,
        metrics: dict[str, float] | None = None,
    ):
        super().__init__(table, leader, context, value=value, metrics=metrics)
        self._core = core
        cumulative = table.cumsum(-1)
        cumulative /= cumulative[:, -1:]
        self._cumulative = (cumulative + np.arange(len(table))[:, None]).reshape(-1)  # row s rises from s to s + 1

    def probabilities(self, observation: Any) -> Array:
        """Probabilities ``(A,)`` of the grid's actions for one observation."""
        return self.probabilities_batch(observation)

    def probabilities_batch(self, observations: Any) -> Array:
        """Those of several observations ``(N, ...)``, one row each."""
        states, weights = self._core.neighbours(observations)
        probabilities: Array = (weights[..., None, :] @ self.table[states])[..., 0, :]
        return probabilities

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        """An action for one observation, as the environment takes it."""
        return self.act_batch(np.asarray(observation)[None], rng)[0]

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        """Actions for several observations, one row each."""
        states, weights = self._core.neighbours(observations)
        state = np.where(rng.random(len(states)) < weights[:, 0], states[:, 0], states[:, 1])
        index = np.searchsorted(self._cumulative, state + rng.random(len(states)), side="right")
        first, n_actions = state * self.table.shape[1], self.table.shape[1]
        return self._core.joint_action(np.clip(index - first, 0, n_actions - 1))


class Task:
    """The problem M_{x, xi} a follower is asked to solve.

    Attributes:
        leader, context: x ``(d,)`` and xi.
        discount: gamma.
        core: the environment's configurable layer (of one copy, where it is a vector environment).
    """

    def __init__(
        self,
        env: AnyEnv,
        core: Any,
        leader: Array,
        context: Any,
        configure: Callable[[], ConfiguredMDPs] | None,
        layers: Layers | None = None,
    ):
        self.leader, self.context, self.discount = leader, context, core.discount
        self.core = core
        self._env, self._configure = env, configure
        self._layers = inspect_layers(single(env), core) if layers is None else layers

    @property
    def env(self) -> AnyEnv:
        """The environment (or the copies), with x and the context set: what a learning follower trains on."""
        configure(self._env, self.core, self.leader, self.context)
        return self._env

    @property
    def observations(self) -> npt.NDArray[Any] | None:
        """What a follower sees in each state, ``(S, ...)``; None where the problem, as seen, has no table of states."""
        return observations_of_states(self.core, self._layers, self.context)

    @property
    def states_of(self) -> Callable[[Any], Any] | None:
        """Reads the state in an observation, as the follower sees it; None where there are no states to read."""
        if not self._layers.showing:
            return self.core.states_of if self.core.exposes_states else None
        rows = self.observations
        assert rows is not None
        states = {row.tobytes(): state for state, row in enumerate(rows)}
        return lambda observation: states[np.asarray(observation, dtype=rows.dtype).tobytes()]

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
                f"{type(self.core).__name__} has no tabular model, which this follower plans with; use a learning follower "
                "(SB3Follower, CallableFollower), or an environment whose .model is a TabularBOCMDP."
            )
        return self._configure()

    def tabular_policy(self, table: Array, value: Array | None = None, **metrics: float) -> TabularPolicy:
        """A policy for this task from a table of probabilities ``(S, A)``; where the model is a grid, it interpolates.

        Raises:
            UnsupportedError: outer layers change the observations the grid is laid on.
        """
        if self.core.interpolates:
            if not self._layers.plain:
                raise UnsupportedError(
                    f"the model of {type(self.core).__name__} is a grid of its own observations, and outer layers change them; "
                    "unwrap the environment, or use a learning follower."
                )
            return InterpolatedPolicy(table, self.leader, self.context, core=self.core, value=value, metrics=metrics)
        return TabularPolicy(
            table,
            self.leader,
            self.context,
            value=value,
            metrics=metrics,
            states_of=self.states_of,
        )


class Follower(ABC):
    """Base class of followers. A subclass says how it responds to a task; warm starts live in it, keyed by context.

    Attributes:
        regularization: the lambda of the objective it maximises; None if it has none (leaders then need their own).
        needs_model: whether it plans with the tabular model, rather than learning from the environment.
        training_steps: environment steps it has used for its own purposes since the last `reset`.
        exact: whether its policies are optimal up to a residual it reports, so that no one need measure their distance.
        discount: a gamma it was given explicitly, which must be the environment's; None: it takes the environment's.
    """

    regularization: float | None = None
    needs_model: bool = False
    training_steps: int = 0
    exact: bool = False
    discount: float | None = None

    def bind(self, env: AnyEnv, core: Any) -> None:
        """Refuse an environment this follower cannot answer in: called when an oracle is made, before anything runs.

        Args:
            env: the environment, or the vector environment.
            core: its configurable layer (of one copy).

        Raises:
            DiscountError: it was given another discount than the environment's.
        """
        del env
        if self.discount is not None and self.discount != core.discount:
            raise DiscountError(
                f"{type(self).__name__} was given discount {self.discount}, but {type(core).__name__} has {core.discount}; "
                "leave it out: followers take theirs from the environment."
            )

    @abstractmethod
    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        """The policy it answers ``task`` with."""

    def reset(self) -> None:  # noqa: B027 - optional hook
        """Forget everything learnt: called once when a run starts, so that equal seeds give equal runs."""

    def state(self) -> dict[Any, Any]:
        """What a checkpoint keeps of it: nested dicts of arrays and JSON-able values; {} if it keeps nothing in mind."""
        return {}

    def load_state(self, state: dict[Any, Any]) -> None:  # noqa: B027 - optional hook
        """Go on from `state`."""
