"""`Estimate`, what an estimator returns, and how several become one: groups of draws, contexts of an iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import as_integer

Indices = npt.NDArray[np.int64]
#: The contexts of one iteration, with their weights.
WeightedContexts = list[tuple[Any, float]]
#: Weights of a run's gradients in its contexts, and the return of them all: of the run's number, its contexts, F_xi there.
Weigh = Callable[[int, WeightedContexts, Sequence[float]], tuple[list[float], float]]


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


def extrapolated_error(gradient_of: Callable[[Indices], Tensor], n_episodes: int, comparisons: int) -> Tensor | None:
    """Standard error ``(d,)`` of an estimate from n episodes that is no mean over them; None for fewer than two.

    Disjoint halves and quarters of the episodes give independent estimates, and their spread the variances V(n/2) and V(n/4).
    An estimate that is a product of k averages has V(n) proportional to n^-k where its noise outweighs them, n^-1 where it does
    not: so V(n) = V(n/2)^2 / V(n/4), with an exponent between 1 and 3. Dividing the spread of groups by their number supposes 1,
    and delete-one jackknives overstate the variance k times.

    Args:
        gradient_of: the estimate from some of the episodes, given by their indices.
        n_episodes: n. Below four there are no quarters, and the exponent is taken to be 1.
        comparisons: how many pairs of halves are compared, rounded up to a multiple of 3.
    """
    if n_episodes < 2:
        return None
    shuffle = np.random.default_rng(n_episodes)  # which episodes are taken together does not matter: they are alike
    halves, quarters = [], []
    for _ in range(-(-comparisons // 3)):
        order = shuffle.permutation(n_episodes)
        if n_episodes < 4:
            parts = np.array_split(order, 2)
            pairs = [(parts[0], parts[1])]
        else:
            a, b, c, d = parts = np.array_split(order, 4)
            pairs = [(np.append(a, b), np.append(c, d)), (np.append(a, c), np.append(b, d)), (np.append(a, d), np.append(b, c))]
            quarters.append(torch.stack([gradient_of(np.sort(part)) for part in parts]).var(0))
        halves += [(gradient_of(np.sort(one)) - gradient_of(np.sort(other))).square() / 2 for one, other in pairs]
    half = torch.stack(halves).mean(0)
    ratio = torch.full_like(half, 2.0)
    if quarters:
        ratio = torch.where(half > 0.0, torch.stack(quarters).mean(0) / half, ratio).clamp(2.0, 8.0)
    return (half / ratio).sqrt()
