from __future__ import annotations

import numpy as np
import pytest

from bocmdp_gym.kernels.bellman import dense_system, soft_backup
from bocmdp_gym.solvers.banded import (
    band_reach,
    banded_factor_solve,
    banded_policy_iteration,
    banded_solve,
    banded_solve_transposed,
    banded_space,
    banded_values,
)
from bocmdp_gym.solvers.orders import bandwidth

S, A, K = 30, 2, 3


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 21])
@pytest.mark.parametrize("band", [0, 1, 2, 3, 4, 5, 11])
def test_every_size_of_band(n: int, band: int) -> None:
    rng = np.random.default_rng([n, band])
    succ = np.clip(np.arange(n)[:, None, None] + rng.integers(-band, band + 1, (n, A, K)), 0, n - 1).astype(np.int32)
    prob, pi, g = rng.dirichlet(np.ones(K), (n, A)), rng.dirichlet(np.ones(A), n), 0.9 * rng.random((n, A))
    r, order = rng.standard_normal((n, A)), np.arange(n)
    reach = band_reach(succ, order)
    lu = np.full_like(banded_space(n, reach), np.nan)
    system, solved = np.empty((n, n), order="F"), np.empty(n)
    dense_system(pi * g, succ, prob, system)
    banded_values(pi, g, r, succ, prob, order, reach, lu, solved)
    np.testing.assert_allclose(solved, np.linalg.solve(system, (pi * r).sum(-1)), rtol=1e-12, atol=1e-14)
    b = rng.standard_normal(n)
    np.testing.assert_allclose(banded_solve(lu, order, reach, b, np.empty(n)), np.linalg.solve(system, b), rtol=1e-12, atol=1e-14)
    solved = banded_solve_transposed(lu, order, reach, b, np.empty(n))
    np.testing.assert_allclose(solved, np.linalg.solve(system.T, b), rtol=1e-12, atol=1e-14)


def test_the_reach_is_that_of_all_before() -> None:
    """State 0 meets state 6, states 1 to 7 their neighbours, and state 9 itself alone."""
    succ = np.array([6, 2, 3, 4, 5, 6, 7, 8, 7, 9])[:, None, None].astype(np.int32)
    np.testing.assert_array_equal(band_reach(succ, np.arange(10)), [6, 8, 9])
    np.testing.assert_array_equal(band_reach(succ, np.arange(10)[::-1].copy()), [9, 9, 9])


def test_solves_and_iteration_on_a_shuffled_band() -> None:
    rng = np.random.default_rng(0)
    succ = np.clip(np.arange(S)[:, None, None] + rng.integers(-2, 3, (S, A, K)), 0, S - 1).astype(np.int32)
    assert bandwidth(succ, np.arange(S)) == 2
    position = rng.permutation(S)  # of each state; the band is one of positions
    state = np.argsort(position)
    shuffled = np.ascontiguousarray(state[succ][position]).astype(np.int32)
    prob, k, b = rng.dirichlet(np.ones(K), (S, A)), 0.45 * rng.random((S, A)), rng.standard_normal(S)
    reach = band_reach(shuffled, position)
    system, lu, solved = np.empty((S, S), order="F"), banded_space(S, reach), np.empty(S)
    dense_system(k, shuffled, prob, system)
    banded_factor_solve(k, shuffled, prob, position, reach, lu, b, np.empty(S), solved)
    np.testing.assert_allclose(solved, np.linalg.solve(system, b))
    np.testing.assert_allclose(banded_solve(lu, position, reach, b, np.empty(S)), np.linalg.solve(system, b))
    np.testing.assert_allclose(banded_solve_transposed(lu, position, reach, b, np.empty(S)), np.linalg.solve(system.T, b))

    r, g, lam = rng.standard_normal((S, A)), np.full((S, A), 0.95), 0.1
    v, q, pi = np.zeros(S), np.empty((S, A)), np.empty((S, A))
    residual, error, iterations = banded_policy_iteration(
        r, g, shuffled, prob, lam, position, reach, False, 1e-8, 50, v, q, pi, lu
    )
    assert error <= 1e-10
    assert residual <= 1e-12
    assert 1 < iterations < 15
    before = v.copy()
    assert soft_backup(r, g, shuffled, prob, lam, v, q, pi, np.empty(S), before) <= 1e-11
