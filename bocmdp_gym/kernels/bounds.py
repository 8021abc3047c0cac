"""Whether numbers are within bounds, NaN being without: asked of every array at every x, so asked of compiled code."""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit

#: The largest number that is finite.
LARGEST = float(np.finfo(np.float64).max)


@njit(cache=True)
def all_within(values, low, high):
    """Whether ``low <= values <= high`` for all of ``values`` ``(n,)``."""
    for value in values:  # noqa: SIM110 - numba compiles no generators
        if not (low <= value <= high):
            return False
    return True


@njit(cache=True)
def first_outside(values, low, high):
    """The first entry of ``values`` ``(n,)`` that is not finite, or not between those of ``low`` and ``high``; -1: all are."""
    for i in range(len(values)):
        if not (low[i] <= values[i] <= high[i] and abs(values[i]) <= LARGEST):
            return i
    return -1
