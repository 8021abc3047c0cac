"""Problems that a learning follower must solve in seconds, and agents that misbehave."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import BOCMDP, TabularBOCMDP, TabularEnv
from bocmdp_gym.env import ConfigurableEnv
from bocmdp_gym.errors import UnsupportedError


def bandit(discount: float = 0.5, horizon: int = 10) -> TabularEnv:
    """Two states, two actions, two contexts; x in R^2.

    Action 0 pays x_0 in context 0 and x_1 in context 1, action 1 pays 0; action a leads to state a nine times out of ten, and
    an episode ends with probability 1/4. The optimal policy is the same in both states: take 0 where it pays.
    """
    reward = torch.zeros(2, 2, 2, dtype=torch.float64)

    def pay(x: Tensor) -> Tensor:
        return torch.stack([x[:, None].expand(2, 2), reward[..., 1]], -1)

    transition = np.zeros((1, 2, 2, 2))
    for action in range(2):
        transition[0, :, action] = 0.1
        transition[0, :, action, action] = 0.9
    leader = np.zeros((2, 2, 2))
    leader[:, 0] = 1.0
    model = TabularBOCMDP(
        reward=pay,
        leader_reward=leader,
        transition=transition,
        initial=np.array([0.5, 0.5]),
        termination=np.full((1, 2), 0.25),
        leader_dim=2,
        discount=discount,
    )
    return TabularEnv(model, horizon)


X = np.array([1.0, -1.0])


class PointModel(BOCMDP):
    """The rewards of `Point`."""

    leader_dim, discount, leader_discount = 1, 0.5, 0.5

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        actions = torch.as_tensor(actions, dtype=torch.float64).reshape(len(actions), -1)[:, 0]
        return -((actions - x[0] * (1 - 2 * context)) ** 2)

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        return torch.as_tensor(observations, dtype=torch.float64)[:, 0]


class Point(ConfigurableEnv):
    """Positions are uniform in [-1, 1] and do not matter; the best action is x in context 0 and -x in context 1."""

    metadata = {"render_modes": []}
    render_mode = None

    def __init__(self, discount: float = 0.5, faulty_step: int = -1, fault: float = np.nan, discrete: bool = False):
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        box = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.action_space: gym.Space[Any] = gym.spaces.MultiDiscrete([3, 2]) if discrete else box
        self.model = PointModel()
        self._setup_configuration(gym.spaces.Box(-1.0, 1.0, (1,), np.float64), gym.spaces.Discrete(2), discount)
        self.steps, self._faulty_step, self._fault = 0, faulty_step, fault

    def _observe(self) -> Any:
        value = self._fault if self.steps == self._faulty_step else self._position
        return np.array([value], dtype=np.float32)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        self._age = 0
        self._position = self.np_random.uniform(-1, 1) if state is None else float(state)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self._age += 1
        reward = -float((action[0] - self.leader[0] * (1 - 2 * self.context)) ** 2)
        paid = self._position
        self._position = self.np_random.uniform(-1, 1)
        return self._observe(), reward, False, self._age == 5, {"leader_reward": paid, "context": self.context}


class Unstartable(Point):
    """A `Point` that cannot be put into a state."""

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        if state is not None:
            raise UnsupportedError("this environment cannot be put into a state.")
        return super()._reset(None)


class CountSteps(gym.Wrapper[Any, Any, Any, Any]):
    """Counts the steps that really happen."""

    transparent = True

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        return super().step(action)
