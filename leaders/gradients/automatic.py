"""The estimator that suits the problem: averages by state where there are states, fitted values where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.errors import OptionError
from bocmdp_gym.losses import Loss
from bocmdp_gym.options import check_count, check_flag
from followers import Policy, TrajectoryOracle
from leaders.gradients.base import Estimator, PolicyEstimator, interchangeable
from leaders.gradients.batch import BatchEstimator
from leaders.gradients.critic import CriticEstimator
from leaders.gradients.estimate import Estimate, check_groups
from leaders.gradients.monte_carlo import MonteCarloEstimator


class AutoEstimator(PolicyEstimator):
    """Monte Carlo where the model is tabular and trajectories carry states, the critic elsewhere: chosen at binding.

    `working` is the one that was chosen, and what this one prints as from then on; `Result.estimator` and summary.json name it.

    Args:
        env_steps: steps per estimate; the last episode is finished and its steps are counted too.
        bootstrap_truncated: continue episodes that a time limit cut; the critic does so anyway.
        error_groups: what a standard error is reported from, in the terms of the estimator that is chosen; 0: none.
        regularization: lambda; the follower's if None.
    """

    needs_rewards = True
    replays = True
    needs_probabilities_for = frozenset({"transition", "termination"})

    def __init__(
        self,
        env_steps: int = 10_000,
        bootstrap_truncated: bool = False,
        error_groups: int = 0,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        self.env_steps = check_count("env_steps", env_steps)
        self.bootstrap_truncated = check_flag("bootstrap_truncated", bootstrap_truncated)
        self.error_groups = check_groups(error_groups, "env_steps", self.env_steps)
        self._chosen: MonteCarloEstimator | CriticEstimator | None = None

    def __repr__(self) -> str:
        return super().__repr__() if self._chosen is None else repr(self._chosen)

    @property
    def working(self) -> PolicyEstimator:
        """The estimator that was chosen; this one before `bind`."""
        return self if self._chosen is None else self._chosen

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        if isinstance(oracle.model, TabularBOCMDP) and oracle.exposes_states:
            self._chosen = MonteCarloEstimator(
                self.env_steps, self.bootstrap_truncated, self.error_groups, self.requested_regularization
            )
        else:
            self._chosen = CriticEstimator(
                self.env_steps, error_groups=self.error_groups, regularization=self.requested_regularization
            )
        self._chosen.bind(oracle, loss)
        self.regularization, self.loss = self._chosen.regularization, loss

    def take_regularization(self, regularization: float) -> None:
        super().take_regularization(regularization)
        if self._chosen is not None:
            self._chosen.take_regularization(regularization)

    @classmethod
    def batched(
        cls, oracle: TrajectoryOracle, estimators: Sequence[Estimator], device: str | None = None
    ) -> BatchEstimator | None:
        """As that of the estimator that was chosen."""
        if not interchangeable(AutoEstimator, estimators):
            return super().batched(oracle, estimators, device)
        chosen = estimators[0].working
        return type(chosen).batched(oracle, [chosen] * len(estimators), device)

    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        if self._chosen is None:
            raise OptionError("AutoEstimator.estimate was called before bind(oracle).")
        return self._chosen.estimate_policy(oracle, policy, x, context, rng)

    def state(self) -> dict[Any, Any]:
        return {} if self._chosen is None else self._chosen.state()

    def load_state(self, state: dict[Any, Any]) -> None:
        if self._chosen is not None:
            self._chosen.load_state(state)
