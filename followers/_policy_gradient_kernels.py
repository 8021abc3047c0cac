"""The compiled steps of vanilla policy gradient."""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bocmdp_gym.kernels.alias import drawn
from bocmdp_gym.kernels.random import next_bits, unit
from followers._softmax_kernels import draw, rebase

#: Smallest weight of the newest return in a baseline, so that it follows the policy.
_FORGETTING = 0.01


@njit(cache=True)
def policy_gradient(
    theta,  # (S, A) logits, and their softmax state with lam = 1 (`followers._softmax_kernels`): changed in place
    weight,
    top,
    total,
    value,
    baseline,  # (S,) mean return seen from each state, and visits (S,) int64: changed in place; without visits, not used
    visits,
    reward,
    termination,
    successors,  # (S M, K, 2): successor tables
    rows,  # (A,): the row of each action
    starts,  # (1, S, 2): tables of the initial distribution
    gamma,
    lam,
    batch,  # independent estimates averaged per iteration
    scale,  # step sizes scale / (t + offset), constant where offset is negative
    offset,
    clock,  # iterations done before
    iterations,
    rng,
):
    """Vanilla policy gradient (Algorithm 6, corrected). Returns -1, or the state whose logits are not finite.

    A coin that shows heads with probability gamma after each step makes the horizon geometric.
    """
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_s = np.uint64(theta.shape[0])
    n_a = np.uint64(theta.shape[1])
    n_k = np.uint64(successors.shape[1])
    n_m = np.uint64(successors.shape[0]) // n_s
    flat_reward = reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_successors = successors.reshape(-1)
    flat_starts = starts.reshape(-1)
    root = math.sqrt(gamma)
    states = np.empty(batch, np.uint64)
    chosen = np.empty(batch, np.uint64)
    returns = np.empty(batch)
    bad = np.int64(-1)
    for t in range(clock, clock + iterations):
        found = 0
        for _ in range(batch):
            bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
            s = drawn(flat_starts, np.uint64(0), n_s, bits)
            seeking = True  # s_0 .. s_T first, then the return from there
            going = gamma
            discount = 1.0
            ret = 0.0
            while True:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                a = np.uint64(draw(weight, s, unit(bits) * total[s]))
                sa = s * n_a + a
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                coin = unit(bits) < going
                if seeking and not coin:
                    states[found] = s
                    chosen[found] = a
                    seeking = False
                    going = root
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    coin = unit(bits) < going
                if not seeking:
                    ret += discount * (flat_reward[sa] - lam * (theta[s, a] - value[s]))
                    discount *= root
                    if not coin:
                        break
                stop = flat_stop[sa]
                if stop > 0.0:
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    if unit(bits) < stop:
                        break
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                s = drawn(flat_successors, s * n_m + np.uint64(rows[a]), n_k, bits)
            if not seeking:  # an episode that ended before T contributes nothing
                returns[found] = ret
                found += 1
        alpha = scale if offset < 0.0 else scale / (t + offset)
        alpha /= (1.0 - gamma) * batch
        for i in range(found):  # all gradients belong to the policy before the step: weights change only afterwards
            s = states[i]
            step = alpha * (returns[i] - baseline[s])
            for a in range(n_a):
                theta[s, a] -= step * weight[s, a] / total[s]
            theta[s, chosen[i]] += step
        for i in range(found):
            s = states[i]
            rebase(theta, 1.0, s, weight, top, total)
            value[s] = top[s] + math.log(total[s])
            if not abs(value[s]) < np.inf:
                bad = np.int64(s)
            if visits.shape[0] > 0:
                visits[s] += 1
                baseline[s] += max(1.0 / visits[s], _FORGETTING) * (returns[i] - baseline[s])
        if bad >= 0:
            break
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
    return bad
