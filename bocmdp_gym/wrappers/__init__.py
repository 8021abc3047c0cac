"""Wrappers that make an existing Gymnasium environment configurable; `ConfigurableWrapper` is their base class."""

from bocmdp_gym.env import ConfigurableWrapper
from bocmdp_gym.wrappers.context import ContextWrapper
from bocmdp_gym.wrappers.leader_parameters import LeaderParameters
from bocmdp_gym.wrappers.leader_reward import LeaderReward, RewardModel

__all__ = ["ConfigurableWrapper", "ContextWrapper", "LeaderParameters", "LeaderReward", "RewardModel"]
