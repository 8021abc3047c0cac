"""The compiled sweeps of soft value iteration."""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit

from bocmdp_gym.kernels.bellman import soft_backup
from bocmdp_gym.kernels.newton import EPSILON


@njit(cache=True)
def sweep(r, g, succ, prob, lam, v, q, pi, residuals, goal, max_iterations):
    """Soft value iteration (Algorithm 3) from ``v``, in place. Returns (sweeps, largest residual), NaN if one is not finite.

    Stops at ``max_iterations``, or where every state's residual (S,) is at most ``goal`` or down to rounding (never if negative).
    """
    n_s, n_a = r.shape
    rhs = np.empty(n_s)
    v_new = np.empty(n_s)
    residual = np.inf
    for iteration in range(1, max_iterations + 1):
        residual = soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new)
        if not residual < np.inf:
            return iteration, residual
        top = 0.0
        for s in range(n_s):
            residuals[s] = abs(v_new[s] - v[s])
            v[s] = v_new[s]
            top = max(top, abs(v_new[s]))
        if residual <= goal:
            return iteration, residual
        if goal < 0.0 or residual > 1e3 * EPSILON * top:
            continue
        settled = True
        for s in range(n_s):  # the level of `followers.evaluation.rounding`
            level = abs(v[s])
            for a in range(n_a):
                if pi[s, a] > 0.0:  # elsewhere, r = -inf may say that there is no such action
                    level += pi[s, a] * (abs(r[s, a]) + abs(q[s, a] - r[s, a]))
            settled = settled and residuals[s] <= max(goal, 4.0 * EPSILON * level)
        if settled:
            return iteration, residual
    return max_iterations, residual
