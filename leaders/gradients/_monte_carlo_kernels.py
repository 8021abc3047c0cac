"""The compiled first pass of `leaders.gradients.monte_carlo`."""

from __future__ import annotations

import numpy as np
from numba import njit

_ROUNDS = 60  # of the fixed-point iterations below, which contract like gamma^horizon


@njit(cache=True)
def _settle(old, new):
    """Copy ``new`` into ``old``; whether that changed next to nothing."""
    change = 0.0
    scale = 0.0
    for s in range(old.shape[0]):
        change = max(change, abs(new[s] - old[s]))
        scale = max(scale, abs(new[s]))
        old[s] = new[s]
    return change <= 1e-10 * scale


@njit(cache=True, fastmath={"contract"})  # chains of multiply-adds: fused ones take half the time
def monte_carlo_weights(
    states, actions, leader_rewards, ends, terminated, final_states, gamma, gamma_leader, lam, bootstrap, tables, by_state
):
    """Weights of the rewards, from on-policy episodes, and what a second pass over these needs to repeat their traces.

    Fills ``tables`` (3, S, A): the weights W_r and W_rbar (the discounted visitation), and the kicks of the trace e_t; and
    ``by_state`` (3, S): visit-averaged leader values, and what cut episodes hand on to the visitation and to the trace. With
    ``bootstrap`` an episode cut by the time limit goes on as the average visit to its last state does: in the leader's returns,
    in the visitation and in the trace alike; each is a short fixed-point iteration.
    """
    _, n_s, n_a = tables.shape
    tables[:] = 0.0
    by_state[:] = 0.0
    w_r, occupancy, kick = tables[0], tables[1], tables[2]
    v_hat, carried_mass, carried_trace = by_state[0], by_state[1], by_state[2]
    n_episodes = ends.shape[0]
    n_steps = states.shape[0]
    longest = 0
    for e in range(n_episodes):
        longest = max(longest, ends[e] - (ends[e - 1] if e > 0 else 0))
    power = np.empty(longest)
    power[0] = 1.0 / n_episodes
    for t in range(1, longest):
        power[t] = gamma_leader * power[t - 1]

    # one backward pass: sums of the leader's returns, visits, and discounted visitation, side by side per (s, a)
    sums = np.zeros((n_s * n_a, 4))
    pairs = np.empty(n_steps, np.uint32)
    for e in range(n_episodes):
        begin = ends[e - 1] if e > 0 else 0
        ret = 0.0
        for i in range(ends[e] - 1, begin - 1, -1):
            ret = leader_rewards[i] + gamma_leader * ret
            sa = np.uint32(states[i]) * np.uint32(n_a) + np.uint32(actions[i])
            pairs[i] = sa
            sums[sa, 0] += ret
            sums[sa, 1] += 1.0
            sums[sa, 2] += power[i - begin]
    total = np.empty((n_s, n_a))
    count = np.empty((n_s, n_a))
    count_s = np.zeros(n_s)
    for s in range(n_s):
        for a in range(n_a):
            total[s, a] = sums[s * n_a + a, 0]
            count[s, a] = sums[s * n_a + a, 1]
            occupancy[s, a] = sums[s * n_a + a, 2]
            count_s[s] += count[s, a]
            v_hat[s] += total[s, a]
        if count_s[s] > 0.0:
            v_hat[s] /= count_s[s]

    fresh = np.zeros(n_s)
    if bootstrap:
        for _ in range(_ROUNDS):
            total[:] = 0.0
            for e in range(n_episodes):
                begin = ends[e - 1] if e > 0 else 0
                ret = 0.0 if terminated[e] else v_hat[final_states[e]]
                for i in range(ends[e] - 1, begin - 1, -1):
                    ret = leader_rewards[i] + gamma_leader * ret
                    total[states[i], actions[i]] += ret
            fresh[:] = 0.0
            for s in range(n_s):
                for a in range(n_a):
                    fresh[s] += total[s, a]
                if count_s[s] > 0.0:
                    fresh[s] /= count_s[s]
            if _settle(v_hat, fresh):
                break
        for _ in range(_ROUNDS):
            occupancy[:] = 0.0
            fresh[:] = 0.0
            for e in range(n_episodes):
                begin = ends[e - 1] if e > 0 else 0
                mass = 1.0 / n_episodes
                for i in range(begin, ends[e]):
                    mass += carried_mass[states[i]]
                    occupancy[states[i], actions[i]] += mass
                    mass *= gamma_leader
                if not terminated[e] and count_s[final_states[e]] > 0.0:
                    fresh[final_states[e]] += mass / count_s[final_states[e]]
            if _settle(carried_mass, fresh):
                break

    # advantage-weighted injections: kick(s, a) per visit, then the trace e_t = gamma e_{t-1} + kick
    for s in range(n_s):
        if count_s[s] == 0.0:
            continue
        c_s = 0.0
        for a in range(n_a):
            if count[s, a] > 0.0:
                c = occupancy[s, a] * (total[s, a] / count[s, a] - v_hat[s]) / lam
                kick[s, a] = c / count[s, a]
                c_s += c
        for a in range(n_a):
            kick[s, a] -= c_s / count_s[s]
    flat_w = w_r.reshape(-1)
    flat_kick = kick.reshape(-1)
    if not bootstrap:
        for e in range(n_episodes):
            begin = ends[e - 1] if e > 0 else 0
            trace = 0.0
            for i in range(begin, ends[e]):
                trace = gamma * trace + flat_kick[pairs[i]]
                flat_w[pairs[i]] += trace
        return
    for _ in range(_ROUNDS):
        w_r[:] = 0.0
        fresh[:] = 0.0
        for e in range(n_episodes):
            begin = ends[e - 1] if e > 0 else 0
            trace = 0.0
            for i in range(begin, ends[e]):
                trace = gamma * trace + flat_kick[pairs[i]] + carried_trace[states[i]]
                flat_w[pairs[i]] += trace
            if not terminated[e] and count_s[final_states[e]] > 0.0:
                fresh[final_states[e]] += gamma * trace / count_s[final_states[e]]
        if _settle(carried_trace, fresh):
            break
