r"""Weights from a fit of the value's derivative and the transpose of its linear system: the mathematics of the adjoint critic.

With features phi(s) (0 after the end), phi' those of the next state, c = 0 after the end and 1 elsewhere, and half of the
episodes, A, the least-squares fit of temporal differences

    M = sum_A phi (phi - gamma c phi')^T + ridge,     V_lambda = phi^T M^-1 sum_A phi (r + lambda H)

is linear in what is summed, so dV_lambda is the same fit of g = dr + gamma c dlogP (V_lambda(s') - V_lambda(s)). On the other
half, B, with e_t = kappa gamma e_{t-1} + gamma_L^t Abar / lambda (kappa: the trace, 0 to 1),

    sum_B e (g + gamma c dV_lambda(s') - dV_lambda(s))
        = sum_B e g + sum_A (z^T phi) g,          z = M^-T sum_B e (gamma c phi' - phi)

needs no derivative of any value: one transposed system turns it into weights on g. At kappa = 1 the terms with dV telescope to
a mean of 0 whatever the fit is; at kappa = 0 they are local, and the future's noise no longer meets the past's.

Where an episode is cut, the leader's value goes on, and so does its derivative, by the fit of dVbar: with
zbar = M_L^-T sum_{cuts of B} gamma_L^T phi(s_T), M_L being M with gamma_L, each step of A counts as one that is visited
zbar^T phi times after the cut, in drbar and in e.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

from leaders.gradients._returns import traces
from leaders.gradients.base import Array

#: Keeps least squares solvable where features coincide or never occur: observations of 0 that each feature has on top. The
#: first whose values are better than a constant on the other half is taken.
RIDGES = (0.5, 5.0, 50.0, 500.0)

Mask = npt.NDArray[np.bool_]


class LinearSystem:
    """A factorised square matrix, dense or sparse."""

    def __init__(self, matrix: Any):
        self._sparse = sparse.issparse(matrix)
        self._factors: Any = sparse.linalg.splu(matrix.tocsc()) if self._sparse else linalg.lu_factor(matrix)

    def solve(self, right: Array) -> Array:
        """M^-1 right."""
        solved: Array = self._factors.solve(right) if self._sparse else linalg.lu_solve(self._factors, right)
        return solved

    def solve_transposed(self, right: Array) -> Array:
        """M^-T right."""
        solved: Array = self._factors.solve(right, "T") if self._sparse else linalg.lu_solve(self._factors, right, trans=1)
        return solved


def temporal_difference_system(phi: Array, following: Array, discount: float, ridge: float) -> LinearSystem:
    """M of features ``(N, K)`` and those that follow, expected or sampled, 0 after the end.

    The first feature is a constant and has no ridge, so that a constant added to rewards moves values and nothing else.
    """
    matrix = phi.T @ (phi - discount * following)
    n, k = phi.shape
    ridge = ridge * float(np.square(phi[:, 1:]).sum()) / (n * max(k - 1, 1)) + 1e-12
    return LinearSystem(matrix + np.diag(np.append(0.0, np.full(k - 1, ridge))))


class Fit(NamedTuple):
    """What half of the episodes says: both linear systems, and the values ``phi @ leader`` and ``phi @ follower``."""

    system: LinearSystem  # of gamma
    leader_system: LinearSystem  # of gamma_L
    leader: Array  # (K,)
    follower: Array  # (K,)


def fit_values(
    phi: Array,
    following: Array,
    leader_rewards: Array,
    augmented: Array,
    discount: float,
    leader_discount: float,
    ridge: float = RIDGES[0],
) -> Fit:
    """Values of leader and follower from temporal differences.

    Args:
        phi, following: features of N steps ``(N, K)``, and those that follow.
        leader_rewards: rbar ``(N,)``.
        augmented: r + lambda H ``(N,)``.
        discount, leader_discount: gamma and gamma_L.
        ridge: see `RIDGES`.
    """
    system = temporal_difference_system(phi, following, discount, ridge)
    leader_system = system if leader_discount == discount else temporal_difference_system(phi, following, leader_discount, ridge)
    return Fit(system, leader_system, leader_system.solve(phi.T @ leader_rewards), system.solve(phi.T @ augmented))


class Weighed(NamedTuple):
    """What is weighed: steps of half of the episodes, or of some of those. All are 0 elsewhere."""

    power: Array  # (N,): gamma_L^t
    carried: Array  # (N,): what the trace adds to gamma_L^t Abar / lambda
    final_power: Array  # (E,): gamma_L^T where an episode ended

    def only(self, steps: Mask, episodes: Mask) -> Weighed:
        """Those steps and episodes alone."""
        return Weighed(*(np.where(m, v, 0.0) for m, v in zip((steps, steps, episodes), self, strict=True)))


def weigh(kicks: Array, ends: Any, trace: float, discount: float, leader_discount: float) -> Weighed:
    """All steps, with Abar / lambda of what was done ``(N,)``."""
    total, power = traces(kicks, ends, trace * discount, leader_discount)
    return Weighed(power, total - power * kicks, leader_discount * power[ends - 1])


class Steps(NamedTuple):
    """Weights on N steps: ``base + visits Abar / lambda`` on g, ``visits`` on drbar."""

    base: Array
    visits: Array


class Features(NamedTuple):
    """Features of N steps and E episodes."""

    phi: Array  # (N, K)
    following: Array  # (N, K), expected or sampled, 0 after the end
    finals: Array  # (E, K), of where an episode was cut, 0 where it terminated


def step_weights(fit: Fit, features: Features, cross: Array, weighed: Weighed, fitted: Mask, discount: float) -> Steps:
    """The weights on g and drbar of one half's fit.

    Args:
        fit: made of the steps in ``fitted``.
        features: of all steps.
        cross: E_a Abar/lambda (gamma c phi' - phi) at each step ``(N, K)``, or samples of it.
        weighed: steps of the other half.
        fitted: the steps of A ``(N,)``.
        discount: gamma.
    """
    phi, following, finals = features
    after = fit.leader_system.solve_transposed(weighed.final_power @ finals)
    visits = weighed.power + np.where(fitted, phi @ after, 0.0)
    known = weighed.carried @ (discount * following - phi) + visits @ cross
    return Steps(weighed.carried + np.where(fitted, phi @ fit.system.solve_transposed(known), 0.0), visits)


def fit_influence(fit: Fit, features: Features, base: Array, fitted: Mask, discount: float) -> Array:
    """What the noise of some of A's steps, with weights ``base`` ``(N,)``, adds through the fit: weights on g ``(N,)``.

    Summed over all of A this is 0: the fit's residuals are orthogonal to the features.
    """
    known = base @ (discount * features.following - features.phi)
    return base + np.where(fitted, features.phi @ fit.system.solve_transposed(known), 0.0)
