r"""Compiled kernels of the estimators: unbiased single-sample estimates, scores along trajectories, forward sweeps.

Arrays of **one** context, as in `bocmdp_gym.kernels`: succ (S, A, K) int32, prob (S, A, K), everything per pair (S, A).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from bocmdp_gym.kernels import LOOSE
from bocmdp_gym.kernels.alias import policy_tables
from bocmdp_gym.kernels.banded import banded_factor, banded_policy_iteration, banded_solve, banded_solve_transposed
from bocmdp_gym.kernels.bellman import adjoint, expectation
from bocmdp_gym.kernels.random import fork, uniform
from bocmdp_gym.kernels.simulate import simulate
from leaders.gradients._monte_carlo_kernels import _ROUNDS, _settle, monte_carlo_weights

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

    Every draw has a stream of random numbers of its own, so draws for two policies that share ``rng`` stay coupled. Returns
    weights on r and rbar (S, A), on log P (S, A, K) and on log mu (S,), and the number of steps.
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
    streams = rng
    rng = np.empty(4, np.uint64)
    for _ in range(samples):
        fork(streams, rng)
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
    streams = rng
    rng = np.empty(4, np.uint64)
    for _ in range(samples):
        fork(streams, rng)
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
    succ,  # (S, M, K)
    rows,  # (A,): the row of each action
    bonus,  # (S,) lambda H(pi(.|s))
    gamma,
    gamma_leader,
    bootstrap,
    leader_value,  # (S,) to carried_trace: from monte_carlo_weights
    kick,
    carried_mass,
    carried_trace,
):
    """Weights on log P (S, M, K), on log mu (S,) and on log (1 - q) (S, A) from on-policy episodes."""
    n_k = succ.shape[2]
    n_episodes = ends.shape[0]
    value = _follower_values(states, rewards, ends, terminated, final_states, bonus, gamma, bootstrap)
    w_transition = np.zeros(succ.shape)
    w_initial = np.zeros(bonus.shape[0])
    w_going = np.zeros((bonus.shape[0], rows.shape[0]))
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
                row = rows[a]
                if succ[s, row, k] != following:
                    k = 0
                    while succ[s, row, k] != following:
                        k += 1
                weight = gamma * trace * value[following] + gamma_leader * mass * leader_value[following]
                w_transition[s, row, k] += weight
                w_going[s, a] += weight
            mass *= gamma_leader
    return w_transition, w_initial, w_going


# ------------------------------------------------------------------------ adaptive model design (Alg. 7, corrected)
#
# Values never see derivatives, so they are swept first and their path is kept; then the derivatives, a few coordinates of x
# at a time, which keeps all K sweeps of those coordinates in the cache.

_BLOCK = 64  # coordinates of x swept together


@njit(cache=True)
def merged_transitions(succ, prob, termination):
    """Distinct successors (S, U) of every state, and (1 - q) P (S, A, U) by distinct successor.

    U is a multiple of 4; unused places hold the state itself, with probability 0.
    """
    n_s, n_a, n_k = succ.shape
    place = np.full(n_s, -1)
    most = (min(n_s, n_a * n_k) + 3) // 4 * 4
    rows = np.empty((n_s, most), np.int32)
    share = np.zeros((n_s, n_a, most))
    widest = 0
    for s in range(n_s):
        rows[s] = s
        n = 0
        for a in range(n_a):
            for k in range(n_k):
                following = succ[s, a, k]
                if place[following] < 0:
                    place[following] = n
                    rows[s, n] = following
                    n += 1
                share[s, a, place[following]] += (1.0 - termination[s, a]) * prob[s, a, k]
        for j in range(n):
            place[rows[s, j]] = -1
        widest = max(widest, n)
    widest = (widest + 3) // 4 * 4
    return rows[:, :widest].copy(), share[:, :, :widest].copy()


@njit(cache=True)
def _soft_policy_row(q, s, lam, pi):
    """Fill pi(.|s) = softmax(q / lam) and return V(s) = lam logsumexp(q / lam)."""
    top = -np.inf
    for a in range(q.shape[1]):
        top = max(top, q[s, a])
    z = 0.0
    for a in range(q.shape[1]):
        pi[s, a] = math.exp((q[s, a] - top) / lam)
        z += pi[s, a]
    for a in range(q.shape[1]):
        pi[s, a] /= z
    return top + lam * math.log(z)


@njit(cache=True)
def _values(q, q_leader, lam, pi, v, v_leader):
    """Policy and both values of Q (S, A) and the leader's Q (S, A)."""
    for s in range(q.shape[0]):
        v[s] = _soft_policy_row(q, s, lam, pi)
        v_leader[s] = 0.0
        for a in range(q.shape[1]):
            v_leader[s] += pi[s, a] * q_leader[s, a]


@njit(cache=True)
def sweep_values(reward, leader_reward, rows, share, gamma, gamma_leader, lam, q, q_leader, pi, v, v_leader, kick):
    """K sweeps of Q and of the leader's Q, in place.

    Fills the path of pi (K + 1, S, A), of both values (K + 1, S), and kick (K, S, A) = pi_{k+1} A^u_k / lambda. Returns the
    last change of the follower's values.
    """
    n_s, n_a, n_u = share.shape
    _values(q, q_leader, lam, pi[0], v[0], v_leader[0])
    for k in range(kick.shape[0]):
        for s in range(n_s):
            for a in range(n_a):
                kick[k, s, a] = (q_leader[s, a] - v_leader[k, s]) / lam
                future = 0.0
                future_leader = 0.0
                for j in range(n_u):
                    future += share[s, a, j] * v[k, rows[s, j]]
                    future_leader += share[s, a, j] * v_leader[k, rows[s, j]]
                q[s, a] = reward[s, a] + gamma * future
                q_leader[s, a] = leader_reward[s, a] + gamma_leader * future_leader
        _values(q, q_leader, lam, pi[k + 1], v[k + 1], v_leader[k + 1])
        for s in range(n_s):
            for a in range(n_a):
                kick[k, s, a] *= pi[k + 1, s, a]
    change = 0.0
    for s in range(n_s):
        change = max(change, abs(v[-1, s] - v[-2, s]))
    return change


@njit(cache=True)
def _load(source, low, width, block):
    """Copy coordinates low..low + width - 1 of ``source`` into ``block``."""
    for s in range(block.shape[0]):
        for a in range(block.shape[1]):
            for i in range(width):
                block[s, a, i] = source[s, a, low + i]


@njit(cache=True, fastmath=LOOSE)
def sweep_derivatives(
    succ,
    prob,
    termination,
    gamma,
    gamma_leader,
    rows,  # merged_transitions
    share,
    pi,  # the path of `sweep_values`
    v,
    v_leader,
    kick,
    d_reward,  # derivatives: (S, A or 1, d), (S, A or 1, d), (S, A, K, d), (S, A or 1, d); the last two empty if constant
    d_leader,
    d_prob,
    d_termination,
    dq,  # dQ (S, A, d) and Vtilde (S, d), changed in place
    v_tilde,
):
    """K sweeps of dQ and Vtilde along a path of values."""
    n_s, n_a, n_d = dq.shape
    n_u, n_k = rows.shape[1], prob.shape[2]
    slots, slots_leader = d_reward.shape[1], d_leader.shape[1]
    slope = np.zeros((n_s, slots, _BLOCK))
    slope_leader = np.zeros((n_s, slots_leader, _BLOCK))
    row = np.zeros((n_s, n_a, _BLOCK))
    dv, dv_new = np.zeros((n_s, _BLOCK)), np.zeros((n_s, _BLOCK))
    tilde, tilde_new = np.zeros((n_s, _BLOCK)), np.zeros((n_s, _BLOCK))
    ahead = np.empty(n_u)
    for low in range(0, n_d, _BLOCK):
        width = min(_BLOCK, n_d - low)
        _load(d_reward, low, width, slope)
        _load(d_leader, low, width, slope_leader)
        _load(dq, low, width, row)
        for s in range(n_s):
            for i in range(width):
                tilde[s, i] = v_tilde[s, low + i]
            for i in range(_BLOCK):
                dv[s, i] = 0.0
            for a in range(n_a):
                for i in range(_BLOCK):
                    dv[s, i] += pi[0, s, a] * row[s, a, i]
        for sweep in range(kick.shape[0]):
            for s in range(n_s):
                total = 0.0
                for a in range(n_a):
                    total += kick[sweep, s, a]
                before, after, out = dv[s], dv_new[s], tilde_new[s]
                for i in range(_BLOCK):
                    out[i] = -total * before[i]
                for i in range(_BLOCK):
                    after[i] = 0.0
                for j in range(n_u):
                    ahead[j] = 0.0
                for a in range(n_a):
                    p = pi[sweep + 1, s, a]
                    weight = kick[sweep, s, a]
                    here = row[s, a]
                    own, own_leader = slope[s, min(a, slots - 1)], slope_leader[s, min(a, slots_leader - 1)]
                    for i in range(_BLOCK):
                        out[i] += weight * here[i] + p * own_leader[i]
                        here[i] = own[i]
                    for j in range(n_u):
                        ahead[j] += gamma_leader * p * share[s, a, j]
                    if d_prob.size > 0:
                        goes_on = 1.0 - termination[s, a]
                        for k in range(n_k):
                            weight = gamma * goes_on * v[sweep, succ[s, a, k]]
                            weight_leader = gamma_leader * goes_on * p * v_leader[sweep, succ[s, a, k]]
                            for i in range(width):
                                here[i] += weight * d_prob[s, a, k, low + i]
                                out[i] += weight_leader * d_prob[s, a, k, low + i]
                    if d_termination.size > 0:
                        weight = 0.0
                        weight_leader = 0.0
                        for k in range(n_k):
                            weight -= gamma * prob[s, a, k] * v[sweep, succ[s, a, k]]
                            weight_leader -= gamma_leader * p * prob[s, a, k] * v_leader[sweep, succ[s, a, k]]
                        last = min(a, d_termination.shape[1] - 1)
                        for i in range(width):
                            here[i] += weight * d_termination[s, last, low + i]
                            out[i] += weight_leader * d_termination[s, last, low + i]
                for j in range(0, n_u, 4):
                    r0, r1, r2, r3 = rows[s, j], rows[s, j + 1], rows[s, j + 2], rows[s, j + 3]
                    w0, w1, w2, w3 = ahead[j], ahead[j + 1], ahead[j + 2], ahead[j + 3]
                    x0, x1, x2, x3 = tilde[r0], tilde[r1], tilde[r2], tilde[r3]
                    for i in range(_BLOCK):
                        out[i] += w0 * x0[i] + w1 * x1[i] + w2 * x2[i] + w3 * x3[i]
                    x0, x1, x2, x3 = dv[r0], dv[r1], dv[r2], dv[r3]
                    for a in range(n_a):
                        w0, w1 = gamma * share[s, a, j], gamma * share[s, a, j + 1]
                        w2, w3 = gamma * share[s, a, j + 2], gamma * share[s, a, j + 3]
                        here = row[s, a]
                        for i in range(_BLOCK):
                            here[i] += w0 * x0[i] + w1 * x1[i] + w2 * x2[i] + w3 * x3[i]
                for a in range(n_a):
                    p = pi[sweep + 1, s, a]
                    here = row[s, a]
                    for i in range(_BLOCK):
                        after[i] += p * here[i]
            dv, dv_new = dv_new, dv
            tilde, tilde_new = tilde_new, tilde
        for s in range(n_s):
            for i in range(width):
                v_tilde[s, low + i] = tilde[s, i]
                for a in range(n_a):
                    dq[s, a, low + i] = row[s, a, i]


# ------------------------------------------------------------------------------------- sums along episodes (critic)


@njit(cache=True)
def returns_to_go(rewards, ends, tails, gamma):
    """Discounted sums of rewards from every step on (N,); episode e goes on with the value ``tails[e]`` after its last step."""
    out = np.empty(rewards.shape[0])
    for e in range(ends.shape[0]):
        begin = ends[e - 1] if e > 0 else 0
        ret = tails[e]
        for i in range(ends[e] - 1, begin - 1, -1):
            ret = rewards[i] + gamma * ret
            out[i] = ret
    return out


@njit(cache=True)
def traces(kicks, ends, gamma, gamma_leader):
    """e_t = gamma e_{t-1} + gamma_L^t kick_t (N,), and gamma_L^t (N,)."""
    trace = np.empty(kicks.shape[0])
    power = np.empty(kicks.shape[0])
    for e in range(ends.shape[0]):
        begin = ends[e - 1] if e > 0 else 0
        value = 0.0
        factor = 1.0
        for i in range(begin, ends[e]):
            value = gamma * value + factor * kicks[i]
            trace[i] = value
            power[i] = factor
            factor *= gamma_leader
    return trace, power


# ------------------------------------------------------------------------------------------- counts of transitions


@njit(cache=True)
def count_transitions(states, actions, moves, ends, terminated, final_states, succ, transitions, visits, endings, starts):
    """Add episodes to the counts: of successors (S, M, K), of visits and of ends per pair (S, A), of starts (S,).

    Returns the first step whose successor is not among those stored, which is not counted nor any after it; -1: none.
    """
    n_k = succ.shape[2]
    for e in range(ends.shape[0]):
        begin = ends[e - 1] if e > 0 else 0
        starts[states[begin]] += 1
        for i in range(begin, ends[e]):
            s, a = states[i], actions[i]
            last = i == ends[e] - 1
            if last and terminated[e]:
                endings[s, a] += 1
            else:
                following = final_states[e] if last else states[i + 1]
                m = a if moves.shape[0] == 0 else moves[a]
                k = following if following < n_k and succ[s, m, following] == following else 0  # kernels that store all states
                while k < n_k and succ[s, m, k] != following:
                    k += 1
                if k == n_k:
                    return i
                transitions[s, m, k] += 1
            visits[s, a] += 1
    return -1


# --------------------------------------------------------------------------------------------- many runs at once
#
# One call does what a single run's follower and estimator do in one iteration, for some of B runs: those in ``rows``, whose
# context is this one. Arrays of runs are (B, S, A) and (B, S); nothing but a run's own row is read or written, so threads may
# share them, and which runs share a call changes no number. No call holds Python's lock.


@njit(cache=True, nogil=True)
def monte_carlo_runs(
    rows,  # (R,) int64
    reward,  # (B, S, A) and leader_reward: at each run's x
    leader_reward,
    continuation,  # (S, A) gamma (1 - q), and so on: this context's, the same in all runs
    termination,
    succ,
    prob,
    position,  # the order of `BandedSolver`, and its bandwidth
    band,
    start_threshold,
    start_packed,
    lam,
    gamma,
    gamma_leader,
    tolerance,
    max_iterations,
    horizon,
    budget,
    bootstrap,
    generators,  # (B, 4) uint64, one per run
    values,  # (B, S): V* of each run's last solve in this context, overwritten with the new one
    residuals,  # (B,), iterations (B,), steps (B,), w_reward (B, S, A), w_leader (B, S, A): results
    iterations,
    steps,
    w_reward,
    w_leader,
):
    """Soft policy iteration, ``budget`` steps of its policy, and their Monte-Carlo weights (`monte_carlo_weights`)."""
    n_s, n_a, n_k = prob.shape
    q = np.empty((n_s, n_a))
    pi = np.empty((n_s, n_a))
    lu = np.empty((n_s, 2 * band + 1))
    threshold = np.empty((n_s, n_a * n_k))
    packed = np.empty((n_s, n_a * n_k, 2), np.uint64)
    no_threshold = np.empty((0, 0))
    no_packed = np.empty((0, 0, 2), np.uint64)
    no_index = np.empty(0, np.int64)
    no_starts = np.empty((0, 2), np.int64)
    capacity = budget + horizon
    states = np.empty(capacity, np.int32)
    actions = np.empty(capacity, np.int32)
    rewards = np.empty(capacity)
    leader_rewards = np.empty(capacity)
    ends = np.empty(capacity, np.int64)
    terminated = np.empty(capacity, np.bool_)
    final_states = np.empty(capacity, np.int32)
    carry = np.empty(2, np.int64)
    for i in range(rows.shape[0]):
        b = rows[i]
        residual, iteration = banded_policy_iteration(
            reward[b], continuation, succ, prob, lam, position, band, tolerance, max_iterations, values[b], q, pi, lu
        )
        residuals[b] = residual
        iterations[b] = iteration
        if iteration >= max_iterations or not residual < np.inf:
            continue
        policy_tables(pi, succ, prob, threshold, packed)
        carry[0] = -1
        carry[1] = 0
        n_steps, n_episodes = simulate(
            threshold,
            packed,
            no_threshold,
            no_packed,
            no_index,
            start_threshold,
            start_packed,
            no_starts,
            succ,
            prob,
            reward[b],
            leader_reward[b],
            termination,
            horizon,
            budget,
            carry,
            generators[b],
            states,
            actions,
            rewards,
            leader_rewards,
            ends,
            terminated,
            final_states,
        )
        n = np.int64(n_steps)
        e = np.int64(n_episodes)
        steps[b] = n
        w_r, w_rbar, _, _, _, _ = monte_carlo_weights(
            states[:n],
            actions[:n],
            leader_rewards[:n],
            ends[:e],
            terminated[:e],
            final_states[:e],
            n_s,
            n_a,
            gamma,
            gamma_leader,
            lam,
            bootstrap,
        )
        w_reward[b] = w_r
        w_leader[b] = w_rbar


@njit(cache=True)
def _policy_sum(pi, w, out):
    """out(s) = sum_a pi(s, a) w(s, a)."""
    for s in range(pi.shape[0]):
        total = 0.0
        for a in range(pi.shape[1]):
            total += pi[s, a] * w[s, a]
        out[s] = total


@njit(cache=True)
def _scaled(pi, w, out):
    """out(s, a) = pi(s, a) w(s, a)."""
    for s in range(pi.shape[0]):
        for a in range(pi.shape[1]):
            out[s, a] = pi[s, a] * w[s, a]


@njit(cache=True, nogil=True)
def exact_runs(
    rows,  # as in `monte_carlo_runs`
    reward,
    leader_reward,
    continuation,
    leader_continuation,
    succ,
    prob,
    position,
    band,
    initial,
    lam,
    same_discount,
    tolerance,
    max_iterations,
    values,
    residuals,
    iterations,
    returns,  # (B,): F_xi
    w_reward,
    w_leader,
):
    """Soft policy iteration, and the exact weights of the rewards (`leaders.gradients.exact`)."""
    n_s, n_a, _ = prob.shape
    q = np.empty((n_s, n_a))
    pi = np.empty((n_s, n_a))
    k = np.empty((n_s, n_a))
    future = np.empty((n_s, n_a))
    lu = np.empty((n_s, 2 * band + 1))
    rhs = np.empty(n_s)
    value = np.empty(n_s)
    visits = np.empty(n_s)
    pushed = np.empty(n_s)
    u = np.empty(n_s)
    for i in range(rows.shape[0]):
        b = rows[i]
        residual, iteration = banded_policy_iteration(
            reward[b], continuation, succ, prob, lam, position, band, tolerance, max_iterations, values[b], q, pi, lu
        )
        residuals[b] = residual
        iterations[b] = iteration
        if iteration >= max_iterations or not residual < np.inf:
            continue
        _scaled(pi, leader_continuation, k)
        banded_factor(k, succ, prob, position, band, lu)
        _policy_sum(pi, leader_reward[b], rhs)
        banded_solve(lu, position, band, rhs, value)
        expectation(succ, prob, value, future)
        banded_solve_transposed(lu, position, band, initial, visits)
        total = 0.0
        for s in range(n_s):
            total += initial[s] * value[s]
            for a in range(n_a):
                advantage = leader_reward[b, s, a] + leader_continuation[s, a] * future[s, a] - value[s]
                w = visits[s] * pi[s, a] * advantage / lam
                w_reward[b, s, a] = w
                future[s, a] = continuation[s, a] * w
                w_leader[b, s, a] = visits[s] * pi[s, a]
        returns[b] = total
        if not same_discount:
            _scaled(pi, continuation, k)
            banded_factor(k, succ, prob, position, band, lu)
        adjoint(succ, prob, future, pushed)
        banded_solve_transposed(lu, position, band, pushed, u)
        for s in range(n_s):
            for a in range(n_a):
                w_reward[b, s, a] += u[s] * pi[s, a]
