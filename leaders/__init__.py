"""Leaders: HPGD and its relatives, through one outer loop."""

from leaders.base import AMD, HPGD, ExactGradient, Leader, ZeroOrder
from leaders.history import History
from leaders.loop import Result, optimize

__all__ = ["AMD", "HPGD", "ExactGradient", "History", "Leader", "Result", "ZeroOrder", "optimize"]
