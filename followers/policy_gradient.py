"""Vanilla policy gradient (paper, Algorithm 6, corrected)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import DiscountError
from bocmdp_gym.options import check_count, check_flag
from followers._policy_gradient_kernels import policy_gradient
from followers.base import Task
from followers.evaluation import policy_values
from followers.iterative import MAX_ITERATIONS, IterativeFollower, Solve
from followers.policies import Array
from followers.softmax import SoftmaxState, soft_value
from followers.step_sizes import StepSize, check_step_size


class VanillaPolicyGradient(IterativeFollower):
    r"""Stochastic gradient ascent on the regularised return of pi = softmax(theta), from the uniform policy.

    Each estimate follows the policy from the initial distribution for T ~ Geo(1 - gamma) steps, and from (s_T, a_T) on for
    T' ~ Geo(1 - sqrt(gamma)) steps (P(T = k) = (1 - gamma) gamma^k):

        grad = 1 / (1 - gamma) grad log pi(a_T|s_T) sum_{t <= T'} gamma^(t/2) (r - lambda log pi)(s_{T+t}, a_{T+t}),

    which is unbiased; an episode that ends earlier contributes nothing from there on. With ``baseline`` the mean of the earlier
    returns from s_T is taken off the sum: still unbiased, and of smaller variance. It converges, at no stated rate
    (Proposition E.6), where the initial distribution and the policy reach every state; rarely visited states learn slowly,
    so it suits small problems with discounts well below 1.

    The residual is max |T V^pi - V^pi|, the soft Bellman residual of the policy's exact values: V^pi is within
    1 / (1 - gamma) times it of V*.

    Args:
        regularization: lambda > 0.
        iterations: gradient steps per response.
        tolerance: bound on the residual in units of lambda; looked at every ``check_every`` steps.
        step_size: alpha, constant or `StepSize.harmonic`.
        batch_size: independent estimates averaged per step.
        baseline: take off the mean return; False for Algorithm 6 as it stands.
        check_every: steps between two looks at the residual.
        max_iterations, warm_start, discount: see `IterativeFollower`.

    Raises:
        OptionError: as `IterativeFollower`, and for a batch size below 1.
        DiscountError: on `respond`, if the discount is 1.
    """

    def __init__(
        self,
        regularization: float,
        *,
        iterations: int | None = None,
        tolerance: float | None = None,
        step_size: StepSize | float = 0.1,
        batch_size: int = 1,
        baseline: bool = True,
        check_every: int = 10_000,
        max_iterations: int = 100 * MAX_ITERATIONS,
        warm_start: bool = True,
        discount: float | None = None,
    ):
        super().__init__(regularization, iterations, tolerance, max_iterations, warm_start, discount)
        self.step_size = check_step_size(step_size, per_pair=False)
        self.baseline = check_flag("baseline", baseline)
        self.batch_size = check_count("batch_size", batch_size)
        self.check_every = check_count("check_every", check_every)

    def _begin(self, task: Task, rng: np.random.Generator, state: Array | None) -> VanillaPolicyGradientSolve:
        return VanillaPolicyGradientSolve(task, self, rng.bit_generator.random_raw(4), state)

    def policy_gap(self, residual: float, discount: float) -> float:
        if discount == 1.0:
            return np.inf
        return float(np.sqrt(residual / (2.0 * self.regularization * (1.0 - discount))))  # Pinsker, from the value gap


class VanillaPolicyGradientSolve(Solve):
    """Sampled gradient steps; see `VanillaPolicyGradient`."""

    name = "vanilla policy gradient"

    def __init__(
        self,
        task: Task,
        settings: VanillaPolicyGradient,
        rng_state: npt.NDArray[np.uint64],
        state: Array | None,
    ):
        if task.discount == 1.0:
            raise DiscountError(
                "vanilla policy gradient draws horizons from Geo(1 - gamma), which needs a discount below 1; got 1. Use "
                "NaturalPolicyGradient, SoftValueIteration or SoftPolicyIteration."
            )
        super().__init__(task, settings.regularization)
        self.stride = settings.check_every
        shape = self.arrays.reward.shape
        self._rule, self._batch, self._rng = settings.step_size, settings.batch_size, rng_state
        self._moves = self.arrays.draws.tables
        self._baseline = np.zeros(shape[0])
        self._visits: npt.NDArray[np.int64] = np.zeros(shape[0] if settings.baseline else 0, dtype=np.int64)
        self._softmax = SoftmaxState.begin(self.arrays, state, 1.0)

    @property
    def state(self) -> Any:
        return self._softmax.kept()

    @property
    def logits(self) -> Array:
        """theta ``(S, A)`` (a copy), -inf for actions that do not exist."""
        return self._softmax.q.copy()

    def _advance(self, iterations: int, tolerance: float | None) -> int:
        del tolerance
        bad = policy_gradient(
            *self._softmax,
            self._baseline,
            self._visits,
            self.arrays.reward,
            self.arrays.termination,
            self._moves,
            self.arrays.rows,
            self.arrays.starts,
            self.task.discount,
            self.regularization,
            self._batch,
            self._rule.scale,
            -1.0 if self._rule.offset is None else self._rule.offset,
            self.iterations,
            iterations,
            self._rng,
        )
        if bad >= 0:
            self._diverged(f"at state {bad}")
        return iterations

    def _assess(self) -> tuple[Array, Array]:
        value, q = policy_values(self.arrays, self._table(), self.regularization)
        optimal = soft_value(self.arrays.masked(q), self.regularization)
        return value, np.abs(optimal - value)

    def _table(self) -> Array:
        return self._softmax.table()
