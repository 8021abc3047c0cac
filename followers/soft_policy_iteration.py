"""The exact follower: soft policy iteration (Newton's method on the soft Bellman equation)."""

from __future__ import annotations

from typing import Any

import numpy as np

from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.options import check_count, check_number, check_regularization
from bocmdp_gym.soft_bellman import MAX_ITERATIONS, TOLERANCE
from bocmdp_gym.validation import check_discount
from followers.base import Follower, Task
from followers.policies import TabularPolicy


class SoftPolicyIteration(Follower):
    """Solves the regularised problem (paper eq. 1) to ``tolerance``, warm-started from the last x of the same context.

    Args:
        regularization: lambda > 0.
        tolerance: accepted bound on max |pi - pi*|; solves continue to rounding where they can.
        max_iterations: Newton steps allowed; it takes 5 to 10 cold and 1 to 3 warm.
        discount: gamma, taken from the environment; one that contradicts it is an error.

    Raises:
        RegularizationError: lambda is not positive and finite.
        OptionError: a tolerance or a number of steps that is not positive.
        DiscountError: a discount outside [0, 1] (or, when the oracle is made, another than the environment's).
    """

    plans = exact = anneals = True
    exposes_probabilities = True

    def __init__(
        self,
        regularization: float,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
        *,
        discount: float | None = None,
    ):
        self.regularization: float = check_regularization(regularization)
        self.discount = None if discount is None else check_discount(discount)
        self.tolerance = check_number("tolerance", tolerance, above=0.0)
        self.max_iterations = check_count("max_iterations", max_iterations)
        self._solver = WarmSolver(self.tolerance, self.max_iterations)

    def respond(self, task: Task, rng: np.random.Generator) -> TabularPolicy:
        """The optimal policy; ``metrics``: Newton steps and residual."""
        del rng
        solution = self._solver.solve(task.mdps, task.context, self.regularization)
        return task.tabular_policy(
            solution.policy,
            solution.value,
            follower_iterations=solution.iterations,
            follower_residual=solution.residual,
        )

    def reset(self) -> None:
        self._solver.reset()

    def state(self) -> dict[str, Any]:
        return self._solver.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self._solver.load_state(state)
