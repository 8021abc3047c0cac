from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from bocmdp_gym.kernels.bellman import dense_system
from bocmdp_gym.solvers._krylov_kernels import assemble, bicgstab, dilu, row_structure, scale_rows, transposed_structure

S, A, K = 60, 3, 4


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
    starts, rows, transposed_diagonal, source = transposed_structure(indptr, columns)
    np.testing.assert_allclose(csr_array((data[source], rows, starts)).toarray(), expected.T, atol=1e-14)

    dilu(indptr, columns, diagonal, data, inverse)
    assert (inverse > 0.0).all()
    b = rng.standard_normal(S)
    for structure, order, matrix in (
        ((indptr, columns, diagonal), np.empty(0, np.int64), expected),
        ((starts, rows, transposed_diagonal), source, expected.T),
    ):
        scaled, x = np.empty(len(data)), np.empty(S)
        scale_rows(structure[0], data, order, inverse, scaled)
        residual, goal, iterations = bicgstab(*structure, scaled, inverse, b, 1e-13, 0.0, 500, np.empty((8, S)), x)
        assert residual <= goal
        assert 0 < iterations < S
        np.testing.assert_allclose(x, np.linalg.solve(matrix, b), atol=1e-10)
