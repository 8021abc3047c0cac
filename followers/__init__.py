"""Followers: whoever answers a leader, behind one trajectory oracle."""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use
from bocmdp_gym.version import __version__

if TYPE_CHECKING:
    from followers.base import Follower, Task
    from followers.best_of import BestOf
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
    from followers.sb3.follower import SB3Follower
    from followers.sb3.independent_learners import IndependentLearners
    from followers.sb3.soft_actor_critic import SACFollower
    from followers.sb3.soft_dqn import SoftDQN
    from followers.sb3.soft_dqn_follower import SoftDQNFollower
    from followers.soft_policy_iteration import SoftPolicyIteration
    from followers.soft_q_learning import SoftQLearning
    from followers.soft_value_iteration import SoftValueIteration
    from followers.step_sizes import StepSize
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "BestOf",
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
