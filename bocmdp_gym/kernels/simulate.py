"""Whole episodes of a policy, step after step, without Python in between."""

from __future__ import annotations

import numpy as np
from numba import njit

from bocmdp_gym.kernels.random import LOW, ONE, UNIT, next_bits, unit


@njit(cache=True)
def simulate(
    threshold,  # (S, A K) and packed (S, A K, 2): policy_tables
    packed,
    row_threshold,  # (S M, K) and row_packed (S M, K, 2): row_tables of shared rows; empty: the first tables draw it all
    row_packed,
    index,  # (A,): the row of each action, where they share rows
    start_threshold,  # (1, S) and start_packed (1, S, 2): row_tables of the initial distribution
    start_packed,
    forced,  # (F, 2) start state and first action (-1: from the policy), played in turn; empty: draw the start
    succ,
    prob,
    reward,
    leader_reward,
    termination,
    horizon,  # episodes are cut after this many steps; -1: never
    budget,
    carry,  # (2,) int64: state and age of an episode the previous call left open; state -1 if none
    rng,  # (4,) uint64
    states,
    actions,
    rewards,
    leader_rewards,
    ends,
    terminated,
    final_states,
):
    """Play episodes until ``budget`` steps are done, then finish the running one. Returns (steps, episodes).

    Episode e ends before step ends[e]. When the step buffers are full the open episode is left in ``carry``.
    """
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_slots = np.uint64(threshold.shape[1])
    n_states = np.uint64(start_threshold.shape[1])
    n_a = np.uint64(reward.shape[1])
    n_k = prob.shape[2]
    n_forced = forced.shape[0]
    two_stages = row_threshold.shape[0] > 0
    n_m = np.uint64(prob.shape[1])
    n_row = np.uint64(row_threshold.shape[1])
    flat_row_threshold = row_threshold.reshape(-1)
    flat_row_packed = row_packed.reshape(-1)
    flat_threshold = threshold.reshape(-1)
    flat_packed = packed.reshape(-1)
    flat_reward = reward.reshape(-1)
    flat_leader = leader_reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    capacity = np.uint64(states.shape[0])
    limit = np.uint64(budget)
    scale = UNIT * n_slots
    step = np.uint64(0)
    episode = np.uint64(0)
    is_open = carry[0] >= 0
    s = np.uint64(max(carry[0], 0))
    age = carry[1]
    while True:
        imposed = -1
        if not is_open:
            if step >= limit or (n_forced > 0 and episode >= n_forced):
                break
            age = 0
            is_open = True
            if n_forced > 0:
                s = np.uint64(forced[episode, 0])
                imposed = forced[episode, 1]
            else:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                u = unit(bits) * n_states
                slot = np.uint64(u)
                s = start_packed[0, slot, np.uint64(u - slot >= start_threshold[0, slot])]
        while step < capacity:
            if imposed < 0:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                u = (bits >> np.uint64(11)) * scale
                slot = np.uint64(u)
                i = s * n_slots + slot
                outcome = flat_packed[(i << ONE) + np.uint64(u - slot >= flat_threshold[i])]
                action = outcome >> np.uint64(32)
                following = outcome & LOW
            else:
                action = np.uint64(imposed)
                imposed = -1
                if two_stages:
                    following = np.uint64(index[action])
                else:
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    u = unit(bits)
                    k = 0
                    while k < n_k - 1 and u >= prob[s, action, k]:
                        u -= prob[s, action, k]
                        k += 1
                    following = np.uint64(succ[s, action, k])
            if two_stages:  # so far, following is the move
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                u = unit(bits) * n_row
                slot = np.uint64(u)
                i = (s * n_m + following) * n_row + slot
                following = flat_row_packed[(i << ONE) + np.uint64(u - slot >= flat_row_threshold[i])]
            sa = s * n_a + action
            states[step] = s
            actions[step] = action
            rewards[step] = flat_reward[sa]
            leader_rewards[step] = flat_leader[sa]
            step += ONE
            age += 1
            stop = flat_stop[sa]
            if stop > 0.0:
                ended = stop >= 1.0
                if not ended:
                    bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                    ended = unit(bits) < stop
                if ended:
                    terminated[episode] = True
                    is_open = False
                    break
            s = following
            if age == horizon:
                terminated[episode] = False
                is_open = False
                break
        if is_open:
            break
        ends[episode] = step
        final_states[episode] = s
        episode += ONE
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
    carry[0] = np.int64(s) if is_open else -1
    carry[1] = age
    return step, episode
