"""Soft value iteration (paper, Algorithm 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from bocmdp_gym.soft_bellman import TOLERANCE
from followers._soft_value_iteration_kernels import sweep
from followers.base import Task
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
        tolerance: bound on the residual, relative to max(1, max |V|); 1e-10 if neither is given.
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
        self._pi = np.full_like(self._q, 1.0 / self._q.shape[1])
        self._residual = np.inf

    @property
    def state(self) -> Any:
        return self._v

    def _advance(self, iterations: int, tolerance: float | None) -> int:
        if self.arrays.moves is not None:
            return self._sweep_factored(iterations, tolerance)
        done, self._residual = sweep(
            self.arrays.reward,
            self.arrays.continuation,
            self.arrays.successors,
            self.arrays.probabilities,
            self.regularization,
            self._v,
            self._q,
            self._pi,
            -1.0 if tolerance is None else tolerance,
            iterations,
        )
        if not self._residual < np.inf:
            self._diverged(f"in sweep {self.iterations + done}")
        return done

    def _sweep_factored(self, iterations: int, tolerance: float | None) -> int:
        """The same where actions share rows: P V per move, handed to the actions."""
        arrays, done = self.arrays, 0
        while done < iterations:
            self._q = arrays.reward + arrays.continuation * arrays.expectation(self._v)
            value = soft_value(self._q, self.regularization)
            self._residual = float(np.abs(value - self._v).max())
            self._v = value
            done += 1
            if not self._residual < np.inf:
                self._diverged(f"in sweep {self.iterations + done}")
            if tolerance is not None and self._residual <= tolerance * max(1.0, float(np.abs(value).max())):
                break
        self._pi = softmax(self._q / self.regularization, axis=-1)
        return done

    def _assess(self) -> tuple[Array, float]:
        return self._v, self._residual

    def _table(self) -> Array:
        return self._pi.copy()
