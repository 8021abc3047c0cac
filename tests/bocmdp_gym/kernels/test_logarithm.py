from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest

from bocmdp_gym.kernels.logarithm import logarithms


def test_errors_are_below_a_unit_in_the_last_place() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([1.0 + 3.0 * rng.random(300), 1.0 + rng.random(100) * 1e-9, rng.lognormal(sigma=100.0, size=300)])
    x = np.concatenate([x, np.nextafter([0.5**0.5, 2.0**0.5, 2.0, 1.0], 0.0), np.nextafter([0.5**0.5, 2.0**0.5, 2.0, 1.0], 9.0)])
    found = x.copy()
    logarithms(found, len(x), np.empty(len(x)))
    with localcontext() as context:
        context.prec = 50
        for value, result in zip(x.tolist(), found.tolist(), strict=True):
            assert abs(Decimal(result) - Decimal(value).ln()) <= Decimal(float(np.spacing(abs(result))))


@pytest.mark.parametrize("kernel", [logarithms, logarithms.py_func])
def test_special_numbers(kernel: Any) -> None:
    """Compiled, and as NUMBA_DISABLE_JIT=1 leaves it."""
    x = np.array([1.0, np.inf, np.nan, 4.0, 1e-300, 7.0])
    kernel(x, 5, np.empty(6))
    np.testing.assert_allclose(x, [0.0, np.inf, np.nan, np.log(4.0), np.log(1e-300), 7.0], rtol=1e-15)
    assert x[0] == 0.0
