"""The `Trajectories` record: what a leader sees of a follower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import OptionError


@dataclass(frozen=True)
class Trajectories(Constructed):
    """Episodes of one policy at one (x, context), laid end to end.

    Step arrays have length N, episode arrays length E. Episode e covers steps ``ends[e-1]:ends[e]`` (``ends[-1] := 0``).

    Attributes:
        observations: what the policy saw before acting, ``(N, ...)``.
        actions: what it did, ``(N, ...)``.
        rewards: the follower's reward, ``(N,)``.
        leader_rewards: the leader's reward, ``(N,)``.
        ends: one past the last step of each episode, ``(E,)``, increasing, ``ends[E-1] == N``.
        terminated: True where the episode ended by the problem's own rules, ``(E,)``; False where a time limit cut it.
        final_observations: the observation after the last step of each episode, ``(E, ...)``.
        leader: the leader parameter x in force, ``(d,)``.
        context: the context in force.
        states, final_states: the same as observations, as state indices, where the problem is tabular; else None.
        outcomes: what else a model's rewards take of each step (`BOCMDP.outcomes`): "rewards", the environment's own ``(N,)``,
            and "infos", entries of its info by name, each ``(N, ...)``; None where they take nothing.
    """

    observations: npt.NDArray[Any]
    actions: npt.NDArray[Any]
    rewards: npt.NDArray[np.float64]
    leader_rewards: npt.NDArray[np.float64]
    ends: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    final_observations: npt.NDArray[Any]
    leader: npt.NDArray[np.float64]
    context: Any
    states: npt.NDArray[np.int32] | None = None
    final_states: npt.NDArray[np.int32] | None = None
    outcomes: dict[str, Any] | None = None

    @property
    def n_steps(self) -> int:
        """Number of environment steps N."""
        return len(self.rewards)

    @property
    def n_episodes(self) -> int:
        """Number of episodes E."""
        return len(self.ends)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """First step of each episode, ``(E,)``."""
        return np.concatenate([np.zeros(1, dtype=np.int64), self.ends[:-1]])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Steps of each episode, ``(E,)``."""
        return np.diff(self.ends, prepend=0)

    @property
    def times(self) -> npt.NDArray[np.int64]:
        """Step index within its episode, ``(N,)``."""
        return np.arange(self.n_steps) - np.repeat(self.starts, self.lengths)

    @property
    def next_observations(self) -> npt.NDArray[Any]:
        """Observation after each step, ``(N, ...)``; after a terminated episode it is the observation it ended with."""
        following = np.empty_like(self.observations)
        following[:-1] = self.observations[1:]
        following[self.ends - 1] = self.final_observations
        return following

    @property
    def next_states(self) -> npt.NDArray[np.int32] | None:
        """State after each step, ``(N,)``, as `next_observations`; None where there are no states."""
        if self.states is None or self.final_states is None:
            return None
        following = np.append(self.states[1:], self.states[:1])
        following[self.ends - 1] = self.final_states
        return following

    @property
    def continued(self) -> npt.NDArray[np.bool_]:
        """Whether the problem goes on after each step, ``(N,)``: False where an episode terminated, True where it was cut."""
        continued = np.ones(self.n_steps, dtype=np.bool_)
        continued[self.ends - 1] = ~self.terminated
        return continued

    def outcomes_of(self, names: Sequence[str], steps: Any = slice(None)) -> dict[str, Any]:
        """What a model's rewards take of steps besides observations and actions, by name; see `BOCMDP.outcomes`.

        Args:
            names: of the outcomes.
            steps: indices of some of the steps; all by default.

        Raises:
            OptionError: the trajectories do not carry one of them.
        """
        found: dict[str, Any] = {}
        for name in names:
            if name != "next_observations" and name not in (self.outcomes or {}):
                raise OptionError(
                    f"the model's rewards take {name} of each step, and these trajectories carry {list(self.outcomes or {})}; "
                    "sample them by an oracle of that environment."
                )
            found[name] = self.next_observations if name == "next_observations" else (self.outcomes or {})[name]
        return _rows(found, steps)

    def discounted_returns(self, discount: float, leader: bool = False) -> npt.NDArray[np.float64]:
        """Discounted sum of rewards (of the leader's, if ``leader``) per episode, ``(E,)``."""
        rewards = self.leader_rewards if leader else self.rewards
        return np.add.reduceat(rewards * discount**self.times, self.starts)

    def episodes(self, chosen: npt.NDArray[np.int64]) -> Trajectories:
        """Some of the episodes alone, given by their indices ``(n,)``, in that order."""
        lengths = self.lengths[chosen]
        ends = lengths.cumsum()
        steps = np.arange(ends[-1]) + np.repeat(self.starts[chosen] - (ends - lengths), lengths)
        return replace(
            self,
            observations=self.observations[steps],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            leader_rewards=self.leader_rewards[steps],
            ends=ends,
            terminated=self.terminated[chosen],
            final_observations=self.final_observations[chosen],
            states=None if self.states is None else self.states[steps],
            final_states=None if self.final_states is None else self.final_states[chosen],
            outcomes=None if self.outcomes is None else _rows(self.outcomes, steps),
        )


def _rows(outcomes: dict[str, Any], steps: Any) -> dict[str, Any]:
    """Outcomes of some steps."""
    return {name: _rows(value, steps) if isinstance(value, dict) else value[steps] for name, value in outcomes.items()}
