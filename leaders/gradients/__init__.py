"""Hypergradient estimators, one per file."""

from leaders.gradients._monte_carlo_kernels import monte_carlo_weights
from leaders.gradients.adaptive_model_design import AdaptiveModelDesignEstimator
from leaders.gradients.base import Estimator, PolicyEstimator
from leaders.gradients.critic import CriticEstimator
from leaders.gradients.estimate import Estimate
from leaders.gradients.exact import ExactEstimator, exact_weights
from leaders.gradients.geometric import GeometricEstimator, geometric_loss_weights, geometric_weights
from leaders.gradients.monte_carlo import MonteCarloEstimator
from leaders.gradients.multilevel import MultilevelEstimator
from leaders.gradients.needs import Loss
from leaders.gradients.pooled import PooledEstimator
from leaders.gradients.zero_order import ZeroOrderEstimator

#: The estimators that `leaders.HPGD` knows by name. One more is a file, its test, a line here and a changelog entry.
ESTIMATORS: dict[str, type[Estimator]] = {
    "monte_carlo": MonteCarloEstimator,
    "critic": CriticEstimator,
    "geometric": GeometricEstimator,
    "multilevel": MultilevelEstimator,
    "pooled": PooledEstimator,
}

__all__ = [
    "ESTIMATORS",
    "AdaptiveModelDesignEstimator",
    "CriticEstimator",
    "Estimate",
    "Estimator",
    "ExactEstimator",
    "GeometricEstimator",
    "Loss",
    "MonteCarloEstimator",
    "MultilevelEstimator",
    "PolicyEstimator",
    "PooledEstimator",
    "ZeroOrderEstimator",
    "exact_weights",
    "geometric_loss_weights",
    "geometric_weights",
    "monte_carlo_weights",
]
