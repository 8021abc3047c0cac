"""Solvers of a policy's linear systems, one a file; `choice` picks one."""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use

if TYPE_CHECKING:
    from bocmdp_gym.solvers.banded import BandedSolver
    from bocmdp_gym.solvers.base import Optimum, PolicySolver, System
    from bocmdp_gym.solvers.choice import METHODS, check_method, policy_solver
    from bocmdp_gym.solvers.dense import DenseSolver
    from bocmdp_gym.solvers.factored import FactoredSolver
    from bocmdp_gym.solvers.krylov import KrylovSolver
    from bocmdp_gym.solvers.sparse_lu import SparseLUSolver
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "METHODS",
    "BandedSolver",
    "DenseSolver",
    "FactoredSolver",
    "KrylovSolver",
    "Optimum",
    "PolicySolver",
    "SparseLUSolver",
    "System",
    "check_method",
    "policy_solver",
]
