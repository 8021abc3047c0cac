"""Compiled simulation of tabular problems: whole trajectories of a policy, without Python per step."""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym.action_mask import check_exist
from bocmdp_gym.errors import OptionError, StateError
from bocmdp_gym.kernels.alias import drawn, low_bits, move_row, policy_row
from bocmdp_gym.kernels.random import ONE, fork, next_bits, unit
from bocmdp_gym.mdps import ContextArrays
from bocmdp_gym.options import as_array

Array = npt.NDArray[np.float64]
#: Step buffers grow by this much where episodes have no time limit.
_CHUNK = 4096
_NO_STARTS = np.empty((0, 2), dtype=np.int64)
_NO_ROWS = np.empty((0, 0, 2), dtype=np.uint64)
_NO_MOVES = np.empty(0, dtype=np.int64)


class Simulation(NamedTuple):
    """Episodes laid end to end, as in `bocmdp_gym.Trajectories`."""

    states: npt.NDArray[np.int32]  # (N,)
    actions: npt.NDArray[np.int32]  # (N,)
    rewards: Array  # (N,)
    leader_rewards: Array  # (N,)
    ends: npt.NDArray[np.int64]  # (E,)
    terminated: npt.NDArray[np.bool_]  # (E,)
    final_states: npt.NDArray[np.int32]  # (E,)

    def first(self, steps: int, episodes: int) -> Simulation:
        """The first steps and episodes of it, as views."""
        return Simulation(
            self.states[:steps],
            self.actions[:steps],
            self.rewards[:steps],
            self.leader_rewards[:steps],
            self.ends[:episodes],
            self.terminated[:episodes],
            self.final_states[:episodes],
        )


def _space(capacity: int) -> Simulation:
    """Space for as many steps, and as many episodes."""
    types = (np.int32, np.int32, np.float64, np.float64, np.int64, np.bool_, np.int32)
    parts: list[npt.NDArray[Any]] = [np.empty(capacity, dtype) for dtype in types]
    return Simulation(*parts)


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
        ActionError: the policy takes actions that do not exist.
        StateError: a start outside the model, or with an action that does not exist.
    """
    if budget < 1:
        raise OptionError(f"the budget of environment steps is {budget}; expected at least 1.")
    policy = np.array(policy, dtype=np.float64, order="C")  # the one type that the compiled function is made for
    _check_exist(arrays, policy)
    forced = _NO_STARTS if starts is None else check_starts(starts, policy.shape, arrays.action_mask)
    if arrays.moves is None:
        shape, rows, moves = (len(policy), arrays.stored_probabilities[0].size), _NO_ROWS, _NO_MOVES
    else:
        shape, rows, moves = policy.shape, arrays.draws.tables, arrays.moves
    tables, ready = np.empty((*shape, 2), np.uint64), np.zeros(len(policy), dtype=np.bool_)
    state = rng.bit_generator.random_raw(4)
    carry = np.array([-1, 0])
    chunks = []
    remaining = budget
    while True:
        capacity = remaining + (_CHUNK if horizon is None else horizon)
        chunk = _space(capacity)
        steps, episodes = play_episodes(
            policy,
            tables,
            ready,
            rows,
            moves,
            arrays.starts,
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
        chunks.append(chunk.first(steps, episodes))
        remaining = max(remaining - steps, 0)  # 0: only the open episode is finished
        forced = forced[episodes:]
        if carry[0] < 0:
            break
    if len(chunks) == 1:
        return chunks[0]
    offsets = np.cumsum([0, *(len(chunk.states) for chunk in chunks[:-1])])
    shifted = [chunk._replace(ends=chunk.ends + offset) for chunk, offset in zip(chunks, offsets, strict=True)]
    return Simulation(*(np.concatenate(parts) for parts in zip(*shifted, strict=True)))


def simulate_paired(
    arrays: ContextArrays, policy: Array, budget: int, rng: np.random.Generator, *, horizon: int | None
) -> Simulation:
    """`simulate`, with a stream of random numbers for every episode, and draws of actions apart from those of successors.

    From equal generators, two policies (or models) draw the same numbers in episodes of equal number, however long the episodes
    before them were: their trajectories differ where the policies do, and only then.

    Args:
        arrays, policy, budget, rng, horizon: as for `simulate`.
    """
    if horizon is None:  # episodes of any length: one at a time
        state = rng.integers(2**63, size=4).tolist()
        chunks: list[Simulation] = []
        steps = 0
        while steps < budget:
            own = np.random.default_rng([*state, len(chunks)])
            chunks.append(simulate(arrays, policy, 1, own, horizon=None))
            chunks[-1].ends[:] += steps
            steps = int(chunks[-1].ends[-1])
        joined: list[npt.NDArray[Any]] = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
        return Simulation(*joined)
    policy = np.array(policy, dtype=np.float64, order="C")
    _check_exist(arrays, policy)
    moves = np.arange(policy.shape[1]) if arrays.moves is None else arrays.moves
    capacity = budget + horizon
    run = _space(capacity)
    n_steps, n_episodes = _play_paired(
        policy,
        np.empty((*policy.shape, 2), np.uint64),
        arrays.draws.tables,
        moves,
        arrays.starts,
        arrays.stored_successors,
        arrays.stored_probabilities,
        arrays.reward,
        arrays.leader_reward,
        arrays.termination,
        horizon,
        budget,
        rng.bit_generator.random_raw(4),
        *run,
    )
    return run.first(n_steps, n_episodes)


def _check_exist(arrays: ContextArrays, policy: Array) -> None:
    if arrays.action_mask is not None:
        check_exist(policy, arrays.action_mask)


def check_starts(
    starts: npt.ArrayLike, shape: tuple[int, ...], mask: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Start states and first actions ``(F, 2)`` of a model with ``shape`` (S, A), of which those of the ``mask`` (S, A) exist.

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
    if mask is not None:
        missing = ~mask[pairs[:, 0], pairs[:, 1]] & (pairs[:, 1] >= 0)
        if missing.any():
            s, a = pairs[missing][0]
            expected = np.flatnonzero(mask[s])
            raise StateError(f"start (state {s}, action {a}): the action does not exist there; expected {expected}.")
    return pairs


@njit(cache=True)
def play_episodes(
    policy,  # (S, A)
    tables,  # (S, A K, 2): space for the policy's joint tables; where rows are shared, those of its moves
    ready,  # (S,) bool: whose rows are there; those of other states are made on the first visit
    row_tables,  # (S M, K, 2): tables of shared rows; empty: the first tables draw it all
    index,  # (A,): the row of each action, where they share rows
    starts,  # (1, S, 2): tables of the initial distribution
    forced,  # (F, 2) start state and first action (-1: from the policy), played in turn; empty: draw the start
    succ,
    prob,
    reward,
    leader_reward,
    termination,
    horizon,  # episodes are cut after this many steps; -1: never
    budget,
    carry,  # (2,) int64: state and age of an episode the previous call left open; state -1 if none
    rng,  # (4,) uint64
    states,
    actions,
    rewards,
    leader_rewards,
    ends,
    terminated,
    final_states,
):
    """Play episodes until ``budget`` steps are done, then finish the running one. Returns (steps, episodes).

    Episode e ends before step ends[e]. When the step buffers are full the open episode is left in ``carry``.
    """
    two_stages = row_tables.shape[0] > 0
    n = tables.shape[1]
    mass, outcomes, low, high = np.empty(n), np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n, np.int64)
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_slots = np.uint64(n)
    n_states = np.uint64(starts.shape[1])
    n_a = np.uint64(reward.shape[1])
    n_k = prob.shape[2]
    n_forced = forced.shape[0]
    n_m = np.uint64(prob.shape[1])
    n_row = np.uint64(row_tables.shape[1])
    shift = low_bits(prob.shape[1] if two_stages else starts.shape[1])
    low_mask = (ONE << shift) - ONE
    flat_tables = tables.reshape(-1)
    flat_rows = row_tables.reshape(-1)
    flat_starts = starts.reshape(-1)
    flat_reward = reward.reshape(-1)
    flat_leader = leader_reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    capacity = np.uint64(states.shape[0])
    limit = np.uint64(budget)
    step = np.uint64(0)
    episode = np.uint64(0)
    is_open = carry[0] >= 0
    s = np.uint64(max(carry[0], 0))
    age = carry[1]
    while True:
        imposed = -1
        if not is_open:
            if step >= limit or (n_forced > 0 and episode >= n_forced):
                break
            age = 0
            is_open = True
            if n_forced > 0:
                s = np.uint64(forced[episode, 0])
                imposed = forced[episode, 1]
            else:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                s = drawn(flat_starts, np.uint64(0), n_states, bits)
        while step < capacity:
            if imposed < 0:
                if not ready[s]:
                    ready[s] = True
                    if two_stages:
                        move_row(policy[s], index, shift, mass, outcomes, low, high, tables[s])
                    else:
                        policy_row(policy[s], succ[s], prob[s], shift, mass, outcomes, low, high, tables[s])
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                outcome = drawn(flat_tables, s, n_slots, bits)
                action = outcome >> shift
                following = outcome & low_mask
            else:
                action = np.uint64(imposed)
                imposed = -1
                if two_stages:
                    following = np.uint64(index[action])
                else:
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    u = unit(bits)
                    k = 0
                    while k < n_k - 1 and u >= prob[s, action, k]:
                        u -= prob[s, action, k]
                        k += 1
                    following = np.uint64(succ[s, action, k])
            if two_stages:  # so far, following is the move
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                following = drawn(flat_rows, s * n_m + following, n_row, bits)
            sa = s * n_a + action
            states[step] = s
            actions[step] = action
            rewards[step] = flat_reward[sa]
            leader_rewards[step] = flat_leader[sa]
            step += ONE
            age += 1
            stop = flat_stop[sa]
            if stop > 0.0:
                ended = stop >= 1.0
                if not ended:
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    ended = unit(bits) < stop
                if ended:
                    terminated[episode] = True
                    is_open = False
                    break
            s = following
            if age == horizon:
                terminated[episode] = False
                is_open = False
                break
        if is_open:
            break
        ends[episode] = step
        final_states[episode] = s
        episode += ONE
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
    carry[0] = np.int64(s) if is_open else -1
    carry[1] = age
    return step, episode


@njit(cache=True)
def _play_paired(
    policy,
    tables,
    row_tables,
    index,
    starts,
    succ,
    prob,
    reward,
    leader_reward,
    termination,
    horizon,
    budget,
    rng,
    states,
    actions,
    rewards,
    leader_rewards,
    ends,
    terminated,
    final_states,
):
    """Episodes of `play_episodes`, each with a generator forked from ``rng``, until ``budget`` steps are done."""
    carry, own, no_starts = np.array([-1, 0]), np.empty(4, dtype=np.uint64), np.empty((0, 2), dtype=np.int64)
    ready = np.zeros(len(policy), dtype=np.bool_)
    steps = 0
    episodes = 0
    while steps < budget:
        fork(rng, own)
        played, _ = play_episodes(
            policy,
            tables,
            ready,
            row_tables,
            index,
            starts,
            no_starts,
            succ,
            prob,
            reward,
            leader_reward,
            termination,
            horizon,
            1,
            carry,
            own,
            states[steps:],
            actions[steps:],
            rewards[steps:],
            leader_rewards[steps:],
            ends[episodes:],
            terminated[episodes:],
            final_states[episodes:],
        )
        steps += played
        ends[episodes] = steps
        episodes += 1
    return steps, episodes
