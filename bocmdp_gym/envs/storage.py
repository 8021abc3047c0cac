r"""Storage problems: a level that actions and x move and chance blurs, such as stock on a shelf or charge in a battery.

The mathematics. Level s in [low, high], one of T periods k that follow each other in a cycle, actions a = 0..A-1:

    s' ~ N(m_{x, xi}(s, k, a), std^2), truncated to [low, high],    k' = k + 1 mod T,

with m within the range. A problem is one function of (x, s, k, a, xi), which says both rewards and m (`Storage.outcome`).
The simulator, one copy or many, the log density, the differentiable draw and the companion on a grid all follow from them.

*The companion on a grid* has n equidistant levels in each period, state k n + i, and the probabilities of the cells around them:
exactly what rounding the simulator's next level to the grid gives (as in `bocmdp_gym.envs.tax_design`). Values and gradients are
off by the order of the squared spacing. Between grid points a table of probabilities acts as the mean of its two neighbours'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.truncated_normal import cell_probabilities, truncated_normal_draw, truncated_normal_log_density

Array = npt.NDArray[np.float64]


class Outcome(NamedTuple):
    """What an action does: the follower's reward, the leader's, and m, the centre of the next level, within the range."""

    reward: Tensor
    leader_reward: Tensor
    mean: Tensor


class Storage(ABC):
    """One problem: its numbers, and `outcome`.

    Attributes:
        low, high: the range of levels.
        noise_std: standard deviation of the next level.
        start_mean, start_std: the first level is N(mean, std^2), truncated to the range; the first period is 0.
        n_periods, n_contexts, n_actions: T, C and A.
        leader_space, status_quo: of x, and where leaders start, ``(d,)``.
        level_name, leader_names, moves: for pictures: what the level is, what the entries of x are, and what each action adds to
            the level, ``(A,)``.
    """

    low: float
    high: float
    noise_std: float
    start_mean: float
    start_std: float
    n_periods: int
    n_contexts: int
    n_actions: int
    leader_space: gym.spaces.Box
    status_quo: Array
    level_name: str
    leader_names: tuple[str, ...]
    moves: Array

    @abstractmethod
    def outcome(self, x: Tensor, level: Tensor, period: Tensor, action: Tensor, context: Tensor) -> Outcome:
        """What actions do, differentiable in x ``(d,)``.

        Levels (float64), periods, actions and contexts (int64) have shapes that broadcast together; so have the results.
        """

    def draw(self, mean: Tensor, uniform: Tensor) -> Tensor:
        """The next level, of uniform numbers."""
        return truncated_normal_draw(uniform, mean, self.noise_std, self.low, self.high)

    def draw_starts(self, uniform: Tensor) -> Tensor:
        """First levels, of uniform numbers."""
        mean = torch.tensor(self.start_mean, dtype=torch.float64)
        return truncated_normal_draw(uniform, mean, self.start_std, self.low, self.high)

    @torch.no_grad()
    def play(self, x: Array, level: Array, period: Any, action: Any, context: Any, uniform: Array) -> tuple[Array, Array, Array]:
        """What the simulator does: rewards, leader's rewards and next levels of N copies, each ``(N,)``."""
        at = torch.tensor(x), *(torch.as_tensor(part) for part in (level, period, action, context))
        reward, leader_reward, mean = self.outcome(*at)
        return reward.numpy(), leader_reward.numpy(), self.draw(mean, torch.as_tensor(uniform)).numpy()

    # what an observation shows: the level and, where there are several periods, the hand of a clock

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Of the level, and of cos and sin of 2 pi k / T where T > 1."""
        clock = [1.0, 1.0] if self.n_periods > 1 else []
        low, high = [self.low, *(-one for one in clock)], [self.high, *clock]
        return gym.spaces.Box(np.array(low), np.array(high), dtype=np.float64)

    def observe(self, level: Tensor, period: Any) -> Tensor:
        """Observations ``(N, 1)`` or ``(N, 3)`` of levels and periods ``(N,)``."""
        if self.n_periods == 1:
            return level.unsqueeze(-1)
        angle = 2.0 * np.pi / self.n_periods * torch.as_tensor(period, dtype=torch.float64)
        return torch.stack([level, torch.cos(angle).expand_as(level), torch.sin(angle).expand_as(level)], -1)

    def read(self, observations: Any) -> tuple[Tensor, Tensor]:
        """Levels and periods of observations ``(..., 1)`` or ``(..., 3)``: the inverse of `observe`."""
        seen = torch.as_tensor(observations, dtype=torch.float64)
        if self.n_periods == 1:
            return seen[..., 0], torch.zeros(seen.shape[:-1], dtype=torch.int64)
        turns = torch.atan2(seen[..., 2], seen[..., 1]) / (2.0 * np.pi) * self.n_periods
        return seen[..., 0], torch.round(turns).long() % self.n_periods


class StorageModel(TabularBOCMDP):
    """A storage problem on a grid of levels (states 0..T n - 1), and its exact functions of levels.

    The functions of visited points (`rewards`, `log_transitions`, ...) take what the environment shows, observations ``(N, 1)``
    or ``(N, 3)`` and actions ``(N,)``, and are those of the continuous problem. State indices ``(N,)`` are answered with the
    grid's tables.

    Args:
        storage: the problem.
        grid_size: levels n >= 2.
        options: as for `TabularBOCMDP`.
    """

    takes_states = False
    noise_dim = 1

    def __init__(self, storage: Storage, grid_size: int, **options: Any):
        self.storage = storage
        self.grid = np.linspace(storage.low, storage.high, grid_size)
        periods, n = storage.n_periods, grid_size
        edges = torch.from_numpy(np.concatenate([self.grid[:1], (self.grid[1:] + self.grid[:-1]) / 2, self.grid[-1:]]))
        context = torch.arange(storage.n_contexts).reshape(-1, 1, 1)
        level = torch.from_numpy(np.tile(self.grid, periods)).reshape(1, -1, 1)
        period = torch.arange(periods).repeat_interleave(n).reshape(1, -1, 1)
        points = level, period, torch.arange(storage.n_actions), context
        shape = (storage.n_contexts, periods * n, storage.n_actions)
        then = torch.eye(periods, dtype=torch.float64).roll(1, 1)

        def transition(x: Tensor) -> Tensor:
            mean = storage.outcome(x, *points).mean.expand(shape)
            cells = cell_probabilities(edges, mean, storage.noise_std).reshape(storage.n_contexts, periods, n, -1, n)
            return torch.einsum("cknaj,kl->cknalj", cells, then).reshape(*shape, periods * n)

        start = cell_probabilities(edges, torch.tensor(storage.start_mean, dtype=torch.float64), storage.start_std)
        super().__init__(
            reward=lambda x: storage.outcome(x, *points).reward.expand(shape),
            leader_reward=lambda x: storage.outcome(x, *points).leader_reward.expand(shape),
            transition=transition,
            initial=torch.cat([start, torch.zeros((periods - 1) * n, dtype=torch.float64)]),
            leader_dim=storage.leader_space.shape[0],
            leader_space=storage.leader_space,
            **options,
        )

    def _outcome(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Outcome:
        level, period = self.storage.read(observations)
        return self.storage.outcome(x, level, period, torch.as_tensor(actions).long(), torch.as_tensor(context))

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """r_{x, xi}(s, k, a)."""
        if np.ndim(observations) == 1:
            return super().rewards(x, observations, actions, context)
        return self._outcome(x, observations, actions, context).reward

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """rbar_{x, xi}(s, k, a)."""
        if np.ndim(observations) == 1:
            return super().leader_rewards(x, observations, actions, context)
        return self._outcome(x, observations, actions, context).leader_reward

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        """The log density of the next level ``(N,)``; the next period is certain."""
        if np.ndim(observations) == 1:
            return super().log_transitions(x, observations, actions, next_observations, context)
        storage, mean = self.storage, self._outcome(x, observations, actions, context).mean
        following, _ = storage.read(next_observations)
        return truncated_normal_log_density(following, mean, storage.noise_std, storage.low, storage.high)

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        """Next observations ``(N, 1)`` or ``(N, 3)``."""
        following = self.storage.draw(self._outcome(x, observations, actions, context).mean, noise[:, 0])
        return self.storage.observe(following, self.storage.read(observations)[1] + 1)
