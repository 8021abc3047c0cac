"""How many threads compiled functions may run in, and how much each takes at a time."""

from __future__ import annotations

import numba

_PARTS = 4  # per thread


def available_threads() -> int:
    """The cores of this machine, or what NUMBA_NUM_THREADS says.

    `numba.get_num_threads` would start numba's own threads first, and by that tell OpenMP, and torch with it, to use as many,
    whatever OMP_NUM_THREADS says.
    """
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined, unused-ignore]


def part_size(n: int, threads: int) -> int:
    """How many of n problems are solved in one go: a few parts per thread, so that none waits long for another."""
    return -(-n // (_PARTS * threads)) if threads > 1 else n
