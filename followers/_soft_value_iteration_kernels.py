"""The compiled sweeps of soft value iteration."""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit

from bocmdp_gym.kernels.bellman import soft_backup


@njit(cache=True)
def sweep(r, g, succ, prob, lam, v, q, pi, tolerance, max_iterations):
    """Soft value iteration (Algorithm 3) from ``v``, in place. Returns (iterations, residual), the residual NaN if not finite.

    Stops at ``max_iterations``, or where the residual is at most ``tolerance * max(1, max |v|)`` (never if negative).
    """
    n_s = v.shape[0]
    rhs = np.empty(n_s)
    v_new = np.empty(n_s)
    residual = np.inf
    for iteration in range(1, max_iterations + 1):
        residual = soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new)
        if not residual < np.inf:
            return iteration, residual
        scale = 1.0
        for s in range(n_s):
            scale = max(scale, abs(v_new[s]))
            v[s] = v_new[s]
        if residual <= tolerance * scale:
            return iteration, residual
    return max_iterations, residual
