"""Leaders: an estimator of the hypergradient, composed with an update rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.errors import OptionError, suggest
from followers import TrajectoryOracle
from leaders.gradients import (
    AdaptiveModelDesignEstimator,
    CriticEstimator,
    Estimator,
    ExactEstimator,
    GeometricEstimator,
    MonteCarloEstimator,
    MultilevelEstimator,
    PooledEstimator,
    ZeroOrderEstimator,
)
from leaders.updates import OptimizerFactory, Update


class Leader:
    """A leader is an estimator of dF_xi/dx and an update of x; `leaders.optimize` runs the loop.

    Args:
        estimator: where gradients come from.
        update: what is done with them.
    """

    def __init__(self, estimator: Estimator, update: Update):
        self.estimator, self.update = estimator, update
        self._oracle: TrajectoryOracle | None = None

    def estimate(self, oracle: TrajectoryOracle, x: Any, context: Any, rng: np.random.Generator) -> Tensor:
        """One stochastic estimate of dF_xi/dx, ``(d,)``.

        Raises:
            as `Estimator.bind`, if this leader cannot work with ``oracle``.
        """
        if oracle is not self._oracle:  # what an estimator carries from x to x must survive
            self.estimator.bind(oracle)
            self._oracle = oracle
        return self.estimator.estimate(oracle, as_tensor(x), context, rng).gradient


#: The estimators HPGD knows by name, and the keywords of their own.
_ESTIMATORS: dict[str, tuple[type[Estimator], tuple[str, ...]]] = {
    "monte_carlo": (MonteCarloEstimator, ("env_steps", "bootstrap_truncated", "error_groups")),
    "critic": (CriticEstimator, ("env_steps", "hidden", "error_groups")),
    "geometric": (GeometricEstimator, ("samples", "sampling_distribution", "error_groups")),
    "multilevel": (MultilevelEstimator, ("levels", "samples", "runs")),
    "pooled": (PooledEstimator, ("env_steps", "share_contexts")),
}


class HPGD(Leader):
    """Hyper Policy Gradient Descent (paper, Algorithm 1): learns from trajectories of the follower's policy.

    Args:
        learning_rate: step size.
        env_steps: environment steps per gradient (monte_carlo, pooled, critic; 10,000 if None).
        estimator: where gradients come from; any other `Estimator` composes with an update as ``Leader(estimator, update)``:

            - "monte_carlo", that of the paper's experiments: on-policy steps, small variance;
            - "pooled", for dynamics that do not depend on x: exact on the model that all steps so far have shown;
            - "critic", for problems that are no tables: values fitted by regression, the environment's model in a surrogate;
            - "geometric", Algorithms 1, 2 and 5 literally: unbiased draws, for discounts well below 1;
            - "multilevel", randomised numbers of the follower's iterations (section C.2), for followers that can be stopped.
        samples: independent draws per gradient (geometric, multilevel; 20,000 if None).
        levels: the follower makes 2^levels iterations in effect (multilevel; 10 if None).
        runs: follower runs averaged per gradient (multilevel; 1 if None).
        bootstrap_truncated: continue episodes cut by a time limit as the average visit to their last state (monte_carlo).
        share_contexts: count transitions of all contexts together, which must be the same ones (pooled).
        sampling_distribution: nu of Algorithm 1, ``(S,)`` (geometric, with a general loss); uniform if None.
        hidden: widths of the fitted values' hidden layers (critic); see `leaders.gradients.CriticEstimator`.
        error_groups: split each gradient's sample into this many groups and report a standard error; 0 or None: none.
        regularization: lambda; the follower's if None, required where the follower has none.
        optimizer, max_gradient_norm, optimizer_options: see `leaders.updates.Update`; the paper clips to 1.

    Raises:
        OptionError: an unknown estimator, a keyword of another estimator, or a value out of range.
    """

    def __init__(
        self,
        learning_rate: float = 0.5,
        env_steps: int | None = None,
        estimator: str = "monte_carlo",
        *,
        samples: int | None = None,
        levels: int | None = None,
        runs: int | None = None,
        bootstrap_truncated: bool | None = None,
        share_contexts: bool | None = None,
        sampling_distribution: npt.ArrayLike | None = None,
        hidden: Sequence[int] | None = None,
        error_groups: int | None = None,
        regularization: float | None = None,
        optimizer: str | OptimizerFactory = "SGD",
        max_gradient_norm: float | None = 1.0,
        **optimizer_options: Any,
    ):
        if estimator not in _ESTIMATORS:
            raise OptionError(f"unknown estimator {estimator!r}. {suggest(estimator, _ESTIMATORS)}")
        given = {
            "env_steps": env_steps,
            "samples": samples,
            "levels": levels,
            "runs": runs,
            "bootstrap_truncated": bootstrap_truncated,
            "share_contexts": share_contexts,
            "sampling_distribution": sampling_distribution,
            "hidden": hidden,
            "error_groups": error_groups,
        }
        kind, own = _ESTIMATORS[estimator]
        options = {name: value for name, value in given.items() if value is not None}
        for name in options:
            if name not in own:
                users = " or ".join(f"estimator={other!r}" for other, (_, names) in _ESTIMATORS.items() if name in names)
                raise OptionError(f"{name} is an option of {users}, not of estimator={estimator!r}.")
        super().__init__(
            kind(**options, regularization=regularization),
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


class AMD(Leader):
    """Adaptive model design (paper, Algorithm 7): sweeps the values and their derivatives forward; knows the model.

    `ExactGradient` climbs along the same gradient without the sweeps' lag, and faster; this leader is the paper's baseline.

    Args:
        learning_rate: step size.
        sweeps: the paper's K, sweeps over every context per new x.
        regularization: lambda; the follower's if None.
        optimizer, max_gradient_norm, optimizer_options: see `leaders.updates.Update`.
    """

    def __init__(
        self,
        learning_rate: float = 0.5,
        sweeps: int = 100,
        *,
        regularization: float | None = None,
        optimizer: str | OptimizerFactory = "SGD",
        max_gradient_norm: float | None = 1.0,
        **optimizer_options: Any,
    ):
        estimator = AdaptiveModelDesignEstimator(sweeps, regularization)
        super().__init__(estimator, Update(learning_rate, optimizer, max_gradient_norm, **optimizer_options))


class ZeroOrder(Leader):
    """Differences of the leader's return along random directions (paper, Algorithm 8): any environment, any follower.

    Args:
        learning_rate: step size.
        smoothing: the paper's C; u_t = C/(t + 1), or C throughout if not ``decay``.
        decay: see ``smoothing``.
        directions: random directions per gradient.
        two_sided: differences between two points around x.
        exact: exact returns instead of sampled ones; None: where the model is tabular and the follower plans with it.
        env_steps: steps per sampled return.
        common_random_numbers: responses and returns that are compared draw the same random numbers.
        regularization: lambda, for evaluation only; the follower's if None.
        optimizer, max_gradient_norm, optimizer_options: see `leaders.updates.Update`.

    Raises:
        OptionError: a value out of range.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        smoothing: float = 1.0,
        *,
        decay: bool = True,
        directions: int = 1,
        two_sided: bool = False,
        exact: bool | None = None,
        env_steps: int = 10_000,
        common_random_numbers: bool = True,
        regularization: float | None = None,
        optimizer: str | OptimizerFactory = "SGD",
        max_gradient_norm: float | None = 1.0,
        **optimizer_options: Any,
    ):
        estimator = ZeroOrderEstimator(
            smoothing, directions, two_sided, decay, exact, env_steps, common_random_numbers, regularization
        )
        super().__init__(estimator, Update(learning_rate, optimizer, max_gradient_norm, **optimizer_options))


def as_tensor(x: Any) -> Tensor:
    """x as a float64 tensor without a graph."""
    return x.detach() if isinstance(x, Tensor) else torch.tensor(np.array(x, dtype=np.float64))
