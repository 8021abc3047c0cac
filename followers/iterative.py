r"""Followers that iterate: solve to a tolerance or for a number of iterations, start warm, stop and continue.

A `Solve` is one in progress. `IterativeFollower.respond` starts one where the context's last one ended and takes it to the
tolerance or through the budget; `IterativeFollower.start` hands out a fresh one, which stops at t iterations and continues to t'
from the same state (what a multilevel estimator needs, paper C.2):

    solve = follower.start(task, rng)
    solve.advance(t)
    early = solve.policy()
    solve.advance(t' - t)
    late = solve.policy()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NoReturn

import numpy as np

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import ConvergenceError, OptionError
from bocmdp_gym.options import check_count, check_flag, check_number, check_regularization
from bocmdp_gym.saved_state import arrays_by_context, check_like
from bocmdp_gym.validation import check_discount
from followers.base import Follower, Task
from followers.evaluation import rounding
from followers.policies import Array, TabularPolicy

#: Iterations after which a solve to a tolerance gives up.
MAX_ITERATIONS = 1_000_000


class Solve(Constructed, ABC):
    """One solve of one task, in progress.

    Attributes:
        task: the problem M_{x, xi}.
        regularization: lambda.
        iterations: iterations done so far.
        name: the algorithm, for messages.
        stride: iterations between two looks at the residual, where the iteration itself does not know it.
    """

    name: str
    stride = MAX_ITERATIONS

    def __init__(self, task: Task, regularization: float):
        self.task, self.regularization = task, regularization
        self.arrays = task.arrays
        self.iterations = 0
        self._assessment: tuple[int, Array, Array] | None = None

    def advance(self, iterations: int) -> None:
        """Do ``iterations`` more.

        Raises:
            OptionError: fewer than 1.
            ConvergenceError: a value that is not finite.
        """
        self.iterations += self._advance(check_count("iterations", iterations), None)

    def converge(self, tolerance: float, max_iterations: int) -> None:
        """Continue until the residual is at most ``tolerance * lambda`` in every state, or down to that state's own rounding.

        Raises:
            ConvergenceError: not within ``max_iterations`` in all, or a value that is not finite.
        """
        while True:
            value, residuals = self.assess()
            if (residuals <= np.maximum(tolerance * self.regularization, rounding(self.arrays, self._table(), value))).all():
                return
            left = max_iterations - self.iterations
            if left < 1:
                raise ConvergenceError(
                    f"{self.name} left a residual of {residuals.max():.3g} after {self.iterations} iterations in context "
                    f"{self.task.context}; expected at most {tolerance:.3g} times the regularization {self.regularization}. "
                    "Raise tolerance or max_iterations, or give a number of iterations instead."
                )
            self.iterations += self._advance(min(self.stride, left), tolerance)

    def assess(self) -> tuple[Array, Array]:
        """The solve's values V ``(S,)`` and residuals ``(S,)``: what remains of the error, by the follower's own measure."""
        if self._assessment is None or self._assessment[0] != self.iterations:
            self._assessment = (self.iterations, *self._assess())
        return self._assessment[1:]

    def policy(self) -> TabularPolicy:
        """The policy of the iterations done so far; ``metrics``: their number and the residual."""
        value, residuals = self.assess()
        return self.task.tabular_policy(
            self._table(), value.copy(), follower_iterations=self.iterations, follower_residual=float(residuals.max())
        )

    @property
    @abstractmethod
    def state(self) -> Any:
        """What another solve can start from."""

    @abstractmethod
    def _advance(self, iterations: int, tolerance: float | None) -> int:
        """Do at most ``iterations`` more and return how many; where the residual is known all along, stop at ``tolerance``."""

    @abstractmethod
    def _assess(self) -> tuple[Array, Array]:
        """See `assess`."""

    @abstractmethod
    def _table(self) -> Array:
        """A fresh array of the policy's probabilities ``(S, A)``."""

    def _diverged(self, where: str) -> NoReturn:
        """Report a value that is not finite: the model's fault if it has one (`ModelError`), the iteration's otherwise."""
        self.task.mdps.validate()
        raise ConvergenceError(
            f"{self.name} met a value that is not finite {where} in context {self.task.context}; expected finite "
            "values. Take smaller steps, and check that rewards are of a reasonable size and the discount is below 1 "
            "wherever an episode need not end."
        )


class IterativeFollower(Follower):
    """Base class of followers that plan or learn on the tabular model by iterating.

    Exactly one of ``iterations`` and ``tolerance`` rules. Subclasses say what an iteration is and what the residual measures.

    Args:
        regularization: lambda > 0.
        iterations: how many to do per response.
        tolerance: bound on the residual in units of lambda, in every state that rounding lets come so near.
        max_iterations: with a tolerance, the number after which it is an error not to have reached it.
        warm_start: begin where the context's last response ended, rather than from scratch.
        discount: gamma, taken from the environment; one that contradicts it is an error.

    Raises:
        RegularizationError: lambda is not positive and finite.
        OptionError: neither or both of iterations and tolerance, or one out of range.
        DiscountError: a discount outside [0, 1] (or, when the oracle is made, another than the environment's).
    """

    plans = iterative = anneals = True
    exposes_probabilities = True

    def __init__(
        self,
        regularization: float,
        iterations: int | None,
        tolerance: float | None,
        max_iterations: int,
        warm_start: bool,
        discount: float | None,
    ):
        name = type(self).__name__
        self.regularization: float = check_regularization(regularization)
        if (iterations is None) == (tolerance is None):
            given = "neither" if iterations is None else "both"
            raise OptionError(
                f"{name} was given {given} of iterations and tolerance; expected one of them: a budget, or how exact to be."
            )
        self.iterations = None if iterations is None else check_count("iterations", iterations)
        self.tolerance = None if tolerance is None else check_number("tolerance", tolerance, above=0.0)
        self.max_iterations = check_count("max_iterations", max_iterations)
        self.warm_start = check_flag("warm_start", warm_start)
        self.discount = None if discount is None else check_discount(discount)
        self._states: dict[int, Any] = {}
        self._loaded: set[int] = set()  # contexts whose state came from a file and was not used yet

    @abstractmethod
    def _begin(self, task: Task, rng: np.random.Generator, state: Any | None) -> Solve:
        """A solve that starts from another's ``state``, or from scratch if None."""

    @abstractmethod
    def policy_gap(self, residual: float, discount: float) -> float:
        """The largest max-norm distance to the optimal policy that a residual leaves possible.

        It is what a tolerance promises: max |pi - pi*| <= policy_gap(tolerance * max(1, max |V|), discount).
        """

    def start(self, task: Task, rng: np.random.Generator) -> Solve:
        """A fresh solve, to be stopped and continued at will; it leaves the warm starts of `respond` alone."""
        return self._begin(task, rng, None)

    def respond(self, task: Task, rng: np.random.Generator) -> TabularPolicy:
        """The policy reached by the tolerance or the budget; ``metrics``: iterations and residual.

        Raises:
            ModelError: an array of the model is not finite at this x.
            ConvergenceError: a value that is not finite, or the tolerance missed.
            DamagedError: `load_state` was given the state of another problem.
        """
        start = self._states.get(task.context) if self.warm_start else None
        if task.context in self._loaded:
            check_like(f"context {task.context}", start, np.array(self._begin(task, np.random.default_rng(0), None).state))
            self._loaded.discard(task.context)
        solve = self._begin(task, rng, start)
        if self.iterations is not None:
            solve.advance(self.iterations)
        else:
            assert self.tolerance is not None
            solve.converge(self.tolerance, self.max_iterations)
        if self.warm_start:
            self._states[task.context] = solve.state
        return solve.policy()

    def reset(self) -> None:
        self._states.clear()
        self._loaded.clear()

    def state(self) -> dict[Any, Any]:
        return {context: np.array(state) for context, state in self._states.items()}

    def load_state(self, state: dict[Any, Any]) -> None:
        self._states = arrays_by_context(state)
        self._loaded = set(self._states)
