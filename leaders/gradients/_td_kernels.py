"""Compiled learning from steps, and weights of what was learnt: the two passes of `leaders.gradients.td`."""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit

from bocmdp_gym.kernels.random import uniform


@njit(cache=True)
def learn(
    states,
    actions,
    rewards,  # (N,) the follower's, and the leader's
    leader_rewards,
    ends,
    terminated,
    final_states,
    policy,  # (S, A)
    bonus,  # (S,) lambda H(pi(.|s)); empty: the follower's values are not needed
    gamma,
    gamma_leader,
    rate,
    endless,  # whether no episode terminates, whatever is done: what is learnt then starts at the mean reward's value
    rng,  # (4,) uint64, of the order of the steps; moves on
    q,  # (S, A) Qbar, value (S,) V_lambda, seen (S,) whether anybody acted there, counts (2,) of estimates and episodes:
    value,  # all brought up to date
    seen,
    counts,
):
    """One update per step, in random order. Returns the root of the mean squared error of Qbar, each before its update."""
    n = states.shape[0]
    n_a = policy.shape[1]
    if endless and not seen.any():
        q[:] = leader_rewards.mean() / (1.0 - gamma_leader)
        if bonus.shape[0] > 0:
            total = 0.0
            for i in range(n):
                total += rewards[i] + bonus[states[i]]
            value[:] = total / n / (1.0 - gamma)
    order = np.arange(n)
    for i in range(n - 1, 0, -1):
        j = np.int64(uniform(rng) * (i + 1))
        order[i], order[j] = order[j], order[i]
    episode = np.full(n, -1)  # of steps that are the last of one
    for e in range(ends.shape[0]):
        episode[ends[e] - 1] = e
    counts[0] += 1.0
    counts[1] += ends.shape[0]
    total = 0.0
    for i in order:
        s, a, e = states[i], actions[i], episode[i]
        future = 0.0
        following = -1
        if e < 0:
            following = states[i + 1]
            future = q[following, actions[i + 1]]
        elif not terminated[e]:  # cut: what would be done is not known
            following = final_states[e]
            for b in range(n_a):
                future += policy[following, b] * q[following, b]
        error = leader_rewards[i] + gamma_leader * future - q[s, a]
        q[s, a] += rate * error
        seen[s] = True
        total += error * error
        if bonus.shape[0] > 0:
            future = value[following] if following >= 0 else 0.0
            value[s] += rate * (rewards[i] + bonus[s] + gamma * future - value[s])
    return np.sqrt(total / n)


@njit(cache=True)
def trace_weights(states, actions, ends, policy, q, counts, gamma, gamma_leader, lam, w_reward, w_leader):
    """Weights of r and rbar (S, A), written into the last two: the trace e_t = gamma e_{t-1} + gamma_L^t Abar / (lambda E).

    E is the mean number of episodes of the estimates so far, ``counts`` as `learn` left it.
    """
    n_s, n_a = policy.shape
    advantage = np.empty((n_s, n_a))
    for s in range(n_s):
        mean = 0.0
        for b in range(n_a):
            mean += policy[s, b] * q[s, b]
        for b in range(n_a):
            advantage[s, b] = (q[s, b] - mean) / lam
    w_reward[:] = 0.0
    w_leader[:] = 0.0
    for e in range(ends.shape[0]):
        begin = ends[e - 1] if e > 0 else 0
        trace = 0.0
        mass = counts[0] / counts[1]
        for i in range(begin, ends[e]):
            s, a = states[i], actions[i]
            trace = gamma * trace + mass * advantage[s, a]
            w_reward[s, a] += trace
            w_leader[s, a] += mass
            mass *= gamma_leader
