"""Banded elimination with I - K of a policy, and soft policy iteration that uses it (shapes in `bocmdp_gym.kernels`)."""
# mypy: allow-untyped-defs

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym.kernels import FUSED
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
from bocmdp_gym.solvers.orders import bandwidth


class BandedSolver(PolicySolver):
    """Banded elimination in a bandwidth-reducing order: grids, chains, layered graphs.

    Args:
        succ: successors ``(S, M, K)``.
        position: of each state in the order, ``(S,)``.

    Attributes:
        reach: how far the band is in use at every four positions, ``(ceil(S / 4),)`` int64 (`band_reach`).
    """

    def __init__(self, succ: npt.NDArray[np.int32], position: npt.NDArray[np.int64]):
        super().__init__(succ)
        self.position = position
        self.reach: npt.NDArray[np.int64] = band_reach(succ, position)
        self._shape = (self.n_states, 2 * int(band_width(self.reach)) + 1)  # of `banded_space`

    @cached_property
    def band(self) -> int:
        """The bandwidth in that order."""
        return int(bandwidth(self.succ, self.position))

    @property
    def work(self) -> float:
        """What one elimination takes: the sum over positions of the square of how far the band is in use."""
        return 4.0 * float(np.square(self.reach - 4.0 * np.arange(len(self.reach))).sum())

    def factor(self, k: Array, prob: Array, reuse: System | None = None) -> BandedSystem:
        lu = reuse.lu if isinstance(reuse, BandedSystem) else np.empty(self._shape)
        banded_factor(k, self.succ, prob, self.position, self.reach, lu, np.zeros(self.n_states))
        return BandedSystem(lu, self.position, self.reach)

    def policy_iteration(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, tolerance: float, max_iterations: int
    ) -> Optimum:
        structure = (self.succ, prob, lam, self.position, self.reach)
        q, pi = np.empty_like(r), np.empty_like(r)
        results = (v, q, pi, np.empty(self._shape))
        found = banded_policy_iteration(r, g, *structure, False, tolerance, max_iterations, *results)
        if found[-1] < 0:
            self._start(r, g, prob, lam, v)
            found = banded_policy_iteration(r, g, *structure, True, tolerance, max_iterations, *results)
        return Optimum(q, pi, *found)

    def values(self, pi: Array, g: Array, r: Array, prob: Array) -> Array:
        out = np.empty(self.n_states)
        banded_values(pi, g, r, self.succ, prob, self.position, self.reach, np.empty(self._shape), out)
        return out


class BandedSystem(System):
    """An LU of `banded_factor`."""

    def __init__(self, lu: Array, position: npt.NDArray[np.int64], reach: npt.NDArray[np.int64]):
        self.lu, self._position, self._reach = lu, position, reach

    def solve(self, b: Array) -> Array:
        y: Array = banded_solve(self.lu, self._position, self._reach, b, np.empty(len(b)))
        return y

    def solve_transposed(self, b: Array) -> Array:
        y: Array = banded_solve_transposed(self.lu, self._position, self._reach, b, np.empty(len(b)))
        return y


@njit(cache=True)
def band_reach(succ, position):
    """The last position that is a neighbour of one of the first 4, 8, 12, ... positions, or among them: ``(ceil(S / 4),)``.

    Elimination takes four pivots at a time, and nothing beyond their reach is anything but zero, to the right or below.
    """
    n_s, n_m, n_k = succ.shape
    reach = np.empty((n_s + 3) // 4, np.int64)
    for b in range(reach.shape[0]):
        reach[b] = min(4 * b + 3, n_s - 1)
    for s in range(n_s):
        for a in range(n_m):
            for k in range(n_k):
                i, j = position[s], position[succ[s, a, k]]
                block = min(i, j) // 4
                reach[block] = max(reach[block], i, j)
    for b in range(1, reach.shape[0]):
        reach[b] = max(reach[b], reach[b - 1])
    return reach


@njit(cache=True)
def band_width(reach):
    """The furthest that four pivots reach."""
    width = 0
    for b in range(reach.shape[0]):
        width = max(width, reach[b] - 4 * b)
    return width


@njit(cache=True)
def banded_space(n_states, reach):
    """Space for `banded_factor`: ``(S, 2 W + 1)``, entry (i, j) in ``[i, j - i + W]``, W the `band_width`."""
    return np.empty((n_states, 2 * band_width(reach) + 1))


@njit(cache=True, nogil=True)
def banded_factor(k, succ, prob, position, reach, lu, y):
    """LU of I - K_k, K_k(s, s') = sum_a k(s, a) P(s'|s, a), rows and columns permuted by ``position``, in `banded_space`.

    U's diagonal is stored inverted. No pivoting: rows are diagonally dominant (an M-matrix), for which elimination without row
    exchanges is stable. A right-hand side ``y`` (S,), in the permuted order, is eliminated with it.
    """
    n_s, n_a, n_k = prob.shape
    width = np.int64(lu.shape[1] // 2)
    flat = lu.reshape(-1)
    first = 0  # the block of the first column in use
    for i in range(n_s):
        while reach[first] < i:
            first += 1
        row = width * (2 * i + 1)
        flat[row + 4 * first : row + reach[i // 4] + 1] = 0.0
        flat[row + i] = 1.0
    for s in range(n_s):
        row = width * (2 * position[s] + 1)
        for a in range(n_a):
            weight = k[s, a]
            for m in range(n_k):
                flat[np.uint64(row + position[np.uint32(succ[s, a, m])])] -= weight * prob[s, a, m]
    _eliminate(flat, n_s, width, reach, y)


@njit(cache=True, fastmath=FUSED, error_model="numpy")
def _eliminate(lu, n_s, width, reach, y):
    """Replace the rows of a band by their LU, and ``y`` by L^-1 y, a row being read and written once for four pivots."""
    right = np.empty((4, width + 1))  # what four pivots have to their right
    u0, u1, u2, u3 = right[0], right[1], right[2], right[3]
    inverse = np.empty(4)
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    for block in range(reach.shape[0]):
        p, last = 4 * block, reach[block]
        here = min(4, n_s - p)
        for r in range(here):  # the rows of the pivots, each by those before it
            row = width * (2 * (p + r) + 1)
            for q in range(p, p + r):
                pivot = width * (2 * q + 1)
                factor = lu[row + q] * inverse[q - p]
                if factor != 0.0:
                    lu[row + q] = factor
                    y[p + r] -= factor * y[q]
                    for j in range(q + 1, last + 1):
                        lu[np.uint64(row + j)] -= factor * lu[np.uint64(pivot + j)]
            inverse[r] = 1.0 / lu[row + p + r]
            lu[row + p + r] = inverse[r]
        if here < 4:
            break
        p0 = np.uint64(width * (2 * p + 1) + p)  # (p, p), (p + 1, p), (p + 2, p), (p + 3, p)
        p1, p2, p3 = p0 + np.uint64(2 * width), p0 + np.uint64(4 * width), p0 + np.uint64(6 * width)
        u01, u02, u03, u12, u13, u23 = lu[p0 + one], lu[p0 + two], lu[p0 + three], lu[p1 + two], lu[p1 + three], lu[p2 + three]
        i0, i1, i2, i3 = inverse[0], inverse[1], inverse[2], inverse[3]
        y0, y1, y2, y3 = y[p], y[p + 1], y[p + 2], y[p + 3]
        n_right = last - p - 3
        for j in range(n_right):
            c = np.uint64(j) + four
            u0[j], u1[j], u2[j], u3[j] = lu[p0 + c], lu[p1 + c], lu[p2 + c], lu[p3 + c]
        for i in range(p + 4, last + 1):
            start = np.uint64(width * (2 * i + 1) + p)  # (i, p)
            f0 = lu[start] * i0
            f1 = (lu[start + one] - f0 * u01) * i1
            f2 = (lu[start + two] - f0 * u02 - f1 * u12) * i2
            f3 = (lu[start + three] - f0 * u03 - f1 * u13 - f2 * u23) * i3
            if f0 == 0.0 and f1 == 0.0 and f2 == 0.0 and f3 == 0.0:
                continue
            lu[start], lu[start + one], lu[start + two], lu[start + three] = f0, f1, f2, f3
            y[i] = y[i] - f0 * y0 - f1 * y1 - f2 * y2 - f3 * y3
            start += four
            for j in range(n_right):
                c = np.uint64(j)
                lu[start + c] = lu[start + c] - f0 * u0[c] - f1 * u1[c] - f2 * u2[c] - f3 * u3[c]


@njit(cache=True, fastmath=FUSED)
def _banded_back(lu, position, reach, y, out):
    """Solve U y = y in place, four rows at a time, into the states' own order."""
    n_s, width = lu.shape[0], lu.shape[1] // 2
    flat = lu.reshape(-1)
    for block in range(reach.shape[0] - 1, -1, -1):
        p, last = 4 * block, reach[block]
        here = min(4, n_s - p)
        if here == 4:
            p0 = np.uint64(width * (2 * p + 1))
            p1, p2, p3 = p0 + np.uint64(2 * width), p0 + np.uint64(4 * width), p0 + np.uint64(6 * width)
            t0, t1, t2, t3 = y[p], y[p + 1], y[p + 2], y[p + 3]
            s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0  # two sums for each row, which do not wait for each other
            for j in range(p + 4, last, 2):
                c, d = np.uint64(j), np.uint64(j + 1)
                t0 -= flat[p0 + c] * y[c]
                t1 -= flat[p1 + c] * y[c]
                t2 -= flat[p2 + c] * y[c]
                t3 -= flat[p3 + c] * y[c]
                s0 -= flat[p0 + d] * y[d]
                s1 -= flat[p1 + d] * y[d]
                s2 -= flat[p2 + d] * y[d]
                s3 -= flat[p3 + d] * y[d]
            if (last - p) % 2 == 0 and last > p + 3:
                c = np.uint64(last)
                t0 -= flat[p0 + c] * y[c]
                t1 -= flat[p1 + c] * y[c]
                t2 -= flat[p2 + c] * y[c]
                t3 -= flat[p3 + c] * y[c]
            y[p], y[p + 1], y[p + 2], y[p + 3] = t0 + s0, t1 + s1, t2 + s2, t3 + s3
        for i in range(p + here - 1, p - 1, -1):
            total = y[i]
            for j in range(i + 1, p + here):
                total -= lu[i, j - i + width] * y[j]
            y[i] = total * lu[i, width]
    for s in range(n_s):
        out[s] = y[position[s]]
    return out


@njit(cache=True, nogil=True, fastmath=FUSED)
def banded_solve(lu, position, reach, b, out):
    """Solve (I - K) out = b with the factor of `banded_factor`."""
    n_s, width = lu.shape[0], lu.shape[1] // 2
    flat, one, two, three = lu.reshape(-1), np.uint64(1), np.uint64(2), np.uint64(3)
    y = np.empty(n_s)
    for s in range(n_s):
        y[position[s]] = b[s]
    for block in range(reach.shape[0]):
        p, last = 4 * block, reach[block]
        here = min(4, n_s - p)
        for i in range(p + 1, p + here):
            for j in range(p, i):
                y[i] -= lu[i, j - i + width] * y[j]
        if here == 4:
            y0, y1, y2, y3 = y[p], y[p + 1], y[p + 2], y[p + 3]
            for i in range(p + 4, last + 1):
                c = np.uint64(width * (2 * i + 1) + p)  # (i, p)
                y[i] = y[i] - flat[c] * y0 - flat[c + one] * y1 - flat[c + two] * y2 - flat[c + three] * y3
    return _banded_back(lu, position, reach, y, out)


@njit(cache=True)
def banded_factor_solve(k, succ, prob, position, reach, lu, b, y, out):
    """`banded_factor` and `banded_solve` in one elimination; ``y`` (S,) is working space."""
    for s in range(b.shape[0]):
        y[position[s]] = b[s]
    banded_factor(k, succ, prob, position, reach, lu, y)
    return _banded_back(lu, position, reach, y, out)


@njit(cache=True, nogil=True)
def banded_values(pi, g, r, succ, prob, position, reach, lu, out):
    """Write the values of a policy, `PolicySolver.values`, into ``out``; ``lu`` is working space."""
    n_s, n_a = pi.shape
    k, gains = np.empty((n_s, n_a)), np.zeros(n_s)
    for s in range(n_s):
        for a in range(n_a):
            k[s, a] = pi[s, a] * g[s, a]
            gains[s] += pi[s, a] * r[s, a]
    banded_factor_solve(k, succ, prob, position, reach, lu, gains, np.empty(n_s), out)


@njit(cache=True, nogil=True, fastmath=FUSED)
def banded_solve_transposed(lu, position, reach, b, out):
    """Solve (I - K)^T out = b with the factor of `banded_factor`."""
    n_s, width = lu.shape[0], lu.shape[1] // 2
    flat, one, two, three = lu.reshape(-1), np.uint64(1), np.uint64(2), np.uint64(3)
    y = np.empty(n_s)
    for s in range(n_s):
        y[position[s]] = b[s]
    for block in range(reach.shape[0]):  # U^T
        p, last = 4 * block, reach[block]
        here = min(4, n_s - p)
        for i in range(p, p + here):
            y[i] *= lu[i, width]
            for j in range(i + 1, p + here):
                y[j] -= lu[i, j - i + width] * y[i]
        if here == 4:
            y0, y1, y2, y3 = y[p], y[p + 1], y[p + 2], y[p + 3]
            p0 = np.uint64(width * (2 * p + 1))
            p1, p2, p3 = p0 + np.uint64(2 * width), p0 + np.uint64(4 * width), p0 + np.uint64(6 * width)
            for j in range(p + 4, last + 1):
                c = np.uint64(j)
                y[c] = y[c] - flat[p0 + c] * y0 - flat[p1 + c] * y1 - flat[p2 + c] * y2 - flat[p3 + c] * y3
    for block in range(reach.shape[0] - 1, -1, -1):  # L^T
        p, last = 4 * block, reach[block]
        here = min(4, n_s - p)
        t0, t1, t2, t3 = 0.0, 0.0, 0.0, 0.0
        for i in range(p + 4, last + 1):
            c = np.uint64(width * (2 * i + 1) + p)  # (i, p)
            value = y[np.uint64(i)]
            t0 += flat[c] * value
            t1 += flat[c + one] * value
            t2 += flat[c + two] * value
            t3 += flat[c + three] * value
        if here == 4:
            y[p] -= t0
            y[p + 1] -= t1
            y[p + 2] -= t2
            y[p + 3] -= t3
        for i in range(p + here - 1, p, -1):
            for j in range(p, i):
                y[j] -= lu[i, j - i + width] * y[i]
    for s in range(n_s):
        out[s] = y[position[s]]
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def banded_policy_iteration(r, g, succ, prob, lam, position, reach, ends, tolerance, max_iterations, v, q, pi, lu):
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
            banded_solve(lu, position, reach, k[:, 0], step)
            if largest(step) <= 0.01 * lam:
                before, residual = residual, soft_shift(g, succ, prob, lam, step, v, q, pi, v_new)
                if residual < np.inf and settled(residual, before, scale, goal):
                    break
                before = np.inf
                continue
        before = residual
        _multiply(pi, g, k)
        banded_factor_solve(k, succ, prob, position, reach, lu, rhs, step, v)
        iteration += 1
    v[:] = v_new
    error = policy_error(residual, scale, amplification, lam)
    if error <= tolerance or iteration == max_iterations:
        return residual, error, iteration
    return _banded_refine(
        r, g, succ, prob, lam, position, reach, residual, scale, tolerance, iteration, max_iterations, v, q, pi, lu
    )


@njit(cache=True, error_model="numpy")
def _banded_refine(r, g, succ, prob, lam, position, reach, residual, scale, tolerance, iteration, max_iterations, v, q, pi, lu):
    """Continue `banded_policy_iteration` at the rounding level of the values: a sharper bound first, then exact residuals."""
    n_s, n_a, _ = prob.shape
    k = np.empty((n_s, n_a))
    step = np.empty(n_s)
    scratch = np.empty(n_s)
    _multiply(pi, g, k)
    banded_factor_solve(k, succ, prob, position, reach, lu, np.ones(n_s), scratch, step)
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
        banded_factor_solve(k, succ, prob, position, reach, lu, change, scratch, step)
        before, size = size, largest(step)
        extended_step(v, v_low, step)
        iteration += 1


@njit(cache=True)
def _multiply(a, b, out):
    """out = a * b, all (S, A)."""
    for s in range(a.shape[0]):
        for i in range(a.shape[1]):
            out[s, i] = a[s, i] * b[s, i]
