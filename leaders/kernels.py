r"""Compiled kernels of the estimators: unbiased single-sample estimates, scores along trajectories, forward sweeps.

Arrays of **one** context, as in `bocmdp_gym.kernels`: succ (S, A, K) int32, prob (S, A, K), everything per pair (S, A).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from bocmdp_gym.kernels import _ROUNDS, _settle, uniform

# ------------------------------------------------------------------- unbiased single-sample estimates (MATH.md 3.4)


class Formula(NamedTuple):
    """Signs and exponents of the geometric estimators: the theory's.

    They are arguments so that tests can plant errors in each and see them rejected; nothing else changes them.
    """

    # GradEst (Alg. 2): signs of its terms, then powers of gamma
    q: float = 1.0  # dA = dQ - dV
    v: float = -1.0
    reward: float = 1.0  # d r
    transition: float = 1.0  # d log P
    entropy: float = 1.0  # + lambda H
    horizon: float = 1.0  # T_Q ~ Geo(1 - gamma^1)
    reach: float = 1.0  # gamma^1 / (1 - gamma)
    tail_horizon: float = 0.5  # T_Q' ~ Geo(1 - gamma^0.5)
    tail: float = 0.5  # gamma^(0.5 (t - T_Q - 1))
    # the decomposable estimator (Alg. 5): signs of its terms, then powers of gamma_L
    leader_reward: float = 1.0  # d rbar
    advantage: float = 1.0  # dA G / lambda
    leader_transition: float = 1.0  # d log P(s_T | s_{T-1}, a_{T-1}) G
    initial: float = 1.0  # d log mu(s_0) G, for T = 0
    leader_horizon: float = 1.0  # T ~ Geo(1 - gamma_L^1)
    leader_tail_horizon: float = 0.5  # T' ~ Geo(1 - gamma_L^0.5)
    leader_tail: float = 0.5  # gamma_L^(0.5 (t' - T))


@njit(cache=True, inline="always")
def _geometric(inverse_log, rng):
    """T with P(T = k) = (1 - q) q^k, from 1 / log(q) (0 for q = 0)."""
    return int(math.log(1.0 - uniform(rng)) * inverse_log)


@njit(cache=True)
def _inverse_log(gamma, power):
    return 1.0 / (power * math.log(gamma)) if gamma > 0.0 else 0.0


@njit(cache=True, inline="always")
def _slot(threshold, packed, row, rng):
    """One draw from row ``row`` of alias tables."""
    n = threshold.shape[1]
    u = uniform(rng) * n
    slot = int(u)
    return packed[row, slot, 1 if u - slot >= threshold[row, slot] else 0]


@njit(cache=True, inline="always")
def _act(threshold, packed, s, rng):
    """Action and index of the successor drawn in state s."""
    outcome = _slot(threshold, packed, s, rng)
    return np.int64(outcome >> np.uint64(32)), np.int64(outcome & np.uint64(0xFFFFFFFF))


@njit(cache=True, inline="always")
def _ends(q, rng):
    return q > 0.0 and (q >= 1.0 or uniform(rng) < q)


@njit(cache=True)
def _follow(
    s,
    action,  # the first action; -1: from the policy
    weight,
    threshold,
    packed,
    succ,
    prob,
    termination,
    augmented,  # r + lambda H, (S, A)
    gamma,
    scored,
    formula,
    rng,
    w_reward,
    w_transition,
):
    """Add ``weight`` times one draw of dQ(s, action), or of dV(s), to the weights on r and log P. Returns its steps."""
    horizon = _geometric(_inverse_log(gamma, formula.horizon), rng)
    a, k = np.int64(0), np.int64(0)
    steps = 0
    before = s
    for t in range(horizon + 1):
        if t == 0 and action >= 0:
            a, k = action, np.int64(0)
            u = uniform(rng)
            while k < prob.shape[2] - 1 and u >= prob[s, a, k]:
                u -= prob[s, a, k]
                k += 1
        else:
            a, k = _act(threshold, packed, s, rng)
        w_reward[s, a] += weight * formula.reward
        steps += 1
        if _ends(termination[s, a], rng):
            return steps
        before = s
        s = np.int64(succ[s, a, k])
    if not scored:
        return steps
    total = 0.0
    factor = 1.0
    root = gamma**formula.tail
    last_a, last_k = a, k
    for _ in range(_geometric(_inverse_log(gamma, formula.tail_horizon), rng) + 1):
        a, k = _act(threshold, packed, s, rng)
        total += factor * augmented[s, a]
        factor *= root
        steps += 1
        if _ends(termination[s, a], rng):
            break
        s = np.int64(succ[s, a, k])
    w_transition[before, last_a, last_k] += weight * formula.transition * gamma**formula.reach / (1.0 - gamma) * total
    return steps


@njit(cache=True)
def _add_advantage(s, a, weight, threshold, packed, succ, prob, termination, augmented, gamma, scored, formula, rng, w_r, w_p):
    """GradEst: add ``weight`` times one draw of dA(s, a) = dQ(s, a) - dV(s). Returns its steps."""
    steps = _follow(
        s, a, weight * formula.q, threshold, packed, succ, prob, termination, augmented, gamma, scored, formula, rng, w_r, w_p
    )
    return steps + _follow(
        s, -1, weight * formula.v, threshold, packed, succ, prob, termination, augmented, gamma, scored, formula, rng, w_r, w_p
    )


@njit(cache=True)
def _augmented_reward(policy, reward, lam, sign):
    """r(s, a) + lambda H(pi(.|s))."""
    out = reward.copy()
    for s in range(policy.shape[0]):
        entropy = 0.0
        for a in range(policy.shape[1]):
            if policy[s, a] > 0.0:
                entropy -= policy[s, a] * math.log(policy[s, a])
        for a in range(policy.shape[1]):
            out[s, a] += sign * lam * entropy
    return out


@njit(cache=True)
def geometric_weights(
    samples,
    threshold,  # (S, A K) and packed (S, A K, 2): tables of the draw (action, index of the successor)
    packed,
    start_threshold,  # (1, S) and start_packed (1, S, 2): tables of the initial distribution
    start_packed,
    policy,
    succ,
    prob,
    reward,
    leader_reward,
    termination,
    gamma,
    gamma_leader,
    lam,
    scored,  # whether log P, log mu or q depend on x: otherwise their weights are not drawn
    formula,
    rng,
):
    """Mean weights of ``samples`` draws of the decomposable estimator (Alg. 5 on Alg. 2, corrected).

    Returns weights on r and rbar (S, A), on log P (S, A, K) and on log mu (S,), and the number of steps.
    """
    n_s, n_a, _ = prob.shape
    w_reward = np.zeros((n_s, n_a))
    w_leader = np.zeros((n_s, n_a))
    w_transition = np.zeros(prob.shape)
    w_initial = np.zeros(n_s)
    augmented = _augmented_reward(policy, reward, lam, formula.entropy)
    to_horizon = _inverse_log(gamma_leader, formula.leader_horizon)
    to_tail = _inverse_log(gamma_leader, formula.leader_tail_horizon)
    root = gamma_leader**formula.leader_tail
    scale = 1.0 / ((1.0 - gamma_leader) * samples)
    steps = 0
    for _ in range(samples):
        s = np.int64(_slot(start_threshold, start_packed, 0, rng))
        horizon = _geometric(to_horizon, rng)
        ended = False
        before, before_a, before_k = s, np.int64(0), np.int64(0)
        for _ in range(horizon):
            a, k = _act(threshold, packed, s, rng)
            w_leader[s, a] += formula.leader_reward / samples
            steps += 1
            if _ends(termination[s, a], rng):
                ended = True
                break
            before, before_a, before_k = s, a, k
            s = np.int64(succ[s, a, k])
        if ended:
            continue
        at = s
        first, k = _act(threshold, packed, s, rng)
        w_leader[at, first] += formula.leader_reward / samples
        total = leader_reward[at, first]
        factor = root
        steps += 1
        a = first
        for _ in range(_geometric(to_tail, rng)):
            if _ends(termination[s, a], rng):
                break
            s = np.int64(succ[s, a, k])
            a, k = _act(threshold, packed, s, rng)
            total += factor * leader_reward[s, a]
            factor *= root
            steps += 1
        total *= scale
        steps += _add_advantage(
            at, first, formula.advantage * total / lam, threshold, packed, succ, prob, termination, augmented, gamma, scored,
            formula, rng, w_reward, w_transition,
        )  # fmt: skip
        if horizon == 0:
            w_initial[at] += formula.initial * total
        elif scored:
            w_transition[before, before_a, before_k] += formula.leader_transition * total
    return w_reward, w_leader, w_transition, w_initial, steps


@njit(cache=True)
def geometric_loss_weights(
    samples,
    threshold,  # as for geometric_weights
    packed,
    start_threshold,  # tables of the sampling distribution nu
    start_packed,
    policy,
    succ,
    prob,
    reward,
    termination,
    sensitivity,  # (S, A), (df/dpi(a;s)) / (lambda nu(s))
    gamma,
    lam,
    scored,
    formula,
    rng,
):
    """Mean weights of ``samples`` draws of Alg. 1's second term, s ~ nu, a ~ pi. Returns weights on r and log P, and steps."""
    n_s, n_a, _ = prob.shape
    w_reward = np.zeros((n_s, n_a))
    w_transition = np.zeros(prob.shape)
    augmented = _augmented_reward(policy, reward, lam, formula.entropy)
    steps = 0
    for _ in range(samples):
        s = np.int64(_slot(start_threshold, start_packed, 0, rng))
        a, _ = _act(threshold, packed, s, rng)
        steps += _add_advantage(
            s, a, formula.advantage * sensitivity[s, a] / samples, threshold, packed, succ, prob, termination, augmented, gamma,
            scored, formula, rng, w_reward, w_transition,
        )  # fmt: skip
    return w_reward, w_transition, steps


@njit(cache=True)
def score_weights(succ, prob, w_transition):
    """Weights on the stored values of P from weights on log P(s'|s, a), given at one or several k of each successor s'.

    Successors that occur more than once in a list share their weights: d log P(s'|s, a) = sum_k dP_k / P(s'|s, a).
    """
    n_s, n_a, n_k = prob.shape
    out = np.empty(prob.shape)
    mass = np.zeros(n_s)
    weight = np.zeros(n_s)
    for s in range(n_s):
        for a in range(n_a):
            for k in range(n_k):
                mass[succ[s, a, k]] += prob[s, a, k]
                weight[succ[s, a, k]] += w_transition[s, a, k]
            for k in range(n_k):
                following = succ[s, a, k]
                out[s, a, k] = weight[following] / mass[following] if mass[following] > 0.0 else 0.0
            for k in range(n_k):
                mass[succ[s, a, k]] = 0.0
                weight[succ[s, a, k]] = 0.0
    return out


# ------------------------------------------------------------------------ scores along trajectories (MATH.md 3.3)


@njit(cache=True)
def _follower_values(states, rewards, ends, terminated, final_states, bonus, gamma, bootstrap):
    """Visit-averaged discounted returns of ``rewards + bonus[s]``, (S,); cut episodes go on from them with ``bootstrap``."""
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
    succ,
    bonus,  # (S,) lambda H(pi(.|s))
    gamma,
    gamma_leader,
    bootstrap,
    leader_value,  # (S,) to carried_trace: from bocmdp_gym.kernels.monte_carlo_weights
    kick,
    carried_mass,
    carried_trace,
):
    """Weights on log P (S, A, K) and on log mu (S,) from on-policy episodes."""
    n_k = succ.shape[2]
    n_episodes = ends.shape[0]
    value = _follower_values(states, rewards, ends, terminated, final_states, bonus, gamma, bootstrap)
    w_transition = np.zeros(succ.shape)
    w_initial = np.zeros(bonus.shape[0])
    for e in range(n_episodes):
        begin = ends[e - 1] if e > 0 else 0
        w_initial[states[begin]] += leader_value[states[begin]] / n_episodes
        mass = 1.0 / n_episodes
        trace = 0.0
        for i in range(begin, ends[e]):
            s, a = states[i], actions[i]
            trace = gamma * trace + kick[s, a] + carried_trace[s]
            mass += carried_mass[s]
            if i < ends[e] - 1 or not terminated[e]:
                following = states[i + 1] if i < ends[e] - 1 else final_states[e]
                k = min(following, n_k - 1)  # where a dense kernel stores it
                if succ[s, a, k] != following:
                    k = 0
                    while succ[s, a, k] != following:
                        k += 1
                w_transition[s, a, k] += gamma * trace * value[following] + gamma_leader * mass * leader_value[following]
            mass *= gamma_leader
    return w_transition, w_initial
