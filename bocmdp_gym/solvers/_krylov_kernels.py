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


@njit(cache=True, nogil=True)
def level_order(succ, position):
    """``position`` (S,), with states that do not wait for each other side by side.

    A state's level is one above those of its neighbours that come before it. Sorted by level, with the old order within, every
    pair of neighbours keeps its order, so that triangular sweeps and incomplete factorisations do the same; but a processor
    need not wait for one row before it begins the next.
    """
    n_s, n_m, n_k = succ.shape
    state = np.empty(n_s, np.int64)
    for s in range(n_s):
        state[position[s]] = s
    level = np.zeros(n_s, np.int64)
    for i in range(n_s):
        for later in (False, True):  # what row i waits for, and what waits for it
            for a in range(n_m):
                for k in range(n_k):
                    j = position[succ[state[i], a, k]]
                    if later and j > i:
                        level[j] = max(level[j], level[i] + 1)
                    elif not later and j < i:
                        level[i] = max(level[i], level[j] + 1)
    start = np.zeros(level.max() + 2, np.int64)
    for i in range(n_s):
        start[level[i] + 1] += 1
    for n in range(1, len(start)):
        start[n] += start[n - 1]
    ordered = np.empty(n_s, np.int64)
    for i in range(n_s):
        ordered[state[i]] = start[level[i]]
        start[level[i]] += 1
    return ordered


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def triangles(indptr, columns, diagonal, transposed):
    """The strict triangles of A, or of its transpose, by rows, and where their numbers are in ``data``.

    Returns the lower one and the upper one, each (pointers (S + 1,), columns, places), all uint32: sweeps read one of them at a
    time, and in large systems they take as long as reading does.
    """
    n_s = indptr.shape[0] - 1
    pointers = np.zeros((2, n_s + 1), np.uint32)
    for i in range(n_s):
        for p in range(indptr[i], indptr[i + 1]):
            if p != diagonal[i]:
                row, column = (columns[p], i) if transposed else (i, columns[p])
                pointers[np.int64(column > row), row + 1] += np.uint32(1)
    for side in range(2):
        for i in range(n_s):
            pointers[side, i + 1] += pointers[side, i]
    below, above = np.empty(pointers[0, n_s], np.uint32), np.empty(pointers[1, n_s], np.uint32)
    below_places, above_places = np.empty_like(below), np.empty_like(above)
    free = pointers[:, :n_s].copy()
    for i in range(n_s):
        for p in range(indptr[i], indptr[i + 1]):
            if p != diagonal[i]:
                row, column = (columns[p], i) if transposed else (i, columns[p])
                where = np.int64(column > row)
                at = free[where, row]
                free[where, row] += np.uint32(1)
                if column > row:
                    above[at], above_places[at] = column, p
                else:
                    below[at], below_places[at] = column, p
    return (pointers[0], below, below_places), (pointers[1], above, above_places)


@njit(cache=True, nogil=True)
def assemble(k, prob, position, indptr, diagonal, slot, data):
    """data = I - K_k, K_k(s, s') = sum_a k(s, a) P(s'|s, a). Returns the largest sum of a state's weights."""
    n_s, n_m, n_k = prob.shape
    data[:] = 0.0
    largest = 0.0
    for s in range(n_s):
        start = np.uint64(indptr[position[s]])
        total = 0.0
        for a in range(n_m):
            weight = k[s, a]
            total += weight
            for m in range(n_k):
                data[start + slot[s, a, m]] -= weight * prob[s, a, m]
        data[diagonal[position[s]]] += 1.0
        largest = max(largest, total)
    return largest


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True)
def scale_triangle(pointers, places, data, inverse, out):
    """A strict triangle of D^-1 A, or of D^-1 A^T."""
    for i in range(inverse.shape[0]):
        for p in range(pointers[i], pointers[i + 1]):
            out[p] = inverse[i] * data[places[p]]


@njit(cache=True, nogil=True)
def scale_diagonal(diagonal, data, inverse, out):
    """The diagonal of D^-1 A."""
    for i in range(inverse.shape[0]):
        out[i] = inverse[i] * data[diagonal[i]]


@njit(cache=True, nogil=True, fastmath=LOOSE, error_model="numpy")
def bicgstab(
    lower,  # pointers, columns and, scaled, numbers of the strict triangles of D^-1 A
    lower_columns,
    lower_data,
    upper,
    upper_columns,
    upper_data,
    middle,  # (S,): its diagonal
    inverse,  # (S,): 1 / D
    b,
    tolerance,
    absolute,
    max_iterations,
    work,
    x,
):
    """Solve A x = b from x = 0, until max |b - A x| <= max(absolute, tolerance (max |b| + max |x|)).

    BiCGSTAB on (I + L)^-1 A' (I + U)^-1, where A' = D^-1 A = L + E + U. The product with
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
            total = b[i] * inverse[i] - middle[i] * x[i]
            for q in range(lower[i], lower[i + 1]):
                total -= lower_data[q] * x[lower_columns[q]]
            for q in range(upper[i], upper[i + 1]):
                total -= upper_data[q] * x[upper_columns[q]]
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
            for q in range(lower[i], lower[i + 1]):
                total -= lower_data[q] * r[lower_columns[q]]
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
                for q in range(upper[i], upper[i + 1]):
                    total -= upper_data[q] * z[upper_columns[q]]
                z[i] = total
            along = 0.0
            for i in range(n_s):
                total = p[i] + (middle[i] - 2.0) * z[i]
                for q in range(lower[i], lower[i + 1]):
                    total -= lower_data[q] * t[lower_columns[q]]
                t[i] = total
                v[i] = total + z[i]
                along += shadow[i] * v[i]
            if along == 0.0:
                break
            alpha = rho / along
            for i in range(n_s - 1, -1, -1):
                total = r[i] - alpha * v[i]
                s[i] = total
                for q in range(upper[i], upper[i + 1]):
                    total -= upper_data[q] * z[upper_columns[q]]
                z[i] = total
            along, square = 0.0, 0.0
            for i in range(n_s):
                total = s[i] + (middle[i] - 2.0) * z[i]
                for q in range(lower[i], lower[i + 1]):
                    total -= lower_data[q] * t[lower_columns[q]]
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
            for q in range(upper[i], upper[i + 1]):
                total -= upper_data[q] * z[upper_columns[q]]
            z[i] = total
            x[i] += total
