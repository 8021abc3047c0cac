r"""Linear systems of a policy: (I - K) y = b with K(s, s') = sum_a k(s, a) P(s'|s, a).

Every quantity of the theory that is not a local sum is one such solve, plain or transposed: values of a policy, the
discounted visitation d = M^-T mu, and the adjoint u = M^-T y. A solver belongs to one successor structure (one context);
it is factored for one weight array k = pi gamma (1 - q) and then solves for any number of right-hand sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg.lapack import dgetrf, dgetrs
from scipy.sparse import coo_matrix, csc_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.sparse.linalg import splu
from scipy.special import entr

from bocmdp_gym.bounded import check_bounded
from bocmdp_gym.errors import ConvergenceError, ModelError, OptionError, suggest
from bocmdp_gym.kernels import banded, bellman, krylov
from bocmdp_gym.kernels.extended import extended_backup, extended_expectation, extended_step
from bocmdp_gym.kernels.newton import (
    ZEAL,
    amplification_of,
    largest,
    nearly_settled,
    policy_error,
    refined,
    refined_error,
    settled,
)

Array = npt.NDArray[np.float64]

#: Below this bandwidth, banded elimination beats LAPACK's dense one whatever the number of states.
NARROW_BAND = 48
#: From this number of states on, sparse models without a narrow band are solved by iteration.
LARGE = 200
#: Newton steps are solved roughly only below this discount: the error of a rough step is its residual / (1 - discount).
DISCOUNTED = 0.9995
#: Episodes of more steps than this count as never ending, in double precision, when a policy is looked for that ends.
LONGEST = 1e12
#: Policies are not asked for more exactly than this, about what double precision can say of a probability.
FINEST = 1e-14
#: What `policy_solver` takes as a method.
METHODS = ("auto", "banded", "dense", "krylov", "sparse-lu")


class Optimum(NamedTuple):
    """What soft policy iteration found; V* is in the array it was given."""

    q: Array  # (S, A)
    policy: Array  # (S, A)
    residual: float  # max |T V - V|; NaN where values stopped being finite
    error: float  # bound on max |pi - pi*|
    iterations: int


class PolicySolver(ABC):
    """Solves with I - K for the successor structure ``succ`` (S, M, K) int32; M = A, except in `FactoredSolver`.

    Attributes:
        rows: the stored row of each action, ``(A,)``.
    """

    def __init__(self, succ: npt.NDArray[np.int32]):
        self.succ = succ
        self.n_states, self.n_actions, _ = succ.shape
        self.rows: npt.NDArray[np.int64] = np.arange(self.n_actions)

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
    ) -> Optimum:
        """Soft policy iteration from ``v``, which is overwritten with V*.

        It continues until the residual is down to rounding, and beyond that with residuals in extended precision where values are
        so large beside lambda that the policy would otherwise be uncertain (`bocmdp_gym.kernels.newton` has the rule).

        Args:
            r, g, prob: rewards ``(S, A)``, continuation ``(S, A)`` and probabilities ``(S, M, K)``.
            lam: lambda.
            v: where to start ``(S,)``; at discount 1, zeros or the values of a similar problem.
            tolerance: accepted bound on the policy's error, ``Optimum.error``.
            max_iterations: Newton steps allowed.

        Raises:
            ConvergenceError: at discount 1, values that are infinite (`bocmdp_gym.bounded`).
        """
        amplification, tolerance = amplification_of(g), max(tolerance, FINEST)
        if amplification == np.inf:
            check_bounded(r, g, self.succ, prob, self.rows, lam)
            self._start_proper(r, g, prob, lam, v)
        return self._iterate(r, g, prob, lam, v, amplification, tolerance, max_iterations)

    def _iterate(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, amplification: float, tolerance: float, max_iterations: int
    ) -> Optimum:
        q, pi, rhs, v_new = np.empty_like(r), np.empty_like(r), np.empty_like(v), np.empty_like(v)
        top, goal, before, iteration = largest(r), ZEAL * tolerance * lam / amplification, np.inf, 0
        while True:
            residual = self._backup(r, g, prob, lam, v, q, pi, rhs, v_new)
            if not residual < np.inf:
                return Optimum(q, pi, np.nan, np.inf, iteration)
            scale = largest(v_new) + top
            if settled(residual, before, scale, goal) or iteration == max_iterations:
                break
            if nearly_settled(residual, before, scale, goal, lam):
                step = self.solve(v_new - v)
                if largest(step) <= 0.01 * lam:
                    before, residual = residual, self._shift(g, prob, lam, step, v, q, pi, v_new)
                    if residual < np.inf and settled(residual, before, scale, goal):
                        break
                    before = np.inf
                    continue
            before = residual
            self.factor(pi * g, prob)
            self._newton_step(v, v_new, rhs, residual, lam, goal)
            iteration += 1
        v[:] = v_new
        error = policy_error(residual, scale, amplification, lam)
        if error <= tolerance or iteration == max_iterations:
            return Optimum(q, pi, residual, error, iteration)
        self.factor(pi * g, prob)
        error = policy_error(residual, scale, largest(self.solve(np.ones_like(v))), lam)
        if error <= tolerance:
            return Optimum(q, pi, residual, error, iteration)
        return self._refine(r, g, prob, lam, v, q, pi, scale, tolerance, iteration, max_iterations)

    def _refine(
        self,
        r: Array,
        g: Array,
        prob: Array,
        lam: float,
        v: Array,
        q: Array,
        pi: Array,
        scale: float,
        tolerance: float,
        iteration: int,
        max_iterations: int,
    ) -> Optimum:
        """Newton's method with exact residuals: systems in double precision, values in twice that."""
        v_low, change = np.zeros_like(v), np.empty_like(v)
        future, future_low = np.empty(prob.shape[:2]), np.empty(prob.shape[:2])
        size, before = np.inf, np.inf
        while True:
            extended_expectation(self.succ, prob, v, v_low, future, future_low)
            residual, moved = extended_backup(r, g, self.rows, future, future_low, lam, v, v_low, q, pi, change)
            if not residual < np.inf:
                return Optimum(q, pi, np.nan, np.inf, iteration)
            error = refined_error(moved, size, lam)
            if error <= ZEAL * tolerance or iteration >= max_iterations or refined(residual, scale, size, before, lam):
                return Optimum(q, pi, residual, error, iteration)
            self.factor(pi * g, prob)
            step = self.solve(change)
            before, size = size, largest(step)
            extended_step(v, v_low, step)
            iteration += 1

    def _start_proper(self, r: Array, g: Array, prob: Array, lam: float, v: Array) -> None:
        """Make ``v`` the values of a policy whose episodes end, unless the policy that is best beside ``v`` is one already.

        From there on policy improvement meets no other (Bertsekas and Tsitsiklis, "An analysis of stochastic shortest path
        problems", Math. Oper. Res. 16, 1991).
        """
        if v.any():
            pi = np.empty_like(r)
            self._backup(r, g, prob, lam, v, np.empty_like(r), pi, np.empty_like(v), np.empty_like(v))
            if self._ends(pi * g, prob):
                return
        pi = np.full_like(r, 1.0 / r.shape[1])
        if not self._ends(pi * g, prob):
            pi = 0.5 * pi
            pi[np.arange(len(r)), self._towards_end(g, prob)] += 0.5
            self.factor(pi * g, prob)
        v[:] = self.solve((pi * r).sum(-1) + lam * entr(pi).sum(-1))

    def _ends(self, k: Array, prob: Array) -> bool:
        """Whether episodes under weights ``k`` end within a number of steps that linear algebra can tell from for ever."""
        try:
            self.factor(k, prob)
            steps = self.solve(np.ones(self.n_states))
        except ConvergenceError:
            return False
        return bool(((steps > 0.999) & (steps < LONGEST)).all())

    def _towards_end(self, g: Array, prob: Array) -> npt.NDArray[np.int64]:
        """In each state the action most likely to come nearer to an end, ``(S,)``."""
        may_end = g < 1.0
        distance = np.where(may_end.any(-1), 0.0, np.inf)
        while True:
            nearest = np.where(prob > 0.0, distance[self.succ], np.inf).min(-1)[:, self.rows]
            shorter = np.minimum(distance, np.where(may_end, 0.0, nearest + 1.0).min(-1))
            if (shorter == distance).all():
                break
            distance = shorter
        nearer = (prob * (distance[self.succ] < distance[:, None, None])).sum(-1)[:, self.rows]
        chosen: npt.NDArray[np.int64] = np.where(may_end, 2.0 - g, nearer).argmax(-1)
        return chosen

    def _newton_step(self, v: Array, v_new: Array, rhs: Array, residual: float, lam: float, goal: float) -> None:
        """Overwrite ``v`` with (I - K)^-1 rhs = v + (I - K)^-1 (v_new - v), as exactly as the next step can use."""
        v[:] = self.solve(rhs)

    def _backup(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, q: Array, pi: Array, rhs: Array, v_new: Array
    ) -> float:
        """`bellman.soft_backup` of this structure."""
        residual: float = bellman.soft_backup(r, g, self.succ, prob, lam, v, q, pi, rhs, v_new)
        return residual

    def _shift(self, g: Array, prob: Array, lam: float, step: Array, v: Array, q: Array, pi: Array, v_new: Array) -> float:
        """`bellman.soft_shift` of this structure."""
        residual: float = bellman.soft_shift(g, self.succ, prob, lam, step, v, q, pi, v_new)
        return residual


class BandedSolver(PolicySolver):
    """Banded elimination in a bandwidth-reducing order (reverse Cuthill-McKee): grids, chains, layered graphs."""

    def __init__(self, succ: npt.NDArray[np.int32], position: npt.NDArray[np.int64], band: int):
        super().__init__(succ)
        self.position, self.band = position, band
        self._lu = np.empty((self.n_states, 2 * band + 1))

    def factor(self, k: Array, prob: Array) -> None:
        banded.banded_factor(k, self.succ, prob, self.position, self.band, self._lu, np.zeros(self.n_states))

    def solve(self, b: Array) -> Array:
        return banded.banded_solve(self._lu, self.position, self.band, b, np.empty(self.n_states))

    def solve_transposed(self, b: Array) -> Array:
        return banded.banded_solve_transposed(self._lu, self.position, self.band, b, np.empty(self.n_states))

    def _iterate(
        self, r: Array, g: Array, prob: Array, lam: float, v: Array, amplification: float, tolerance: float, max_iterations: int
    ) -> Optimum:
        q, pi = np.empty_like(r), np.empty_like(r)
        found = banded.banded_policy_iteration(
            r, g, self.succ, prob, lam, self.position, self.band, amplification, tolerance, max_iterations, v, q, pi, self._lu
        )
        return Optimum(q, pi, *found)


class DenseSolver(PolicySolver):
    """LAPACK's dense LU with partial pivoting: small or unstructured problems."""

    def factor(self, k: Array, prob: Array) -> None:
        system = np.empty((self.n_states, self.n_states), order="F")
        bellman.dense_system(k, self.succ, prob, system)
        # scipy's own lu_factor checks its input for longer than LAPACK takes on a hundred states
        self._lu, self._pivots, _ = dgetrf(system, overwrite_a=True)

    def solve(self, b: Array) -> Array:
        y: Array = dgetrs(self._lu, self._pivots, b)[0]
        return y

    def solve_transposed(self, b: Array) -> Array:
        y: Array = dgetrs(self._lu, self._pivots, b, trans=1)[0]
        return y


class _SparseSolver(PolicySolver):
    """I - K by rows, each with its distinct successors only."""

    def __init__(self, succ: npt.NDArray[np.int32], position: npt.NDArray[np.int64]):
        super().__init__(succ)
        if succ.shape[1] * succ.shape[2] >= np.iinfo(np.uint16).max:
            raise ModelError(
                f"a state stores {succ.shape[1] * succ.shape[2]} successors over its actions; expected fewer than "
                f"{np.iinfo(np.uint16).max} for a sparse solver. Use solver='dense'."
            )
        self.position = position
        self._indptr, self._columns, self._diagonal, self._slot = krylov.row_structure(succ, position)
        self._data = np.empty(len(self._columns))

    def factor(self, k: Array, prob: Array) -> None:
        krylov.assemble(k, prob, self.position, self._indptr, self._diagonal, self._slot, self._data)


class SparseLUSolver(_SparseSolver):
    """SuperLU in a minimum degree order, without row exchanges (I - K is an M-matrix, which needs none).

    On an S-cell grid the factors hold some 30 S numbers at S = 10^4 and grow faster than S.

    Raises:
        ConvergenceError: the system is singular, or its factors do not fit into memory.
    """

    def factor(self, k: Array, prob: Array) -> None:
        super().factor(k, prob)
        transposed = csc_matrix((self._data, self._columns, self._indptr), shape=(self.n_states, self.n_states))
        try:
            self._lu = splu(transposed, "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        except (RuntimeError, MemoryError) as error:
            raise ConvergenceError(
                f"the sparse LU factorisation of {self.n_states} states failed: {error} Use solver='krylov', or lower the "
                "discount if it is close to 1."
            ) from error

    def solve(self, b: Array) -> Array:
        return self._solve(b, "T")

    def solve_transposed(self, b: Array) -> Array:
        return self._solve(b, "N")

    def _solve(self, b: Array, trans: str) -> Array:
        ordered = np.empty(self.n_states)
        ordered[self.position] = b
        x: Array = self._lu.solve(ordered, trans)[self.position]
        return x


class KrylovSolver(_SparseSolver):
    """BiCGSTAB with an incomplete factorisation; time and memory of the order of S.

    The factorisation is a relaxed DILU, one number per state, and the product with the preconditioned matrix Eisenstat's; the
    formulas are in `krylov.dilu` and `krylov.bicgstab` (Axelsson and Lindskog, "On the eigenvalue distribution of a class of
    preconditioning methods", Numer. Math. 48, 1986; van der Vorst, "Bi-CGSTAB", SIAM J. Sci. Stat. Comput. 13, 1992; Eisenstat,
    "Efficient implementation of a class of preconditioned conjugate gradient methods", SIAM J. Sci. Stat. Comput. 2, 1981).
    I - K is an M-matrix, so the factorisation exists.

    Newton steps of a policy iteration are solved as roughly as the next one allows: to a tenth of the residual of the soft
    Bellman equation, and more exactly once that residual is below lambda, where Newton's method is quadratic. Other solves, and
    all where the discount is `DISCOUNTED` or above, go to `TOLERANCE`. Should the iteration not get there, `SparseLUSolver` takes
    over for that system.

    Args:
        max_iterations: BiCGSTAB steps allowed per system.
    """

    #: Bound on max |b - (I - K) y| / (max |b| + max |y|).
    TOLERANCE = 1e-13

    def __init__(self, succ: npt.NDArray[np.int32], position: npt.NDArray[np.int64], max_iterations: int = 2000):
        super().__init__(succ, position)
        self.max_iterations = max_iterations
        self._inverse = np.empty(self.n_states)  # 1 / D of the preconditioner
        self._rows: tuple[Any, ...] | None = None
        self._transposed_rows: tuple[Any, ...] | None = None
        self._direct: SparseLUSolver | None = None

    def factor(self, k: Array, prob: Array) -> None:
        super().factor(k, prob)
        krylov.dilu(self._indptr, self._columns, self._diagonal, self._data, self._inverse)
        self._weights = (k, prob)
        self._is_discounted = float(k.sum(-1).max()) < DISCOUNTED
        self._is_scaled = [False, False]
        self._is_direct = False

    def solve(self, b: Array) -> Array:
        return self._solve(b, False)

    def solve_transposed(self, b: Array) -> Array:
        return self._solve(b, True)

    def _newton_step(self, v: Array, v_new: Array, rhs: Array, residual: float, lam: float, goal: float) -> None:
        enough = max(0.03 * goal, min(0.1, residual / lam) * residual)
        v += self._solve(v_new - v, False, enough if self._is_discounted else 0.0)

    def _solve(self, b: Array, transposed: bool, absolute: float = 0.0) -> Array:
        if self._is_direct and self._direct is not None:
            return self._direct.solve_transposed(b) if transposed else self._direct.solve(b)
        indptr, columns, diagonal, _, scaled = self._structure(transposed)
        ordered, x = np.empty(self.n_states), np.empty(self.n_states)
        ordered[self.position] = b
        residual, goal, iterations = krylov.bicgstab(
            indptr,
            columns,
            diagonal,
            scaled,
            self._inverse,
            ordered,
            self.TOLERANCE,
            absolute,
            self.max_iterations,
            self._work,
            x,
        )
        if not residual <= goal:
            return self._solve_directly(b, transposed, residual, iterations)
        solution: Array = x[self.position]
        return solution

    def _structure(self, transposed: bool) -> tuple[Any, ...]:
        """(indptr, columns, diagonal, source, scaled numbers) of I - K or its transpose."""
        if self._rows is None:
            self._work = np.empty((8, self.n_states))
            source = np.empty(0, np.int64)
            self._rows = (self._indptr, self._columns, self._diagonal, source, np.empty_like(self._data))
        if transposed and self._transposed_rows is None:
            structure = krylov.transposed_structure(self._indptr, self._columns)
            self._transposed_rows = (*structure, np.empty_like(self._data))
        chosen = self._transposed_rows if transposed else self._rows
        assert chosen is not None
        if not self._is_scaled[transposed]:
            krylov.scale_rows(chosen[0], self._data, chosen[3], self._inverse, chosen[4])
            self._is_scaled[transposed] = True
        return chosen

    def _solve_directly(self, b: Array, transposed: bool, residual: float, iterations: int) -> Array:
        try:
            if self._direct is None:
                self._direct = SparseLUSolver(self.succ, self.position)
            self._direct.factor(*self._weights)
        except ConvergenceError as error:
            raise ConvergenceError(
                f"BiCGSTAB left a residual of {residual:.3g} after {iterations} steps on a system of {self.n_states} states, and "
                f"{error}"
            ) from error
        self._is_direct = True
        return self._solve(b, transposed)


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

    def factor(self, k: Array, prob: Array) -> None:
        per_move = bellman.gather_moves(k, self.rows, np.zeros((self.n_states, self.inner.n_actions)))
        self.inner.factor(per_move, prob)

    def solve(self, b: Array) -> Array:
        return self.inner.solve(b)

    def solve_transposed(self, b: Array) -> Array:
        return self.inner.solve_transposed(b)

    def _newton_step(self, v: Array, v_new: Array, rhs: Array, residual: float, lam: float, goal: float) -> None:
        self.inner._newton_step(v, v_new, rhs, residual, lam, goal)

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


def bandwidth_order(succ: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], int]:
    """Positions (S,) of the states in a bandwidth-reducing order, and the bandwidth of I - K in that order."""
    n_states = succ.shape[0]
    rows = np.repeat(np.arange(n_states), succ.shape[1] * succ.shape[2])
    columns = succ.reshape(-1)
    graph = coo_matrix((np.ones(rows.size, dtype=np.int8), (rows, columns)), shape=(n_states, n_states)).tocsr()
    position = np.empty(n_states, dtype=np.int64)
    position[reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True)] = np.arange(n_states)
    return position, int(np.abs(position[rows] - position[columns]).max(initial=0))


def check_method(method: str) -> str:
    """A method of `METHODS`.

    Raises:
        OptionError: it is none of them.
    """
    if method not in METHODS:
        raise OptionError(f"solver is {method!r}; expected the name of a method. {suggest(method, METHODS)}")
    return method


def policy_solver(succ: npt.NDArray[np.int32], index: npt.NDArray[np.int64] | None = None, method: str = "auto") -> PolicySolver:
    """The solver for one context's successor structure ``(S, M, K)``; ``index``: the move of each action, if M != A.

    Args:
        succ: successors.
        index: moves.
        method: one of `METHODS`; ``"auto"`` takes the fastest.

    Raises:
        OptionError: an unknown method.
    """
    check_method(method)
    if index is not None:
        return FactoredSolver(policy_solver(succ, method=method), index)
    n_states = succ.shape[0]
    stored = succ.shape[1] * succ.shape[2]
    if method == "dense" or (method == "auto" and n_states > NARROW_BAND and stored >= n_states):
        return DenseSolver(succ)  # a row may touch every state, and no order helps
    position, band = np.arange(n_states), n_states - 1
    if n_states > NARROW_BAND:
        band = int(banded.bandwidth(succ))
        if band > 2.0 * n_states**0.5 or n_states < LARGE:
            position, band = bandwidth_order(succ)
    if method == "sparse-lu":
        return SparseLUSolver(succ, position)
    if method == "krylov" or (method == "auto" and n_states >= LARGE and band > NARROW_BAND):
        return KrylovSolver(succ, position)
    if method == "banded" or band <= max(NARROW_BAND, n_states // 4):
        return BandedSolver(succ, position, band)
    return DenseSolver(succ)
