"""`PopulationOracle`: a population whose followers learn, behind the trajectory oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from bocmdp_gym import PopulationBOCMDP, TabularBOCMDP
from bocmdp_gym.options import check_generator
from followers.base import Follower
from followers.fictitious_play import FictitiousPlay, PopulationResponse
from followers.oracle import TrajectoryOracle


class PopulationOracle(TrajectoryOracle):
    """A `TrajectoryOracle` whose follower plays fictitiously: `FictitiousPlay` of the one given.

    ``leaders.optimize(env, leader, follower, oracle=functools.partial(PopulationOracle, rounds=20))`` and
    ``leaders.optimize(env, leader, FictitiousPlay(follower, rounds=20))`` are the same run.

    Args:
        env: `RoadTolls`, or another environment of a `PopulationBOCMDP`; or that itself.
        follower: who learns.
        rounds, tolerance, step, sample_steps: as for `FictitiousPlay`.

    Attributes:
        follower: the `FictitiousPlay`.

    Raises:
        As `TrajectoryOracle` and `FictitiousPlay`.
    """

    follower: FictitiousPlay

    def __init__(
        self,
        env: gym.Env[Any, Any] | TabularBOCMDP | PopulationBOCMDP,
        follower: Follower,
        *,
        rounds: int = 10,
        tolerance: float | None = None,
        step: float | Callable[[int], float] | None = None,
        sample_steps: int = 10_000,
    ):
        play = FictitiousPlay(follower, rounds, tolerance=tolerance, step=step, sample_steps=sample_steps)
        super().__init__(env, play)

    @property
    def population(self) -> PopulationBOCMDP:
        """Who meets."""
        return self.follower.population

    def play(self, x: Any, rng: np.random.Generator) -> PopulationResponse:
        """The rounds of one response to x ``(d,)``, from where the last one ended: loads, policies, exploitability.

        Raises:
            LeaderParameterError: outside its space.
            ConvergenceError: a class's average policy never ends its episodes.
        """
        return self.follower.play(self._checked(x), check_generator(rng))
