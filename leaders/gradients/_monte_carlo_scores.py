"""Compiled scores along trajectories: the second pass of the Monte-Carlo estimator (`leaders.gradients.monte_carlo`)."""
# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np
from numba import njit

from leaders.gradients._monte_carlo_kernels import _ROUNDS, _settle


@njit(cache=True)
def _follower_values(states, rewards, ends, terminated, final_states, bonus, gamma, bootstrap):
    """Visit-averaged discounted returns of ``rewards + bonus[s]``, (S,); cut episodes continue from them with ``bootstrap``."""
    n_s = bonus.shape[0]
    count = np.zeros(n_s)
    for i in range(states.shape[0]):
        count[states[i]] += 1.0
    value = np.zeros(n_s)
    fresh = np.zeros(n_s)
    for _ in range(_ROUNDS if bootstrap else 1):
        fresh[:] = 0.0
        for e in range(ends.shape[0]):
            begin = ends[e - 1] if e > 0 else 0
            ret = 0.0 if terminated[e] or not bootstrap else value[final_states[e]]
            for i in range(ends[e] - 1, begin - 1, -1):
                ret = rewards[i] + bonus[states[i]] + gamma * ret
                fresh[states[i]] += ret
        for s in range(n_s):
            if count[s] > 0.0:
                fresh[s] /= count[s]
        if _settle(value, fresh):
            break
    return value


@njit(cache=True)
def monte_carlo_scores(
    states,
    actions,
    rewards,
    ends,
    terminated,
    final_states,
    succ,  # (S, M, K)
    rows,  # (A,): the row of each action
    bonus,  # (S,) lambda H(pi(.|s))
    gamma,
    gamma_leader,
    bootstrap,
    kick,  # (S, A), and by_state (3, S): from `monte_carlo_weights`
    by_state,
):
    """Weights on log P (S, M, K), on log mu (S,) and on log (1 - q) (S, A) from on-policy episodes.

    Values are weighed against baselines, which the scores' mean of 0 leaves without effect on any mean: those of the state that
    is left, and for start states the mean of the other episodes'. The weight on log (1 - q) has none: a reward more in every
    step is worth more where episodes last longer.
    """
    leader_value, carried_mass, carried_trace = by_state[0], by_state[1], by_state[2]
    n_k = succ.shape[2]
    n_episodes = ends.shape[0]
    value = _follower_values(states, rewards, ends, terminated, final_states, bonus, gamma, bootstrap)
    w_transition = np.zeros(succ.shape)
    w_initial = np.zeros(bonus.shape[0])
    w_continued = np.zeros((bonus.shape[0], rows.shape[0]))
    total = 0.0
    for e in range(n_episodes):
        total += leader_value[states[ends[e - 1] if e > 0 else 0]]
    for e in range(n_episodes):
        begin = ends[e - 1] if e > 0 else 0
        start_value = leader_value[states[begin]]
        baseline = (total - start_value) / (n_episodes - 1) if n_episodes > 1 else 0.0
        w_initial[states[begin]] += (start_value - baseline) / n_episodes
        mass = 1.0 / n_episodes
        trace = 0.0
        for i in range(begin, ends[e]):
            s, a = states[i], actions[i]
            trace = gamma * trace + kick[s, a] + carried_trace[s]
            mass += carried_mass[s]
            if i < ends[e] - 1 or not terminated[e]:
                following = states[i + 1] if i < ends[e] - 1 else final_states[e]
                k = min(following, n_k - 1)  # where a dense kernel stores it
                row = rows[a]
                if succ[s, row, k] != following:
                    k = 0
                    while succ[s, row, k] != following:
                        k += 1
                weight = gamma * trace * value[following] + gamma_leader * mass * leader_value[following]
                w_transition[s, row, k] += weight - gamma * trace * value[s] - gamma_leader * mass * leader_value[s]
                w_continued[s, a] += weight
            mass *= gamma_leader
    return w_transition, w_initial, w_continued
