"""Followers: whoever answers a leader, behind one trajectory oracle."""

from followers.base import Follower, Policy, TabularPolicy, Task
from followers.oracle import TrajectoryOracle
from followers.soft_policy_iteration import SoftPolicyIteration

__all__ = ["Follower", "Policy", "SoftPolicyIteration", "TabularPolicy", "Task", "TrajectoryOracle"]
