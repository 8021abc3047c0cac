"""Compiled rollouts for natural policy gradient."""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bocmdp_gym.kernels.random import LOW, ONE, next_bits, unit


@njit(cache=True)
def sampled_q(
    threshold,  # (S, A K) and packed (S, A K, 2): joint tables of action and next state (bocmdp_gym.kernels.policy_tables)
    packed,
    move_threshold,  # (S A, K): successor tables
    move_packed,
    bonus,  # (S,) lam H(pi(.; s))
    reward,
    termination,
    gamma,
    rollouts,
    rng,
    out,
):
    """Unbiased estimates of Q^pi (S, A), the entropy of later states included.

    From each pair the mean of ``rollouts`` sums over t <= T' of gamma^(t/2) (r + lam H), T' ~ Geo(1 - sqrt(gamma)), without
    the entropy of the first state.
    """
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_s, n_a = reward.shape
    n_slots = np.uint64(threshold.shape[1])
    n_k = np.uint64(move_threshold.shape[1])
    flat_reward = reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_threshold = threshold.reshape(-1)
    flat_packed = packed.reshape(-1)
    flat_out = out.reshape(-1)
    root = math.sqrt(gamma)
    for first in range(n_s * n_a):
        summed = 0.0
        for _ in range(rollouts):
            sa = np.uint64(first)
            summed += flat_reward[sa]
            bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
            if unit(bits) >= root:
                continue
            if flat_stop[sa] > 0.0:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                if unit(bits) < flat_stop[sa]:
                    continue
            bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
            u = unit(bits) * n_k
            slot = np.uint64(u)
            s = move_packed[sa, slot, np.uint64(u - slot >= move_threshold[sa, slot])]
            discount = root
            while True:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                u = unit(bits) * n_slots
                slot = np.uint64(u)
                i = s * n_slots + slot
                outcome = flat_packed[(i << ONE) + np.uint64(u - slot >= flat_threshold[i])]
                sa = s * np.uint64(n_a) + (outcome >> np.uint64(32))
                summed += discount * (flat_reward[sa] + bonus[s])
                discount *= root
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                if unit(bits) >= root:
                    break
                if flat_stop[sa] > 0.0:
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    if unit(bits) < flat_stop[sa]:
                        break
                s = outcome & LOW
        flat_out[first] = summed / rollouts
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
    return out
