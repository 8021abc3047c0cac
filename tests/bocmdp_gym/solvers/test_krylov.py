"""Where the iteration is hard: discounts close to 1, and systems it does not solve."""

from __future__ import annotations

import numpy as np
import pytest

from bocmdp_gym.solvers import KrylovSolver, policy_solver
from tests.bocmdp_gym.solvers.problems import grid, results


@pytest.mark.parametrize("discount", [0.9999, 0.999999])
def test_iteration_works_close_to_discount_one(discount: float) -> None:
    problem = grid(25, discount)
    problem = (*problem[:2], -problem[2], problem[3])  # costs
    problem[3][-1] = 0.0  # and an end
    expected = results(policy_solver(problem[0], method="sparse-lu"), problem)
    for got, want in zip(results(policy_solver(problem[0], method="krylov"), problem), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8 * np.abs(want).max())


def test_an_iteration_that_fails_hands_over_to_lu() -> None:
    problem = grid(30)
    succ = problem[0]
    solver = KrylovSolver(succ, np.arange(900), max_iterations=2)
    for got, want in zip(results(solver, problem), results(policy_solver(succ, method="dense"), problem), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8 * np.abs(want).max())
