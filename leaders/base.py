"""Leaders: an estimator of the hypergradient, composed with an update rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from bocmdp_gym.errors import OptionError, suggest
from followers import TrajectoryOracle
from leaders.gradients import Estimator, ExactEstimator, MonteCarloEstimator
from leaders.updates import OptimizerFactory, Update


class Leader:
    """A leader is an estimator of dF_xi/dx and an update of x; `leaders.optimize` runs the loop.

    Args:
        estimator: where gradients come from.
        update: what is done with them.
    """

    def __init__(self, estimator: Estimator, update: Update):
        self.estimator, self.update = estimator, update

    def estimate(self, oracle: TrajectoryOracle, x: Any, context: Any, rng: np.random.Generator) -> Tensor:
        """One stochastic estimate of dF_xi/dx, ``(d,)``.

        Raises:
            as `Estimator.bind`, if this leader cannot work with ``oracle``.
        """
        self.estimator.bind(oracle)
        return self.estimator.estimate(oracle, _as_tensor(oracle, x), context, rng).gradient


class HPGD(Leader):
    """Hyper Policy Gradient Descent (paper, Algorithm 1): learns from trajectories of the follower's policy.

    Args:
        learning_rate: step size.
        env_steps: environment steps per gradient (`estimator="monte_carlo"`).
        estimator: "monte_carlo", the estimator of the paper's experiments.
        bootstrap_truncated: continue episodes cut by a time limit as the average visit to their last state.
        regularization: lambda; the follower's if None, required where the follower has none.
        optimizer, max_gradient_norm, optimizer_options: see `leaders.updates.Update`; the paper clips to 1.

    Raises:
        OptionError: an unknown estimator, or a value out of range.
    """

    def __init__(
        self,
        learning_rate: float = 0.5,
        env_steps: int = 10_000,
        estimator: str = "monte_carlo",
        *,
        bootstrap_truncated: bool = False,
        regularization: float | None = None,
        optimizer: str | OptimizerFactory = "SGD",
        max_gradient_norm: float | None = 1.0,
        **optimizer_options: Any,
    ):
        if estimator != "monte_carlo":
            raise OptionError(f"unknown estimator {estimator!r}. {suggest(estimator, ['monte_carlo'])}")
        super().__init__(
            MonteCarloEstimator(env_steps, bootstrap_truncated, regularization),
            Update(learning_rate, optimizer, max_gradient_norm, **optimizer_options),
        )


class ExactGradient(Leader):
    """Ascent along the exact hypergradient: knows the model, samples nothing. The yardstick for every other leader.

    Args:
        learning_rate: step size.
        regularization: lambda; the follower's if None.
        optimizer, max_gradient_norm, optimizer_options: see `leaders.updates.Update`.
    """

    def __init__(
        self,
        learning_rate: float = 0.5,
        *,
        regularization: float | None = None,
        optimizer: str | OptimizerFactory = "SGD",
        max_gradient_norm: float | None = 1.0,
        **optimizer_options: Any,
    ):
        super().__init__(ExactEstimator(regularization), Update(learning_rate, optimizer, max_gradient_norm, **optimizer_options))


def _as_tensor(oracle: TrajectoryOracle, x: Any) -> Tensor:
    import torch

    return x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.array(x, dtype=np.float64))
