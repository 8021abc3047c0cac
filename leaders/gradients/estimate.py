"""`Estimate`, what an estimator returns, and how several become one: groups of draws, contexts of an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import ContextError, OptionError
from bocmdp_gym.options import as_integer

#: The contexts of one iteration, with their weights.
WeightedContexts = list[tuple[Any, float]]


@dataclass
class Estimate(Constructed):
    """One estimate of dF_xi/dx.

    Attributes:
        gradient: ascent direction ``(d,)``: of the leader's return, or of minus the loss.
        leader_return: the leader's return F_xi the estimate saw (minus the loss, with a loss); NaN if it saw none.
        env_steps: environment steps it used, all of them through the oracle.
        standard_error: of each coordinate ``(d,)``, where the estimator can provide one.
        metrics: anything else worth a column of the history.
        model_draws: steps it drew from the model itself, without the environment.
    """

    gradient: Tensor
    leader_return: float
    env_steps: int = 0
    standard_error: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    model_draws: int = 0


def every_context(core: Any) -> WeightedContexts:
    """All contexts of positive probability of an environment, with their probabilities.

    Raises:
        ContextError: there are infinitely many.
    """
    if core.context_probabilities is None:
        raise ContextError(f"{core.context_space} has no finite list of contexts to average over; pass one context.")
    first = int(core.context_space.start)
    return [(first + i, float(p)) for i, p in enumerate(core.context_probabilities) if p > 0]


def weighted(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """The estimate of an iteration from those in its contexts; metrics are the first one's."""
    first = estimates[0]
    if len(estimates) == 1 and weights[0] == 1.0:
        return first
    pairs = list(zip(weights, estimates, strict=True))
    errors = [w * e.standard_error for w, e in pairs if e.standard_error is not None]
    return Estimate(
        torch.stack([w * e.gradient for w, e in pairs]).sum(0),
        sum(w * e.leader_return for w, e in pairs),
        sum(e.env_steps for e in estimates),
        torch.stack(errors).square().sum(0).sqrt() if len(errors) == len(pairs) else None,
        first.metrics,
        sum(e.model_draws for e in estimates),
    )


def check_groups(error_groups: int, name: str, size: int) -> int:
    """A number of groups that a standard error can come from: 0, or 2 to ``size``.

    Raises:
        OptionError: any other number.
    """
    number = as_integer(error_groups)
    if number is not None and (number == 0 or 2 <= number <= size):
        return number
    raise OptionError(f"error_groups is {error_groups!r}; expected 0 (no standard error), or 2 to {name} ({size}).")


def split(total: int, groups: int) -> list[int]:
    """Sizes of ``groups`` (at least one) groups as equal as can be."""
    groups = max(groups, 1)
    return [total // groups + (i < total % groups) for i in range(groups)]


def combine_groups(gradients: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Mean of independent groups' gradients ``(d,)``, weighted by their sizes, and its standard error (None for one group)."""
    if len(gradients) == 1:
        return gradients[0], None
    stacked, weights = torch.stack(list(gradients)), torch.tensor(sizes, dtype=torch.float64).unsqueeze(-1)
    mean = (weights * stacked).sum(0) / weights.sum()
    n = len(gradients)
    spread = (weights / weights.mean() * (stacked - mean)).square().sum(0)
    return mean, (spread / (n * (n - 1))).sqrt()
