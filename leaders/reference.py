r"""The gradient to compare estimators with where no table gives the exact one: central differences of the leader's return.

The mathematics. F(x) is the leader's return of the follower's response at x, and coordinate by coordinate

    dF/dx_j ~ (F(x + h e_j) - F(x - h e_j)) / (2 h),

with an error of order h^2, and noise of order 1/h where returns are sampled or the follower learns. Both ends of a difference
draw the same random numbers, which takes out what they have in common; a follower that learns begins from scratch for each, so
that its response is a function of x and of these numbers. Repeats with other random numbers give a mean with a standard error.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.losses import Loss, evaluate_loss
from followers import Follower, Policy, TrajectoryOracle
from leaders.gradients.estimate import WeightedContexts
from leaders.gradients.exact import response_return, values_responses

#: h where returns are exact, and where they are sampled.
_FINE, _COARSE = 1e-4, 0.1


def difference_gradient(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    follower: Follower,
    x: Tensor,
    contexts: WeightedContexts,
    *,
    step: float | None = None,
    env_steps: int = 10_000,
    repeats: int = 10,
    seed: int = 0,
    loss: Loss | None = None,
) -> tuple[Tensor, Tensor]:
    """Central differences ``(d,)`` of the follower's responses, and their standard error ``(d,)``; 0 where nothing is random.

    Points beyond a bounded ``leader_space`` are moved to its border, and differences taken over what is left.

    Args:
        env: where.
        follower: who responds.
        x: ``(d,)``.
        contexts: with their weights.
        step: h; if None, 1e-4 where an exact follower answers and the return is computed from a table, else 0.1.
        env_steps: steps per sampled return; returns of policies that are tables of a tabular model are computed.
        repeats: of every difference, with other random numbers; one where nothing is random.
        seed: of all of them.
        loss: minus this in the place of the leader's return, for a policy that is a table.

    Raises:
        as `TrajectoryOracle` and `leaders.gradients.ZeroOrderEstimator`, if the response cannot be had or valued.
    """
    returns = _Returns(env, follower, contexts, env_steps, loss)
    fixed = returns.is_exact and follower.exact
    h = (_FINE if fixed else _COARSE) if step is None else step
    space = returns.oracle.core.leader_space
    low, high = torch.tensor(space.low), torch.tensor(space.high)
    rows = []
    for number in range(1 if fixed else repeats):
        row = torch.zeros_like(x)
        for j, direction in enumerate(torch.eye(len(x), dtype=x.dtype)):
            ahead, behind = torch.clamp(x + h * direction, low, high), torch.clamp(x - h * direction, low, high)
            seeds = [seed, number, j]
            row[j] = (returns(ahead, seeds) - returns(behind, seeds)) / float((ahead - behind)[j])
        rows.append(row)
    stacked = torch.stack(rows)
    error = torch.zeros_like(x) if len(rows) == 1 else stacked.std(0) / len(rows) ** 0.5
    return stacked.mean(0), error


class _Returns:
    """F as a function of x and of random numbers."""

    def __init__(
        self,
        env: gym.Env[Any, Any] | TabularBOCMDP,
        follower: Follower,
        contexts: WeightedContexts,
        env_steps: int,
        loss: Loss | None,
    ):
        self.oracle = TrajectoryOracle(env, follower)
        self._contexts, self._env_steps, self._loss = contexts, env_steps, loss
        known = isinstance(self.oracle.model, TabularBOCMDP) or values_responses(self.oracle)
        self.is_exact = loss is not None or (known and self.oracle.layers.changing is None)

    def __call__(self, x: Tensor, seeds: list[int]) -> float:
        total, follower = 0.0, self.oracle.follower
        for number, (context, weight) in enumerate(self._contexts):
            if not follower.exact:
                follower.reset()
            rng = np.random.default_rng([*seeds, number])
            policy = self.oracle.respond(x, context, rng)
            total += weight * self._value(x, context, policy, rng)
        return total

    def _value(self, x: Tensor, context: Any, policy: Policy, rng: np.random.Generator) -> float:
        table = None if self._loss is None else self.oracle.tabulate(policy)
        if self._loss is not None and table is not None:
            return -float(evaluate_loss(self._loss, x.detach(), torch.from_numpy(table.table), context))
        value = response_return(self.oracle, x, context, policy) if self.is_exact else None
        if value is None:
            batch = self.oracle.sample(policy, self._env_steps, rng)
            return float(batch.discounted_returns(self.oracle.core.leader_discount, leader=True).mean())
        return value
