r"""Sparse systems of a policy, and their solution by BiCGSTAB with an incomplete factorisation.

Systems A = I - K by rows (CSR), the states in the order of ``position`` (S,) int64; other shapes in `bocmdp_gym.kernels`:

    indptr   (S + 1,) int64, columns (N,) int32: row i holds columns[indptr[i]:indptr[i + 1]], ascending, the diagonal included
    diagonal (S,) int64: where the diagonal of row i is           data (N,) float64: the numbers
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit

from bocmdp_gym.kernels import LOOSE

#: How much of what the incomplete factorisation drops is moved to its diagonal (see `dilu`).
_RELAXATION = 0.7


@njit(cache=True)
def row_structure(succ, position):
    """The distinct columns of every row. Returns (indptr, columns, diagonal, slot).

    ``slot`` (S, M, K) uint16: the place of each stored successor within its row.
    """
    n_s, n_m, n_k = succ.shape
    state = np.empty(n_s, np.int64)
    for s in range(n_s):
        state[position[s]] = s
    indptr = np.zeros(n_s + 1, np.int64)
    diagonal = np.empty(n_s, np.int64)
    slot = np.empty((n_s, n_m, n_k), np.uint16)
    columns = np.empty(8 * n_s, np.int32)
    row = np.empty(n_m * n_k + 1, np.int32)
    seen_in = np.full(n_s, -1, np.int64)
    place = np.empty(n_s, np.uint16)
    for i in range(n_s):
        s = state[i]
        row[0] = i
        seen_in[i] = i
        n = 1
        for a in range(n_m):
            for k in range(n_k):
                j = position[succ[s, a, k]]
                if seen_in[j] != i:
                    seen_in[j] = i
                    m = n
                    while m > 0 and row[m - 1] > j:
                        row[m] = row[m - 1]
                        m -= 1
                    row[m] = j
                    n += 1
        start = indptr[i]
        if start + n > columns.shape[0]:
            larger = np.empty(2 * (start + n), np.int32)
            larger[:start] = columns[:start]
            columns = larger
        for m in range(n):
            columns[start + m] = row[m]
            place[row[m]] = m
        diagonal[i] = start + place[i]
        for a in range(n_m):
            for k in range(n_k):
                slot[s, a, k] = place[position[succ[s, a, k]]]
        indptr[i + 1] = start + n
    return indptr, columns[: indptr[n_s]].copy(), diagonal, slot


@njit(cache=True)
def transposed_structure(indptr, columns):
    """(indptr, columns, diagonal) of the transpose, and the place ``(N,)`` int64 each of its numbers has in ``data``."""
    n_s = indptr.shape[0] - 1
    starts = np.zeros(n_s + 1, np.int64)
    for p in range(columns.shape[0]):
        starts[columns[p] + 1] += 1
    for i in range(n_s):
        starts[i + 1] += starts[i]
    free = starts[:n_s].copy()
    rows = np.empty_like(columns)
    source = np.empty(columns.shape[0], np.int64)
    diagonal = np.empty(n_s, np.int64)
    for i in range(n_s):
        for p in range(indptr[i], indptr[i + 1]):
            j = columns[p]
            rows[free[j]] = i
            source[free[j]] = p
            if i == j:
                diagonal[j] = free[j]
            free[j] += 1
    return starts, rows, diagonal, source


@njit(cache=True)
def assemble(k, prob, position, indptr, diagonal, slot, data):
    """data = I - K_k, K_k(s, s') = sum_a k(s, a) P(s'|s, a)."""
    n_s, n_m, n_k = prob.shape
    data[:] = 0.0
    for s in range(n_s):
        start = indptr[position[s]]
        for a in range(n_m):
            weight = k[s, a]
            for m in range(n_k):
                data[start + slot[s, a, m]] -= weight * prob[s, a, m]
        data[diagonal[position[s]]] += 1.0


@njit(cache=True, error_model="numpy")
def dilu(indptr, columns, diagonal, data, inverse):
    """``inverse`` (S,) = 1 / D of the preconditioner M = (D + L) D^-1 (D + U), L and U the strict triangles of A.

    D_i = a_ii - sum_{j<i} a_ij / D_j ((1 - w) a_ji + w sum_{k>j} a_jk). With w = 0, M has the diagonal of A; with w = 1 its row
    sums, which serves smooth solutions better and rough ones worse; w = `_RELAXATION`. D is positive, A being an M-matrix.
    The transpose is preconditioned by the same D.
    """
    n_s = diagonal.shape[0]
    for i in range(n_s):
        inverse[i] = data[diagonal[i]]
    for i in range(n_s):
        inverse[i] = 1.0 / inverse[i]
        total = 0.0
        for p in range(diagonal[i] + 1, indptr[i + 1]):
            total += data[p]
        for p in range(diagonal[i] + 1, indptr[i + 1]):
            j = columns[p]
            low, high = indptr[j], diagonal[j]
            while low < high:
                middle = (low + high) // 2
                if columns[middle] < i:
                    low = middle + 1
                else:
                    high = middle
            if columns[low] == i:
                inverse[j] -= ((1.0 - _RELAXATION) * data[p] + _RELAXATION * total) * data[low] * inverse[i]


@njit(cache=True)
def scale_rows(indptr, data, source, inverse, out):
    """out = D^-1 A; ``source``: where the numbers of a transpose are (empty: in place)."""
    for i in range(inverse.shape[0]):
        for p in range(indptr[i], indptr[i + 1]):
            out[p] = inverse[i] * (data[source[p]] if source.shape[0] else data[p])


@njit(cache=True, fastmath=LOOSE, error_model="numpy")
def bicgstab(indptr, columns, diagonal, scaled, inverse, b, tolerance, absolute, max_iterations, work, x):
    """Solve A x = b from x = 0, until max |b - A x| <= max(absolute, tolerance (max |b| + max |x|)).

    BiCGSTAB on (I + L)^-1 A' (I + U)^-1, where A' = D^-1 A = L + E + U are the rows ``scaled`` by `scale_rows`. The product with
    a vector y is t + (I + L)^-1 (y + (E - 2) t), t = (I + U)^-1 y: two triangular sweeps, no other product with A, and the
    vector updates ride along. ``work``: (8, S). Rounding and breakdowns are met by starting again from the x reached.
    Returns (max |b - A x|, computed from x; what it should be; iterations).
    """
    n_s = b.shape[0]
    r, shadow, p, v, s, t, z, y = work[0], work[1], work[2], work[3], work[4], work[5], work[6], work[7]
    b_top = 0.0
    for i in range(n_s):
        b_top = max(b_top, abs(b[i]))
        x[i] = 0.0
    iteration = 0
    while True:
        residual = 0.0
        x_top = 0.0
        for i in range(n_s):
            total = b[i] * inverse[i]
            for q in range(indptr[i], indptr[i + 1]):
                total -= scaled[q] * x[columns[q]]
            r[i] = total
            residual = max(residual, abs(total / inverse[i]))
            if not abs(total) < np.inf:
                return np.nan, 0.0, iteration
            x_top = max(x_top, abs(x[i]))
        goal = max(absolute, tolerance * (b_top + x_top))
        if residual <= goal or iteration >= max_iterations:
            return residual, goal, iteration
        rho = 0.0
        for i in range(n_s):
            total = r[i]
            for q in range(indptr[i], diagonal[i]):
                total -= scaled[q] * r[columns[q]]
            r[i] = total
            shadow[i] = total
            p[i] = total
            v[i] = 0.0
            y[i] = 0.0
            rho += total * total
        beta, omega = 0.0, 0.0
        while iteration < max_iterations:
            iteration += 1
            for i in range(n_s - 1, -1, -1):
                total = r[i] + beta * (p[i] - omega * v[i])
                p[i] = total
                for q in range(diagonal[i] + 1, indptr[i + 1]):
                    total -= scaled[q] * z[columns[q]]
                z[i] = total
            along = 0.0
            for i in range(n_s):
                total = p[i] + (scaled[diagonal[i]] - 2.0) * z[i]
                for q in range(indptr[i], diagonal[i]):
                    total -= scaled[q] * t[columns[q]]
                t[i] = total
                v[i] = total + z[i]
                along += shadow[i] * v[i]
            if along == 0.0:
                break
            alpha = rho / along
            for i in range(n_s - 1, -1, -1):
                total = r[i] - alpha * v[i]
                s[i] = total
                for q in range(diagonal[i] + 1, indptr[i + 1]):
                    total -= scaled[q] * z[columns[q]]
                z[i] = total
            along, square = 0.0, 0.0
            for i in range(n_s):
                total = s[i] + (scaled[diagonal[i]] - 2.0) * z[i]
                for q in range(indptr[i], diagonal[i]):
                    total -= scaled[q] * t[columns[q]]
                t[i] = total
                total += z[i]
                z[i] = total
                along += total * s[i]
                square += total * total
            omega = along / square if square > 0.0 else 0.0
            new, top, y_top = 0.0, 0.0, 0.0
            for i in range(n_s):
                y[i] += alpha * p[i] + omega * s[i]
                r[i] = s[i] - omega * z[i]
                new += shadow[i] * r[i]
                top = max(top, abs(r[i]))
                y_top = max(y_top, abs(y[i]))
            # D <= 1 and row sums of |L| <= 1 bound the residual of A by twice the one at hand, and max |y| by 2 max |x|
            if not top > 0.5 * max(absolute, tolerance * (b_top + max(x_top, 0.5 * y_top))):
                break
            beta = new / rho * alpha / omega if omega != 0.0 and rho != 0.0 else np.inf
            rho = new
            if not abs(beta) < 1e12:
                break
        for i in range(n_s - 1, -1, -1):
            total = y[i]
            for q in range(diagonal[i] + 1, indptr[i + 1]):
                total -= scaled[q] * z[columns[q]]
            z[i] = total
            x[i] += total
