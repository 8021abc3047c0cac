"""The automatic choice of a solver, and the choice by name."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import OptionError, suggest
from bocmdp_gym.solvers.banded import BandedSolver
from bocmdp_gym.solvers.base import PolicySolver
from bocmdp_gym.solvers.dense import DenseSolver
from bocmdp_gym.solvers.factored import FactoredSolver
from bocmdp_gym.solvers.krylov import KrylovSolver
from bocmdp_gym.solvers.orders import bandwidth, bandwidth_order
from bocmdp_gym.solvers.sparse_lu import SparseLUSolver

#: Below this bandwidth, banded elimination beats LAPACK's dense one whatever the number of states.
NARROW_BAND = 48
#: From this number of states on, sparse models of a bandwidth above `WIDE_BAND` are solved by iteration.
LARGE, WIDE_BAND = 200, 36
#: Below this number of states, banded elimination compares the states' own order, if it is one, with a bandwidth-reducing one.
SMALL = 2500
#: What `policy_solver` takes as a method.
METHODS = ("auto", "banded", "dense", "krylov", "sparse-lu")


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
    own, band = np.arange(n_states), n_states - 1
    position = own
    if n_states > NARROW_BAND:
        band = int(bandwidth(succ, own))
        if band > 2.0 * n_states**0.5:
            position = bandwidth_order(succ)
            band = int(bandwidth(succ, position))
    if method == "sparse-lu":
        return SparseLUSolver(succ, position)
    if method == "krylov" or (method == "auto" and n_states >= LARGE and band > WIDE_BAND):
        return KrylovSolver(succ, position)
    if method == "banded" or band <= max(NARROW_BAND, n_states // 4):
        solver = BandedSolver(succ, position)
        if position is own and NARROW_BAND < n_states < SMALL:
            solver = min(solver, BandedSolver(succ, bandwidth_order(succ)), key=lambda one: one.work)
        return solver
    return DenseSolver(succ)
