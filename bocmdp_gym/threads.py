"""How many threads compiled functions may run in."""

from __future__ import annotations

import numba


def available_threads() -> int:
    """The cores of this machine, or what NUMBA_NUM_THREADS says.

    `numba.get_num_threads` would start numba's own threads first, and by that tell OpenMP, and torch with it, to use as many,
    whatever OMP_NUM_THREADS says.
    """
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined, unused-ignore]
