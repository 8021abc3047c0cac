"""Indices of inequality against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bocmdp_gym.errors import OptionError
from bocmdp_gym.inequality import atkinson, equality, gini, lorenz

Array = Any


def pareto(exponent: float, n: int = 200_000) -> Array:
    """Quantiles of a Pareto distribution from 1 on."""
    return ((np.arange(n) + 0.5) / n) ** (-1.0 / exponent)


@pytest.mark.parametrize("a", [3.0, 5.0])
def test_pareto(a: float) -> None:
    v, mean = pareto(a), a / (a - 1.0)
    assert gini(v) == pytest.approx(1.0 / (2.0 * a - 1.0), abs=1e-3)
    assert atkinson(v, 1.0) == pytest.approx(1.0 - np.exp(1.0 / a) / mean, abs=1e-3)
    for epsilon in (0.5, 2.0):
        equivalent = (a / (a - 1.0 + epsilon)) ** (1.0 / (1.0 - epsilon))
        assert atkinson(v, epsilon) == pytest.approx(1.0 - equivalent / mean, abs=1e-3)


def test_small_cases() -> None:
    assert gini([2.0, 2.0]) == pytest.approx(0.0)
    assert gini([0.0, 1.0]) == pytest.approx(0.5)
    assert gini([1.0, 3.0], [0.25, 0.75]) == pytest.approx(0.25 * 0.75 * 2 / 2.5)
    assert equality([0.0, 0.0, 1.0]) == pytest.approx(0.0)
    assert equality([5.0]) == pytest.approx(1.0)
    assert atkinson([0.0, 1.0], 1.0) == pytest.approx(1.0)
    assert atkinson([0.0, 1.0], 2.0) == pytest.approx(1.0)
    assert atkinson([0.0, 1.0], 0.5) == pytest.approx(0.5)
    assert atkinson([7.0, 7.0], 1.0, [1.0, 3.0]) == pytest.approx(0.0)


def test_gini_is_half_the_mean_difference_over_the_mean_and_twice_the_area_above_lorenz() -> None:
    rng = np.random.default_rng(0)
    v, p = rng.exponential(size=30), rng.random(30)
    shares = p / p.sum()
    assert gini(v, p) == pytest.approx(shares @ np.abs(v[:, None] - v) @ shares / (2.0 * shares @ v))
    people, held = lorenz(v, p)
    assert gini(v, p) == pytest.approx(1.0 - 2.0 * np.trapezoid(held, people))
    assert (people[0], held[0], people[-1], held[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert (np.diff(held) > 0.0).all()


@pytest.mark.parametrize("index", [gini, equality, atkinson, lambda v: atkinson(v, 0.5), lambda v: atkinson(v, 2.0)])
def test_tensors_are_differentiable(index: Any) -> None:
    assert torch.autograd.gradcheck(index, torch.tensor([3.0, 1.0, 4.0, 1.5], dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gini([-1.0, 2.0]), r"values is -1.0 at \[0\]; expected numbers >= 0"),
        (lambda: gini([0.0, 0.0]), "somebody who has something"),
        (lambda: gini([]), "values has shape"),
        (lambda: gini("ab"), "values is 'ab'"),
        (lambda: gini([1.0, np.nan]), "values is nan"),
        (lambda: gini([1.0, 2.0], [1.0]), "weights has shape"),
        (lambda: gini([1.0, 2.0], [1.0, -1.0]), "weights is -1.0"),
        (lambda: gini([0.0, 2.0], [1.0, 0.0]), "positive weight"),
        (lambda: atkinson([1.0, 2.0], -0.5), "epsilon is -0.5"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()
