"""`SoftDQN` as a follower."""

from __future__ import annotations

from typing import Any

from followers.sb3.follower import SB3Follower
from followers.sb3.soft_dqn import SoftDQN


class SoftDQNFollower(SB3Follower):
    """`SB3Follower` with `SoftDQN`: a neural follower that solves the regularised problem, lambda known to the leader.

    Args:
        regularization: lambda > 0.
        total_timesteps, settings: as for `SB3Follower`.

    Raises:
        RegularizationError: lambda is not positive and finite. Otherwise as `SB3Follower`.
    """

    exposes_probabilities = True

    def __init__(self, regularization: float, total_timesteps: int, **settings: Any):
        super().__init__(SoftDQN, total_timesteps, regularization=regularization, **settings)
