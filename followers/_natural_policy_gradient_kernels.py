"""Compiled rollouts for natural policy gradient."""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bocmdp_gym.kernels.alias import drawn, low_bits
from bocmdp_gym.kernels.random import ONE, next_bits, unit


@njit(cache=True)
def sampled_q(
    tables,  # (S, A K, 2): joint tables of action and next state (`bocmdp_gym.kernels.alias.policy_tables`)
    successors,  # (S A, K, 2): successor tables
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
    n_slots = np.uint64(tables.shape[1])
    n_k = np.uint64(successors.shape[1])
    shift = low_bits(n_s)
    low_mask = (ONE << shift) - ONE
    flat_reward = reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_tables = tables.reshape(-1)
    flat_successors = successors.reshape(-1)
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
            s = drawn(flat_successors, sa, n_k, bits)
            discount = root
            while True:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                outcome = drawn(flat_tables, s, n_slots, bits)
                sa = s * np.uint64(n_a) + (outcome >> shift)
                summed += discount * (flat_reward[sa] + bonus[s])
                discount *= root
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                if unit(bits) >= root:
                    break
                if flat_stop[sa] > 0.0:
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    if unit(bits) < flat_stop[sa]:
                        break
                s = outcome & low_mask
        flat_out[first] = summed / rollouts
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
    return out
