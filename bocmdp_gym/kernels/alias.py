r"""Walker's alias tables: draws from discrete distributions that cost the same however long a row is.

One 64-bit number picks a slot of a row and one of the slot's two outcomes: slot m yields packed[..., m, 0] below
threshold[..., m], else packed[..., m, 1]. Outcomes are uint64; joint ones of action and next state are action << 32 | next state.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]


class AliasTables(NamedTuple):
    """Alias tables, by row."""

    threshold: Array  # (..., M)
    packed: npt.NDArray[np.uint64]  # (..., M, 2)


def alias_tables(weights: Array, outcomes: npt.NDArray[np.int32]) -> AliasTables:
    """Tables for independent draws from the rows of ``weights`` (R, M), with results ``outcomes`` (R, M)."""
    tables = AliasTables(np.empty(weights.shape), np.empty((*weights.shape, 2), dtype=np.uint64))
    row_tables(weights, outcomes, *tables)
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
        """``(S M, K)``."""
        width = self._prob.shape[-1]
        return alias_tables(self._prob.reshape(-1, width), self._succ.reshape(-1, width))


def initial_tables(initial: Array) -> AliasTables:
    """Tables of one or several initial distributions, ``(S,)`` or ``(C, S)``."""
    rows = np.atleast_2d(initial)
    return alias_tables(rows, np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32), rows.shape))


@njit(cache=True)
def _alias_row(mass, outcome, threshold, packed, low, high):
    """Alias table of one row. ``mass`` (M,) is used up; slot m yields packed[m, 0] below threshold[m], else packed[m, 1]."""
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
        packed[m, 0] = outcome[m]
        packed[m, 1] = outcome[m]
        threshold[m] = 1.0
        is_low = value < 1.0
        low[n_low] = m  # written either way, kept by one counter: no branch
        high[n_high] = m
        n_low += is_low
        n_high += not is_low
    while n_low > 0 and n_high > 0:
        n_low -= 1
        small = low[n_low]
        large = high[n_high - 1]
        threshold[small] = mass[small]
        packed[small, 1] = outcome[large]
        mass[large] -= 1.0 - mass[small]
        if mass[large] < 1.0:
            n_high -= 1
            low[n_low] = large
            n_low += 1


@njit(cache=True)
def policy_row(pi, succ, prob, mass, outcome, low, high, threshold, packed):
    """Alias table of the joint draw (action, next state) in one state; ``mass`` to ``high``: space for A K."""
    n_a, n_k = prob.shape
    m = 0
    for a in range(n_a):
        for k in range(n_k):
            mass[m] = pi[a] * prob[a, k]
            outcome[m] = (np.uint64(a) << np.uint64(32)) | np.uint64(succ[a, k])
            m += 1
    _alias_row(mass, outcome, threshold, packed, low, high)


@njit(cache=True)
def move_row(pi, index, mass, outcome, low, high, threshold, packed):
    """Alias table of the joint draw (action, its move ``index[a]``) in one state; the rest as for `policy_row`, space for A."""
    for a in range(len(pi)):
        mass[a] = pi[a]
        outcome[a] = (np.uint64(a) << np.uint64(32)) | np.uint64(index[a])
    _alias_row(mass, outcome, threshold, packed, low, high)


@njit(cache=True)
def policy_tables(pi, succ, prob, threshold, packed):
    """Alias tables of the joint draw (action, next state) in every state: ``(S, A K)`` and ``(S, A K, 2)`` uint64."""
    n_s, n_a, n_k = prob.shape
    n = n_a * n_k
    mass, outcome, low, high = np.empty(n), np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n, np.int64)
    for s in range(n_s):
        policy_row(pi[s], succ[s], prob[s], mass, outcome, low, high, threshold[s], packed[s])


@njit(cache=True)
def row_tables(weights, succ, threshold, packed):
    """Alias tables of independent rows: weights and succ ``(R, M)`` to ``(R, M)`` and ``(R, M, 2)`` uint64."""
    n_r, n = weights.shape
    outcome = np.empty(n, np.uint64)
    low = np.empty(n, np.int64)
    high = np.empty(n, np.int64)
    for row in range(n_r):
        for m in range(n):
            outcome[m] = np.uint64(succ[row, m])
        _alias_row(weights[row].copy(), outcome, threshold[row], packed[row], low, high)
