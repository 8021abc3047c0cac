"""Policies as trajectories show them: shares of actions, and the visits behind each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bocmdp_gym import Trajectories
from bocmdp_gym.arguments import known_options
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.options import check_count, check_instance


class EmpiricalPolicy(NamedTuple):
    """A policy as trajectories show it.

    Attributes:
        table: shares of the actions ``(S, A)``; NaN in states that were never visited.
        counts: visits ``(S, A)`` behind each share: its standard error is sqrt(p (1 - p) / counts.sum(-1)).
    """

    table: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


@known_options()
def empirical_policy(batch: Trajectories, n_states: int, n_actions: int) -> EmpiricalPolicy:
    """Action shares per state, with the visits that back them.

    Raises:
        UnsupportedError: the trajectories carry no state indices.
    """
    check_instance("batch", batch, Trajectories)
    n_states, n_actions = check_count("n_states", n_states), check_count("n_actions", n_actions)
    if batch.states is None:
        raise UnsupportedError("the trajectories carry no state indices, so actions cannot be counted per state.")
    for name, indices, n in (("states", batch.states, n_states), ("actions", batch.actions, n_actions)):
        if len(indices) and not 0 <= indices.min() <= indices.max() < n:
            raise OptionError(f"the trajectories have {name} up to {indices.max()}; expected n_{name} = {n} to be more.")
    pairs = batch.states.astype(np.int64) * n_actions + batch.actions.astype(np.int64)
    counts = np.bincount(pairs, minlength=n_states * n_actions).reshape(n_states, n_actions)
    visits = counts.sum(-1, keepdims=True)
    return EmpiricalPolicy(np.divide(counts, visits, out=np.full(counts.shape, np.nan), where=visits > 0), counts)
