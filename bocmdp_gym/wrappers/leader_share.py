"""`LeaderShare`: pays the follower a share of what the leader earns, in any environment, one copy or many.

With the weight s, r(s, a) becomes r(s, a) + s rbar(s, a), and nothing else changes. Oracles and followers know this layer: the
model that they read pays the same (`ConfiguredMDPs.with_leader_share`), so planners answer the problem that is played.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.options import check_number


class LeaderShare(Constructed, gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Adds ``weight`` times ``info["leader_reward"]`` to the reward; the outermost layer of a configurable environment.

    Args:
        env: a configurable environment, wrapped or not.
        weight: s, of any sign.
    """

    _records = True

    def __init__(self, env: gym.Env[Any, Any], weight: float):
        gym.utils.RecordConstructorArgs.__init__(self, weight=weight)
        gym.Wrapper.__init__(self, env)
        self.weight = check_number("weight", weight)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, and be paid for what the leader earns by it too."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) + self.weight * float(info["leader_reward"]), terminated, truncated, info


class LeaderShareCopies(Constructed, VectorWrapper):
    """The same around a vector environment, in any autoreset mode.

    Args:
        env: a vector environment of configurable copies.
        weight: s, of any sign.
    """

    _records = True

    def __init__(self, env: VectorEnv[Any, Any, Any], weight: float):
        super().__init__(env)
        self.weight = check_number("weight", weight)
        self._same_step = AutoresetMode(env.metadata["autoreset_mode"]) == AutoresetMode.SAME_STEP

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Act in all copies; rows that are resets pay nothing."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        earned = np.zeros(len(rewards))
        if "leader_reward" in infos:
            earned = np.where(infos["_leader_reward"], infos["leader_reward"], 0.0)
        ended = terminations | truncations
        if self._same_step and ended.any():  # what their last step earned; the outer info is that of the reset
            earned = np.where(ended, infos["final_info"]["leader_reward"], earned)
        return observations, rewards + self.weight * earned, terminations, truncations, infos


def with_leader_share(env: Any, weight: float) -> Any:
    """An environment, or a vector environment, that pays the follower ``weight`` times the leader's reward on top."""
    return LeaderShareCopies(env, weight) if isinstance(env, VectorEnv) else LeaderShare(env, weight)


def share_of(layer: Any) -> float | None:
    """The weight of a layer of this kind; None of another."""
    return layer.weight if isinstance(layer, (LeaderShare, LeaderShareCopies)) else None
