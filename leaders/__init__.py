"""Leaders: HPGD and its relatives, through one outer loop."""

from leaders.base import HPGD, ExactGradient, Leader
from leaders.constraints import Constraint
from leaders.history import History
from leaders.leader_env import LeaderEnv
from leaders.loop import Result, optimize
from leaders.multistart import multistart

__all__ = ["HPGD", "Constraint", "ExactGradient", "History", "Leader", "LeaderEnv", "Result", "multistart", "optimize"]
