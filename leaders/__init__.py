"""Leaders: HPGD and its relatives, through one outer loop."""

from leaders.checks import check_gradient
from leaders.compare import ComparedGradient, GradientComparison, compare_gradients
from leaders.constraints import Constraint
from leaders.global_search import multistart
from leaders.history import History
from leaders.leader_env import LeaderEnv
from leaders.leaders import AMD, HPGD, ExactGradient, Leader, ZeroOrder, register_estimator
from leaders.loop import Result, optimize

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
    "check_gradient",
    "compare_gradients",
    "multistart",
    "optimize",
    "register_estimator",
]
