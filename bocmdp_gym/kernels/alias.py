r"""Walker's alias tables: draws from discrete distributions that cost the same however long a row is.

64 random bits pick a slot of a row and one of the slot's two outcomes. Read as a fraction of 2^64 and multiplied by the width M
of the row, they have the slot before the point, and behind it what is compared with the slot's threshold. A slot is two numbers
of 64 bits side by side, so that a draw reads one line of memory: the threshold, in units of 2^-64, and the outcomes, of 32 bits
each; the first is drawn below the threshold. Joint outcomes, of an action and what follows, are action << `low_bits` | following.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym.errors import ModelError
from bocmdp_gym.kernels.random import LOW, ONE

Array = npt.NDArray[np.float64]
#: Tables of rows, (..., M, 2): of each slot its threshold, and its outcomes.
AliasTables = npt.NDArray[np.uint64]

_HALF = np.uint64(32)
_WHOLE = 18446744073709551616.0  # 2^64


def alias_tables(weights: Array, outcomes: npt.NDArray[np.int32]) -> AliasTables:
    """Tables ``(R, M, 2)`` for independent draws from the rows of ``weights`` (R, M), with results ``outcomes`` (R, M)."""
    tables = np.empty((*weights.shape, 2), np.uint64)
    row_tables(weights, outcomes, tables)
    return tables


class SuccessorTables:
    """Tables of the next-state draw of every stored row of transitions, made when they are first asked for.

    Args:
        succ, prob: successors and their probabilities ``(S, M, K)``; M = A, unless actions share rows.
    """

    def __init__(self, succ: npt.NDArray[np.int32], prob: Array):
        self._succ, self._prob = succ, prob

    @cached_property
    def tables(self) -> AliasTables:
        """``(S M, K, 2)``."""
        width = self._prob.shape[-1]
        return alias_tables(self._prob.reshape(-1, width), self._succ.reshape(-1, width))

    @cached_property
    def flat(self) -> tuple[Array, npt.NDArray[np.int64]]:
        """What `read_tables` reads in them, made flat: thresholds ``(S M K,)``, outcomes ``(2 S M K,)``."""
        thresholds, outcomes = read_tables(self.tables)
        return thresholds.reshape(-1), outcomes.reshape(-1)


def initial_tables(initial: Array) -> AliasTables:
    """Tables of one or several initial distributions, ``(S,)`` or ``(C, S)``."""
    rows = np.atleast_2d(initial)
    return alias_tables(rows, np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32), rows.shape))


def read_tables(tables: AliasTables) -> tuple[Array, npt.NDArray[np.int64]]:
    """The thresholds ``(..., M)`` as fractions, and both outcomes of each slot ``(..., M, 2)``, for NumPy."""
    outcomes = np.stack([tables[..., 1] & LOW, tables[..., 1] >> _HALF], axis=-1)
    return tables[..., 0] / _WHOLE, outcomes.astype(np.int64)


@njit(cache=True, inline="always")
def drawn(tables, row, width, bits):
    """The outcome that 64 random bits draw from a row of tables made flat, whose rows have ``width`` slots; all uint64."""
    slot = ((bits >> _HALF) * width + (((bits & LOW) * width) >> _HALF)) >> _HALF
    i = (row * width + slot) << ONE
    outcomes = tables[i + ONE]
    return outcomes >> _HALF if bits * width >= tables[i] else outcomes & LOW


@njit(cache=True)
def low_bits(n):
    """How many bits numbers below ``n`` take: where the action begins in joint outcomes with ``n`` others; uint64."""
    bits = np.uint64(0)
    while n > 1:
        n = (n + 1) // 2
        bits += ONE
    return bits


def check_pairs(n_states: int, n_actions: int) -> None:
    """Check that joint outcomes of action and state fit into 32 bits.

    Raises:
        ModelError: they do not.
    """
    if n_actions << int(low_bits(n_states)) > 2**32:
        raise ModelError(
            f"the model has {n_states} states and {n_actions} actions; expected at most 2^32 pairs of them, states counted up to "
            "the next power of two. Let actions that move alike share rows (FactoredTransitions), or merge states."
        )


@njit(cache=True)
def _alias_row(mass, outcome, tables, low, high):
    """Alias table of one row. ``mass`` (M,) is used up; ``outcome`` (M,) uint64, below 2^32."""
    n = mass.shape[0]
    total = 0.0
    for m in range(n):
        total += mass[m]
    n_low = 0
    n_high = 0
    scale = n / total
    for m in range(n):
        value = mass[m] * scale
        mass[m] = value
        tables[m, 0] = 0
        tables[m, 1] = outcome[m] << _HALF | outcome[m]
        is_low = value < 1.0
        low[n_low] = m  # written either way, kept by one counter: no branch
        high[n_high] = m
        n_low += is_low
        n_high += not is_low
    while n_low > 0 and n_high > 0:
        n_low -= 1
        small = low[n_low]
        large = high[n_high - 1]
        tables[small, 0] = np.uint64(mass[small] * _WHOLE)
        tables[small, 1] = outcome[large] << _HALF | outcome[small]
        mass[large] -= 1.0 - mass[small]
        if mass[large] < 1.0:
            n_high -= 1
            low[n_low] = large
            n_low += 1


@njit(cache=True)
def policy_row(pi, succ, prob, shift, mass, outcome, low, high, tables):
    """Alias table of the joint draw (action, next state) in one state.

    ``shift`` is `low_bits` of the number of states; ``mass`` to ``high`` are space for A K numbers.
    """
    n_a, n_k = prob.shape
    m = 0
    for a in range(n_a):
        for k in range(n_k):
            mass[m] = pi[a] * prob[a, k]
            outcome[m] = (np.uint64(a) << shift) | np.uint64(succ[a, k])
            m += 1
    _alias_row(mass, outcome, tables, low, high)


@njit(cache=True)
def move_row(pi, index, shift, mass, outcome, low, high, tables):
    """Alias table of the joint draw (action, its move ``index[a]``) in one state; the rest as for `policy_row`, space for A."""
    for a in range(len(pi)):
        mass[a] = pi[a]
        outcome[a] = (np.uint64(a) << shift) | np.uint64(index[a])
    _alias_row(mass, outcome, tables, low, high)


@njit(cache=True)
def policy_tables(pi, succ, prob, shift, tables):
    """Alias tables ``(S, A K, 2)`` of the joint draw (action, successor) in every state; ``shift``: `low_bits`."""
    n_s, n_a, n_k = prob.shape
    n = n_a * n_k
    mass, outcome, low, high = np.empty(n), np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n, np.int64)
    for s in range(n_s):
        policy_row(pi[s], succ[s], prob[s], shift, mass, outcome, low, high, tables[s])


@njit(cache=True)
def row_tables(weights, succ, tables):
    """Alias tables ``(R, M, 2)`` of independent rows: weights and succ ``(R, M)``."""
    n_r, n = weights.shape
    outcome = np.empty(n, np.uint64)
    low = np.empty(n, np.int64)
    high = np.empty(n, np.int64)
    for row in range(n_r):
        for m in range(n):
            outcome[m] = np.uint64(succ[row, m])
        _alias_row(weights[row].copy(), outcome, tables[row], low, high)
