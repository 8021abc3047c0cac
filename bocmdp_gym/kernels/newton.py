r"""When soft policy iteration may stop, and how wrong its policy may then be: the rule of every solver.

The mathematics. The residual T V - V is Newton's right-hand side: V* - V <= ||M^-1|| max |T V - V|, M = I - K of the policy, and
a policy's error is that of Q over lambda. With the amplification ||M^-1|| <= 1 / (1 - max g) (the longest expected episode, at
discount 1),

    error = amplification max(max |T V - V|, eps scale) / lambda,        scale = max |V| + max |r|

bounds max |pi - pi*|, rounding included. It has no unit: rewards and lambda times c leave it as it is. Where it is too large at
the rounding level of the values, `bocmdp_gym.kernels.extended` continues with exact residuals, until the steps, far below lambda,
move the policy no more.
"""

from __future__ import annotations

import numpy as np
from numba import njit

EPSILON = 2.0**-52
#: What double precision can say of a probability: finer tolerances ask for no more.
FINEST = 1e-14
#: An iteration continues until the error is this part of the tolerance, unless rounding stops it before.
ZEAL = 0.01


@njit(cache=True, inline="always")
def settled(residual, before, scale, goal):
    """Whether a residual is at its goal, at the rounding level of ``scale``, or near that and no longer falling."""
    noise = EPSILON * scale
    return not residual > max(goal, 4.0 * noise) or (residual < 1e4 * noise and residual > 0.5 * before)


@njit(cache=True, inline="always")
def nearly_settled(residual, before, scale, goal, lam):
    """Whether one more solve with the last factor will settle it, if its step is far below lambda.

    Newton's residuals fall like c b^2, b the one before, and that solve's like 2 c b times the residual it starts from.
    """
    return residual <= 0.01 * lam and 2.0 * residual * residual <= max(goal, 4.0 * EPSILON * scale) * before < np.inf


@njit(cache=True)
def policy_error(residual, scale, amplification, lam):
    """The bound on max |pi - pi*| of the module docstring; infinite where the amplification is."""
    floor = max(residual, EPSILON * scale)
    return amplification * floor / lam if floor > 0.0 else 0.0


@njit(cache=True, inline="always")
def refined_error(moved, size, lam):
    """The same after a step of ``size`` by exact residuals that ``moved`` the policy: near the end each moves it far less."""
    return moved if size <= 0.01 * lam else np.inf


@njit(cache=True, inline="always")
def refined(residual, scale, size, before, lam):
    """Whether steps by exact residuals fall no longer, these being at the end of their precision or they far below lambda."""
    return size > 0.5 * before and (residual <= 8.0 * EPSILON * EPSILON * scale or size <= 0.01 * lam)


@njit(cache=True)
def largest(values):
    """max |values|."""
    top = 0.0
    for value in values.flat:
        top = max(top, abs(value))
    return top


@njit(cache=True)
def largest_reward(r):
    """max |r| over the actions that exist; the others have r = -inf."""
    top = 0.0
    for value in r.flat:
        top = max(top, abs(value)) if value > -np.inf else top
    return top


@njit(cache=True)
def amplification_of(g):
    """1 / (1 - max g), infinite at discount 1."""
    top = largest(g)
    return 1.0 / (1.0 - top) if top < 1.0 else np.inf
