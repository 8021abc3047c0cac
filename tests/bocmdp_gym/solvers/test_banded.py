from __future__ import annotations

import numpy as np

from bocmdp_gym.kernels.bellman import dense_system, soft_backup
from bocmdp_gym.solvers.banded import (
    banded_factor_solve,
    banded_policy_iteration,
    banded_solve,
    banded_solve_transposed,
    bandwidth,
)

S, A, K = 30, 2, 3


def test_solves_and_iteration_on_a_shuffled_band() -> None:
    rng = np.random.default_rng(0)
    succ = np.clip(np.arange(S)[:, None, None] + rng.integers(-2, 3, (S, A, K)), 0, S - 1).astype(np.int32)
    assert bandwidth(succ) == 2
    position = rng.permutation(S)  # of each state; the band is one of positions
    state = np.argsort(position)
    shuffled = np.ascontiguousarray(state[succ][position]).astype(np.int32)
    prob, k, b = rng.dirichlet(np.ones(K), (S, A)), 0.45 * rng.random((S, A)), rng.standard_normal(S)
    system, lu, solved = np.empty((S, S), order="F"), np.empty((S, 5)), np.empty(S)
    dense_system(k, shuffled, prob, system)
    banded_factor_solve(k, shuffled, prob, position, 2, lu, b, np.empty(S), solved)
    np.testing.assert_allclose(solved, np.linalg.solve(system, b))
    np.testing.assert_allclose(banded_solve(lu, position, 2, b, np.empty(S)), np.linalg.solve(system, b))
    np.testing.assert_allclose(banded_solve_transposed(lu, position, 2, b, np.empty(S)), np.linalg.solve(system.T, b))

    r, g, lam = rng.standard_normal((S, A)), np.full((S, A), 0.95), 0.1
    v, q, pi = np.zeros(S), np.empty((S, A)), np.empty((S, A))
    residual, error, iterations = banded_policy_iteration(r, g, shuffled, prob, lam, position, 2, False, 1e-8, 50, v, q, pi, lu)
    assert error <= 1e-10
    assert residual <= 1e-12
    assert 1 < iterations < 15
    before = v.copy()
    assert soft_backup(r, g, shuffled, prob, lam, v, q, pi, np.empty(S), before) <= 1e-11
