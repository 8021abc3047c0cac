from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax

from bocmdp_gym.kernels.bellman import adjoint, dense_system, expectation, gather_moves, soft_backup, soft_shift

S, A, K = 7, 3, 4


def _problem() -> tuple[Any, Any, Any, np.random.Generator]:
    """Successors with repetitions, their probabilities, and both as a full array."""
    rng = np.random.default_rng(0)
    succ, prob = rng.integers(0, S, (S, A, K)).astype(np.int32), rng.dirichlet(np.ones(K), (S, A))
    dense = np.zeros((S, A, S))
    for index in np.ndindex(S, A, K):
        dense[(*index[:2], succ[index])] += prob[index]
    return succ, prob, dense, rng


def test_linear_maps() -> None:
    succ, prob, dense, rng = _problem()
    v, w = rng.standard_normal(S), rng.standard_normal((S, A))
    np.testing.assert_allclose(expectation(succ, prob, v, np.empty((S, A))), dense @ v)
    np.testing.assert_allclose(adjoint(succ, prob, w, np.empty(S)), np.einsum("sa,sat->t", w, dense))
    system = np.empty((S, S), order="F")
    dense_system(w, succ, prob, system)
    np.testing.assert_allclose(system, np.eye(S) - np.einsum("sa,sat->st", w, dense))
    moves = np.array([1, 0, 1])
    np.testing.assert_allclose(gather_moves(w, moves, np.zeros((S, 2))), np.stack([w[:, 1], w[:, 0] + w[:, 2]], 1))


def test_soft_backup() -> None:
    succ, prob, dense, rng = _problem()
    r, g, v, lam = rng.standard_normal((S, A)), rng.random((S, A)), rng.standard_normal(S), 0.2
    q, pi, rhs, v_new = np.empty((S, A)), np.empty((S, A)), np.empty(S), np.empty(S)
    residual = soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new)
    expected = r + g * (dense @ v)
    np.testing.assert_allclose(q, expected)
    np.testing.assert_allclose(pi, softmax(expected / lam, -1), atol=1e-15)
    np.testing.assert_allclose(v_new, lam * logsumexp(expected / lam, -1))
    np.testing.assert_allclose(rhs, (pi * r).sum(-1) - lam * (pi * np.log(pi)).sum(-1), atol=1e-13)
    np.testing.assert_allclose(residual, np.abs(v_new - v).max())
    r[2, 1] = np.nan
    assert np.isnan(soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new))


def test_a_shift_is_a_backup_of_the_values_moved() -> None:
    succ, prob, _, rng = _problem()
    r, g, v, lam = rng.standard_normal((S, A)), rng.random((S, A)), rng.standard_normal(S), 0.2
    r[3, 2] = -np.inf  # an action that does not exist
    q, pi, rhs, v_new = np.empty((S, A)), np.empty((S, A)), np.empty(S), np.empty(S)
    soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new)
    step, shifted = 0.01 * lam * rng.uniform(-1.0, 1.0, S), v.copy()
    residual = soft_shift(g, succ, prob, lam, step, shifted, q, pi, v_new)
    expected = [np.empty((S, A)), np.empty((S, A)), np.empty(S), np.empty(S)]
    np.testing.assert_allclose(residual, soft_backup(r, g, succ, prob, lam, v + step, *expected), rtol=1e-12)
    np.testing.assert_array_equal(shifted, v + step)
    for found, wanted in zip((q, pi, v_new), (expected[0], expected[1], expected[3]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=1e-16)
    step[4] = np.nan
    assert np.isnan(soft_shift(g, succ, prob, lam, step, shifted, q, pi, v_new))
