"""`PopulationEnv`: one follower among the others of a population at equilibrium."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym.pictures import PicturedEnv


class PopulationEnv(PicturedEnv):
    """Base class of environments whose model is `PopulationBOCMDP.at` some lambda. Subclasses say what is solved at an x."""

    _solved: tuple[npt.NDArray[np.float64], Any] | None = None

    @property
    def population(self) -> Any:
        """All followers, a `PopulationBOCMDP`."""
        model: Any = self.model
        return model.population

    @property
    def regularization(self) -> float:
        """Their lambda."""
        model: Any = self.model
        return float(model.regularization)

    @abstractmethod
    def _met(self, x: npt.NDArray[np.float64]) -> Any:
        """What becomes of all followers at x ``(d,)``."""

    def _in_force(self) -> Any:
        """What becomes of them at the x in force, solved once for each."""
        if self._solved is None or not np.array_equal(self._solved[0], self._episode_leader):
            self._solved = self._episode_leader, self._met(self._episode_leader)
        return self._solved[1]
