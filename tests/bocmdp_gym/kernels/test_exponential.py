from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from bocmdp_gym.kernels.exponential import exponentials


def _exp(x: float) -> Fraction:
    """exp(x) by its series in exact arithmetic, x halved until that is short."""
    halvings = 12
    small, term, total = Fraction(x) / 2**halvings, Fraction(1), Fraction(1)
    for n in range(1, 14):
        term *= small / n
        total += term
    for _ in range(halvings):
        total = Fraction(round(total * total * 2**1200), 2**1200)
    return total


def test_errors_are_a_rounding() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [-rng.exponential(size=150), -40.0 * rng.random(size=100), -rng.random(50) * 1e-9, [-0.34657359, -0.34657360]]
    )
    found = x.copy()
    exponentials(found, len(x), np.empty(len(x)))
    for value, result in zip(x.tolist(), found.tolist(), strict=True):
        exact = _exp(value)
        assert abs(Fraction(result) - exact) <= Fraction(0.75 * 2.0**-52) * exact


def test_far_below_zero_it_is_that_of_numpy() -> None:
    x = np.linspace(-707.9, -600.0, 500)
    found = x.copy()
    exponentials(found, len(x), np.empty(len(x)))
    np.testing.assert_allclose(found, np.exp(x), rtol=1e-15)


@pytest.mark.parametrize("kernel", [exponentials, exponentials.py_func])
def test_special_numbers(kernel: Any) -> None:
    """Compiled, and as NUMBA_DISABLE_JIT=1 leaves it."""
    x = np.array([0.0, -0.0, -np.inf, np.nan, -708.5, -1e300, -5.0])
    kernel(x, 6, np.empty(7))
    np.testing.assert_array_equal(x, [1.0, 1.0, 0.0, np.nan, 0.0, 0.0, -5.0])
