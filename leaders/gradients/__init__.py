"""Hypergradient estimators, one per file."""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use

if TYPE_CHECKING:
    from bocmdp_gym.losses import Loss
    from leaders.gradients.adaptive_model_design import AdaptiveModelDesignEstimator
    from leaders.gradients.automatic import AutoEstimator
    from leaders.gradients.base import Estimator, PolicyEstimator
    from leaders.gradients.critic import CriticEstimator
    from leaders.gradients.estimate import Estimate
    from leaders.gradients.exact import ExactEstimator, exact_weights
    from leaders.gradients.first_order import FirstOrderEstimator, first_order_weights
    from leaders.gradients.geometric import GeometricEstimator, geometric_loss_weights, geometric_weights
    from leaders.gradients.monte_carlo import MonteCarloEstimator, monte_carlo_weights
    from leaders.gradients.multilevel import MultilevelEstimator
    from leaders.gradients.pooled import PooledEstimator
    from leaders.gradients.td import TDEstimator
    from leaders.gradients.zero_order import ZeroOrderEstimator
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = [
    "AdaptiveModelDesignEstimator",
    "AutoEstimator",
    "CriticEstimator",
    "Estimate",
    "Estimator",
    "ExactEstimator",
    "FirstOrderEstimator",
    "GeometricEstimator",
    "Loss",
    "MonteCarloEstimator",
    "MultilevelEstimator",
    "PolicyEstimator",
    "PooledEstimator",
    "TDEstimator",
    "ZeroOrderEstimator",
    "exact_weights",
    "first_order_weights",
    "geometric_loss_weights",
    "geometric_weights",
    "monte_carlo_weights",
]
