"""Soft value iteration (paper, Algorithm 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from bocmdp_gym.soft_bellman import TOLERANCE
from followers._soft_value_iteration_kernels import sweep
from followers.base import Task
from followers.evaluation import q_values, rounding
from followers.iterative import MAX_ITERATIONS, IterativeFollower, Solve
from followers.policies import Array
from followers.softmax import soft_value


class SoftValueIteration(IterativeFollower):
    r"""V <- lambda logsumexp((r + g P V) / lambda), pi = softmax((r + g P V) / lambda), from V = 0.

    The error shrinks by the discount in each sweep (Proposition E.4). The residual is max |V_new - V|, so Q is within
    gamma / (1 - gamma) times it of Q*.

    Args:
        regularization: lambda > 0.
        iterations: sweeps per response.
        tolerance: bound on the residual in units of lambda; 1e-8 if neither is given.
        max_iterations, warm_start, discount: see `IterativeFollower`.

    Raises:
        as `IterativeFollower`.
    """

    def __init__(
        self,
        regularization: float,
        *,
        iterations: int | None = None,
        tolerance: float | None = None,
        max_iterations: int = MAX_ITERATIONS,
        warm_start: bool = True,
        discount: float | None = None,
    ):
        if iterations is None and tolerance is None:
            tolerance = TOLERANCE
        super().__init__(regularization, iterations, tolerance, max_iterations, warm_start, discount)

    def _begin(self, task: Task, rng: np.random.Generator, state: Array | None) -> SoftValueIterationSolve:
        del rng
        return SoftValueIterationSolve(task, self.regularization, state)

    def policy_gap(self, residual: float, discount: float) -> float:
        return discount * residual / (2.0 * self.regularization * (1.0 - discount)) if discount < 1.0 else np.inf


class SoftValueIterationSolve(Solve):
    """Sweeps over the states; see `SoftValueIteration`."""

    name = "soft value iteration"

    def __init__(self, task: Task, regularization: float, state: Array | None):
        super().__init__(task, regularization)
        self._v = np.zeros(len(self.arrays.reward)) if state is None else state.copy()
        self._q = np.zeros_like(self.arrays.reward)
        self._reward = self.arrays.masked(self.arrays.reward)
        self._pi = self.arrays.available / self.arrays.available.sum(-1, keepdims=True)
        self._residuals = np.full_like(self._v, np.inf)

    @property
    def state(self) -> Any:
        return self._v

    def _advance(self, iterations: int, tolerance: float | None) -> int:
        goal = -1.0 if tolerance is None else tolerance * self.regularization
        if self.arrays.moves is not None:
            return self._sweep_factored(iterations, goal)
        done, residual = sweep(
            self._reward,
            self.arrays.continuation,
            self.arrays.successors,
            self.arrays.probabilities,
            self.regularization,
            self._v,
            self._q,
            self._pi,
            self._residuals,
            goal,
            iterations,
        )
        if not residual < np.inf:
            self._diverged(f"in sweep {self.iterations + done}")
        return done

    def _sweep_factored(self, iterations: int, goal: float) -> int:
        """The same where actions share rows: P V per move, handed to the actions."""
        arrays, done = self.arrays, 0
        while done < iterations:
            self._q = q_values(arrays, self._v)
            value = soft_value(self._q, self.regularization)
            self._residuals = np.abs(value - self._v)
            self._v = value
            done += 1
            if not np.isfinite(self._residuals).all():
                self._diverged(f"in sweep {self.iterations + done}")
            if goal >= 0.0:
                self._pi = softmax(self._q / self.regularization, axis=-1)
                if (self._residuals <= np.maximum(goal, rounding(arrays, self._pi, value))).all():
                    break
        self._pi = softmax(self._q / self.regularization, axis=-1)
        return done

    def _assess(self) -> tuple[Array, Array]:
        return self._v, self._residuals

    def _table(self) -> Array:
        return self._pi.copy()
