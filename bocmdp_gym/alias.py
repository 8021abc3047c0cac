"""Walker's alias tables: constant-time draws from discrete distributions, for the compiled kernels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bocmdp_gym import kernels

Array = npt.NDArray[np.float64]


class AliasTables(NamedTuple):
    """Walker's alias tables: slot k of a row yields packed[..., k, 0] below threshold[..., k], else packed[..., k, 1]."""

    threshold: Array
    packed: npt.NDArray[np.uint64]


def alias_tables(weights: Array, outcomes: npt.NDArray[np.int32]) -> AliasTables:
    """Tables for independent draws from the rows of ``weights`` (R, M), with results ``outcomes`` (R, M)."""
    tables = AliasTables(np.empty(weights.shape), np.empty((*weights.shape, 2), dtype=np.uint64))
    kernels.row_tables(weights, outcomes, *tables)
    return tables


def initial_tables(initial: Array) -> AliasTables:
    """Tables of one or several initial distributions, ``(S,)`` or ``(C, S)``."""
    rows = np.atleast_2d(initial)
    return alias_tables(rows, np.broadcast_to(np.arange(rows.shape[1], dtype=np.int32), rows.shape))


def generator_state(rng: np.random.Generator) -> npt.NDArray[np.uint64]:
    """A fresh state of the kernels' generator, drawn from ``rng``."""
    return rng.bit_generator.random_raw(4)
