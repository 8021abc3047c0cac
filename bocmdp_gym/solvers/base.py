r"""What every solver shares: linear systems of a policy, and soft policy iteration with them.

The systems are (I - K) y = b with K(s, s') = sum_a k(s, a) P(s'|s, a). Every quantity of the theory that is not a local sum is
one such solve, plain or transposed: values of a policy, the discounted visitation d = M^-T mu, and the adjoint u = M^-T y.

A `PolicySolver` belongs to one successor structure (one context) and keeps nothing of what it solves, so that any number of
threads can use it at once. What it makes, a `System` of one weight array k = pi gamma (1 - q), belongs to whoever asked for it,
and solves for any number of right-hand sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from bocmdp_gym.bounded import check_bounded
from bocmdp_gym.errors import ConvergenceError
from bocmdp_gym.kernels import bellman
from bocmdp_gym.kernels.extended import extended_backup, extended_expectation, extended_step
from bocmdp_gym.kernels.newton import (
    EPSILON,
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

Array = npt.NDArray[np.float64]
#: Episodes of more steps than this count as never ending, in double precision, when a policy is looked for that ends.
LONGEST = 1e12
#: What part of the residual of the soft Bellman equation a linear solve may leave, and what part of the goal.
ROUGH, FINE = 0.2, 0.03
#: Newton steps whose residuals may rise, as the first ones' do; where later ones do, steps were too rough, and may go in circles.
FIRST = 3


class Optimum(NamedTuple):
    """What soft policy iteration found; V* is in the array it was given."""

    q: Array  # (S, A)
    policy: Array  # (S, A)
    residual: float  # max |T V - V|; NaN where values stopped being finite
    error: float  # bound on max |pi - pi*|
    iterations: int


class System(ABC):
    """I - K of one weight array, factored."""

    @abstractmethod
    def solve(self, b: Array) -> Array:
        """y with (I - K) y = b."""

    @abstractmethod
    def solve_transposed(self, b: Array) -> Array:
        """y with (I - K)^T y = b."""

    def newton_step(self, v: Array, v_new: Array, rhs: Array, enough: float) -> None:
        """Overwrite ``v`` with (I - K)^-1 rhs = v + (I - K)^-1 (v_new - v), leaving a residual of at most ``enough``."""
        v[:] = self.solve(rhs)

    def correction(self, change: Array, enough: float) -> Array:
        """(I - K)^-1 ``change``, leaving a residual of at most ``enough``."""
        return self.solve(change)


class PolicySolver(ABC):
    """Solves with I - K for the successor structure ``succ`` (S, M, K) int32; M = A, except in `FactoredSolver`.

    Attributes:
        rows: the stored row of each action, ``(A,)``.
    """

    def __init__(self, succ: npt.NDArray[np.int32]):
        self.succ = succ
        self.n_states, self.n_actions, _ = succ.shape
        self.rows: npt.NDArray[np.int64] = np.arange(self.n_actions)

    @abstractmethod
    def factor(self, k: Array, prob: Array, reuse: System | None = None) -> System:
        """I - K for the weights ``k`` (S, A) and the probabilities ``prob`` (S, M, K).

        Args:
            k, prob: the numbers; neither is changed, and both must stay as they are while the system is used.
            reuse: a system of this solver that is not needed any more, whose memory may be used again.
        """

    def values(self, pi: Array, g: Array, r: Array, prob: Array) -> Array:
        """(I - K)^-1 sum_a pi r ``(S,)`` for k = pi g: the values of a policy, nothing else being asked of its system."""
        return self.factor(pi * g, prob).solve(bellman.policy_sum(pi, r, np.empty(self.n_states)))

    def policy_iteration(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, tolerance: float, max_iterations: int
    ) -> Optimum:
        """Soft policy iteration from ``v``, which is overwritten with V*.

        It continues until the residual is down to rounding, and beyond that with residuals in extended precision where values are
        so large beside lambda that the policy would otherwise be uncertain (`bocmdp_gym.kernels.newton` has the rule).

        Args:
            r, g, prob: rewards ``(S, A)``, -inf for actions that do not exist, continuation ``(S, A)`` and probabilities
                ``(S, M, K)``.
            lam: lambda.
            v: where to start ``(S,)``; at discount 1, zeros or the values of a similar problem.
            tolerance: accepted bound on the policy's error, ``Optimum.error``.
            max_iterations: Newton steps allowed.

        Raises:
            ConvergenceError: at discount 1, values that are infinite (`bocmdp_gym.bounded`).
        """
        amplification: float = amplification_of(g)
        if amplification == np.inf:
            self._start(r, g, prob, lam, v)
        return self._iterate(r, g, prob, lam, v, amplification, tolerance, max_iterations)

    def _iterate(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, amplification: float, tolerance: float, max_iterations: int
    ) -> Optimum:
        q, pi, rhs, v_new = np.empty_like(r), np.empty_like(r), np.empty_like(v), np.empty_like(v)
        top, goal, before, iteration = largest_reward(r), ZEAL * tolerance * lam / amplification, np.inf, 0
        system: System | None = None
        part = ROUGH
        while True:
            residual = self._backup(r, g, prob, lam, v, q, pi, rhs, v_new)
            if not residual < np.inf:
                return Optimum(q, pi, np.nan, np.inf, iteration)
            scale = largest(v_new) + top
            if settled(residual, before, scale, goal) or iteration == max_iterations:
                break
            if system is not None and nearly_settled(residual, before, scale, goal, lam):
                step = system.correction(v_new - v, FINE * max(goal, EPSILON * scale))
                if largest(step) <= 0.01 * lam:
                    before, residual = residual, self._shift(g, prob, lam, step, v, q, pi, v_new)
                    if residual < np.inf and settled(residual, before, scale, goal):
                        break
                    before = np.inf
                    continue
            if iteration > FIRST and residual > before:
                part *= 0.1
            before = residual
            system = self.factor(pi * g, prob, system)
            system.newton_step(v, v_new, rhs, max(FINE * goal, min(part, residual / lam) * residual))
            iteration += 1
        v[:] = v_new
        error = policy_error(residual, scale, amplification, lam)
        if error <= tolerance or iteration == max_iterations:
            return Optimum(q, pi, residual, error, iteration)
        system = self.factor(pi * g, prob, system)
        error = policy_error(residual, scale, largest(system.solve(np.ones_like(v))), lam)
        if error <= tolerance:
            return Optimum(q, pi, residual, error, iteration)
        return self._refine(r, g, prob, lam, v, q, pi, scale, tolerance, iteration, max_iterations, system)

    def _refine(
        self,
        r: Array,
        g: Array,
        prob: Array,
        lam: float,
        v: Array,
        q: Array,
        pi: Array,
        scale: float,
        tolerance: float,
        iteration: int,
        max_iterations: int,
        system: System,
    ) -> Optimum:
        """Newton's method with exact residuals: systems in double precision, values in twice that."""
        v_low, change = np.zeros_like(v), np.empty_like(v)
        future, future_low = np.empty(prob.shape[:2]), np.empty(prob.shape[:2])
        size, before = np.inf, np.inf
        while True:
            extended_expectation(self.succ, prob, v, v_low, future, future_low)
            residual, moved = extended_backup(r, g, self.rows, future, future_low, lam, v, v_low, q, pi, change)
            if not residual < np.inf:
                return Optimum(q, pi, np.nan, np.inf, iteration)
            error = refined_error(moved, size, lam)
            if error <= ZEAL * tolerance or iteration >= max_iterations or refined(residual, scale, size, before, lam):
                return Optimum(q, pi, residual, error, iteration)
            system = self.factor(pi * g, prob, system)
            step = system.solve(change)
            before, size = size, largest(step)
            extended_step(v, v_low, step)
            iteration += 1

    def _start(self, r: Array, g: Array, prob: Array, lam: float, v: Array) -> None:
        """At discount 1, make ``v`` the values of a policy whose episodes end, unless the best one beside ``v`` is one already.

        From there on policy improvement meets no other (Bertsekas and Tsitsiklis, "An analysis of stochastic shortest path
        problems", Math. Oper. Res. 16, 1991).

        Raises:
            ConvergenceError: values are infinite.
        """
        check_bounded(r, g, self.succ, prob, self.rows, lam)
        if v.any():
            pi = np.empty_like(r)
            self._backup(r, g, prob, lam, v, np.empty_like(r), pi, np.empty_like(v), np.empty_like(v))
            if self._ending(pi * g, prob) is not None:
                return
        exists = r > -np.inf
        pi = exists / exists.sum(-1, keepdims=True)
        system = self._ending(pi * g, prob)
        if system is None:
            pi = 0.5 * pi
            pi[np.arange(len(r)), self._towards_end(g, prob, exists)] += 0.5
            system = self.factor(pi * g, prob)
        v[:] = system.solve((pi * np.where(exists, r, 0.0)).sum(-1) + lam * entr(pi).sum(-1))

    def _ending(self, k: Array, prob: Array) -> System | None:
        """The system of weights ``k``; None if its episodes last longer than linear algebra can tell from for ever."""
        try:
            system = self.factor(k, prob)
            steps = system.solve(np.ones(self.n_states))
        except ConvergenceError:
            return None
        return system if bool(((steps > 0.999) & (steps < LONGEST)).all()) else None

    def _towards_end(self, g: Array, prob: Array, exists: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """In each state the action that ``exists`` and is most likely to come nearer to an end, ``(S,)``."""
        may_end = g < 1.0
        distance = np.where(may_end.any(-1), 0.0, np.inf)
        while True:
            nearest = np.where(prob > 0.0, distance[self.succ], np.inf).min(-1)[:, self.rows]
            shorter = np.minimum(distance, np.where(may_end, 0.0, nearest + 1.0).min(-1))
            if (shorter == distance).all():
                break
            distance = shorter
        nearer = (prob * (distance[self.succ] < distance[:, None, None])).sum(-1)[:, self.rows]
        chosen: npt.NDArray[np.int64] = np.where(exists, np.where(may_end, 2.0 - g, nearer), -1.0).argmax(-1)
        return chosen

    def _backup(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, q: Array, pi: Array, rhs: Array, v_new: Array
    ) -> float:
        """`bellman.soft_backup` of this structure."""
        residual: float = bellman.soft_backup(r, g, self.succ, prob, lam, v, q, pi, rhs, v_new)
        return residual

    def _shift(self, g: Array, prob: Array, lam: float, step: Array, v: Array, q: Array, pi: Array, v_new: Array) -> float:
        """`bellman.soft_shift` of this structure."""
        residual: float = bellman.soft_shift(g, self.succ, prob, lam, step, v, q, pi, v_new)
        return residual
