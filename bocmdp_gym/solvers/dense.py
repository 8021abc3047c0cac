"""LAPACK's dense factorisation of a policy's linear systems."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dgetrf, dgetrs

from bocmdp_gym.kernels.bellman import dense_system
from bocmdp_gym.solvers.base import Array, PolicySolver, System


class DenseSolver(PolicySolver):
    """LAPACK's dense LU with partial pivoting: small or unstructured problems."""

    def factor(self, k: Array, prob: Array, reuse: System | None = None) -> DenseSystem:
        matrix = np.empty((self.n_states, self.n_states), order="F")
        dense_system(k, self.succ, prob, matrix)
        # scipy's own lu_factor checks its input for longer than LAPACK takes on a hundred states
        lu, pivots, _ = dgetrf(matrix, overwrite_a=True)
        return DenseSystem(lu, pivots)


class DenseSystem(System):
    """A dense LU and its row exchanges."""

    def __init__(self, lu: Array, pivots: npt.NDArray[np.int32]):
        self._lu, self._pivots = lu, pivots

    def solve(self, b: Array) -> Array:
        y: Array = dgetrs(self._lu, self._pivots, b)[0]
        return y

    def solve_transposed(self, b: Array) -> Array:
        y: Array = dgetrs(self._lu, self._pivots, b, trans=1)[0]
        return y
