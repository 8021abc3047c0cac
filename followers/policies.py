"""What a follower answers with: a policy, and all that it may be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import ModelError, UnsupportedError
from bocmdp_gym.kernels.bounds import LARGEST, all_within
from bocmdp_gym.mdps import ConfiguredMDPs
from bocmdp_gym.options import as_array
from followers.empirical import EmpiricalPolicy
from followers.environments import AnyEnv, rows

Array = npt.NDArray[np.float64]


class Policy(Constructed, ABC):
    """A follower's behaviour at one (x, context). Frozen: acting does not change it.

    Whoever plays episodes has `begin` make what acts in them, and tells it of later ones by `restart`. For most policies that is
    the policy itself, which chooses by the observation alone; one that remembers an episode keeps what it remembers there.

    A subclass says how to `act`. One that knows its probabilities defines `probabilities` and sets ``exposes_probabilities``;
    the rest has defaults. An object that has none of this but ``act(observation, rng)`` or ``predict(observation)`` is adapted
    when an oracle receives it (`followers.adapters.as_policy`).

    Attributes:
        leader, context: the x ``(d,)`` and xi it answers.
        exposes_probabilities: whether `probabilities` answers.
        greedy: whether it is known to take one action alone wherever it was seen; gradients that weigh reactions are then 0.
        batched: whether `act_batch` answers all rows in hardly more time than one: oracles then play several episodes at once.
        table: action probabilities ``(S, A)`` that it acts by, where the problem is tabular; None elsewhere.
        value: the follower's regularised values V ``(S,)``, where it knows them.
        estimate: what `probabilities` rest on, where they were counted in trajectories.
        metrics: numbers about the response, by name; they go into the history.
        problem: the arrays that it is played in, where these are not the model's at x: those of a population at the loads of
            this response (`followers.FictitiousPlay`). None elsewhere.
    """

    leader: Array
    context: Any
    exposes_probabilities: bool = False
    greedy: bool = False
    batched: bool = False
    table: Array | None = None
    value: Array | None = None
    estimate: EmpiricalPolicy | None = None
    metrics: Mapping[str, float] = MappingProxyType({})
    problem: ConfiguredMDPs | None = None

    def begin(self, env: AnyEnv) -> Policy:
        """What acts in ``env`` from the start of an episode on; in all copies, where that is a vector environment."""
        del env
        return self

    def restart(self, copies: npt.NDArray[np.bool_]) -> None:
        """Hear that an episode begins in these copies ``(n,)``, whose first observation is the next to be acted on."""

    @abstractmethod
    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        """An action for one observation."""

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        """Actions for several observations, one row each."""
        return [self.act(observation, rng) for observation in rows(observations)]

    def probabilities(self, observation: Any) -> Array:
        """Action probabilities ``(A,)`` for one observation; one axis per factor of a MultiDiscrete action.

        Raises:
            UnsupportedError: the policy exposes none.
        """
        raise UnsupportedError(
            f"{type(self).__name__} exposes no probabilities, it only acts; use a follower that does, or CallableFollower with "
            "probabilities= or estimate_steps=."
        )

    def probabilities_batch(self, observations: Any) -> Array:
        """Those of several observations, one row each.

        Raises:
            UnsupportedError: as `probabilities`.
        """
        return np.stack([np.asarray(self.probabilities(row), dtype=np.float64) for row in rows(observations)])

    def entropies(self, observations: Any) -> Array | None:
        """Entropies of the actions ``(N,)`` in several observations, differential ones where actions are real numbers.

        None where they are not known, or follow from probabilities.
        """
        del observations
        return None


@dataclass(eq=False, repr=False)
class TabularPolicy(Policy):
    """A policy as a table of probabilities.

    Attributes:
        table: ``(S, A)``.
        leader, context, value, metrics: see `Policy`.
        states_of: reads the state in an observation; None where observations are states.
    """

    exposes_probabilities = True
    table: Array = field()
    leader: Array = field()
    context: Any = field()
    value: Array | None = field(default=None, kw_only=True)
    metrics: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    states_of: Callable[[Any], Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.table = np.array(_check_table(self.table))

    def probabilities(self, observation: Any) -> Array:
        state = observation if self.states_of is None else self.states_of(observation)
        probabilities: Array = self.table[int(state)]
        return probabilities

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        cumulative = self.probabilities(observation).cumsum()
        return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


class InterpolatedPolicy(TabularPolicy):
    """A table made on a grid of a continuous problem: between grid points it acts as the weighted mean of its neighbours.

    Args:
        table, leader, context, value, metrics: as for `TabularPolicy`; states and actions are those of the grid.
        core: the environment, which says by ``neighbours(observation)`` which grid states are near and what they weigh, and by
            ``joint_action(index)`` what action an action of the grid is; both take many at once.
        read: reads the environment's own observations in those seen; None where they are the same.

    An action is drawn by drawing a neighbour first, then an action of its row.
    """

    batched = True

    def __init__(
        self,
        table: Array,
        leader: Array,
        context: int,
        *,
        core: Any,
        read: Callable[[Any], Any] | None = None,
        value: Array | None = None,
        metrics: Mapping[str, float] | None = None,
    ):
        super().__init__(table, leader, context, value=value, metrics=metrics or {})
        self._core, self._read = core, read
        table = self.table
        cumulative = table.cumsum(-1)
        cumulative /= cumulative[:, -1:]
        self._cumulative = (cumulative + np.arange(len(table))[:, None]).reshape(-1)  # row s rises from s to s + 1

    def probabilities(self, observation: Any) -> Array:
        """Probabilities ``(A,)`` of the grid's actions for one observation."""
        return self.probabilities_batch(observation)

    def probabilities_batch(self, observations: Any) -> Array:
        states, weights = self._neighbours(observations)
        probabilities: Array = (weights[..., None, :] @ self.table[states])[..., 0, :]
        return probabilities

    def _neighbours(self, observations: Any) -> tuple[npt.NDArray[np.int64], Array]:
        own = observations if self._read is None else self._read(observations)
        states, weights = self._core.neighbours(own)
        return states, weights

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        """An action for one observation, as the environment takes it."""
        return self.act_batch(np.asarray(observation)[None], rng)[0]

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        states, weights = self._neighbours(observations)
        state = np.where(rng.random(len(states)) < weights[:, 0], states[:, 0], states[:, 1])
        index = np.searchsorted(self._cumulative, state + rng.random(len(states)), side="right")
        first, n_actions = state * self.table.shape[1], self.table.shape[1]
        return self._core.joint_action(np.clip(index - first, 0, n_actions - 1))


def _check_table(table: Any) -> Array:
    """A table of probabilities ``(S, A)`` as float64; that its rows are distributions is for who uses it to say.

    Raises:
        ModelError: another shape, or what are no finite numbers of at least 0.
    """
    array = table if isinstance(table, np.ndarray) and table.dtype == np.float64 else as_array(table)
    if array is None or array.ndim != 2 or not array.size or not all_within(array.reshape(-1), 0.0, LARGEST):
        raise ModelError(f"the table of a policy is {table!r}; expected probabilities (S, A).")
    return array
