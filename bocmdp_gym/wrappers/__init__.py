"""Wrappers that make an existing Gymnasium environment configurable; `ConfigurableWrapper` is their base class.

`LeaderReward` adds a leader's bonus to the reward, `LeaderParameters` lets x set physical attributes, `ContextWrapper` adds
contexts, `ObserveContext` shows them; `ActionMasks` offers the masks of an environment's info. Each takes an environment in which
one follower acts; multi-agent environments are for `bocmdp_gym.games.MarkovGame`.
"""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use

if TYPE_CHECKING:
    from bocmdp_gym.wrappers.action_masks import ActionMasks
    from bocmdp_gym.wrappers.base import ConfigurableWrapper
    from bocmdp_gym.wrappers.context import ContextWrapper
    from bocmdp_gym.wrappers.leader_parameters import LeaderParameters
    from bocmdp_gym.wrappers.leader_reward import LeaderReward, RewardModel
    from bocmdp_gym.wrappers.observe_context import ObserveContext
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "ActionMasks",
    "ConfigurableWrapper",
    "ContextWrapper",
    "LeaderParameters",
    "LeaderReward",
    "ObserveContext",
    "RewardModel",
]
