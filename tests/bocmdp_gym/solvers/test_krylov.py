"""Where the iteration is hard: discounts close to 1, and systems it does not solve."""

from __future__ import annotations

import numpy as np
import pytest

from bocmdp_gym.kernels.bellman import dense_system
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


@pytest.mark.parametrize("seed", [543, 3261, 72177])
def test_rough_steps_do_not_go_round_in_circles(seed: int) -> None:
    """Steps that leave a fifth of the residual throughout lead from one policy to another and back here."""
    rng = np.random.default_rng(seed)
    succ = rng.integers(0, 45, (45, 3, 4)).astype(np.int32)
    prob, r, g = rng.dirichlet(np.full(4, 0.1), (45, 3)), rng.standard_normal((45, 3)), np.full((45, 3), 0.99)
    values = np.zeros((2, 45))
    for v, solver in zip(values, (KrylovSolver(succ, np.arange(45)), policy_solver(succ, method="dense")), strict=True):
        found = solver.policy_iteration(r, g, prob, 1e-3, v, 1e-8, 50)
        assert found.error <= 1e-8
    np.testing.assert_allclose(*values, rtol=0, atol=1e-10)


def test_a_correction_is_as_exact_as_asked_for() -> None:
    succ, prob, r, g = grid(30)
    system = KrylovSolver(succ, np.arange(900)).factor(g / g.shape[1], prob)
    b = 1e-3 * r.mean(-1)
    exact, matrix = system.solve(b), np.empty((900, 900), order="F")
    dense_system(g / g.shape[1], succ, prob, matrix)
    rough = system.correction(b, 1e-6)
    assert np.abs(matrix @ rough - b).max() <= 1e-6
    assert np.abs(matrix @ exact - b).max() <= 1e-13 < np.abs(matrix @ rough - b).max()
