"""A policy's linear systems by rows, each with its distinct successors only: what the sparse solvers share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import ModelError
from bocmdp_gym.solvers._krylov_kernels import assemble, row_structure
from bocmdp_gym.solvers.base import Array, PolicySolver


class SparseRowsSolver(PolicySolver):
    """I - K in compressed rows, in a given order of the states.

    Args:
        succ: successors ``(S, M, K)``.
        position: of each state in the order, ``(S,)``.

    Attributes:
        indptr, columns, diagonal: the pattern: where rows begin ``(S + 1,)``, columns, and where diagonal entries stand ``(S,)``.

    Raises:
        ModelError: too many successors of one state.
    """

    def __init__(self, succ: npt.NDArray[np.int32], position: npt.NDArray[np.int64]):
        super().__init__(succ)
        if succ.shape[1] * succ.shape[2] >= np.iinfo(np.uint16).max:
            raise ModelError(
                f"a state stores {succ.shape[1] * succ.shape[2]} successors over its actions; expected fewer than "
                f"{np.iinfo(np.uint16).max} for a sparse solver. Use solver='dense'."
            )
        self.position = position
        self.indptr, self.columns, self.diagonal, self._slot = row_structure(succ, position)

    def entries(self, k: Array, prob: Array, out: Array) -> float:
        """Write the numbers of I - K into ``out``, of the size of ``columns``. Returns the largest sum of a state's weights."""
        largest: float = assemble(k, prob, self.position, self.indptr, self.diagonal, self._slot, out)
        return largest
