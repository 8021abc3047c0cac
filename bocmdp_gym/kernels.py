r"""Compiled kernels of the tabular core: soft Bellman backups, banded and sparse linear algebra, sampling, trajectory weights.

Everything here works on plain NumPy arrays of **one** context:

    succ  (S, A, K) int32    stored successors          prob  (S, A, K) float64   their probabilities
    r     (S, A)             reward                      g     (S, A)              continuation gamma (1 - q)
    pi    (S, A)             policy                      lam   float               entropy coefficient

The kernels hold no policy of their own (no defaults, no validation): callers check their input.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# reassociation lets the inner loops vectorise; NaN and infinity keep their meaning (unlike fastmath=True)
_LOOSE = {"reassoc", "contract", "nsz", "arcp"}
#: How much of what the incomplete factorisation drops is moved to its diagonal (see `dilu`).
_RELAXATION = 0.7


# ------------------------------------------------------------------------------------------- soft Bellman equations


@njit(cache=True, fastmath=_LOOSE)
def expectation(succ, prob, v, out):
    """out(s, a) = sum_k prob(s, a, k) v(succ(s, a, k))."""
    n_s, n_a, n_k = prob.shape
    for s in range(n_s):
        for a in range(n_a):
            total = 0.0
            for k in range(n_k):
                total += prob[s, a, k] * v[succ[s, a, k]]
            out[s, a] = total
    return out


@njit(cache=True)
def adjoint(succ, prob, w, out):
    """out(s') = sum_{s,a} w(s, a) P(s'|s, a)."""
    n_s, n_a, n_k = prob.shape
    out[:] = 0.0
    for s in range(n_s):
        for a in range(n_a):
            for k in range(n_k):
                out[succ[s, a, k]] += w[s, a] * prob[s, a, k]
    return out


@njit(cache=True)
def gather_moves(k, index, out):
    """out(s, m) += sum of k(s, a) over the actions a with index(a) = m."""
    n_s, n_a = k.shape
    for s in range(n_s):
        for a in range(n_a):
            out[s, index[a]] += k[s, a]
    return out


@njit(cache=True, fastmath=_LOOSE)
def soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new):
    """One application of the soft Bellman operator to ``v``.

    Fills q = r + g P v, pi = softmax(q / lam), v_new = lam logsumexp(q / lam) and
    rhs = sum_a pi r + lam H(pi) (= v_new - sum_a pi g P v). Returns max |v_new - v|, NaN if anything is not finite.
    """
    n_s, n_a, n_k = prob.shape
    residual = 0.0
    inverse = 1.0 / lam
    for s in range(n_s):
        top = -np.inf
        for a in range(n_a):
            total = 0.0
            for k in range(n_k):
                total += prob[s, a, k] * v[succ[s, a, k]]
            total *= g[s, a]
            pi[s, a] = total  # parked here until the softmax below
            value = r[s, a] + total
            q[s, a] = value
            top = max(top, value)
        z = 0.0
        future = 0.0
        for a in range(n_a):
            exponent = (q[s, a] - top) * inverse
            e = 1.0 if exponent == 0.0 else (0.0 if exponent < -745.0 else math.exp(exponent))
            future += e * pi[s, a]
            pi[s, a] = e
            z += e
        for a in range(n_a):
            pi[s, a] /= z
        new = top + lam * math.log(z)
        gap = abs(new - v[s])
        if not gap < np.inf:
            return np.nan
        residual = max(residual, gap)
        v_new[s] = new
        rhs[s] = new - future / z
    return residual


# -------------------------------------------------------------------------------------------- banded linear algebra


@njit(cache=True)
def dense_system(k, succ, prob, out):
    """out = I - K_k as a full (S, S) array, K_k(s, s') = sum_a k(s, a) P(s'|s, a)."""
    n_s, n_a, n_k = prob.shape
    out[:] = 0.0
    for s in range(n_s):
        for a in range(n_a):
            weight = k[s, a]
            for m in range(n_k):
                out[s, succ[s, a, m]] -= weight * prob[s, a, m]
        out[s, s] += 1.0


@njit(cache=True, fastmath=_LOOSE)
def banded_factor(k, succ, prob, position, band, lu):
    """LU of I - K_k, K_k(s, s') = sum_a k(s, a) P(s'|s, a), rows and columns permuted by ``position``.

    ``lu`` is (S, 2 band + 1), entry (i, j - i + band). No pivoting: rows are diagonally dominant (an M-matrix), for
    which elimination without row exchanges is stable.
    """
    n_s, n_a, n_k = prob.shape
    flat = lu.reshape(-1)
    row_length = np.uint64(2 * band + 1)
    centre = np.uint64(band)
    flat[:] = 0.0
    for s in range(n_s):
        i = position[s]
        for a in range(n_a):
            weight = k[s, a]
            for m in range(n_k):
                lu[i, position[succ[s, a, m]] - i + band] -= weight * prob[s, a, m]
        lu[i, band] += 1.0
    for p in range(n_s):
        pivot = np.uint64(p) * row_length + centre
        inverse = 1.0 / flat[pivot]
        width = np.uint64(min(band, n_s - 1 - p))
        for d in range(1, width + 1):
            start = (np.uint64(p) + np.uint64(d)) * row_length + centre - np.uint64(d)
            factor = flat[start]
            if factor != 0.0:
                factor *= inverse
                flat[start] = factor
                for j in range(1, width + 1):
                    flat[start + np.uint64(j)] -= factor * flat[pivot + np.uint64(j)]


@njit(cache=True, fastmath=_LOOSE)
def banded_solve(lu, position, band, b, out):
    """Solve (I - K) out = b with the factor of `banded_factor`."""
    n_s = lu.shape[0]
    y = np.empty(n_s)
    for s in range(n_s):
        y[position[s]] = b[s]
    for i in range(n_s):
        total = y[i]
        for j in range(max(0, i - band), i):
            total -= lu[i, j - i + band] * y[j]
        y[i] = total
    for i in range(n_s - 1, -1, -1):
        total = y[i]
        for j in range(i + 1, min(n_s, i + band + 1)):
            total -= lu[i, j - i + band] * y[j]
        y[i] = total / lu[i, band]
    for s in range(n_s):
        out[s] = y[position[s]]
    return out


@njit(cache=True)
def banded_solve_transposed(lu, position, band, b, out):
    """Solve (I - K)^T out = b with the factor of `banded_factor`."""
    n_s = lu.shape[0]
    y = np.empty(n_s)
    for s in range(n_s):
        y[position[s]] = b[s]
    for i in range(n_s):  # U^T
        y[i] /= lu[i, band]
        for j in range(i + 1, min(n_s, i + band + 1)):
            y[j] -= lu[i, j - i + band] * y[i]
    for i in range(n_s - 1, -1, -1):  # L^T
        for j in range(max(0, i - band), i):
            y[j] -= lu[i, j - i + band] * y[i]
    for s in range(n_s):
        out[s] = y[position[s]]
    return out


@njit(cache=True)
def banded_policy_iteration(r, g, succ, prob, lam, position, band, tolerance, max_iterations, v, q, pi, lu):
    """Soft policy iteration (Newton on the soft Bellman equation) from ``v``, overwritten with the solution.

    Returns (residual, iterations); the residual is NaN if a value stopped being finite.
    """
    n_s, n_a, _ = prob.shape
    rhs = np.empty(n_s)
    v_new = np.empty(n_s)
    k = np.empty((n_s, n_a))
    residual = np.nan
    for iteration in range(max_iterations + 1):
        residual = soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new)
        scale = 1.0
        for s in range(n_s):
            scale = max(scale, abs(v_new[s]))
        if not residual > tolerance * scale or iteration == max_iterations:
            if residual == residual:
                v[:] = v_new
            return residual, iteration
        for s in range(n_s):
            for a in range(n_a):
                k[s, a] = pi[s, a] * g[s, a]
        banded_factor(k, succ, prob, position, band, lu)
        banded_solve(lu, position, band, rhs, v)
    return residual, max_iterations


# ------------------------------------------------------------------------------------------- sparse linear algebra
#
# Systems A = I - K of a policy by rows (CSR), the states in the order of ``position`` (S,) int64:
#
#     indptr   (S + 1,) int64, columns (N,) int32: row i holds columns[indptr[i]:indptr[i + 1]], ascending, the diagonal included
#     diagonal (S,) int64: where the diagonal of row i is           data (N,) float64: the numbers


@njit(cache=True)
def bandwidth(succ):
    """The largest |s - s'| of a stored transition."""
    n_s, n_m, n_k = succ.shape
    band = 0
    for s in range(n_s):
        for a in range(n_m):
            for k in range(n_k):
                band = max(band, abs(succ[s, a, k] - s))
    return band


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


@njit(cache=True, fastmath=_LOOSE, error_model="numpy")
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


# ---------------------------------------------------------------------------------------------------------- sampling
#
# Draws are made by Walker's alias method: one 64-bit number picks a slot of a row and one of the slot's two outcomes,
# so a draw costs the same however long the row is. Outcomes are packed into a uint64, action << 32 | next state.

_ONE = np.uint64(1)
_LOW = np.uint64(0xFFFFFFFF)
_UNIT = 1.0 / 9007199254740992.0  # 2^-53


@njit(cache=True, inline="always")
def _rotate_left(x, k):
    return (x << np.uint64(k)) | (x >> np.uint64(64 - k))


@njit(cache=True, inline="always")
def _next(s0, s1, s2, s3):
    """xoshiro256++ (Blackman and Vigna 2021): 64 random bits and the next state, kept in registers."""
    result = _rotate_left(s0 + s3, 23) + s0
    t = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= t
    s3 = _rotate_left(s3, 45)
    return result, s0, s1, s2, s3


@njit(cache=True, inline="always")
def _unit(bits):
    """A float64 uniform on [0, 1) from 64 random bits."""
    return (bits >> np.uint64(11)) * _UNIT


@njit(cache=True, inline="always")
def uniform(rng):
    """A float64 uniform on [0, 1) from the generator state ``rng`` (4,) uint64, which moves on."""
    bits, rng[0], rng[1], rng[2], rng[3] = _next(rng[0], rng[1], rng[2], rng[3])
    return _unit(bits)


@njit(cache=True)
def fork(rng, out):
    """Make ``out`` (4,) the state of a generator of its own; ``rng`` moves on by the same amount every time."""
    for i in range(4):
        out[i], rng[0], rng[1], rng[2], rng[3] = _next(rng[0], rng[1], rng[2], rng[3])


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
def policy_tables(pi, succ, prob, threshold, packed):
    """Alias tables of the joint draw (action, next state) in every state: ``(S, A K)`` and ``(S, A K, 2)`` uint64."""
    n_s, n_a, n_k = prob.shape
    n = n_a * n_k
    mass = np.empty(n)
    outcome = np.empty(n, np.uint64)
    low = np.empty(n, np.int64)
    high = np.empty(n, np.int64)
    for s in range(n_s):
        m = 0
        for a in range(n_a):
            for k in range(n_k):
                mass[m] = pi[s, a] * prob[s, a, k]
                outcome[m] = (np.uint64(a) << np.uint64(32)) | np.uint64(succ[s, a, k])
                m += 1
        _alias_row(mass, outcome, threshold[s], packed[s], low, high)


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


@njit(cache=True)
def simulate(
    threshold,  # (S, A K) and packed (S, A K, 2): policy_tables
    packed,
    row_threshold,  # (S M, K) and row_packed (S M, K, 2): row_tables of shared rows; empty: the first tables draw it all
    row_packed,
    index,  # (A,): the row of each action, where they share rows
    start_threshold,  # (1, S) and start_packed (1, S, 2): row_tables of the initial distribution
    start_packed,
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
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_slots = np.uint64(threshold.shape[1])
    n_states = np.uint64(start_threshold.shape[1])
    n_a = np.uint64(reward.shape[1])
    n_k = prob.shape[2]
    n_forced = forced.shape[0]
    two_stages = row_threshold.shape[0] > 0
    n_m = np.uint64(prob.shape[1])
    n_row = np.uint64(row_threshold.shape[1])
    flat_row_threshold = row_threshold.reshape(-1)
    flat_row_packed = row_packed.reshape(-1)
    flat_threshold = threshold.reshape(-1)
    flat_packed = packed.reshape(-1)
    flat_reward = reward.reshape(-1)
    flat_leader = leader_reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    capacity = np.uint64(states.shape[0])
    limit = np.uint64(budget)
    scale = _UNIT * n_slots
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
                bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
                u = _unit(bits) * n_states
                slot = np.uint64(u)
                s = start_packed[0, slot, np.uint64(u - slot >= start_threshold[0, slot])]
        while step < capacity:
            if imposed < 0:
                bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
                u = (bits >> np.uint64(11)) * scale
                slot = np.uint64(u)
                i = s * n_slots + slot
                outcome = flat_packed[(i << _ONE) + np.uint64(u - slot >= flat_threshold[i])]
                action = outcome >> np.uint64(32)
                following = outcome & _LOW
            else:
                action = np.uint64(imposed)
                imposed = -1
                if two_stages:
                    following = np.uint64(index[action])
                else:
                    bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
                    u = _unit(bits)
                    k = 0
                    while k < n_k - 1 and u >= prob[s, action, k]:
                        u -= prob[s, action, k]
                        k += 1
                    following = np.uint64(succ[s, action, k])
            if two_stages:  # so far, following is the move
                bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
                u = _unit(bits) * n_row
                slot = np.uint64(u)
                i = (s * n_m + following) * n_row + slot
                following = flat_row_packed[(i << _ONE) + np.uint64(u - slot >= flat_row_threshold[i])]
            sa = s * n_a + action
            states[step] = s
            actions[step] = action
            rewards[step] = flat_reward[sa]
            leader_rewards[step] = flat_leader[sa]
            step += _ONE
            age += 1
            stop = flat_stop[sa]
            if stop > 0.0:
                ended = stop >= 1.0
                if not ended:
                    bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
                    ended = _unit(bits) < stop
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
        episode += _ONE
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
    carry[0] = np.int64(s) if is_open else -1
    carry[1] = age
    return step, episode


@njit(cache=True)
def vector_step(
    states,  # (N,) and ages, contexts, needs_reset: the copies, changed in place
    ages,
    contexts,
    needs_reset,
    actions,
    mode,  # 0: reset in the next step, 1: in the same step, 2: never
    reward,  # (C, S, A)
    leader_reward,
    termination,
    index,  # (A,): the row of each action in its state
    threshold,  # (C S M, K): row_tables of the transition rows
    packed,
    start_threshold,  # (C, S): row_tables of the initial distributions
    start_packed,
    context_threshold,  # (1, C): row_table of the context distribution
    context_packed,
    fixed_context,  # -1: drawn from that
    horizon,
    rng,
    rewards,
    leader_rewards,
    terminated,
    truncated,
    final_states,
    final_contexts,
):
    """One step of N copies of a tabular environment, in place (see `TabularVectorEnv`)."""
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_s = np.uint64(reward.shape[1])
    n_a = np.uint64(reward.shape[2])
    n_k = np.uint64(threshold.shape[1])
    n_m = np.uint64(threshold.shape[0] // (reward.shape[0] * reward.shape[1]))
    n_c = context_threshold.shape[1]
    flat_reward = reward.reshape(-1)
    flat_leader = leader_reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_threshold = threshold.reshape(-1)
    flat_packed = packed.reshape(-1)
    for i in range(states.shape[0]):
        s = np.uint64(states[i])
        restart = False
        if needs_reset[i] and mode == 0:
            rewards[i] = 0.0
            leader_rewards[i] = 0.0
            terminated[i] = False
            truncated[i] = False
            restart = True
        else:
            cs = np.uint64(contexts[i]) * n_s + s
            sa = cs * n_a + np.uint64(actions[i])
            rewards[i] = flat_reward[sa]
            leader_rewards[i] = flat_leader[sa]
            ages[i] += 1
            stop = flat_stop[sa]
            ended = False
            if stop > 0.0:
                ended = stop >= 1.0
                if not ended:
                    bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
                    ended = _unit(bits) < stop
            if not ended:
                bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
                u = _unit(bits) * n_k
                slot = np.uint64(u)
                m = (cs * n_m + np.uint64(index[actions[i]])) * n_k + slot
                s = flat_packed[(m << _ONE) + np.uint64(u - slot >= flat_threshold[m])]
            cut = not ended and ages[i] == horizon
            terminated[i] = ended
            truncated[i] = cut
            final_states[i] = s
            final_contexts[i] = contexts[i]
            needs_reset[i] = ended or cut
            restart = needs_reset[i] and mode == 1
        if restart:
            if fixed_context >= 0:
                contexts[i] = fixed_context
            else:
                bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
                u = _unit(bits) * n_c
                slot = np.uint64(u)
                contexts[i] = context_packed[0, slot, np.uint64(u - slot >= context_threshold[0, slot])]
            c = np.uint64(contexts[i])
            bits, s0, s1, s2, s3 = _next(s0, s1, s2, s3)
            u = _unit(bits) * n_s
            slot = np.uint64(u)
            s = start_packed[c, slot, np.uint64(u - slot >= start_threshold[c, slot])]
            ages[i] = 0
            needs_reset[i] = False
        states[i] = s
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3


# ------------------------------------------------------------------------------- Monte-Carlo weights (MATH.md 3.3)


_ROUNDS = 60  # of the fixed-point iterations below, which contract like gamma^horizon


@njit(cache=True)
def _settle(old, new):
    """Copy ``new`` into ``old``; whether that changed next to nothing."""
    change = 0.0
    scale = 0.0
    for s in range(old.shape[0]):
        change = max(change, abs(new[s] - old[s]))
        scale = max(scale, abs(new[s]))
        old[s] = new[s]
    return change <= 1e-10 * scale


@njit(cache=True)
def monte_carlo_weights(
    states, actions, leader_rewards, ends, terminated, final_states, n_s, n_a, gamma, gamma_leader, lam, bootstrap
):
    """Weights (W_r, W_rbar), each (S, A), and visit-averaged leader values (S,) from on-policy episodes.

    Also returns what a second pass over the episodes needs to repeat the trace e_t and the discounted visitation: the kicks
    (S, A) of the trace, and what cut episodes hand on to the visitation and to the trace, each (S,). With ``bootstrap`` an
    episode cut by the time limit goes on as the average visit to its last state does: in the
    leader's returns, in the discounted visitation and in the trace e_t alike; each is a short fixed-point iteration.
    """
    n_episodes = ends.shape[0]
    n_steps = states.shape[0]
    longest = 0
    for e in range(n_episodes):
        longest = max(longest, ends[e] - (ends[e - 1] if e > 0 else 0))
    power = np.empty(longest)
    power[0] = 1.0 / n_episodes
    for t in range(1, longest):
        power[t] = gamma_leader * power[t - 1]

    # one backward pass: sums of the leader's returns, visits, and discounted visitation, side by side per (s, a)
    sums = np.zeros((n_s * n_a, 4))
    pairs = np.empty(n_steps, np.uint32)
    for e in range(n_episodes):
        begin = ends[e - 1] if e > 0 else 0
        ret = 0.0
        for i in range(ends[e] - 1, begin - 1, -1):
            ret = leader_rewards[i] + gamma_leader * ret
            sa = np.uint32(states[i]) * np.uint32(n_a) + np.uint32(actions[i])
            pairs[i] = sa
            sums[sa, 0] += ret
            sums[sa, 1] += 1.0
            sums[sa, 2] += power[i - begin]
    total = np.empty((n_s, n_a))
    count = np.empty((n_s, n_a))
    occupancy = np.empty((n_s, n_a))
    count_s = np.zeros(n_s)
    v_hat = np.zeros(n_s)
    for s in range(n_s):
        for a in range(n_a):
            total[s, a] = sums[s * n_a + a, 0]
            count[s, a] = sums[s * n_a + a, 1]
            occupancy[s, a] = sums[s * n_a + a, 2]
            count_s[s] += count[s, a]
            v_hat[s] += total[s, a]
        if count_s[s] > 0.0:
            v_hat[s] /= count_s[s]

    carried_mass = np.zeros(n_s)  # what cut episodes hand on, per visit to their last state
    carried_trace = np.zeros(n_s)
    fresh = np.zeros(n_s)
    if bootstrap:
        for _ in range(_ROUNDS):
            total[:] = 0.0
            for e in range(n_episodes):
                begin = ends[e - 1] if e > 0 else 0
                ret = 0.0 if terminated[e] else v_hat[final_states[e]]
                for i in range(ends[e] - 1, begin - 1, -1):
                    ret = leader_rewards[i] + gamma_leader * ret
                    total[states[i], actions[i]] += ret
            fresh[:] = 0.0
            for s in range(n_s):
                for a in range(n_a):
                    fresh[s] += total[s, a]
                if count_s[s] > 0.0:
                    fresh[s] /= count_s[s]
            if _settle(v_hat, fresh):
                break
        for _ in range(_ROUNDS):
            occupancy[:] = 0.0
            fresh[:] = 0.0
            for e in range(n_episodes):
                begin = ends[e - 1] if e > 0 else 0
                mass = 1.0 / n_episodes
                for i in range(begin, ends[e]):
                    mass += carried_mass[states[i]]
                    occupancy[states[i], actions[i]] += mass
                    mass *= gamma_leader
                if not terminated[e] and count_s[final_states[e]] > 0.0:
                    fresh[final_states[e]] += mass / count_s[final_states[e]]
            if _settle(carried_mass, fresh):
                break

    # advantage-weighted injections: kick(s, a) per visit, then the trace e_t = gamma e_{t-1} + kick
    kick = np.zeros((n_s, n_a))
    for s in range(n_s):
        if count_s[s] == 0.0:
            continue
        c_s = 0.0
        for a in range(n_a):
            if count[s, a] > 0.0:
                c = occupancy[s, a] * (total[s, a] / count[s, a] - v_hat[s]) / lam
                kick[s, a] = c / count[s, a]
                c_s += c
        for a in range(n_a):
            kick[s, a] -= c_s / count_s[s]
    w_r = np.zeros((n_s, n_a))
    flat_w = w_r.reshape(-1)
    flat_kick = kick.reshape(-1)
    if not bootstrap:
        for e in range(n_episodes):
            begin = ends[e - 1] if e > 0 else 0
            trace = 0.0
            for i in range(begin, ends[e]):
                trace = gamma * trace + flat_kick[pairs[i]]
                flat_w[pairs[i]] += trace
        return w_r, occupancy, v_hat, kick, carried_mass, carried_trace
    for _ in range(_ROUNDS):
        w_r[:] = 0.0
        fresh[:] = 0.0
        for e in range(n_episodes):
            begin = ends[e - 1] if e > 0 else 0
            trace = 0.0
            for i in range(begin, ends[e]):
                trace = gamma * trace + flat_kick[pairs[i]] + carried_trace[states[i]]
                flat_w[pairs[i]] += trace
            if not terminated[e] and count_s[final_states[e]] > 0.0:
                fresh[final_states[e]] += gamma * trace / count_s[final_states[e]]
        if _settle(carried_trace, fresh):
            break
    return w_r, occupancy, v_hat, kick, carried_mass, carried_trace
