"""The follower's optimum one context at a time on NumPy arrays, each solve starting where the context's last one ended."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import DamagedError
from bocmdp_gym.kernels.newton import FINEST
from bocmdp_gym.mdps import ConfiguredMDPs
from bocmdp_gym.saved_state import arrays_by_context
from bocmdp_gym.soft_bellman import MAX_ITERATIONS, TOLERANCE, SolveStatistics, check_convergence

Array = npt.NDArray[np.float64]


class ContextSolution(NamedTuple):
    """One context's optimum, as NumPy arrays."""

    value: Array  # (S,)
    q: Array  # (S, A), -inf for actions that do not exist
    policy: Array  # (S, A)
    residual: float
    iterations: int


class WarmSolver:
    """The follower's optimum one context at a time on NumPy arrays, each solve starting from the context's last one.

    What a run does thousands of times. Results depend on the order of calls within `tolerance`; `reset` forgets them.
    """

    def __init__(self, tolerance: float = TOLERANCE, max_iterations: int = MAX_ITERATIONS):
        self.tolerance, self.max_iterations = max(tolerance, FINEST), max_iterations
        self._values: dict[int, Array] = {}

    def reset(self) -> None:
        """Forget all warm starts."""
        self._values.clear()

    def state(self) -> dict[Any, Any]:
        """What a checkpoint keeps: the warm starts."""
        return {context: value.copy() for context, value in self._values.items()}

    def load_state(self, state: dict[Any, Any], n_states: int = -1) -> None:
        """Go on from `state`, of a model with ``n_states`` states; -1: not known yet.

        Raises:
            DamagedError: it holds something else than finite numbers of this shape for each context.
        """
        self._values = arrays_by_context(state, (n_states,))

    def solve(self, mdps: ConfiguredMDPs, context: int, regularization: float) -> ContextSolution:
        """V*, Q* and pi* of one context.

        Raises:
            ModelError: an array of the model is not finite at this x.
            ConvergenceError: no convergence within ``max_iterations``.
            DamagedError: `load_state` was given the values of another model.
        """
        arrays = mdps.arrays(context)
        start = self._values.get(context)
        v = np.zeros(len(arrays.reward)) if start is None else start.copy()
        if len(v) != len(arrays.reward):
            raise DamagedError(f"the values saved for context {context} are of {len(v)} states; expected {len(arrays.reward)}.")
        found = arrays.solver.policy_iteration(
            arrays.reward if arrays.action_mask is None else arrays.masked(arrays.reward),
            arrays.continuation,
            arrays.stored_probabilities,
            regularization,
            v,
            self.tolerance,
            self.max_iterations,
        )
        if not found.error <= self.tolerance:
            mdps.validate()
            statistics = SolveStatistics(found.residual, found.error, found.iterations)
            check_convergence(statistics, regularization, self.tolerance, self.max_iterations, f" in context {context}")
        self._values[context] = v
        return ContextSolution(v, found.q, found.policy, found.residual, found.iterations)
