"""Soft actor-critic with a fixed entropy coefficient: the regularised problem with continuous actions."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import SAC

from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_regularization
from followers.sb3.follower import SB3Follower


class SACFollower(SB3Follower):
    """`SB3Follower` with SAC, whose entropy coefficient is lambda and stays lambda (SAC's default tunes it).

    The entropy is that of the action rescaled to [-1, 1], as SAC's policy has it: in units of the action space it is larger by
    the constant sum log((high - low) / 2) per step.

    Args:
        regularization: lambda > 0.
        total_timesteps, settings: as for `SB3Follower`.

    Raises:
        RegularizationError: lambda is not positive and finite. OptionError: an ent_coef besides. Otherwise as `SB3Follower`.

    Reference: Haarnoja et al., "Soft Actor-Critic", 2018.
    """

    exposes_probabilities = False

    def __init__(self, regularization: float, total_timesteps: int, **settings: Any):
        if "ent_coef" in settings:
            raise OptionError(
                f"ent_coef is {settings['ent_coef']!r}, and regularization is the entropy coefficient; leave it out."
            )
        super().__init__(SAC, total_timesteps, ent_coef=check_regularization(regularization), **settings)
