r"""Linear systems of a policy: (I - K) y = b with K(s, s') = sum_a k(s, a) P(s'|s, a).

Every quantity of the theory that is not a local sum is one such solve, plain or transposed: values of a policy, the
discounted visitation d = M^-T mu, and the adjoint u = M^-T y. A solver belongs to one successor structure (one context);
it is factored for one weight array k = pi gamma (1 - q) and then solves for any number of right-hand sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee

from bocmdp_gym import kernels

Array = npt.NDArray[np.float64]

#: Below this bandwidth, banded elimination beats LAPACK's dense one whatever the number of states.
NARROW_BAND = 48


class PolicySolver(ABC):
    """Solves with I - K for the successor structure ``succ`` (S, M, K) int32; M = A, except in `FactoredSolver`."""

    def __init__(self, succ: npt.NDArray[np.int32]):
        self.succ = succ
        self.n_states, self.n_actions, _ = succ.shape

    @abstractmethod
    def factor(self, k: Array, prob: Array) -> None:
        """Prepare I - K for the weights ``k`` (S, A) and the probabilities ``prob`` (S, M, K)."""

    @abstractmethod
    def solve(self, b: Array) -> Array:
        """y with (I - K) y = b."""

    @abstractmethod
    def solve_transposed(self, b: Array) -> Array:
        """y with (I - K)^T y = b."""

    def policy_iteration(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, tolerance: float, max_iterations: int
    ) -> tuple[Array, Array, float, int]:
        """Soft policy iteration from ``v``, which is overwritten with V*. Returns (Q*, pi*, residual, iterations)."""
        q, pi, rhs, v_new = np.empty_like(r), np.empty_like(r), np.empty_like(v), np.empty_like(v)
        residual, iteration = np.nan, 0
        for iteration in range(max_iterations + 1):
            residual = self._backup(r, g, prob, lam, v, q, pi, rhs, v_new)
            if not residual > tolerance * max(1.0, np.abs(v_new).max()) or iteration == max_iterations:
                break
            self.factor(pi * g, prob)
            v[:] = self.solve(rhs)
        if residual == residual:
            v[:] = v_new
        return q, pi, residual, iteration

    def _backup(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, q: Array, pi: Array, rhs: Array, v_new: Array
    ) -> float:
        """`kernels.soft_backup` of this structure."""
        residual: float = kernels.soft_backup(r, g, self.succ, prob, lam, v, q, pi, rhs, v_new)
        return residual


class BandedSolver(PolicySolver):
    """Banded elimination in a bandwidth-reducing order (reverse Cuthill-McKee): grids, chains, layered graphs."""

    def __init__(self, succ: npt.NDArray[np.int32], position: npt.NDArray[np.int64], band: int):
        super().__init__(succ)
        self.position, self.band = position, band
        self._lu = np.empty((self.n_states, 2 * band + 1))

    def factor(self, k: Array, prob: Array) -> None:
        kernels.banded_factor(k, self.succ, prob, self.position, self.band, self._lu)

    def solve(self, b: Array) -> Array:
        return kernels.banded_solve(self._lu, self.position, self.band, b, np.empty(self.n_states))

    def solve_transposed(self, b: Array) -> Array:
        return kernels.banded_solve_transposed(self._lu, self.position, self.band, b, np.empty(self.n_states))

    def policy_iteration(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, tolerance: float, max_iterations: int
    ) -> tuple[Array, Array, float, int]:
        q, pi = np.empty_like(r), np.empty_like(r)
        residual, iterations = kernels.banded_policy_iteration(
            r, g, self.succ, prob, lam, self.position, self.band, tolerance, max_iterations, v, q, pi, self._lu
        )
        return q, pi, residual, iterations


class DenseSolver(PolicySolver):
    """LAPACK's dense LU with partial pivoting: small or unstructured problems."""

    def factor(self, k: Array, prob: Array) -> None:
        system = np.empty((self.n_states, self.n_states), order="F")
        kernels.dense_system(k, self.succ, prob, system)
        self._lu = lu_factor(system, overwrite_a=True, check_finite=False)

    def solve(self, b: Array) -> Array:
        return lu_solve(self._lu, b, check_finite=False)

    def solve_transposed(self, b: Array) -> Array:
        return lu_solve(self._lu, b, trans=1, check_finite=False)


class FactoredSolver(PolicySolver):
    """Actions that share rows: action a makes the move index[a], and the rows (S, M, K) belong to moves.

    Weights of actions are added up per move, which leaves an ordinary structure of M actions for linear algebra.

    Args:
        inner: the solver of that structure.
        index: ``(A,)`` int64.
    """

    def __init__(self, inner: PolicySolver, index: npt.NDArray[np.int64]):
        super().__init__(inner.succ)
        self.inner, self.index = inner, index
        # a backup is one of a structure in which every action has one successor for certain: its move in its state
        n_moves = inner.n_actions
        moves = np.arange(self.n_states)[:, None] * n_moves + index
        self._moves, self._certain = moves.astype(np.int32)[..., None], np.ones((*moves.shape, 1))

    def factor(self, k: Array, prob: Array) -> None:
        per_move = kernels.gather_moves(k, self.index, np.zeros((self.n_states, self.inner.n_actions)))
        self.inner.factor(per_move, prob)

    def solve(self, b: Array) -> Array:
        return self.inner.solve(b)

    def solve_transposed(self, b: Array) -> Array:
        return self.inner.solve_transposed(b)

    def _backup(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, q: Array, pi: Array, rhs: Array, v_new: Array
    ) -> float:
        future = kernels.expectation(self.succ, prob, v, np.empty(self.succ.shape[:2])).reshape(-1)
        finite = kernels.soft_backup(r, g, self._moves, self._certain, lam, future, q, pi, rhs, v_new)
        return float(np.abs(v_new - v).max()) if finite == finite else finite


def bandwidth_order(succ: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], int]:
    """Positions (S,) of the states in a bandwidth-reducing order, and the bandwidth of I - K in that order."""
    n_states = succ.shape[0]
    rows = np.repeat(np.arange(n_states), succ.shape[1] * succ.shape[2])
    columns = succ.reshape(-1)
    graph = coo_matrix((np.ones(rows.size, dtype=np.int8), (rows, columns)), shape=(n_states, n_states)).tocsr()
    position = np.empty(n_states, dtype=np.int64)
    position[reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True)] = np.arange(n_states)
    return position, int(np.abs(position[rows] - position[columns]).max(initial=0))


def policy_solver(succ: npt.NDArray[np.int32], index: npt.NDArray[np.int64] | None = None) -> PolicySolver:
    """The fastest solver for one context's successor structure ``(S, M, K)``; ``index``: the move of each action, if M != A."""
    if index is not None:
        return FactoredSolver(policy_solver(succ), index)
    n_states = succ.shape[0]
    if n_states <= NARROW_BAND:
        return BandedSolver(succ, np.arange(n_states), n_states - 1)
    if succ.shape[1] * succ.shape[2] < n_states:  # otherwise a row may touch every state, and no order helps
        position, band = bandwidth_order(succ)
        if band <= max(NARROW_BAND, n_states // 4):
            return BandedSolver(succ, position, band)
    return DenseSolver(succ)
