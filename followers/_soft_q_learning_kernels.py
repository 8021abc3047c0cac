"""The compiled updates of soft Q-learning."""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bocmdp_gym.kernels.alias import drawn
from bocmdp_gym.kernels.random import ONE, UNIT, next_bits, unit
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
    successors,  # (S M, K, 2): successor tables
    rows,  # (A,): the row of each action
    starts,  # (1, S, 2): tables of the initial distribution
    behaviour,  # (S, A, 2): tables of the fixed part of the behaviour policy
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
    n_k = np.uint64(successors.shape[1])
    n_m = np.uint64(successors.shape[0]) // n_s
    flat_q = q.reshape(-1)
    flat_weight = weight.reshape(-1)
    flat_counts = counts.reshape(-1)
    flat_reward = reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_successors = successors.reshape(-1)
    flat_starts = starts.reshape(-1)
    flat_behaviour = behaviour.reshape(-1)
    inverse = 1.0 / lam
    constant = offset < 0.0
    bad = np.int64(-1)
    n_pairs = np.uint64(pairs.shape[0])
    by_pairs = pairs.shape[0] > 0
    is_open = cursor[0] >= 0
    s = np.uint64(max(cursor[0], 0))
    for t in range(clock, clock + steps):
        bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
        u = unit(bits)
        if by_pairs:
            sa = np.uint64(pairs[np.uint64(u * n_pairs)])
            s = sa // n_a
        else:
            if not is_open:
                s = drawn(flat_starts, np.uint64(0), n_s, bits)
                is_open = True
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                u = unit(bits)
            if u < fixed:
                share = np.uint64(min(u / fixed, 1.0 - UNIT) / UNIT) << np.uint64(11)  # random bits again
                sa = s * n_a + drawn(flat_behaviour, s, n_a, share)
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
            following = drawn(flat_successors, s * n_m + np.uint64(rows[sa - s * n_a]), n_k, bits)
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
    cursor[0] = np.int64(s) if is_open and not by_pairs else -1
    return bad
