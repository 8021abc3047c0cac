"""Preconditioned iteration for a policy's linear systems."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import ConvergenceError
from bocmdp_gym.solvers._krylov_kernels import bicgstab, dilu, level_order, scale_diagonal, scale_triangle, triangles
from bocmdp_gym.solvers.base import Array, System
from bocmdp_gym.solvers.sparse_lu import SparseLUSolver
from bocmdp_gym.solvers.sparse_rows import SparseRowsSolver

#: Newton steps are solved roughly only below this discount: the error of a rough step is its residual / (1 - discount).
DISCOUNTED = 0.9995
_Indices = npt.NDArray[np.uint32]


class _Triangle(NamedTuple):
    """A strict triangle of I - K or of its transpose, by rows: its pattern, and where its numbers are among those of I - K."""

    pointers: _Indices
    columns: _Indices
    places: _Indices


class KrylovSolver(SparseRowsSolver):
    """BiCGSTAB with an incomplete factorisation; time and memory of the order of S.

    The factorisation is a relaxed DILU, one number per state, and the product with the preconditioned matrix Eisenstat's; the
    formulas are in `_krylov_kernels` (Axelsson and Lindskog, "On the eigenvalue distribution of a class of
    preconditioning methods", Numer. Math. 48, 1986; van der Vorst, "Bi-CGSTAB", SIAM J. Sci. Stat. Comput. 13, 1992; Eisenstat,
    "Efficient implementation of a class of preconditioned conjugate gradient methods", SIAM J. Sci. Stat. Comput. 2, 1981).
    I - K is an M-matrix, so the factorisation exists.

    Newton steps of a policy iteration are solved as roughly as the next one allows: to a fifth of the residual of the soft
    Bellman equation, more exactly once that residual is below lambda, where Newton's method is quadratic, and where residuals
    rise again, for rough steps may go round in circles. Other solves, and all where the discount is `DISCOUNTED` or above, go to
    `TOLERANCE`. Should the iteration not get there, `SparseLUSolver` takes
    over for that system.

    Args:
        max_iterations: BiCGSTAB steps allowed per system.
    """

    #: Bound on max |b - (I - K) y| / (max |b| + max |y|).
    TOLERANCE = 1e-13

    def __init__(self, succ: npt.NDArray[np.int32], position: npt.NDArray[np.int64], max_iterations: int = 2000):
        super().__init__(succ, level_order(succ, position))
        self.max_iterations = max_iterations

    def factor(self, k: Array, prob: Array, reuse: System | None = None) -> KrylovSystem:
        system = reuse if isinstance(reuse, KrylovSystem) else KrylovSystem(self)
        system.prepare(k, prob)
        return system

    @cached_property
    def triangles(self) -> tuple[_Triangle, _Triangle]:
        """The lower and the upper one of I - K."""
        return self._triangles(False)

    @cached_property
    def transposed(self) -> tuple[_Triangle, _Triangle]:
        """The lower and the upper one of (I - K)^T."""
        return self._triangles(True)

    def _triangles(self, transposed: bool) -> tuple[_Triangle, _Triangle]:
        lower, upper = triangles(self.indptr, self.columns, self.diagonal, transposed)
        return _Triangle(*lower), _Triangle(*upper)

    @cached_property
    def direct(self) -> SparseLUSolver:
        """What takes over where the iteration fails."""
        return SparseLUSolver(self.succ, self.position)


class KrylovSystem(System):
    """I - K by rows, the factorisation of its preconditioner, and working space."""

    def __init__(self, solver: KrylovSolver):
        self._solver = solver
        self._data = np.empty(len(solver.columns))
        self._inverse = np.empty(solver.n_states)  # 1 / D of the preconditioner
        self._middle = np.empty(solver.n_states)  # the diagonal, scaled
        self._work = np.empty((8, solver.n_states))
        self._scaled: dict[bool, tuple[Array, Array]] = {}  # the triangles' numbers, scaled, of I - K and of its transpose

    def prepare(self, k: Array, prob: Array) -> None:
        """Factor I - K of these weights."""
        solver = self._solver
        self._is_discounted = solver.entries(k, prob, self._data) < DISCOUNTED
        dilu(solver.indptr, solver.columns, solver.diagonal, self._data, self._inverse)
        scale_diagonal(solver.diagonal, self._data, self._inverse, self._middle)
        self._weights = (k, prob)
        self._is_scaled = [False, False]
        self._direct: System | None = None

    def solve(self, b: Array) -> Array:
        return self._solve(b, False)

    def solve_transposed(self, b: Array) -> Array:
        return self._solve(b, True)

    def newton_step(self, v: Array, v_new: Array, rhs: Array, enough: float) -> None:
        v += self.correction(v_new - v, enough)

    def correction(self, change: Array, enough: float) -> Array:
        return self._solve(change, False, enough if self._is_discounted else 0.0)

    def _solve(self, b: Array, transposed: bool, absolute: float = 0.0) -> Array:
        if self._direct is not None:
            return self._direct.solve_transposed(b) if transposed else self._direct.solve(b)
        solver = self._solver
        ordered, x = np.empty(solver.n_states), np.empty(solver.n_states)
        ordered[solver.position] = b
        residual, goal, iterations = bicgstab(
            *self._rows(transposed),
            self._middle,
            self._inverse,
            ordered,
            solver.TOLERANCE,
            absolute,
            solver.max_iterations,
            self._work,
            x,
        )
        if not residual <= goal:
            self._direct = self._factor_directly(residual, iterations)
            return self._solve(b, transposed)
        solution: Array = x[solver.position]
        return solution

    def _rows(self, transposed: bool) -> tuple[Any, Any, Any, Any, Any, Any]:
        """Pointers, columns and scaled numbers of the lower triangle of I - K or its transpose, and those of the upper one."""
        both = self._solver.transposed if transposed else self._solver.triangles
        if transposed not in self._scaled:
            self._scaled[transposed] = np.empty(len(both[0].columns)), np.empty(len(both[1].columns))
        if not self._is_scaled[transposed]:
            for triangle, scaled in zip(both, self._scaled[transposed], strict=True):
                scale_triangle(triangle.pointers, triangle.places, self._data, self._inverse, scaled)
            self._is_scaled[transposed] = True
        (lower, upper), (below, above) = both, self._scaled[transposed]
        return lower.pointers, lower.columns, below, upper.pointers, upper.columns, above

    def _factor_directly(self, residual: float, iterations: int) -> System:
        """The system of `SparseLUSolver`.

        Raises:
            ConvergenceError: that fails too.
        """
        try:
            return self._solver.direct.factor(*self._weights)
        except ConvergenceError as error:
            raise ConvergenceError(
                f"BiCGSTAB left a residual of {residual:.3g} after {iterations} steps on a system of {self._solver.n_states} "
                f"states, and {error}"
            ) from error
