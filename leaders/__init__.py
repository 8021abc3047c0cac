"""Leaders: HPGD and its relatives, through one outer loop."""

from leaders.base import HPGD, ExactGradient, Leader
from leaders.constraints import Constraint
from leaders.history import History
from leaders.loop import Result, optimize

__all__ = ["HPGD", "Constraint", "ExactGradient", "History", "Leader", "Result", "optimize"]
