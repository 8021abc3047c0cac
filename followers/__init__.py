"""Followers: whoever answers a leader, behind one trajectory oracle.

Those trained by Stable-Baselines3 are imported when they are first used, since that takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bocmdp_gym.version import __version__
from followers.base import Follower, Task
from followers.callable import CallableFollower
from followers.checks import check_follower
from followers.empirical import EmpiricalPolicy, empirical_policy
from followers.fictitious_play import FictitiousPlay, PopulationResponse
from followers.iterative import IterativeFollower, Solve
from followers.linear_programming import LinearProgramming
from followers.linear_quadratic import LinearGaussianPolicy, LinearQuadratic
from followers.natural_policy_gradient import NaturalPolicyGradient
from followers.oracle import TrajectoryOracle
from followers.policies import InterpolatedPolicy, Policy, TabularPolicy
from followers.policy_distance import Suboptimality, exploitability, suboptimality
from followers.policy_gradient import VanillaPolicyGradient
from followers.population_oracle import PopulationOracle
from followers.ray_oracle import RayOracle
from followers.registry import register
from followers.regularization import RegularizationEstimate, estimate_regularization
from followers.soft_policy_iteration import SoftPolicyIteration
from followers.soft_q_learning import SoftQLearning
from followers.soft_value_iteration import SoftValueIteration
from followers.step_sizes import StepSize

if TYPE_CHECKING:
    from followers.sb3.follower import SB3Follower
    from followers.sb3.independent_learners import IndependentLearners
    from followers.sb3.soft_actor_critic import SACFollower
    from followers.sb3.soft_dqn import SoftDQN
    from followers.sb3.soft_dqn_follower import SoftDQNFollower

#: Where the names are that are imported on first use.
_LAZY = {
    "IndependentLearners": "followers.sb3.independent_learners",
    "SACFollower": "followers.sb3.soft_actor_critic",
    "SB3Follower": "followers.sb3.follower",
    "SoftDQN": "followers.sb3.soft_dqn",
    "SoftDQNFollower": "followers.sb3.soft_dqn_follower",
}

__all__ = [
    "CallableFollower",
    "EmpiricalPolicy",
    "FictitiousPlay",
    "Follower",
    "IndependentLearners",
    "InterpolatedPolicy",
    "IterativeFollower",
    "LinearGaussianPolicy",
    "LinearProgramming",
    "LinearQuadratic",
    "NaturalPolicyGradient",
    "Policy",
    "PopulationOracle",
    "PopulationResponse",
    "RayOracle",
    "RegularizationEstimate",
    "SACFollower",
    "SB3Follower",
    "SoftDQN",
    "SoftDQNFollower",
    "SoftPolicyIteration",
    "SoftQLearning",
    "SoftValueIteration",
    "Solve",
    "StepSize",
    "Suboptimality",
    "TabularPolicy",
    "Task",
    "TrajectoryOracle",
    "VanillaPolicyGradient",
    "__version__",
    "check_follower",
    "empirical_policy",
    "estimate_regularization",
    "exploitability",
    "register",
    "suboptimality",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
