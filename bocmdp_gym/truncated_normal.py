"""The normal distribution truncated to an interval, in torch: its density, draws and cells, differentiable in the mean.

With F the cdf of N(mean, std^2), its density on [low, high] is F'(s) / (F(high) - F(low)), and a draw is
F^-1(F(low) + u (F(high) - F(low))) of a uniform number u. The mean lies in the interval, or near it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def truncated_normal_log_density(values: Tensor, mean: Tensor, std: float, low: float, high: float) -> Tensor:
    """Log density at ``values`` of N(mean, std^2) truncated to [low, high], differentiable in the mean."""
    mass = torch.special.ndtr((high - mean) / std) - torch.special.ndtr((low - mean) / std)
    standardised = (values - mean) / std
    return -0.5 * standardised.square() - 0.5 * np.log(2 * np.pi) - np.log(std) - torch.log(mass)


def truncated_normal_draw(uniform: Tensor, mean: Tensor, std: float, low: float, high: float) -> Tensor:
    """N(mean, std^2) truncated to [low, high], of uniform numbers by inversion, differentiable in the mean."""
    below, above = (torch.special.ndtr((bound - mean) / std) for bound in (low, high))
    return torch.clamp(mean + std * torch.special.ndtri(below + uniform * (above - below)), low, high)


def cell_probabilities(edges: Tensor, mean: Tensor, std: float) -> Tensor:
    """Probabilities of the cells between ``edges`` (n + 1,) under N(mean, std^2) truncated to them: ``(..., n)``."""
    cdf = torch.special.ndtr((edges - mean.unsqueeze(-1)) / std)
    return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])
