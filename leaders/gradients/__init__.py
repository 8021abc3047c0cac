"""Hypergradient estimators, one per file."""

from leaders.gradients.base import Estimate, Estimator, Loss
from leaders.gradients.exact import ExactEstimator, exact_weights
from leaders.gradients.monte_carlo import MonteCarloEstimator, monte_carlo_weights

__all__ = [
    "Estimate",
    "Estimator",
    "ExactEstimator",
    "Loss",
    "MonteCarloEstimator",
    "exact_weights",
    "monte_carlo_weights",
]
