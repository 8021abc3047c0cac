r"""The grid problems of the benchmarks: as large as one likes, and no part of them has the size S x S.

An open n x n grid, four moves that slip one time in ten, no end. Cell s pays the follower a random reward in [0, 1) less a toll
softplus(x_s), so x has one entry per cell; the leader earns what visits to random cells are worth to it, and every cell is an
equally likely start. Where P moves with x too, moves from cell s slip with probability 0.2 sigmoid(x_s), as often at x = 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import SuccessorTransitions, TabularBOCMDP
from bocmdp_gym.grid import Grid

DISCOUNT, REGULARIZATION, SLIP = 0.99, 0.01, 0.1


def side_length(states: int) -> int:
    """Side of the square grid nearest to that many states."""
    return round(states**0.5)


def grid_model(states: int, contexts: int = 1, seed: int = 0, moving: bool = False, **options: Any) -> TabularBOCMDP:
    """The problem on a square grid of about ``states`` cells, P ``moving`` with x or not; options go to `TabularBOCMDP`.

    Contexts share the moves and the tolls, and have their own rewards.
    """
    n = side_length(states)
    successors, probabilities = Grid(["." * n] * n).slippery_moves(SLIP)
    rng = np.random.default_rng(seed)
    base = torch.from_numpy(rng.random((contexts, n * n, 1)))
    leader_reward = torch.from_numpy(rng.standard_normal((contexts, n * n, 1)))

    def reward(x: Tensor) -> Tensor:
        return base - torch.nn.functional.softplus(x)[None, :, None]

    listed = torch.from_numpy(successors)
    certain = torch.eye(4, dtype=torch.float64)

    def transition(x: Tensor) -> SuccessorTransitions:
        slip = 2.0 * SLIP * torch.sigmoid(x)[:, None, None]
        return SuccessorTransitions(listed, certain + slip * ((1.0 - certain) / 3.0 - certain))

    return TabularBOCMDP(
        reward=reward,
        leader_reward=leader_reward,
        transition=transition if moving else SuccessorTransitions(listed, torch.from_numpy(probabilities)),
        initial=np.full(n * n, 1.0 / (n * n)),
        leader_dim=n * n,
        discount=DISCOUNT,
        **options,
    )
