"""Orders of the states in which neighbours are near each other."""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee


def bandwidth_order(succ: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Positions ``(S,)`` of the states in a bandwidth-reducing order (reverse Cuthill-McKee)."""
    n_states = len(succ)
    pointers, neighbours = adjacency(succ)
    graph = csr_matrix((np.ones(len(neighbours), np.int8), neighbours, pointers), shape=(n_states, n_states))
    graph.sort_indices()
    position = np.empty(n_states, dtype=np.int64)
    position[reverse_cuthill_mckee(graph, symmetric_mode=True)] = np.arange(n_states)
    return position


@njit(cache=True)
def bandwidth(succ, position):
    """The largest distance between the positions of a state and a successor."""
    n_s, n_m, n_k = succ.shape
    band = 0
    for s in range(n_s):
        for a in range(n_m):
            for k in range(n_k):
                band = max(band, abs(position[succ[s, a, k]] - position[s]))
    return band


@njit(cache=True)
def adjacency(succ):
    """Who is a successor of whom, in either direction, each pair once: (pointers ``(S + 1,)``, neighbours), by rows."""
    n_s, n_m, n_k = succ.shape
    count = np.zeros(n_s + 1, np.int64)
    for s in range(n_s):
        for a in range(n_m):
            for k in range(n_k):
                count[s + 1] += 1
                count[succ[s, a, k] + 1] += 1
    for s in range(n_s):
        count[s + 1] += count[s]
    free, pairs = count[:n_s].copy(), np.empty(count[n_s], np.int32)
    for s in range(n_s):
        for a in range(n_m):
            for k in range(n_k):
                t = succ[s, a, k]
                pairs[free[s]] = t
                free[s] += 1
                pairs[free[t]] = s
                free[t] += 1
    seen, pointers, n = np.full(n_s, -1, np.int32), np.zeros(n_s + 1, np.int32), 0
    for s in range(n_s):
        for p in range(count[s], count[s + 1]):
            t = pairs[p]
            if seen[t] != s:
                seen[t] = s
                pairs[n] = t
                n += 1
        pointers[s + 1] = n
    return pointers, pairs[:n].copy()
