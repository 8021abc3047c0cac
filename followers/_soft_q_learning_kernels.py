"""The compiled updates of soft Q-learning."""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bocmdp_gym.kernels.random import ONE, next_bits, unit
from followers._softmax_kernels import HIGHEST, LEAST, draw, rebase


@njit(cache=True)
def soft_q_learning(
    q,  # (S, A), and its softmax state (`followers._softmax_kernels`): changed in place
    weight,
    top,
    total,
    value,
    counts,  # (S, A) int64: updates of each pair so far
    reward,
    termination,
    threshold,  # (S M, K): successor tables
    packed,
    rows,  # (A,): the row of each action
    start_threshold,  # (1, S): tables of the initial distribution
    start_packed,
    behaviour_threshold,  # (S, A): tables of the fixed part of the behaviour policy
    behaviour_packed,
    fixed,  # probability of drawing the action from that part, rather than from the softmax of the current q
    pairs,  # (P,): of which one, s A + a, is drawn uniformly at each step; empty: a trajectory is followed
    gamma,
    lam,
    scale,  # step sizes scale / (n + offset), constant where offset is negative
    offset,
    per_pair,
    clock,  # updates done before
    steps,
    cursor,  # (1,) int64: the state the trajectory is in, -1 if an episode is to begin
    rng,
):
    """Soft Q-learning (Algorithm 4, corrected). Returns -1, or the pair s A + a whose value is not finite."""
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_s = np.uint64(q.shape[0])
    n_a = np.uint64(q.shape[1])
    n_k = np.uint64(threshold.shape[1])
    n_m = np.uint64(threshold.shape[0]) // n_s
    flat_q = q.reshape(-1)
    flat_weight = weight.reshape(-1)
    flat_counts = counts.reshape(-1)
    flat_reward = reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_threshold = threshold.reshape(-1)
    flat_packed = packed.reshape(-1)
    flat_behaviour = behaviour_threshold.reshape(-1)
    flat_choices = behaviour_packed.reshape(-1)
    inverse = 1.0 / lam
    constant = offset < 0.0
    bad = np.int64(-1)
    n_pairs = np.uint64(pairs.shape[0])
    drawn = pairs.shape[0] > 0
    is_open = cursor[0] >= 0
    s = np.uint64(max(cursor[0], 0))
    for t in range(clock, clock + steps):
        bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
        u = unit(bits)
        if drawn:
            sa = np.uint64(pairs[np.uint64(u * n_pairs)])
            s = sa // n_a
        else:
            if not is_open:
                u *= n_s
                slot = np.uint64(u)
                s = start_packed[0, slot, np.uint64(u - slot >= start_threshold[0, slot])]
                is_open = True
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                u = unit(bits)
            if u < fixed:
                u *= n_a / fixed
                choice = min(np.uint64(u), n_a - ONE)
                slot = s * n_a + choice
                sa = s * n_a + flat_choices[(slot << ONE) + np.uint64(u - choice >= flat_behaviour[slot])]
            else:
                sa = s * n_a + np.uint64(draw(weight, s, (u - fixed) / (1.0 - fixed) * total[s]))
        target = flat_reward[sa]
        stop = flat_stop[sa]
        ended = False
        if stop > 0.0:
            ended = stop >= 1.0
            if not ended:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                ended = unit(bits) < stop
        following = s
        if not ended:
            bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
            u = unit(bits) * n_k
            slot = np.uint64(u)
            m = (s * n_m + np.uint64(rows[sa - s * n_a])) * n_k + slot
            following = flat_packed[(m << ONE) + np.uint64(u - slot >= flat_threshold[m])]
            target += gamma * value[following]

        if constant:
            alpha = scale
        elif per_pair:
            alpha = scale / (flat_counts[sa] + offset)
        else:
            alpha = scale / (t + offset)
        flat_counts[sa] += 1
        updated = flat_q[sa] + alpha * (target - flat_q[sa])
        if not abs(updated) < np.inf:
            bad = np.int64(sa)
            break
        flat_q[sa] = updated

        exponent = (updated - top[s]) * inverse
        if exponent < HIGHEST:
            flat_weight[sa] = math.exp(exponent)
            summed = 0.0
            for i in range(s * n_a, (s + ONE) * n_a):
                summed += flat_weight[i]
            total[s] = summed
        if exponent >= HIGHEST or total[s] < LEAST:
            rebase(q, lam, s, weight, top, total)
        value[s] = top[s] + lam * math.log(total[s])

        is_open = not ended
        s = following
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
    cursor[0] = np.int64(s) if is_open and not drawn else -1
    return bad
