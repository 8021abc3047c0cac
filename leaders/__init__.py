"""Leaders: HPGD and its relatives, through one outer loop."""

from leaders.base import HPGD, ExactGradient, Leader, ZeroOrder
from leaders.history import History
from leaders.loop import Result, optimize

__all__ = ["HPGD", "ExactGradient", "History", "Leader", "Result", "ZeroOrder", "optimize"]
