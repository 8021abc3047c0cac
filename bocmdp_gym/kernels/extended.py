r"""The soft Bellman backup in extended precision: values as unevaluated sums of two doubles, some 32 digits.

Where values are large beside lambda (a state of cost 10^9, a discount of 1 - 10^-9), the differences of Q that decide a policy
drown in the rounding of V. Newton's method then needs a residual that is exact, and no more: its linear systems stay in double
precision (iterative refinement; Wilkinson, "Rounding Errors in Algebraic Processes", 1963). Sums and products are those of
Dekker, "A floating-point technique for extending the available precision", Numer. Math. 18, 1971.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_SPLITTER = 134217729.0  # 2^27 + 1


@njit(cache=True, inline="always")
def _two_sum(a, b):
    """a + b as (rounded sum, its error)."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@njit(cache=True, inline="always")
def _two_product(a, b):
    """a * b as (rounded product, its error)."""
    p = a * b
    t = _SPLITTER * a
    a_high = t - (t - a)
    a_low = a - a_high
    t = _SPLITTER * b
    b_high = t - (t - b)
    b_low = b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


@njit(cache=True, inline="always")
def _add(high, low, a, a_low):
    """(high + low) + (a + a_low), normalised."""
    s, e = _two_sum(high, a)
    t, f = _two_sum(low, a_low)
    s, e = _two_sum(s, e + t)
    return _two_sum(s, e + f)


@njit(cache=True, nogil=True)
def extended_expectation(succ, prob, v, v_low, out, out_low):
    """P (v + v_low) per stored row, ``(S, M)``, as two doubles."""
    n_s, n_m, n_k = prob.shape
    for s in range(n_s):
        for m in range(n_m):
            high, low = 0.0, 0.0
            for k in range(n_k):
                p = prob[s, m, k]
                if p != 0.0:
                    t = succ[s, m, k]
                    a, e = _two_product(p, v[t])
                    high, low = _add(high, low, a, e + p * v_low[t])
            out[s, m], out_low[s, m] = high, low


@njit(cache=True, nogil=True)
def extended_backup(r, g, rows, future, future_low, lam, v, v_low, q, pi, residual):
    """One soft Bellman backup of v + v_low, of which ``future`` + ``future_low`` (S, M) is the expectation per stored row.

    Fills q = r + g P v, rounded, pi = softmax(q / lam) and residual = T v - v, both from the unrounded numbers. Returns the
    largest |residual|, NaN if anything is not finite, and how far pi moved from what it was.
    """
    n_s, n_a = r.shape
    high, low, weights = np.empty(n_a), np.empty(n_a), np.empty(n_a)
    worst, moved = 0.0, 0.0
    for s in range(n_s):
        best = 0
        for a in range(n_a):
            m = rows[a]
            if r[s, a] == -np.inf:  # no such action
                high[a], low[a], q[s, a] = -np.inf, 0.0, -np.inf
                continue
            x, e = _two_product(g[s, a], future[s, m])
            e += g[s, a] * future_low[s, m]
            high[a], low[a] = _add(r[s, a], 0.0, x, e)
            q[s, a] = high[a]
            if high[a] > high[best] or (high[a] == high[best] and low[a] > low[best]):
                best = a
        z = 0.0
        for a in range(n_a):
            gap = ((high[a] - high[best]) + (low[a] - low[best])) / lam
            weights[a] = math.exp(gap) if gap > -745.0 else 0.0
            z += weights[a]
        for a in range(n_a):
            moved = max(moved, abs(pi[s, a] - weights[a] / z))
            pi[s, a] = weights[a] / z
        new, new_low = _add(high[best], low[best], lam * math.log(z), 0.0)
        change = (new - v[s]) + (new_low - v_low[s])
        if not abs(change) < np.inf:
            return np.nan, np.inf
        residual[s] = change
        worst = max(worst, abs(change))
    return worst, moved


@njit(cache=True, nogil=True)
def extended_step(v, v_low, step):
    """v + v_low + step, in place."""
    for s in range(v.shape[0]):
        v[s], v_low[s] = _add(v[s], v_low[s], step[s], 0.0)
