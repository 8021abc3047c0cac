"""Leaders: HPGD and its relatives, through one outer loop."""

from leaders.base import AMD, HPGD, ExactGradient, Leader, ZeroOrder
from leaders.compare import ComparedGradient, GradientComparison, compare_gradients
from leaders.constraints import Constraint
from leaders.history import History
from leaders.leader_env import LeaderEnv
from leaders.loop import Result, optimize
from leaders.multistart import multistart

__all__ = [
    "AMD",
    "HPGD",
    "ComparedGradient",
    "Constraint",
    "ExactGradient",
    "GradientComparison",
    "History",
    "Leader",
    "LeaderEnv",
    "Result",
    "ZeroOrder",
    "compare_gradients",
    "multistart",
    "optimize",
]
