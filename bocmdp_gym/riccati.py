r"""Discounted Lyapunov and Riccati equations, differentiable in their matrices.

The mathematics. With discount g, states s' = A s + B a and costs z'C z of z = (s, a), C = [[Q, N], [N', R]], gains a = -K s of

    P = Q + g A'P A - (g A'P B + N) S^-1 (g B'P A + N'),      S = R + g B'P B,      K = S^-1 (g B'P A + N')

are optimal. `scipy.linalg.solve_discrete_are` solves this for sqrt(g) A, sqrt(g) B. Its derivative needs no adjoint of its own: P
is the least over all gains of the solution X of the Lyapunov equation

    X = T'C T + g L'X L,      L = A - B K,      T = [I; -K],

so at the optimal K the derivative of X by K is 0, and that of X at fixed K is that of P (the envelope theorem). With
M = sqrt(g) L and C for T'C T, X is the sum of (M')^k C M^k over k = 0, 1, ..., whose partial sums are doubled: X <- X + M'X M,
M <- M M (Smith 1968).
"""

from __future__ import annotations

from math import ceil, log, log2
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import solve_discrete_are
from torch import Tensor

from bocmdp_gym.errors import ConvergenceError

#: What is left of the sum of a Lyapunov equation when doubling stops, and how often it doubles at most.
_REST, _MOST = 1e-18, 40


class Optimum(NamedTuple):
    """P ``(n, n)`` and K ``(m, n)`` of a linear-quadratic problem, and S ``(m, m)``."""

    value: Tensor
    gain: Tensor
    curvature: Tensor


def spectral_radius(matrix: Tensor) -> float:
    """The largest modulus of a matrix's eigenvalues."""
    return float(np.abs(np.linalg.eigvals(matrix.detach().numpy())).max())


def solve_lyapunov(closed_loop: Tensor, cost: Tensor, discount: float, what: str) -> Tensor:
    """X = C + g L'X L ``(n, n)``, differentiable in L and C.

    Args:
        closed_loop: L ``(n, n)``.
        cost: C ``(n, n)``, symmetric.
        discount: g.
        what: the sum of costs that X stands for, in words, for the message.

    Raises:
        ConvergenceError: sqrt(g) L has an eigenvalue of modulus 1 or more, so that costs add up to infinity.
    """
    radius = discount**0.5 * spectral_radius(closed_loop)
    if not radius < 1.0 - 1e-9:
        raise ConvergenceError(
            f"{what} is infinite: its states grow by up to {radius / discount**0.5:.6g} a step, which with the discount "
            f"{discount:g} is a factor of {radius:.6g}, expected below 1. Lower the discount, or give costs "
            "that the follower avoids by keeping its states small."
        )
    power, total = discount**0.5 * closed_loop, cost
    # two doublings more than the eigenvalues ask for: powers of matrices that are far from normal fall later than those
    doublings = ceil(log2(max(log(_REST) / log(max(radius, 1e-3)), 1.0))) + 2
    for _ in range(min(doublings, _MOST)):
        total = total + power.T @ total @ power
        power = power @ power
    return 0.5 * (total + total.T)


def policy_cost(cost: Tensor, gain: Tensor) -> Tensor:
    """T'C T ``(n, n)``, T = [I; -K]: what a = -K s costs in state s."""
    stacked = torch.cat([torch.eye(gain.shape[1], dtype=gain.dtype), -gain])
    return stacked.T @ cost @ stacked


def solve_riccati(state_matrix: Tensor, input_matrix: Tensor, cost: Tensor, discount: float, where: str) -> Optimum:
    """The optimum of a linear-quadratic problem, differentiable once in its matrices.

    Args:
        state_matrix: A ``(n, n)``.
        input_matrix: B ``(n, m)``.
        cost: C ``(n + m, n + m)``, symmetric, whose block of actions is positive definite.
        discount: g.
        where: x and context, for the message.

    Raises:
        ConvergenceError: there is no solution that keeps discounted costs finite.
    """
    n, scale = len(state_matrix), discount**0.5

    def optimal_gain(value: Tensor) -> tuple[Tensor, Tensor]:
        curvature = cost[n:, n:] + discount * input_matrix.T @ value @ input_matrix
        return torch.linalg.solve(curvature, discount * input_matrix.T @ value @ state_matrix + cost[n:, :n]), curvature

    with torch.no_grad():
        try:
            found = solve_discrete_are(
                scale * state_matrix.numpy(), scale * input_matrix.numpy(), cost[:n, :n].numpy(), cost[n:, n:].numpy(),
                s=cost[:n, n:].numpy(),
            )  # fmt: skip
        except (np.linalg.LinAlgError, ValueError) as error:
            raise ConvergenceError(
                f"the follower's Riccati equation has no stabilising solution{where}: {error} At the discount {discount:g} some "
                "state grows that no action can reach, or that costs it nothing. Lower the discount, or mend state_matrix=, "
                "input_matrix= or cost=."
            ) from error
        gain, curvature = optimal_gain(torch.from_numpy(found))
        if not (bool(torch.isfinite(gain).all()) and float(np.linalg.eigvalsh(curvature.numpy())[0]) > 0.0):
            raise ConvergenceError(
                f"the follower's costs have no least value{where}: some actions pay the more the larger. Give cost= a larger "
                "block of actions, or lower the share of the leader's reward that the follower is paid."
            )
    what = f"what the follower's costs add up to{where}"
    value = solve_lyapunov(state_matrix - input_matrix @ gain, policy_cost(cost, gain), discount, what)
    return Optimum(value, *optimal_gain(value))
