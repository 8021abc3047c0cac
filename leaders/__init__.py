"""Leaders: HPGD and its relatives, through one outer loop."""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use
from bocmdp_gym.version import __version__

if TYPE_CHECKING:
    from leaders import objectives
    from leaders.annealing import Annealing
    from leaders.checkpoints import Checkpoints
    from leaders.checks import check_gradient
    from leaders.compare import ComparedGradient, GradientComparison, compare_gradients
    from leaders.constraints import Constraint
    from leaders.global_search import multistart
    from leaders.history import History
    from leaders.leader_env import LeaderEnv
    from leaders.leaders import AMD, HPGD, ExactGradient, FirstOrder, Leader, ZeroOrder, register_estimator
    from leaders.loop import optimize
    from leaders.many import optimize_many
    from leaders.policy_evaluation import PolicyEvaluation, evaluate_policy
    from leaders.result import Progress, Result
    from leaders.sampled_constraints import SampledConstraint
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "AMD",
    "HPGD",
    "Annealing",
    "Checkpoints",
    "ComparedGradient",
    "Constraint",
    "ExactGradient",
    "FirstOrder",
    "GradientComparison",
    "History",
    "Leader",
    "LeaderEnv",
    "PolicyEvaluation",
    "Progress",
    "Result",
    "SampledConstraint",
    "ZeroOrder",
    "__version__",
    "check_gradient",
    "compare_gradients",
    "evaluate_policy",
    "multistart",
    "objectives",
    "optimize",
    "optimize_many",
    "register_estimator",
]
