"""Discounted sums along episodes.

Episodes are laid end to end, as in `bocmdp_gym.Trajectories`: ends (E,) are the steps after each episode's last.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def returns_to_go(rewards, ends, tails, gamma):
    """Discounted sums of rewards from every step on (N,); episode e continues with the value ``tails[e]`` after its last step."""
    out = np.empty(rewards.shape[0])
    for e in range(ends.shape[0]):
        begin = ends[e - 1] if e > 0 else 0
        ret = tails[e]
        for i in range(ends[e] - 1, begin - 1, -1):
            ret = rewards[i] + gamma * ret
            out[i] = ret
    return out
