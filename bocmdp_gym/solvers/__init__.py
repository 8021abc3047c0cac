"""Solvers of a policy's linear systems, one a file; `choice` picks one."""

from bocmdp_gym.solvers.banded import BandedSolver
from bocmdp_gym.solvers.base import Optimum, PolicySolver, System
from bocmdp_gym.solvers.choice import METHODS, check_method, policy_solver
from bocmdp_gym.solvers.dense import DenseSolver
from bocmdp_gym.solvers.factored import FactoredSolver
from bocmdp_gym.solvers.krylov import KrylovSolver
from bocmdp_gym.solvers.sparse_lu import SparseLUSolver

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
