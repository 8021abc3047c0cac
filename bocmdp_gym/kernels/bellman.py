"""Soft Bellman backups and the linear maps of one context's successor lists (shapes in `bocmdp_gym.kernels`)."""

from __future__ import annotations

import numpy as np
from numba import njit

from bocmdp_gym.kernels import LOOSE
from bocmdp_gym.kernels.exponential import exponentials
from bocmdp_gym.kernels.logarithm import logarithms

#: How many exponentials a backup takes at a time.
_EXPONENTIALS = 512


@njit(cache=True, nogil=True, fastmath=LOOSE)
def expectation(succ, prob, v, out):
    """out(s, a) = sum_k prob(s, a, k) v(succ(s, a, k))."""
    n_s, n_a, n_k = prob.shape
    for s in range(n_s):
        for a in range(n_a):
            total = 0.0
            for k in range(n_k):
                total += prob[s, a, k] * v[np.uint32(succ[s, a, k])]
            out[s, a] = total
    return out


@njit(cache=True, nogil=True)
def adjoint(succ, prob, w, out):
    """out(s') = sum_{s,a} w(s, a) P(s'|s, a)."""
    n_s, n_a, n_k = prob.shape
    out[:] = 0.0
    for s in range(n_s):
        for a in range(n_a):
            for k in range(n_k):
                out[np.uint32(succ[s, a, k])] += w[s, a] * prob[s, a, k]
    return out


@njit(cache=True, nogil=True)
def gather_moves(k, index, out):
    """out(s, m) += sum of k(s, a) over the actions a with index(a) = m."""
    n_s, n_a = k.shape
    for s in range(n_s):
        for a in range(n_a):
            out[s, index[a]] += k[s, a]
    return out


@njit(cache=True, nogil=True)
def policy_sum(pi, w, out):
    """out(s) = sum_a pi(s, a) w(s, a)."""
    n_s, n_a = pi.shape
    for s in range(n_s):
        total = 0.0
        for a in range(n_a):
            total += pi[s, a] * w[s, a]
        out[s] = total
    return out


@njit(cache=True)
def softmax_derivative(pi, y, out):
    """out = pi (y - sum_b pi y), row by row of (S, A); exact where one probability is nearly 1; ``out`` may be y.

    There y - y(best) loses no digits, as y - sum_b pi y does; and the sum over actions is 0 to the last digit.
    """
    n_s, n_a = pi.shape
    for s in range(n_s):
        best = 0
        for a in range(n_a):
            best = a if pi[s, a] > pi[s, best] else best
        at_best = y[s, best]
        mean = 0.0
        for a in range(n_a):
            mean += pi[s, a] * (y[s, a] - at_best)
        for a in range(n_a):
            out[s, a] = pi[s, a] * ((y[s, a] - at_best) - mean)
    return out


@njit(cache=True, nogil=True, fastmath=LOOSE, error_model="numpy")
def soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new):
    """One application of the soft Bellman operator to ``v``.

    Actions that do not exist have r = -inf. Fills q = r + g P v, pi = softmax(q / lam), v_new = lam logsumexp(q / lam) and
    rhs = sum_a pi r + lam H(pi) (= v_new - sum_a pi g P v). Returns max |v_new - v|, NaN if anything is not finite.
    """
    n_s, n_a, _ = prob.shape
    residual = 0.0
    inverse = 1.0 / lam
    size = min(n_s, max(1, _EXPONENTIALS // n_a))
    weight, norm = np.empty((size, n_a)), np.empty(size)
    flat, space = weight.reshape(-1), np.empty(size * n_a)
    for begin in range(0, n_s, size):
        end = min(n_s, begin + size)
        expectation(succ[begin:end], prob[begin:end], v, pi[begin:end])  # parked here until the softmax below
        for s in range(begin, end):
            top = -np.inf
            for a in range(n_a):
                pi[s, a] *= g[s, a]
                value = r[s, a] + pi[s, a]
                q[s, a] = value
                top = value if value > top else top
            v_new[s] = top
            for a in range(n_a):
                weight[s - begin, a] = (q[s, a] - top) * inverse
        exponentials(flat, (end - begin) * n_a, space)
        for s in range(begin, end):
            z = 0.0
            future = 0.0
            for a in range(n_a):
                future += weight[s - begin, a] * pi[s, a]
                z += weight[s - begin, a]
            norm[s - begin] = z
            z = 1.0 / z
            rhs[s] = future * z
            for a in range(n_a):
                pi[s, a] = weight[s - begin, a] * z
        logarithms(norm, end - begin, space)
        for s in range(begin, end):
            new = v_new[s] + lam * norm[s - begin]
            gap = abs(new - v[s])
            if not gap < np.inf:
                return np.nan
            residual = max(residual, gap)
            v_new[s] = new
            rhs[s] = new - rhs[s]
    return residual


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True, fastmath=LOOSE, error_model="numpy")
def soft_shift(g, succ, prob, lam, step, v, q, pi, v_new):
    """Move a finished `soft_backup` of ``v`` to v + step, for |step| <= lam / 100: no exponential is taken afresh.

    Updates v, q, pi and v_new as a backup there would leave them. Returns max |v_new - v|, NaN if anything is not finite. What
    the series of exp(x) - 1 and of log(1 + mean) = 2 artanh(y) leave out is below 1e-17 of them.
    """
    n_s, n_a, n_k = prob.shape
    residual = 0.0
    inverse = 1.0 / lam
    for s in range(n_s):
        mean = 0.0
        for a in range(n_a):
            total = 0.0
            for k in range(n_k):
                total += prob[s, a, k] * step[np.uint32(succ[s, a, k])]
            total *= g[s, a]
            q[s, a] += total
            x = total * inverse
            growth = x + x * x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x * (1 / 5040))))))
            mean += pi[s, a] * growth
            pi[s, a] += pi[s, a] * growth
        scale = 1.0 / (1.0 + mean)
        for a in range(n_a):
            pi[s, a] *= scale
        y = mean / (2.0 + mean)
        w = y * y
        v_new[s] += lam * 2.0 * (y + y * w * (1 / 3 + w * (1 / 5 + w * (1 / 7))))
    for s in range(n_s):
        v[s] += step[s]
        gap = abs(v_new[s] - v[s])
        if not gap < np.inf:
            return np.nan
        residual = max(residual, gap)
    return residual
