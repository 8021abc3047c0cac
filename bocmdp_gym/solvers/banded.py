"""Banded elimination with I - K of a policy, and soft policy iteration that uses it (shapes in `bocmdp_gym.kernels`)."""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym.kernels import LOOSE
from bocmdp_gym.kernels.bellman import soft_backup, soft_shift
from bocmdp_gym.kernels.extended import extended_backup, extended_expectation, extended_step
from bocmdp_gym.kernels.newton import (
    ZEAL,
    amplification_of,
    largest,
    largest_reward,
    nearly_settled,
    policy_error,
    refined,
    refined_error,
    settled,
)
from bocmdp_gym.solvers.base import Array, Optimum, PolicySolver, System


class BandedSolver(PolicySolver):
    """Banded elimination in a bandwidth-reducing order (reverse Cuthill-McKee): grids, chains, layered graphs.

    Args:
        succ: successors ``(S, M, K)``.
        position: of each state in the order, ``(S,)``.
        band: the bandwidth in that order.
    """

    def __init__(self, succ: npt.NDArray[np.int32], position: npt.NDArray[np.int64], band: int):
        super().__init__(succ)
        self.position, self.band = position, band

    def factor(self, k: Array, prob: Array, reuse: System | None = None) -> BandedSystem:
        lu = reuse.lu if isinstance(reuse, BandedSystem) else self._space()
        banded_factor(k, self.succ, prob, self.position, self.band, lu, np.zeros(self.n_states))
        return BandedSystem(lu, self.position, self.band)

    def policy_iteration(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, tolerance: float, max_iterations: int
    ) -> Optimum:
        structure = (self.succ, prob, lam, self.position, self.band)
        q, pi = np.empty_like(r), np.empty_like(r)
        results = (v, q, pi, self._space())
        found = banded_policy_iteration(r, g, *structure, False, tolerance, max_iterations, *results)
        if found[-1] < 0:
            self._start(r, g, prob, lam, v)
            found = banded_policy_iteration(r, g, *structure, True, tolerance, max_iterations, *results)
        return Optimum(q, pi, *found)

    def values(self, pi: Array, g: Array, r: Array, prob: Array) -> Array:
        out = np.empty(self.n_states)
        banded_values(pi, g, r, self.succ, prob, self.position, self.band, self._space(), out)
        return out

    def _space(self) -> Array:
        space: Array = banded_space(self.n_states, self.band)
        return space


class BandedSystem(System):
    """An LU of `banded_factor`."""

    def __init__(self, lu: Array, position: npt.NDArray[np.int64], band: int):
        self.lu, self._position, self._band = lu, position, band

    def solve(self, b: Array) -> Array:
        y: Array = banded_solve(self.lu, self._position, self._band, b, np.empty(len(b)))
        return y

    def solve_transposed(self, b: Array) -> Array:
        y: Array = banded_solve_transposed(self.lu, self._position, self._band, b, np.empty(len(b)))
        return y


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
def banded_space(n_states, band):
    """Space for `banded_factor`: ``(S, 2 band + 4)``."""
    return np.empty((n_states, 2 * band + 4))


@njit(cache=True, nogil=True)
def banded_factor(k, succ, prob, position, band, lu, y):
    """LU of I - K_k, K_k(s, s') = sum_a k(s, a) P(s'|s, a), rows and columns permuted by ``position``.

    Entry (i, j) is in ``lu[i, j - i + band]``. No pivoting: rows are diagonally dominant (an M-matrix), for
    which elimination without row exchanges is stable. A right-hand side ``y`` (S,), in the permuted order, is eliminated with it.
    """
    n_s, n_a, n_k = prob.shape
    lu[:] = 0.0
    for s in range(n_s):
        i = position[s]
        for a in range(n_a):
            weight = k[s, a]
            for m in range(n_k):
                lu[i, position[succ[s, a, m]] - i + band] -= weight * prob[s, a, m]
        lu[i, band] += 1.0
    _eliminate(lu.reshape(-1), n_s, band, y)


@njit(cache=True, fastmath=LOOSE, error_model="numpy")
def _eliminate(lu, n_s, band, y):
    """Replace rows of 2 band + 4 by their LU, and ``y`` by L^-1 y, a row being read and written once for four pivots.

    The last three numbers of a row are zeros. So the four rows of the pivots reach equally far to the right, and those below them
    equally far to the left, into the zeros of the row before.
    """
    length, centre = np.uint64(2 * band + 4), np.uint64(band)
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    inverse = np.empty(4)
    for p in range(0, n_s, 4):
        here = min(4, n_s - p)
        for r in range(here):  # the rows of the pivots, each by those before it
            row = np.uint64(p + r) * length + centre
            for q in range(r):
                start, pivot = row - np.uint64(r - q), np.uint64(p + q) * length + centre
                factor = lu[start] * inverse[q]
                if factor != 0.0:
                    lu[start] = factor
                    y[p + r] -= factor * y[p + q]
                    for j in range(1, band + 1):
                        lu[start + np.uint64(j)] -= factor * lu[pivot + np.uint64(j)]
            inverse[r] = 1.0 / lu[row]
        if here < 4:
            break
        p0 = np.uint64(p) * length + centre  # (p, p), (p + 1, p), (p + 2, p), (p + 3, p)
        p1, p2, p3 = p0 + length - one, p0 + two * (length - one), p0 + three * (length - one)
        u01, u02, u03, u12, u13, u23 = lu[p0 + one], lu[p0 + two], lu[p0 + three], lu[p1 + two], lu[p1 + three], lu[p2 + three]
        i0, i1, i2, i3 = inverse[0], inverse[1], inverse[2], inverse[3]
        y0, y1, y2, y3 = y[p], y[p + 1], y[p + 2], y[p + 3]
        for i in range(p + 4, min(n_s, p + 4 + band)):
            start = np.uint64(i) * length + centre - np.uint64(i - p)  # (i, p)
            f0 = lu[start] * i0
            f1 = (lu[start + one] - f0 * u01) * i1
            f2 = (lu[start + two] - f0 * u02 - f1 * u12) * i2
            f3 = (lu[start + three] - f0 * u03 - f1 * u13 - f2 * u23) * i3
            if f0 == 0.0 and f1 == 0.0 and f2 == 0.0 and f3 == 0.0:
                continue
            lu[start], lu[start + one], lu[start + two], lu[start + three] = f0, f1, f2, f3
            y[i] -= f0 * y0 + f1 * y1 + f2 * y2 + f3 * y3
            for k in range(4, band + 4):
                c = np.uint64(k)
                lu[start + c] -= f0 * lu[p0 + c] + f1 * lu[p1 + c] + f2 * lu[p2 + c] + f3 * lu[p3 + c]


@njit(cache=True, fastmath=LOOSE, error_model="numpy")
def _banded_back(lu, position, band, y, out):
    """Solve U y = y in place, four rows at a time (of the last three numbers of a row see above), into the states' own order."""
    n_s = lu.shape[0]
    i = n_s - 1
    while i >= 3:
        t0, t1, t2, t3 = y[i], y[i - 1], y[i - 2], y[i - 3]
        for j in range(i + 1, min(n_s, i + band + 1)):
            value = y[j]
            c = j - i + band
            t0 -= lu[i, c] * value
            t1 -= lu[i - 1, c + 1] * value
            t2 -= lu[i - 2, c + 2] * value
            t3 -= lu[i - 3, c + 3] * value
        y0 = t0 / lu[i, band]
        y1 = (t1 - lu[i - 1, band + 1] * y0) / lu[i - 1, band]
        y2 = (t2 - lu[i - 2, band + 1] * y1 - lu[i - 2, band + 2] * y0) / lu[i - 2, band]
        y3 = t3 - lu[i - 3, band + 1] * y2 - lu[i - 3, band + 2] * y1 - lu[i - 3, band + 3] * y0
        y[i], y[i - 1], y[i - 2], y[i - 3] = y0, y1, y2, y3 / lu[i - 3, band]
        i -= 4
    while i >= 0:
        total = y[i]
        for j in range(i + 1, min(n_s, i + band + 1)):
            total -= lu[i, j - i + band] * y[j]
        y[i] = total / lu[i, band]
        i -= 1
    for s in range(n_s):
        out[s] = y[position[s]]
    return out


@njit(cache=True, nogil=True, fastmath=LOOSE)
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
    return _banded_back(lu, position, band, y, out)


@njit(cache=True)
def banded_factor_solve(k, succ, prob, position, band, lu, b, y, out):
    """`banded_factor` and `banded_solve` in one elimination; ``y`` (S,) is working space."""
    for s in range(b.shape[0]):
        y[position[s]] = b[s]
    banded_factor(k, succ, prob, position, band, lu, y)
    return _banded_back(lu, position, band, y, out)


@njit(cache=True, nogil=True)
def banded_values(pi, g, r, succ, prob, position, band, lu, out):
    """Write the values of a policy, `PolicySolver.values`, into ``out``; ``lu`` is working space."""
    n_s, n_a = pi.shape
    k, gains = np.empty((n_s, n_a)), np.zeros(n_s)
    for s in range(n_s):
        for a in range(n_a):
            k[s, a] = pi[s, a] * g[s, a]
            gains[s] += pi[s, a] * r[s, a]
    banded_factor_solve(k, succ, prob, position, band, lu, gains, np.empty(n_s), out)


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def banded_policy_iteration(r, g, succ, prob, lam, position, band, ends, tolerance, max_iterations, v, q, pi, lu):
    """Soft policy iteration (Newton on the soft Bellman equation) from ``v``, overwritten with the solution.

    Returns (residual, error, iterations), the error by the rule of `bocmdp_gym.kernels.newton`; the residual is NaN if a value
    stopped being finite. At discount 1, (nan, inf, -1) where it is not known that the first policy ``ends``.
    """
    amplification = amplification_of(g)
    if amplification == np.inf and not ends:
        return np.nan, np.inf, -1
    n_s = prob.shape[0]
    rhs = np.empty(n_s)
    v_new = np.empty(n_s)
    step = np.empty(n_s)
    k = np.empty(r.shape)
    top = largest_reward(r)
    goal = ZEAL * tolerance * lam / amplification
    before = np.inf
    iteration = 0
    while True:
        residual = soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new)
        if not residual < np.inf:
            return np.nan, np.inf, iteration
        scale = largest(v_new) + top
        if settled(residual, before, scale, goal) or iteration == max_iterations:
            break
        if nearly_settled(residual, before, scale, goal, lam):
            for s in range(n_s):
                k[s, 0] = v_new[s] - v[s]
            banded_solve(lu, position, band, k[:, 0], step)
            if largest(step) <= 0.01 * lam:
                before, residual = residual, soft_shift(g, succ, prob, lam, step, v, q, pi, v_new)
                if residual < np.inf and settled(residual, before, scale, goal):
                    break
                before = np.inf
                continue
        before = residual
        _multiply(pi, g, k)
        banded_factor_solve(k, succ, prob, position, band, lu, rhs, step, v)
        iteration += 1
    v[:] = v_new
    error = policy_error(residual, scale, amplification, lam)
    if error <= tolerance or iteration == max_iterations:
        return residual, error, iteration
    return _banded_refine(
        r, g, succ, prob, lam, position, band, residual, scale, tolerance, iteration, max_iterations, v, q, pi, lu
    )


@njit(cache=True, error_model="numpy")
def _banded_refine(r, g, succ, prob, lam, position, band, residual, scale, tolerance, iteration, max_iterations, v, q, pi, lu):
    """Continue `banded_policy_iteration` at the rounding level of the values: a sharper bound first, then exact residuals."""
    n_s, n_a, _ = prob.shape
    k = np.empty((n_s, n_a))
    step = np.empty(n_s)
    scratch = np.empty(n_s)
    _multiply(pi, g, k)
    banded_factor_solve(k, succ, prob, position, band, lu, np.ones(n_s), scratch, step)
    error = policy_error(residual, scale, largest(step), lam)
    if error <= tolerance:
        return residual, error, iteration
    rows = np.arange(n_a)
    v_low = np.zeros(n_s)
    change = np.empty(n_s)
    future = np.empty((n_s, n_a))
    future_low = np.empty((n_s, n_a))
    size, before = np.inf, np.inf
    while True:
        extended_expectation(succ, prob, v, v_low, future, future_low)
        residual, moved = extended_backup(r, g, rows, future, future_low, lam, v, v_low, q, pi, change)
        if not residual < np.inf:
            return np.nan, np.inf, iteration
        error = refined_error(moved, size, lam)
        if error <= ZEAL * tolerance or iteration >= max_iterations or refined(residual, scale, size, before, lam):
            return residual, error, iteration
        _multiply(pi, g, k)
        banded_factor_solve(k, succ, prob, position, band, lu, change, scratch, step)
        before, size = size, largest(step)
        extended_step(v, v_low, step)
        iteration += 1


@njit(cache=True)
def _multiply(a, b, out):
    """out = a * b, all (S, A)."""
    for s in range(a.shape[0]):
        for i in range(a.shape[1]):
            out[s, i] = a[s, i] * b[s, i]
