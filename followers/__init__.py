"""Followers: whoever answers a leader, behind one trajectory oracle."""

from followers.base import Follower, InterpolatedPolicy, Policy, TabularPolicy, Task
from followers.callable import CallableFollower
from followers.checks import check_follower
from followers.empirical import EmpiricalPolicy, empirical_policy
from followers.iterative import IterativeFollower, Run
from followers.linear_programming import LinearProgramming
from followers.natural_policy_gradient import NaturalPolicyGradient
from followers.oracle import TrajectoryOracle
from followers.policy_distance import Suboptimality, suboptimality
from followers.policy_gradient import VanillaPolicyGradient
from followers.ray_oracle import RayOracle
from followers.registry import register
from followers.sb3 import SB3Follower
from followers.soft_actor_critic import SACFollower
from followers.soft_dqn import SoftDQN, SoftDQNFollower
from followers.soft_policy_iteration import SoftPolicyIteration
from followers.soft_q_learning import SoftQLearning
from followers.soft_value_iteration import SoftValueIteration
from followers.step_sizes import StepSize

__all__ = [
    "CallableFollower",
    "EmpiricalPolicy",
    "Follower",
    "InterpolatedPolicy",
    "IterativeFollower",
    "LinearProgramming",
    "NaturalPolicyGradient",
    "Policy",
    "RayOracle",
    "Run",
    "SACFollower",
    "SB3Follower",
    "SoftDQN",
    "SoftDQNFollower",
    "SoftPolicyIteration",
    "SoftQLearning",
    "SoftValueIteration",
    "StepSize",
    "Suboptimality",
    "TabularPolicy",
    "Task",
    "TrajectoryOracle",
    "VanillaPolicyGradient",
    "check_follower",
    "empirical_policy",
    "register",
    "suboptimality",
]
