"""Compiled simulation of tabular problems: whole trajectories of a policy, without Python per step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import OptionError, StateError
from bocmdp_gym.kernels import simulate as compiled
from bocmdp_gym.kernels.alias import AliasTables, alias_tables, joint_tables
from bocmdp_gym.kernels.random import generator_state
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import as_array

Array = npt.NDArray[np.float64]
#: Step buffers grow by this much where episodes have no time limit.
_CHUNK = 4096
_NO_STARTS = np.empty((0, 2), dtype=np.int64)
_NO_ROWS = AliasTables(np.empty((0, 0)), np.empty((0, 0, 2), dtype=np.uint64))
_IDENTITY = np.empty(0, dtype=np.int64)


def successor_tables(arrays: ContextArrays) -> AliasTables:
    """Tables of the next-state draw of every stored row of transitions, ``(S M, K)``; M = A, unless actions share rows."""
    width = arrays.stored_probabilities.shape[-1]
    return alias_tables(arrays.stored_probabilities.reshape(-1, width), arrays.stored_successors.reshape(-1, width))


def step_tables(arrays: ContextArrays, policy: Array) -> tuple[AliasTables, AliasTables]:
    """What a step of a policy (S, A) draws from.

    Tables of the action and the next state at once, ``(S, A K)``; where actions share rows, of the action and its move,
    ``(S, A)``, and then those of the move's next state, ``(S M, K)`` (else empty).
    """
    if arrays.moves is None:
        return joint_tables(policy, arrays.stored_successors, arrays.stored_probabilities), _NO_ROWS
    moves = np.broadcast_to(arrays.moves.astype(np.int32)[:, None], (*policy.shape, 1))
    return joint_tables(policy, np.ascontiguousarray(moves), np.ones(moves.shape)), successor_tables(arrays)


class Simulation(NamedTuple):
    """Episodes laid end to end, as in `bocmdp_gym.Trajectories`."""

    states: npt.NDArray[np.int32]  # (N,)
    actions: npt.NDArray[np.int32]  # (N,)
    rewards: Array  # (N,)
    leader_rewards: Array  # (N,)
    ends: npt.NDArray[np.int64]  # (E,)
    terminated: npt.NDArray[np.bool_]  # (E,)
    final_states: npt.NDArray[np.int32]  # (E,)


def simulate(
    arrays: ContextArrays,
    policy: Array,
    budget: int,
    rng: np.random.Generator,
    *,
    horizon: int | None,
    starts: npt.ArrayLike | None = None,
) -> Simulation:
    """Play a policy (S, A) for ``budget`` steps; the episode running then is finished, and its steps are counted.

    Args:
        arrays: the context's MDP.
        policy: action probabilities, ``(S, A)``.
        budget: number of steps, at least 1.
        rng: source of randomness; the compiled generator is seeded from it.
        horizon: steps after which an episode is cut, None for never.
        starts: ``(F, 2)`` start state and first action (-1: from the policy), one episode each, played in turn until the
            budget is spent; starts drawn from the initial distribution if None.

    Raises:
        OptionError: a budget below 1.
        StateError: a start outside the model.
    """
    if budget < 1:
        raise OptionError(f"the budget of environment steps is {budget}; expected at least 1.")
    forced = _NO_STARTS if starts is None else check_starts(starts, policy.shape)
    tables, rows = step_tables(arrays, policy)
    state = generator_state(rng)
    carry = np.array([-1, 0])
    chunks = []
    remaining = budget
    while True:
        capacity = remaining + (_CHUNK if horizon is None else horizon)
        chunk = Simulation(
            np.empty(capacity, dtype=np.int32),
            np.empty(capacity, dtype=np.int32),
            np.empty(capacity),
            np.empty(capacity),
            np.empty(capacity, dtype=np.int64),
            np.empty(capacity, dtype=np.bool_),
            np.empty(capacity, dtype=np.int32),
        )
        steps, episodes = compiled.simulate(
            *tables,
            *rows,
            _IDENTITY if arrays.moves is None else arrays.moves,
            *arrays.starts,
            forced,
            arrays.stored_successors,
            arrays.stored_probabilities,
            arrays.reward,
            arrays.leader_reward,
            arrays.termination,
            -1 if horizon is None else horizon,
            remaining,
            carry,
            state,
            *chunk,
        )
        chunks.append(_shortened(chunk, steps, episodes))
        remaining = max(remaining - steps, 0)  # 0: only the open episode is finished
        forced = forced[episodes:]
        if carry[0] < 0:
            break
    if len(chunks) == 1:
        return chunks[0]
    offsets = np.cumsum([0, *(len(chunk.states) for chunk in chunks[:-1])])
    shifted = [chunk._replace(ends=chunk.ends + offset) for chunk, offset in zip(chunks, offsets, strict=True)]
    return Simulation(*(np.concatenate(parts) for parts in zip(*shifted, strict=True)))


def _shortened(run: Simulation, steps: int, episodes: int) -> Simulation:
    """The filled part of the buffers."""
    return Simulation(
        run.states[:steps],
        run.actions[:steps],
        run.rewards[:steps],
        run.leader_rewards[:steps],
        run.ends[:episodes],
        run.terminated[:episodes],
        run.final_states[:episodes],
    )


def check_starts(starts: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Start states and first actions ``(F, 2)`` of a model with ``shape`` (S, A).

    Raises:
        StateError: another shape, or a start outside the model.
    """
    given = as_array(starts)
    if given is None or not (np.abs(given) < 2**53).all() or (given != np.floor(given)).any():
        raise StateError(f"starts are {starts!r}; expected integers (F, 2): start state and first action (-1: any).")
    pairs = np.ascontiguousarray(given, dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
        raise StateError(f"starts have shape {pairs.shape}; expected (F, 2): start state and first action (-1: any).")
    n_states, n_actions = shape
    bad = (pairs[:, 0] < 0) | (pairs[:, 0] >= n_states) | (pairs[:, 1] < -1) | (pairs[:, 1] >= n_actions)
    if bad.any():
        s, a = pairs[bad][0]
        raise StateError(f"start (state {s}, action {a}) is outside 0..{n_states - 1} and 0..{n_actions - 1}.")
    return pairs
