"""Entropy-regularised natural policy gradient (paper, Proposition E.7; Cen et al. 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import DiscountError, UnsupportedError
from bocmdp_gym.kernels.alias import low_bits, policy_tables
from bocmdp_gym.options import check_count
from bocmdp_gym.soft_bellman import TOLERANCE
from followers._natural_policy_gradient_kernels import sampled_q
from followers.base import Task
from followers.environments import AnyEnv
from followers.evaluation import PolicyValues, entropy, largest_gap, policy_values
from followers.iterative import MAX_ITERATIONS, IterativeFollower, Solve
from followers.policies import Array
from followers.softmax import SoftmaxState
from followers.step_sizes import StepSize, check_step_size


class NaturalPolicyGradient(IterativeFollower):
    r"""pi <- pi^(1 - eta lambda / (1 - gamma)) exp(eta Q^pi / (1 - gamma)), normalised, from the uniform policy.

    With c = eta lambda / (1 - gamma) and pi = softmax(theta / lambda) that is

        theta <- (1 - c) theta + c Q^pi,

    an average of the action values seen so far. Proposition E.7 asks for 0 < eta <= (1 - gamma) / lambda, so 0 < c <= 1
    whatever the discount; ``step_size`` is c, and eta = c (1 - gamma) / lambda. At c = 1 it is soft policy iteration. The error
    falls at least like (1 - eta lambda)^t = (1 - c (1 - gamma))^t.

    Episodes may end: Q^pi = r + g P V^pi with g = gamma (1 - q) <= gamma, a contraction that is no weaker, so the bound on eta
    stays the same. With discount 1, where eta would be 0, c still works for the exact iteration.

    Q^pi is evaluated exactly, by one linear solve per iteration, or from ``rollouts`` sampled trajectories per state-action
    pair, unbiased: theta then averages the noise too, and converges for steps that decrease like `StepSize.harmonic`.
    The residual is max |Q^pi - theta|, Q^pi exact in either case: theta is within (1 + gamma) / (1 - gamma) times it of Q*.

    Args:
        regularization: lambda > 0.
        iterations: steps per response.
        tolerance: bound on the residual in units of lambda; 1e-8 if neither is given (exact iteration only).
        step_size: c in (0, 1], constant or `StepSize.harmonic`.
        rollouts: None for exact evaluation, otherwise trajectories per state-action pair and iteration.
        check_every: with rollouts, iterations between two looks at the residual.
        max_iterations, warm_start, discount: see `IterativeFollower`.

    Raises:
        OptionError: c above 1, rollouts below 1, and as `IterativeFollower`.
        DiscountError: on `respond`, rollouts with discount 1 (horizons are drawn from Geo(1 - sqrt(gamma))).
    """

    def __init__(
        self,
        regularization: float,
        *,
        iterations: int | None = None,
        tolerance: float | None = None,
        step_size: StepSize | float = 0.5,
        rollouts: int | None = None,
        check_every: int = 10,
        max_iterations: int = MAX_ITERATIONS,
        warm_start: bool = True,
        discount: float | None = None,
    ):
        if iterations is None and tolerance is None and rollouts is None:
            tolerance = TOLERANCE
        super().__init__(regularization, iterations, tolerance, max_iterations, warm_start, discount)
        self.step_size = check_step_size(step_size, 1.0, per_pair=False)
        self.rollouts = None if rollouts is None else check_count("rollouts", rollouts)
        self.check_every = check_count("check_every", check_every)

    def _begin(self, task: Task, rng: np.random.Generator, state: Array | None) -> NaturalPolicyGradientSolve:
        if self.rollouts is None:
            return NaturalPolicyGradientSolve(task, self, state)
        return SampledNaturalPolicyGradientSolve(task, self, self.rollouts, rng.bit_generator.random_raw(4), state)

    def bind(self, env: AnyEnv, core: Any) -> None:
        super().bind(env, core)
        if self.rollouts is not None and core.model.factored:
            raise UnsupportedError(
                "natural policy gradient with rollouts draws from a list of successors for every action, and this model's "
                "transitions are factored (FactoredTransitions); use rollouts=None, which evaluates policies exactly, or "
                "SoftQLearning."
            )

    def policy_gap(self, residual: float, discount: float) -> float:
        if discount == 1.0:
            return np.inf
        return residual * (1.0 + discount) / (2.0 * self.regularization * (1.0 - discount))


class NaturalPolicyGradientSolve(Solve):
    """Steps with exact evaluation; see `NaturalPolicyGradient`."""

    name = "natural policy gradient"
    stride = 1

    def __init__(self, task: Task, settings: NaturalPolicyGradient, state: Array | None):
        super().__init__(task, settings.regularization)
        self._rule = settings.step_size
        self._softmax = SoftmaxState.begin(self.arrays, state, self.regularization)
        self._theta, self._pi = self._softmax.q, self._softmax.table()
        self._evaluated: PolicyValues | None = None

    @property
    def state(self) -> Any:
        return self._softmax.kept()

    @property
    def values(self) -> PolicyValues:
        """Exact values of the current policy."""
        if self._evaluated is None:
            self._evaluated = policy_values(self.arrays, self._pi, self.regularization)
            if not np.isfinite(self._evaluated.q).all():
                self._diverged(f"in iteration {self.iterations}")
        return self._evaluated

    def _estimate(self) -> Array:
        """Q^pi, or an estimate of it."""
        return self.values.q

    def _advance(self, iterations: int, tolerance: float | None) -> int:
        del tolerance
        mask = self.arrays.action_mask
        for done in range(iterations):
            c = self._rule.at(self.iterations + done)
            estimate = self._estimate()
            if mask is None:
                self._theta += c * (estimate - self._theta)
            else:
                self._theta[mask] += c * (estimate[mask] - self._theta[mask])
            self._softmax.refresh(self.regularization)
            self._pi, self._evaluated = self._softmax.table(), None
        return iterations

    def _assess(self) -> tuple[Array, Array]:
        value, q = self.values
        return value, largest_gap(self.arrays, value, q - self._theta)

    def _table(self) -> Array:
        return self._pi.copy()


class SampledNaturalPolicyGradientSolve(NaturalPolicyGradientSolve):
    """Steps with Q^pi estimated from trajectories; see `NaturalPolicyGradient`."""

    name = "sampled natural policy gradient"

    def __init__(
        self,
        task: Task,
        settings: NaturalPolicyGradient,
        rollouts: int,
        rng_state: npt.NDArray[np.uint64],
        state: Array | None,
    ):
        if task.discount == 1.0:
            raise DiscountError(
                "sampled natural policy gradient draws horizons from Geo(1 - sqrt(gamma)), which needs a discount below 1; "
                "got 1. Use rollouts=None, which evaluates policies exactly."
            )
        super().__init__(task, settings, state)
        self.stride = settings.check_every
        self._rollouts, self._rng = rollouts, rng_state
        self._moves = self.arrays.draws.tables
        n_states, n_actions, width = self.arrays.probabilities.shape
        self._joint = np.empty((n_states, n_actions * width, 2), np.uint64)

    def _estimate(self) -> Array:
        shift = low_bits(len(self._pi))
        policy_tables(self._pi, self.arrays.successors, self.arrays.probabilities, shift, self._joint)
        q: Array = sampled_q(
            self._joint,
            self._moves,
            self.regularization * entropy(self._pi),
            self.arrays.reward,
            self.arrays.termination,
            self.task.discount,
            self._rollouts,
            self._rng,
            np.empty_like(self._theta),
        )
        if not np.isfinite(q).all():
            self._diverged(f"in iteration {self.iterations}")
        return q
