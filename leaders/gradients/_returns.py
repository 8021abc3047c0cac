"""Compiled traces along episodes, and scores as weights: what several estimators share.

Episodes are laid end to end, as in `bocmdp_gym.Trajectories`: ends (E,) are the steps after each episode's last.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def traces(kicks, ends, gamma, gamma_leader):
    """e_t = gamma e_{t-1} + gamma_L^t kick_t (N,), and gamma_L^t (N,)."""
    trace = np.empty(kicks.shape[0])
    power = np.empty(kicks.shape[0])
    for e in range(ends.shape[0]):
        begin = ends[e - 1] if e > 0 else 0
        value = 0.0
        factor = 1.0
        for i in range(begin, ends[e]):
            value = gamma * value + factor * kicks[i]
            trace[i] = value
            power[i] = factor
            factor *= gamma_leader
    return trace, power


@njit(cache=True)
def score_weights(succ, prob, w_transition):
    """Weights on the stored values of P from weights on log P(s'|s, a), given at one or several k of each successor s'.

    Successors that occur more than once in a list share their weights: d log P(s'|s, a) = sum_k dP_k / P(s'|s, a).
    """
    n_s, n_a, n_k = prob.shape
    out = np.empty(prob.shape)
    mass = np.zeros(n_s)
    weight = np.zeros(n_s)
    for s in range(n_s):
        for a in range(n_a):
            for k in range(n_k):
                mass[succ[s, a, k]] += prob[s, a, k]
                weight[succ[s, a, k]] += w_transition[s, a, k]
            for k in range(n_k):
                following = succ[s, a, k]
                out[s, a, k] = weight[following] / mass[following] if mass[following] > 0.0 else 0.0
            for k in range(n_k):
                mass[succ[s, a, k]] = 0.0
                weight[succ[s, a, k]] = 0.0
    return out
