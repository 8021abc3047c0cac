from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from bocmdp_gym.kernels.bellman import dense_system
from bocmdp_gym.solvers._krylov_kernels import (
    assemble,
    bicgstab,
    dilu,
    level_order,
    row_structure,
    scale_diagonal,
    scale_triangle,
    triangles,
)

S, A, K = 60, 3, 4


def test_levels_keep_the_order_of_neighbours_and_put_side_by_side_what_waits_for_nothing() -> None:
    rng = np.random.default_rng(1)
    succ = rng.integers(0, S, (S, 1, 2)).astype(np.int32)
    before = rng.permutation(S)
    after = level_order(succ, before)
    assert sorted(after) == list(range(S))
    for s in range(S):
        for other in succ[s, 0]:
            assert (before[s] < before[other]) == (after[s] < after[other])
    n = 7
    cells = np.arange(n * n).reshape(n, n)
    right, down = np.minimum(cells + 1, n * n - 1), np.minimum(cells + n, n * n - 1)
    grid = np.stack([np.where(np.arange(n) < n - 1, right, cells), down], -1).reshape(-1, 1, 2).astype(np.int32)
    diagonals = (np.arange(n)[:, None] + np.arange(n)).reshape(-1)
    assert (np.diff(diagonals[np.argsort(level_order(grid, np.arange(n * n)))]) >= 0).all()


def test_assembled_rows_their_transpose_and_both_solutions() -> None:
    rng = np.random.default_rng(0)
    succ, prob = rng.integers(0, S, (S, A, K)).astype(np.int32), rng.dirichlet(np.ones(K), (S, A))
    k, position = 0.97 * rng.dirichlet(np.ones(A), S), rng.permutation(S)
    system = np.empty((S, S), order="F")
    dense_system(k, succ, prob, system)
    state = np.argsort(position)
    expected = system[state][:, state]

    indptr, columns, diagonal, slot = row_structure(succ, position)
    data, inverse = np.empty(len(columns)), np.empty(S)
    assemble(k, prob, position, indptr, diagonal, slot, data)
    np.testing.assert_allclose(csr_array((data, columns, indptr)).toarray(), expected, atol=1e-14)
    np.testing.assert_allclose(data[diagonal], np.diag(expected))
    dilu(indptr, columns, diagonal, data, inverse)
    assert (inverse > 0.0).all()
    b = rng.standard_normal(S)
    middle = np.empty(S)
    scale_diagonal(diagonal, data, inverse, middle)
    for transposed, matrix in ((False, expected), (True, expected.T)):
        rows = []
        for (pointers, own, places), part in zip(
            triangles(indptr, columns, diagonal, transposed), (np.tril, np.triu), strict=True
        ):
            strict = csr_array((data[places], own.astype(int), pointers.astype(int)), (S, S)).toarray()
            np.testing.assert_allclose(strict, part(matrix, -1 if part is np.tril else 1), atol=1e-14)
            scaled = np.empty(len(own))
            scale_triangle(pointers, places, data, inverse, scaled)
            rows += [pointers, own, scaled]
        x = np.empty(S)
        residual, goal, iterations = bicgstab(*rows, middle, inverse, b, 1e-13, 0.0, 500, np.empty((8, S)), x)
        assert residual <= goal
        assert 0 < iterations < S
        np.testing.assert_allclose(x, np.linalg.solve(matrix, b), atol=1e-10)
