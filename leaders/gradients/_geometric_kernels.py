r"""Compiled draws of the geometric estimators; the mathematics is in `leaders.gradients.geometric`.

Arrays of **one** context: succ (S, A, K) int32, prob (S, A, K), everything per pair (S, A).
"""
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bocmdp_gym.kernels.alias import drawn, low_bits
from bocmdp_gym.kernels.random import ONE, fork, next_bits, uniform


@njit(cache=True, inline="always")
def _geometric(inverse_log, rng):
    """T with P(T = k) = (1 - q) q^k, from 1 / log(q) (0 for q = 0)."""
    return int(math.log(1.0 - uniform(rng)) * inverse_log)


@njit(cache=True)
def _inverse_log(gamma, power):
    return 1.0 / (power * math.log(gamma)) if gamma > 0.0 else 0.0


@njit(cache=True, inline="always")
def _draw(tables, row, rng):
    """One draw from row ``row`` of alias tables."""
    bits, rng[0], rng[1], rng[2], rng[3] = next_bits(rng[0], rng[1], rng[2], rng[3])
    return drawn(tables.reshape(-1), np.uint64(row), np.uint64(tables.shape[1]), bits)


@njit(cache=True, inline="always")
def _act(tables, s, width, rng):
    """Action, and index below ``width`` of the successor, drawn in state s."""
    outcome, shift = _draw(tables, s, rng), low_bits(width)
    return np.int64(outcome >> shift), np.int64(outcome & ((ONE << shift) - ONE))


@njit(cache=True, inline="always")
def _ends(q, rng):
    return q > 0.0 and (q >= 1.0 or uniform(rng) < q)


@njit(cache=True)
def _follow(
    s,
    action,  # the first action; -1: from the policy
    weight,
    tables,
    succ,
    prob,
    termination,
    augmented,  # r + lambda H, (S, A)
    gamma,
    scored,
    rng,
    w_reward,
    w_transition,
):
    """Add ``weight`` times one draw of dQ(s, action), or of dV(s), to the weights on r and log P. Returns its steps."""
    horizon = _geometric(_inverse_log(gamma, 1.0), rng)
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
            a, k = _act(tables, s, prob.shape[2], rng)
        w_reward[s, a] += weight
        steps += 1
        if _ends(termination[s, a], rng):
            return steps
        before = s
        s = np.int64(succ[s, a, k])
    if not scored:
        return steps
    total = 0.0
    factor = 1.0
    root = gamma**0.5
    last_a, last_k = a, k
    for _ in range(_geometric(_inverse_log(gamma, 0.5), rng) + 1):
        a, k = _act(tables, s, prob.shape[2], rng)
        total += factor * augmented[s, a]
        factor *= root
        steps += 1
        if _ends(termination[s, a], rng):
            break
        s = np.int64(succ[s, a, k])
    w_transition[before, last_a, last_k] += weight * gamma / (1.0 - gamma) * total
    return steps


@njit(cache=True)
def _add_advantage(s, a, weight, tables, succ, prob, termination, augmented, gamma, scored, rng, w_r, w_p):
    """GradEst: add ``weight`` times one draw of dA(s, a) = dQ(s, a) - dV(s). Returns its steps."""
    steps = _follow(s, a, weight, tables, succ, prob, termination, augmented, gamma, scored, rng, w_r, w_p)
    return steps + _follow(s, -1, -weight, tables, succ, prob, termination, augmented, gamma, scored, rng, w_r, w_p)


@njit(cache=True)
def _augmented_reward(policy, reward, lam):
    """r(s, a) + lambda H(pi(.|s))."""
    out = reward.copy()
    for s in range(policy.shape[0]):
        entropy = 0.0
        for a in range(policy.shape[1]):
            if policy[s, a] > 0.0:
                entropy -= policy[s, a] * math.log(policy[s, a])
        for a in range(policy.shape[1]):
            out[s, a] += lam * entropy
    return out


@njit(cache=True)
def geometric_weights(
    samples,
    tables,  # (S, A K, 2): tables of the draw (action, index of the successor)
    starts,  # (1, S, 2): tables of the initial distribution
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
    rng,
):
    """Mean weights of ``samples`` draws of the decomposable estimator (Alg. 5 on Alg. 2, corrected).

    Every draw has a stream of random numbers of its own, so draws for two policies that share ``rng`` stay coupled. Returns
    weights on r and rbar (S, A), on log P (S, A, K) and on log mu (S,), and the number of steps.
    """
    n_s, n_a, _ = prob.shape
    w_reward = np.zeros((n_s, n_a))
    w_leader = np.zeros((n_s, n_a))
    w_transition = np.zeros(prob.shape)
    w_initial = np.zeros(n_s)
    augmented = _augmented_reward(policy, reward, lam)
    to_horizon = _inverse_log(gamma_leader, 1.0)
    to_tail = _inverse_log(gamma_leader, 0.5)
    root = gamma_leader**0.5
    scale = 1.0 / ((1.0 - gamma_leader) * samples)
    steps = 0
    streams = rng
    rng = np.empty(4, np.uint64)
    for _ in range(samples):
        fork(streams, rng)
        s = np.int64(_draw(starts, 0, rng))
        horizon = _geometric(to_horizon, rng)
        ended = False
        before, before_a, before_k = s, np.int64(0), np.int64(0)
        for _ in range(horizon):
            a, k = _act(tables, s, prob.shape[2], rng)
            w_leader[s, a] += 1.0 / samples
            steps += 1
            if _ends(termination[s, a], rng):
                ended = True
                break
            before, before_a, before_k = s, a, k
            s = np.int64(succ[s, a, k])
        if ended:
            continue
        at = s
        first, k = _act(tables, s, prob.shape[2], rng)
        w_leader[at, first] += 1.0 / samples
        total = leader_reward[at, first]
        factor = root
        steps += 1
        a = first
        for _ in range(_geometric(to_tail, rng)):
            if _ends(termination[s, a], rng):
                break
            s = np.int64(succ[s, a, k])
            a, k = _act(tables, s, prob.shape[2], rng)
            total += factor * leader_reward[s, a]
            factor *= root
            steps += 1
        total *= scale
        steps += _add_advantage(
            at, first, total / lam, tables, succ, prob, termination, augmented, gamma, scored,
            rng, w_reward, w_transition,
        )  # fmt: skip
        if horizon == 0:
            w_initial[at] += total
        elif scored:
            w_transition[before, before_a, before_k] += total
    return w_reward, w_leader, w_transition, w_initial, steps


@njit(cache=True)
def geometric_loss_weights(
    samples,
    tables,  # as for geometric_weights
    starts,  # tables of the sampling distribution nu
    policy,
    succ,
    prob,
    reward,
    termination,
    sensitivity,  # (S, A), (df/dpi(a;s)) / (lambda nu(s))
    gamma,
    lam,
    scored,
    rng,
):
    """Mean weights of ``samples`` draws of Alg. 1's second term, s ~ nu, a ~ pi. Returns weights on r and log P, and steps."""
    n_s, n_a, _ = prob.shape
    w_reward = np.zeros((n_s, n_a))
    w_transition = np.zeros(prob.shape)
    augmented = _augmented_reward(policy, reward, lam)
    steps = 0
    streams = rng
    rng = np.empty(4, np.uint64)
    for _ in range(samples):
        fork(streams, rng)
        s = np.int64(_draw(starts, 0, rng))
        a, _ = _act(tables, s, prob.shape[2], rng)
        steps += _add_advantage(
            s, a, sensitivity[s, a] / samples, tables, succ, prob, termination, augmented, gamma,
            scored, rng, w_reward, w_transition,
        )  # fmt: skip
    return w_reward, w_transition, steps
