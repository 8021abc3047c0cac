"""Followers: whoever answers a leader, behind one trajectory oracle."""

from followers.base import Follower, Policy, TabularPolicy, Task
from followers.callable import CallableFollower
from followers.empirical import EmpiricalPolicy, empirical_policy
from followers.oracle import TrajectoryOracle
from followers.sb3 import SB3Follower
from followers.soft_actor_critic import SACFollower
from followers.soft_dqn import SoftDQN, SoftDQNFollower
from followers.soft_policy_iteration import SoftPolicyIteration

__all__ = [
    "CallableFollower",
    "EmpiricalPolicy",
    "Follower",
    "Policy",
    "SACFollower",
    "SB3Follower",
    "SoftDQN",
    "SoftDQNFollower",
    "SoftPolicyIteration",
    "TabularPolicy",
    "Task",
    "TrajectoryOracle",
    "empirical_policy",
]
