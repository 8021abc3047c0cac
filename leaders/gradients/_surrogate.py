"""The surrogate of one batch of trajectories: a function of x whose gradient, in one backward pass, is the estimate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import BOCMDP, Trajectories
from leaders.gradients._points import points
from leaders.gradients.base import Array
from leaders.gradients.estimate import combine_groups, split


class Surrogate:
    """sum w r_x + v log P_x + ... over one batch, whose gradient in x is the estimate.

    Args:
        model: the environment's.
        x: where.
        batch: the trajectories.
    """

    def __init__(self, model: BOCMDP, x: Tensor, batch: Trajectories):
        self.x = x.detach().clone().requires_grad_()
        self.batch = batch
        seen, following, continued = points(model, batch)
        self._continued = continued
        self._rewards = model.rewards(self.x, seen, batch.actions, batch.context)
        self._leader_rewards = model.leader_rewards(self.x, seen, batch.actions, batch.context)
        self._transitions = model.log_transitions(
            self.x, seen[continued], batch.actions[continued], following[continued], batch.context
        )
        self._initials = model.log_initials(self.x, seen[batch.starts], batch.context)

    @property
    def needs_follower(self) -> bool:
        """Whether the follower's values enter: transitions depend on x."""
        return self._transitions is not None and self._transitions.requires_grad

    @property
    def needs_values(self) -> bool:
        """Whether values enter at all: transitions or starts depend on x."""
        return self.needs_follower or (self._initials is not None and self._initials.requires_grad)

    def gradient(
        self, reward: Array, leader_reward: Array, transition: Array, initial: Array, groups: int
    ) -> tuple[Tensor, Tensor | None]:
        """Mean over episodes of the weighted sums, and its standard error over ``groups`` groups of episodes."""
        episodes = np.repeat(np.arange(self.batch.n_episodes), self.batch.lengths)
        parts: list[tuple[Tensor, Tensor, npt.NDArray[np.int64]]] = []
        for values, own_weights, owners in (
            (self._rewards, reward, episodes),
            (self._leader_rewards, leader_reward, episodes),
            (self._transitions, transition[self._continued], episodes[self._continued]),
            (self._initials, initial, np.arange(self.batch.n_episodes)),
        ):
            if values is not None and values.requires_grad:
                parts.append((values, torch.from_numpy(own_weights).to(values), owners))
        if not parts:
            return torch.zeros_like(self.x), None
        sizes = split(self.batch.n_episodes, groups)
        gradients, first = [], 0
        for size in sizes:
            total = torch.zeros((), dtype=torch.float64)
            for values, weights, owners in parts:
                own = torch.from_numpy((owners >= first) & (owners < first + size)) if groups > 1 else slice(None)
                total = total + (values[own] * weights[own]).sum() / size
            gradients.append(torch.autograd.grad(total, self.x, retain_graph=True)[0])
            first += size
        return combine_groups(gradients, sizes)
