"""`LeaderReward`: any Gymnasium environment as a leader's problem, through a bonus on its reward."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym.errors import ModelError, OptionError
from bocmdp_gym.model import BOCMDP
from bocmdp_gym.options import check_count, check_function
from bocmdp_gym.wrappers.base import LeaderWrapper
from bocmdp_gym.wrappers.functions import POINT_ARGUMENTS, PointFunction, as_batch, as_context, evaluate, probe


class LeaderReward(LeaderWrapper, gym.utils.RecordConstructorArgs):
    """Adds a leader's bonus to the reward of any Gymnasium environment.

    The follower's reward becomes r(s, a) + bonus(x, s, a, xi); ``info["leader_reward"]`` is the leader's, ``info["bonus"]``
    the bonus. Transitions are unknown and do not depend on x, so gradients flow through the reward alone, and `model` is a
    `BOCMDP` with differentiable rewards: leaders that learn from trajectories can use it.

    Both functions take batches: x ``(d,)`` float64, observations ``(N, ...)``, actions ``(N, ...)`` (dicts and tuples entry by
    entry), the context, and return ``(N,)``. An example: pay a cart-pole for standing at a marked spot.

        env = LeaderReward(
            gym.make("CartPole-v1"),
            bonus=lambda x, observations, actions, context: x[0] * torch.exp(-((observations[:, 0] - x[1]) ** 2)),
            leader_space=2,
            leader_reward=lambda x, observations, actions, context: -((observations[:, 0] - 1.0) ** 2),
            discount=0.99,
        )

    Contexts are those of a `ContextWrapper` (or an environment of ours) inside; without one there is a single context, 0. Put
    this wrapper outside all that change observations, actions or the reward: it sees what the follower sees.

    Args:
        env: the environment, one follower, one reward per step.
        bonus: differentiable in x.
        leader_space: space of x, a float64 ``Box`` of shape ``(d,)``; or d, for all of R^d.
        leader_reward: the leader's reward; it may depend on x (a cost of paying the bonus).
        discount: the follower's gamma.
        leader_discount: the leader's; gamma if None.
        initial_leader: where leaders start ``(d,)``; the point of ``leader_space`` nearest to zero if None.

    Raises:
        UnsupportedError: a multi-agent or vector environment, or rewards that are not one number.
        ModelError: a function that returns a wrong type, a wrong shape or NaN, or a bonus without a gradient in x.
        LeaderParameterError, DiscountError, OptionError: arguments out of range.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        bonus: PointFunction,
        leader_space: gym.spaces.Box | int,
        leader_reward: PointFunction,
        discount: float,
        leader_discount: float | None = None,
        initial_leader: npt.ArrayLike | None = None,
    ):
        gym.utils.RecordConstructorArgs.__init__(
            self,
            bonus=bonus,
            leader_space=leader_space,
            leader_reward=leader_reward,
            discount=discount,
            leader_discount=leader_discount,
            initial_leader=initial_leader,
        )
        for name, function in (("bonus", bonus), ("leader_reward", leader_reward)):
            check_function(name, function, POINT_ARGUMENTS)
        space = check_leader_space(leader_space)
        super().__init__(env, space, discount, leader_discount, initial_leader)
        self._bonus, self._leader_reward = bonus, leader_reward
        self._start = self._leader
        context = self.sample_context(np.random.default_rng(0))
        if not probe("bonus", bonus, env, self._start, context, space).requires_grad:
            raise ModelError(
                "bonus does not depend on x through torch operations, so its gradient would be zero everywhere; compute it from "
                "x without .item(), .numpy() or torch.tensor(x)."
            )
        probe("leader_reward", leader_reward, env, self._start, context, space)
        self.model = RewardModel(self, bonus, leader_reward)

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """The start given to the constructor."""
        del rng
        return self._start.copy()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act; the bonus and the leader's reward are those of the observation and action before the step.

        Raises:
            ModelError: the bonus or the leader's reward is not finite.
            UnsupportedError: the environment's reward is not one number.
        """
        bonus = self._evaluate("bonus", self._bonus, self._observation, action)
        leader_reward = self._evaluate("leader_reward", self._leader_reward, self._observation, action)
        observation, reward, terminated, truncated, info = self._act(action)
        info |= {"leader_reward": leader_reward, "bonus": bonus, "context": self._episode_context}
        return observation, reward + bonus, terminated, truncated, info


class RewardModel(BOCMDP):
    """What is known of an environment under `LeaderReward`: how the rewards depend on x.

    `rewards` is the bonus alone: the environment's own reward does not depend on x, and is in the trajectories. So a reward
    observed at x is one at y after adding ``rewards(y, ...) - rewards(x, ...)``, and gradients in x are complete.
    """

    def __init__(self, env: LeaderReward, bonus: PointFunction, leader_reward: PointFunction):
        self.leader_dim = env.leader_space.shape[0]
        self.discount, self.leader_discount = env.discount, env.leader_discount
        self._bonus, self._leader_reward = bonus, leader_reward

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """The bonus at N points ``(N,)``, differentiable in x."""
        points = as_batch(observations), as_batch(actions), as_context(context)
        return evaluate("bonus", self._bonus, x, *points, n=len(actions))

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """The leader's reward at N points ``(N,)``, differentiable in x."""
        points = as_batch(observations), as_batch(actions), as_context(context)
        return evaluate("leader_reward", self._leader_reward, x, *points, n=len(actions))


def check_leader_space(space: Any) -> gym.spaces.Box:
    """A space of x from a Box or a dimension.

    Raises:
        OptionError: anything else than a float64 Box ``(d,)`` or a positive integer.
    """
    if isinstance(space, gym.spaces.Box):
        if len(space.shape) == 1 and space.dtype == np.float64:
            return space
        raise OptionError(
            f"leader_space is a Box of shape {space.shape} and type {space.dtype}; expected shape (d,) and dtype=np.float64."
        )
    return gym.spaces.Box(-np.inf, np.inf, (check_count("leader_space", space),), np.float64)
