r"""How unequally something is spread over people: Gini's and Atkinson's indices, and the Lorenz curve.

The mathematics. Groups of shares p_i (which sum to 1), each of whose members has v_i >= 0, mu = sum_i p_i v_i:

    Gini        G = sum_ij p_i p_j abs(v_i - v_j) / (2 mu) = 2 sum_i p_i v_i F_i / mu - 1
    Atkinson    A = 1 - (sum_i p_i v_i^(1 - epsilon))^(1 / (1 - epsilon)) / mu,   epsilon = 1: 1 - exp(sum_i p_i log v_i) / mu
    Lorenz      L(F) = the share of all of mu that the poorest F of the people have

with F_i = sum_{j: v_j < v_i} p_j + p_i / 2 once sorted. A is the share of mu that could be given up, were the rest spread
evenly, at no loss to whoever is averse to inequality by epsilon (Atkinson 1970). G is at most 1 - min_i p_i, which is 1 - 1/n for
n equal groups; so *equality*, 1 - G n / (n - 1), runs from 0 to 1 there (Zheng et al. 2022).

For v Pareto with exponent a, G = 1 / (2a - 1). Both indices take tensors as well and are then differentiable.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import check_array, check_number

Array = npt.NDArray[np.float64]

__all__ = ["atkinson", "equality", "gini", "lorenz", "small_sample_factor"]


def _check_values(values: Any, weights: Any) -> tuple[Tensor, Tensor]:
    """Values as they are or as a tensor, and shares that sum to 1, each ``(n,)``.

    Raises:
        OptionError: no finite numbers >= 0, or nothing but 0.
    """
    v = check_array("values", values, (None,))
    if (v < 0.0).any():
        raise OptionError(f"values is {v.min()} at {[int(v.argmin())]}; expected numbers >= 0: shares of a whole.")
    p = np.ones(len(v)) if weights is None else check_array("weights", weights, (len(v),))
    if (p < 0.0).any():
        raise OptionError(f"weights is {p.min()} at {[int(p.argmin())]}; expected numbers >= 0.")
    if not p @ v > 0.0:
        raise OptionError("the values of all with positive weight are 0; expected somebody who has something.")
    tensor = values.to(torch.float64) if isinstance(values, Tensor) else torch.from_numpy(v)
    return tensor, torch.from_numpy(p / p.sum())


def _as_given(result: Tensor, values: Any) -> Any:
    return result if isinstance(values, Tensor) else float(result)


@overload
def gini(values: Tensor, weights: npt.ArrayLike | None = None) -> Tensor: ...
@overload
def gini(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float: ...
def gini(values: Any, weights: npt.ArrayLike | None = None) -> Any:
    """The Gini coefficient: 0 if all have the same.

    Args:
        values: what each group's members have, ``(n,)``, >= 0 and not all 0.
        weights: how large the groups are, ``(n,)``, >= 0; all the same if None.

    Raises:
        OptionError: another shape, or negative numbers.
    """
    v, p = _check_values(values, weights)
    order = torch.argsort(v.detach(), stable=True)
    v, p = v[order], p[order]
    return _as_given(2.0 * (p * v * (p.cumsum(0) - p / 2.0)).sum() / (p * v).sum() - 1.0, values)


@overload
def atkinson(values: Tensor, epsilon: float = 1.0, weights: npt.ArrayLike | None = None) -> Tensor: ...
@overload
def atkinson(values: npt.ArrayLike, epsilon: float = 1.0, weights: npt.ArrayLike | None = None) -> float: ...
def atkinson(values: Any, epsilon: float = 1.0, weights: npt.ArrayLike | None = None) -> Any:
    """Atkinson's index: 0 if all have the same, towards 1 for inequality. From epsilon = 1 on it is 1 if somebody has nothing.

    Args:
        values: what each group's members have, ``(n,)``, >= 0 and not all 0.
        epsilon: aversion to inequality, >= 0; 0: indifference.
        weights: how large the groups are, ``(n,)``, >= 0; all the same if None.

    Raises:
        OptionError: another shape, or negative numbers.
    """
    power = 1.0 - check_number("epsilon", epsilon, 0.0)
    v, p = _check_values(values, weights)
    v, p = v[p > 0.0], p[p > 0.0]
    mean, logs = (p * v).sum(), v.log()
    if power == 0.0:
        equivalent = torch.exp((p * logs).sum())
    else:
        equivalent = torch.exp(torch.logsumexp(p.log() + power * logs, 0) / power)
    return _as_given(1.0 - equivalent / mean, values)


@overload
def equality(values: Tensor, weights: npt.ArrayLike | None = None) -> Tensor: ...
@overload
def equality(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float: ...
def equality(values: Any, weights: npt.ArrayLike | None = None) -> Any:
    """1 - G n / (n - 1): 1 if all have the same; for groups of the same size, 0 if one has everything. Arguments as for `gini`.

    Raises:
        OptionError: another shape, or negative numbers.
    """
    return 1.0 - small_sample_factor(len(values)) * gini(values, weights)


def small_sample_factor(n: int) -> float:
    """n / (n - 1), by which the largest Gini coefficient of n equal groups becomes 1; 1 for n = 1, where it is 0 anyway."""
    return n / (n - 1) if n > 1 else 1.0


def lorenz(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> tuple[Array, Array]:
    """The Lorenz curve's corners: cumulative shares of people, and of what they have, both ``(n + 1,)`` from 0 to 1.

    Args:
        values, weights: as for `gini`.

    Raises:
        OptionError: another shape, or negative numbers.
    """
    v, p = (part.detach().numpy() for part in _check_values(values, weights))
    order = np.argsort(v, kind="stable")
    people, held = np.append(0.0, p[order].cumsum()), np.append(0.0, (p * v)[order].cumsum())
    return people / people[-1], held / held[-1]
