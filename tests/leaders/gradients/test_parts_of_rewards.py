"""A model's rewards need only hold what depends on x: what is paid besides is in the trajectories."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import leaders
from bocmdp_gym import BOCMDP
from bocmdp_gym.envs import Inventory
from followers import Follower, SoftPolicyIteration, Task, TrajectoryOracle
from tests.problems import relative_error

X = np.array([1.7, 0.3, 0.8])


class Partly(BOCMDP):
    """Inventory's model without what x leaves alone: the production cost in rbar, what is sold in r; and without draws."""

    def __init__(self, shop: Inventory):
        self.shop, self.leader_dim = shop, 3
        self.discount, self.leader_discount = shop.discount, shop.leader_discount
        self.given: list[Any] = []

    def _besides(self, observations: Any, actions: Any) -> Tensor:
        shelf = torch.clamp(observations[:, 0] + torch.from_numpy(self.shop.storage.moves)[actions], max=4.0)
        return 0.5 * (shelf - observations[:, 0])

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        full = self.shop.model.rewards(x, observations, actions, context)
        return full - self._besides(observations, actions)

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        self.given += [observations, actions]
        return self.shop.model.leader_rewards(x, observations, actions, context) + self._besides(observations, actions)

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        self.given.append(next_observations)
        return self.shop.model.log_transitions(x, observations, actions, next_observations, context)


class Known(Follower):
    """Answers with a policy that was made elsewhere."""

    regularization = 0.1
    exposes_probabilities = True

    def __init__(self, policy: Any):
        self.policy = policy

    def respond(self, task: Task, rng: np.random.Generator) -> Any:
        return self.policy


def test_what_x_leaves_alone_may_be_left_out() -> None:
    """One estimate from 3,000 steps. A critic that takes the model's rbar for all that is paid is 60% off."""
    env, rng = Inventory(), np.random.default_rng(0)
    whole = TrajectoryOracle(env, SoftPolicyIteration(0.1))
    policy = whole.respond(X, 1, rng)
    exact = leaders.ExactGradient().estimate(whole, X, 1, rng)
    partial, model = Inventory(grid_size=5, horizon=50), Partly(env)
    partial.model = model  # type: ignore[assignment]
    estimate = leaders.HPGD(estimator="critic", env_steps=3_000).estimate(TrajectoryOracle(partial, Known(policy)), X, 1, rng)
    assert relative_error(estimate, exact) < 0.12
    assert all(isinstance(points, Tensor) for points in model.given)  # what wrappers give their functions, too
    assert {points.dtype for points in model.given} == {torch.float64, torch.int64}
