"""SuperLU's factorisation of a policy's linear systems."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

from bocmdp_gym.errors import ConvergenceError
from bocmdp_gym.solvers.base import Array, System
from bocmdp_gym.solvers.sparse_rows import SparseRowsSolver


class SparseLUSolver(SparseRowsSolver):
    """SuperLU in a minimum degree order, without row exchanges (I - K is an M-matrix, which needs none).

    On an S-cell grid the factors hold some 30 S numbers at S = 10^4 and grow faster than S.
    """

    def factor(self, k: Array, prob: Array, reuse: System | None = None) -> SparseLUSystem:
        """As `PolicySolver.factor`.

        Raises:
            ConvergenceError: the system is singular, or its factors do not fit into memory.
        """
        data = np.empty(len(self.columns))
        self.entries(k, prob, data)
        transposed = csc_matrix((data, self.columns, self.indptr), shape=(self.n_states, self.n_states))
        try:
            lu = splu(transposed, "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        except (RuntimeError, MemoryError) as error:
            raise ConvergenceError(
                f"the sparse LU factorisation of {self.n_states} states failed: {error} Use solver='krylov', or lower the "
                "discount if it is close to 1."
            ) from error
        return SparseLUSystem(lu, self.position)


class SparseLUSystem(System):
    """SuperLU's factors, of the transposed system in the solver's order."""

    def __init__(self, lu: Any, position: npt.NDArray[np.int64]):
        self._lu, self._position = lu, position

    def solve(self, b: Array) -> Array:
        return self._solve(b, "T")

    def solve_transposed(self, b: Array) -> Array:
        return self._solve(b, "N")

    def _solve(self, b: Array, trans: str) -> Array:
        ordered = np.empty(len(b))
        ordered[self._position] = b
        x: Array = self._lu.solve(ordered, trans)[self._position]
        return x
