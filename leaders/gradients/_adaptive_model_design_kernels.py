"""Compiled forward sweeps of adaptive model design; the mathematics is in `leaders.gradients.adaptive_model_design`.

Arrays of **one** context: succ (S, A, K) int32, prob (S, A, K), everything per pair (S, A). Values never see derivatives, so
they are swept first and their path is kept; then the derivatives, a few coordinates of x at a time, which keeps all K sweeps of
those coordinates in the cache.
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

_BLOCK = 64  # coordinates of x swept together
# reassociation lets the loops over coordinates vectorise; NaN and infinity keep their meaning
_LOOSE = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True)
def merged_transitions(succ, prob, termination):
    """Distinct successors (S, U) of every state, and (1 - q) P (S, A, U) by distinct successor.

    U is a multiple of 4; unused places hold the state itself, with probability 0.
    """
    n_s, n_a, n_k = succ.shape
    place = np.full(n_s, -1)
    most = (min(n_s, n_a * n_k) + 3) // 4 * 4
    rows = np.empty((n_s, most), np.int32)
    share = np.zeros((n_s, n_a, most))
    widest = 0
    for s in range(n_s):
        rows[s] = s
        n = 0
        for a in range(n_a):
            for k in range(n_k):
                following = succ[s, a, k]
                if place[following] < 0:
                    place[following] = n
                    rows[s, n] = following
                    n += 1
                share[s, a, place[following]] += (1.0 - termination[s, a]) * prob[s, a, k]
        for j in range(n):
            place[rows[s, j]] = -1
        widest = max(widest, n)
    widest = (widest + 3) // 4 * 4
    return rows[:, :widest].copy(), share[:, :, :widest].copy()


@njit(cache=True)
def _soft_policy_row(q, s, lam, pi):
    """Fill pi(.|s) = softmax(q / lam) and return V(s) = lam logsumexp(q / lam)."""
    top = -np.inf
    for a in range(q.shape[1]):
        top = max(top, q[s, a])
    z = 0.0
    for a in range(q.shape[1]):
        pi[s, a] = math.exp((q[s, a] - top) / lam)
        z += pi[s, a]
    for a in range(q.shape[1]):
        pi[s, a] /= z
    return top + lam * math.log(z)


@njit(cache=True)
def _values(q, q_leader, lam, pi, v, v_leader):
    """Policy and both values of Q (S, A) and the leader's Q (S, A)."""
    for s in range(q.shape[0]):
        v[s] = _soft_policy_row(q, s, lam, pi)
        v_leader[s] = 0.0
        for a in range(q.shape[1]):
            v_leader[s] += pi[s, a] * q_leader[s, a]


@njit(cache=True)
def sweep_values(reward, leader_reward, rows, share, gamma, gamma_leader, lam, q, q_leader, pi, v, v_leader, kick):
    """K sweeps of Q and of the leader's Q, in place.

    Fills the path of pi (K + 1, S, A), of both values (K + 1, S), and kick (K, S, A) = pi_{k+1} A^u_k / lambda. Returns the
    last change of the follower's values.
    """
    n_s, n_a, n_u = share.shape
    _values(q, q_leader, lam, pi[0], v[0], v_leader[0])
    for k in range(kick.shape[0]):
        for s in range(n_s):
            for a in range(n_a):
                kick[k, s, a] = (q_leader[s, a] - v_leader[k, s]) / lam
                future = 0.0
                future_leader = 0.0
                for j in range(n_u):
                    future += share[s, a, j] * v[k, rows[s, j]]
                    future_leader += share[s, a, j] * v_leader[k, rows[s, j]]
                q[s, a] = reward[s, a] + gamma * future
                q_leader[s, a] = leader_reward[s, a] + gamma_leader * future_leader
        _values(q, q_leader, lam, pi[k + 1], v[k + 1], v_leader[k + 1])
        for s in range(n_s):
            for a in range(n_a):
                kick[k, s, a] *= pi[k + 1, s, a]
    change = 0.0
    for s in range(n_s):
        change = max(change, abs(v[-1, s] - v[-2, s]))
    return change


@njit(cache=True)
def _load(source, low, width, block):
    """Copy coordinates low..low + width - 1 of ``source`` into ``block``."""
    for s in range(block.shape[0]):
        for a in range(block.shape[1]):
            for i in range(width):
                block[s, a, i] = source[s, a, low + i]


@njit(cache=True, fastmath=_LOOSE)
def sweep_derivatives(
    succ,
    prob,
    termination,
    gamma,
    gamma_leader,
    rows,  # merged_transitions
    share,
    pi,  # the path of `sweep_values`
    v,
    v_leader,
    kick,
    d_reward,  # derivatives: (S, A or 1, d), (S, A or 1, d), (S, A, K, d), (S, A or 1, d); the last two empty if constant
    d_leader,
    d_prob,
    d_termination,
    dq,  # dQ (S, A, d) and Vtilde (S, d), changed in place
    v_tilde,
):
    """K sweeps of dQ and Vtilde along a path of values."""
    n_s, n_a, n_d = dq.shape
    n_u, n_k = rows.shape[1], prob.shape[2]
    slots, slots_leader = d_reward.shape[1], d_leader.shape[1]
    slope = np.zeros((n_s, slots, _BLOCK))
    slope_leader = np.zeros((n_s, slots_leader, _BLOCK))
    row = np.zeros((n_s, n_a, _BLOCK))
    dv, dv_new = np.zeros((n_s, _BLOCK)), np.zeros((n_s, _BLOCK))
    tilde, tilde_new = np.zeros((n_s, _BLOCK)), np.zeros((n_s, _BLOCK))
    ahead = np.empty(n_u)
    for low in range(0, n_d, _BLOCK):
        width = min(_BLOCK, n_d - low)
        _load(d_reward, low, width, slope)
        _load(d_leader, low, width, slope_leader)
        _load(dq, low, width, row)
        for s in range(n_s):
            for i in range(width):
                tilde[s, i] = v_tilde[s, low + i]
            for i in range(_BLOCK):
                dv[s, i] = 0.0
            for a in range(n_a):
                for i in range(_BLOCK):
                    dv[s, i] += pi[0, s, a] * row[s, a, i]
        for sweep in range(kick.shape[0]):
            for s in range(n_s):
                total = 0.0
                for a in range(n_a):
                    total += kick[sweep, s, a]
                before, after, out = dv[s], dv_new[s], tilde_new[s]
                for i in range(_BLOCK):
                    out[i] = -total * before[i]
                for i in range(_BLOCK):
                    after[i] = 0.0
                for j in range(n_u):
                    ahead[j] = 0.0
                for a in range(n_a):
                    p = pi[sweep + 1, s, a]
                    weight = kick[sweep, s, a]
                    here = row[s, a]
                    own, own_leader = slope[s, min(a, slots - 1)], slope_leader[s, min(a, slots_leader - 1)]
                    for i in range(_BLOCK):
                        out[i] += weight * here[i] + p * own_leader[i]
                        here[i] = own[i]
                    for j in range(n_u):
                        ahead[j] += gamma_leader * p * share[s, a, j]
                    if d_prob.size > 0:
                        continues = 1.0 - termination[s, a]
                        for k in range(n_k):
                            weight = gamma * continues * v[sweep, succ[s, a, k]]
                            weight_leader = gamma_leader * continues * p * v_leader[sweep, succ[s, a, k]]
                            for i in range(width):
                                here[i] += weight * d_prob[s, a, k, low + i]
                                out[i] += weight_leader * d_prob[s, a, k, low + i]
                    if d_termination.size > 0:
                        weight = 0.0
                        weight_leader = 0.0
                        for k in range(n_k):
                            weight -= gamma * prob[s, a, k] * v[sweep, succ[s, a, k]]
                            weight_leader -= gamma_leader * p * prob[s, a, k] * v_leader[sweep, succ[s, a, k]]
                        last = min(a, d_termination.shape[1] - 1)
                        for i in range(width):
                            here[i] += weight * d_termination[s, last, low + i]
                            out[i] += weight_leader * d_termination[s, last, low + i]
                for j in range(0, n_u, 4):
                    r0, r1, r2, r3 = rows[s, j], rows[s, j + 1], rows[s, j + 2], rows[s, j + 3]
                    w0, w1, w2, w3 = ahead[j], ahead[j + 1], ahead[j + 2], ahead[j + 3]
                    x0, x1, x2, x3 = tilde[r0], tilde[r1], tilde[r2], tilde[r3]
                    for i in range(_BLOCK):
                        out[i] += w0 * x0[i] + w1 * x1[i] + w2 * x2[i] + w3 * x3[i]
                    x0, x1, x2, x3 = dv[r0], dv[r1], dv[r2], dv[r3]
                    for a in range(n_a):
                        w0, w1 = gamma * share[s, a, j], gamma * share[s, a, j + 1]
                        w2, w3 = gamma * share[s, a, j + 2], gamma * share[s, a, j + 3]
                        here = row[s, a]
                        for i in range(_BLOCK):
                            here[i] += w0 * x0[i] + w1 * x1[i] + w2 * x2[i] + w3 * x3[i]
                for a in range(n_a):
                    p = pi[sweep + 1, s, a]
                    here = row[s, a]
                    for i in range(_BLOCK):
                        after[i] += p * here[i]
            dv, dv_new = dv_new, dv
            tilde, tilde_new = tilde_new, tilde
        for s in range(n_s):
            for i in range(width):
                v_tilde[s, low + i] = tilde[s, i]
                for a in range(n_a):
                    dq[s, a, low + i] = row[s, a, i]
