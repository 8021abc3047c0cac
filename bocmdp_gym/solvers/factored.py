"""Linear systems of a policy where actions share rows of P."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bocmdp_gym.kernels import bellman
from bocmdp_gym.kernels.newton import largest
from bocmdp_gym.solvers.base import Array, PolicySolver, System


class FactoredSolver(PolicySolver):
    """Actions that share rows: action a makes the move index[a], and the rows (S, M, K) belong to moves.

    Weights of actions are added up per move, which leaves an ordinary structure of M actions for linear algebra.

    Args:
        inner: the solver of that structure.
        index: ``(A,)`` int64.
    """

    def __init__(self, inner: PolicySolver, index: npt.NDArray[np.int64]):
        super().__init__(inner.succ)
        self.inner, self.rows = inner, index
        # a backup is one of a structure in which every action has one successor for certain: its move in its state
        n_moves = inner.n_actions
        moves = np.arange(self.n_states)[:, None] * n_moves + index
        self._moves, self._certain = moves.astype(np.int32)[..., None], np.ones((*moves.shape, 1))

    def factor(self, k: Array, prob: Array, reuse: System | None = None) -> System:
        per_move = bellman.gather_moves(k, self.rows, np.zeros((self.n_states, self.inner.n_actions)))
        return self.inner.factor(per_move, prob, reuse)

    def _backup(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, q: Array, pi: Array, rhs: Array, v_new: Array
    ) -> float:
        future = bellman.expectation(self.succ, prob, v, np.empty(self.succ.shape[:2])).reshape(-1)
        finite = bellman.soft_backup(r, g, self._moves, self._certain, lam, future, q, pi, rhs, v_new)
        return float(np.abs(v_new - v).max()) if finite == finite else finite

    def _shift(self, g: Array, prob: Array, lam: float, step: Array, v: Array, q: Array, pi: Array, v_new: Array) -> float:
        future = bellman.expectation(self.succ, prob, step, np.empty(self.succ.shape[:2])).reshape(-1)
        bellman.soft_shift(g, self._moves, self._certain, lam, future, np.zeros(future.shape), q, pi, v_new)
        v += step
        return largest(v_new - v)
