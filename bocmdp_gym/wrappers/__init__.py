"""Wrappers of environments; `ConfigurableWrapper` is the base of those that make an environment configurable."""

from bocmdp_gym.env import ConfigurableWrapper
from bocmdp_gym.wrappers.context import ContextWrapper
from bocmdp_gym.wrappers.leader_parameters import LeaderParameters
from bocmdp_gym.wrappers.leader_reward import LeaderReward, RewardModel
from bocmdp_gym.wrappers.observe_context import ObserveContext

__all__ = ["ConfigurableWrapper", "ContextWrapper", "LeaderParameters", "LeaderReward", "ObserveContext", "RewardModel"]
