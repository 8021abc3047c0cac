"""Leaders: HPGD and its relatives, through one outer loop."""

from leaders.base import AMD, HPGD, ExactGradient, Leader, ZeroOrder
from leaders.compare import ComparedGradient, GradientComparison, compare_gradients
from leaders.history import History
from leaders.loop import Result, optimize

__all__ = [
    "AMD",
    "HPGD",
    "ComparedGradient",
    "ExactGradient",
    "GradientComparison",
    "History",
    "Leader",
    "Result",
    "ZeroOrder",
    "compare_gradients",
    "optimize",
]
