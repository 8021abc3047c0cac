"""`TransitionCounts`: what trajectories have shown of the dynamics of a tabular problem, counted by compiled code."""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym import TabularBOCMDP, Trajectories
from bocmdp_gym.errors import DamagedError, UnsupportedError
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.saved_state import array_entry, entry
from followers.empirical import empirical_policy
from leaders.gradients.base import Array

Counts = npt.NDArray[np.int64]
_NO_MOVES = np.empty(0, dtype=np.int64)


class TransitionCounts:
    """What trajectories have shown of the dynamics of a tabular problem.

    Args:
        model: its shapes, and its lists of successors, which are the layout of the counts; no probability of it is read.
        share_contexts: count the steps of all contexts together, for those of P, q and mu that the model has once for all.

    Attributes:
        transitions: steps that continued, per stored successor, ``(C or 1, S, M, K)``.
        visits, endings: all steps, and those that ended the episode, ``(C or 1, S, A)``.
        starts: first states, ``(C or 1, S)``.
    """

    def __init__(self, model: TabularBOCMDP, share_contexts: bool):
        self._model = model
        operator = model.part("transition", None)
        self._successors, self._moves = operator.successors(), operator.index
        s, a = model.n_states, model.n_actions

        def zeros(stored_contexts: int, *shape: int) -> Counts:
            shared = share_contexts and stored_contexts == 1
            return np.zeros((1 if shared else model.n_contexts, *shape), dtype=np.int64)

        self.transitions = zeros(operator.n_contexts, *self._successors.shape[1:])
        self.visits = zeros(len(model.part("termination", None)), s, a)
        self.endings = np.zeros_like(self.visits)
        self.starts = zeros(len(model.part("initial", None)), s)

    def add(self, batch: Trajectories) -> None:
        """Count a batch.

        Raises:
            UnsupportedError: the trajectories carry no state indices, or move in ways the model does not know.
        """
        if batch.states is None or batch.final_states is None:
            raise UnsupportedError("the trajectories carry no state indices; this estimator needs a tabular environment.")
        context = batch.context
        wrong = count_transitions(
            batch.states,
            batch.actions.astype(np.int32, copy=False),
            _NO_MOVES if self._moves is None else self._moves,
            batch.ends,
            batch.terminated,
            batch.final_states,
            _of(self._successors, context),
            _of(self.transitions, context),
            _of(self.visits, context),
            _of(self.endings, context),
            _of(self.starts, context),
        )
        if wrong >= 0:
            raise UnsupportedError(
                f"from state {batch.states[wrong]} after action {batch.actions[wrong]} in context {context} the environment went "
                "to a state that is no successor in its model; expected the model's dynamics, which a wrapper seems to change. "
                'Use HPGD(estimator="monte_carlo"), which reads trajectories alone.'
            )

    def observed(self, batch: Trajectories) -> Array:
        """Action probabilities ``(S, A)`` of a policy known from its own trajectories alone, already counted.

        Shares of its actions; in states it did not visit, shares of all actions counted there (zeros where there are none).
        """
        visits = _of(self.visits, batch.context)
        shares = empirical_policy(batch, *visits.shape).table
        return np.where(np.isnan(shares), visits / np.maximum(visits.sum(-1, keepdims=True), 1), shares)

    def empirical(self, arrays: ContextArrays, context: int) -> tuple[ContextArrays, npt.NDArray[np.bool_]]:
        """One context's MDP with P^, q^, mu^ for P, q, mu, and which pairs ``(S, A)`` were seen."""
        transitions, visits = _of(self.transitions, context), _of(self.visits, context)
        starts = _of(self.starts, context)
        rows = transitions.sum(-1, keepdims=True)
        termination = _of(self.endings, context) / np.maximum(visits, 1)
        continued = rows[..., 0] > 0
        model = arrays._replace(
            stored_probabilities=transitions / np.maximum(rows, 1),
            initial=starts / starts.sum(),
            termination=termination,
            continuation=self._model.discount * (1.0 - termination),
            leader_continuation=self._model.leader_discount * (1.0 - termination),
        )
        return model, (visits > 0) | (continued if self._moves is None else continued[:, self._moves])

    def state(self) -> dict[str, Counts]:
        """What a checkpoint keeps: the counts."""
        return {name: value.copy() for name, value in vars(self).items() if not name.startswith("_")}

    def load_state(self, state: dict[str, Counts]) -> None:
        """Continue from `state`.

        Raises:
            DamagedError: no counts, or those of another problem, or shared otherwise between contexts.
        """
        for name, own in self.state().items():
            value = entry(state, name, np.ndarray)
            if own.shape != value.shape:
                raise DamagedError(
                    f"the saved counts of {name} have shape {value.shape}, and this run's {own.shape}; expected the same "
                    "environment and the same share_contexts."
                )
            if (value < 0).any():
                raise DamagedError(f"the saved counts of {name} are negative.")
            getattr(self, name)[...] = array_entry(state, name, own.shape, own.dtype.kind)


def _of(counts: npt.NDArray[Any], context: int) -> npt.NDArray[Any]:
    """One context's part of something that may be shared."""
    own: npt.NDArray[Any] = counts[0 if len(counts) == 1 else context]
    return own


@njit(cache=True)
def count_transitions(states, actions, moves, ends, terminated, final_states, succ, transitions, visits, endings, starts):
    """Add episodes to the counts: of successors (S, M, K), of visits and of ends per pair (S, A), of starts (S,).

    Returns the first step whose successor is not among those stored, which is not counted nor any after it; -1: none.
    """
    n_k = succ.shape[2]
    for e in range(ends.shape[0]):
        begin = ends[e - 1] if e > 0 else 0
        starts[states[begin]] += 1
        for i in range(begin, ends[e]):
            s, a = states[i], actions[i]
            last = i == ends[e] - 1
            if last and terminated[e]:
                endings[s, a] += 1
            else:
                following = final_states[e] if last else states[i + 1]
                m = a if moves.shape[0] == 0 else moves[a]
                k = following if following < n_k and succ[s, m, following] == following else 0  # kernels that store all states
                while k < n_k and succ[s, m, k] != following:
                    k += 1
                if k == n_k:
                    return i
                transitions[s, m, k] += 1
            visits[s, a] += 1
    return -1
