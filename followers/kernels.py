r"""Compiled kernels of the tabular followers. Arrays of **one** context, as in `bocmdp_gym.kernels`; no validation, no defaults.

A softmax policy is kept beside its parameters q (S, A), with temperature lam, as unnormalised weights:

    weight(s, a) = exp((q(s, a) - top(s)) / lam)      total(s) = sum_a weight(s, a)      value(s) = top(s) + lam log total(s)

``top(s)`` is any number that keeps the weights in range, so changing one q(s, a) costs one exponential and one logarithm.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bocmdp_gym.kernels.bellman import soft_backup
from bocmdp_gym.kernels.random import LOW, ONE, next_bits, unit

_HIGHEST = 200.0  # exponents above this, or a total below exp(-200), move the reference `top`
_LEAST = math.exp(-_HIGHEST)
_FORGETTING = 0.01  # smallest weight of the newest return in a baseline, so that it follows the policy


@njit(cache=True)
def soft_value_iteration(r, g, succ, prob, lam, v, q, pi, tolerance, max_iterations):
    """Soft value iteration (Algorithm 3) from ``v``, in place. Returns (iterations, residual), the residual NaN if not finite.

    Stops at ``max_iterations``, or where the residual is at most ``tolerance * max(1, max |v|)`` (never if negative).
    """
    n_s = v.shape[0]
    rhs = np.empty(n_s)
    v_new = np.empty(n_s)
    residual = np.inf
    for iteration in range(1, max_iterations + 1):
        residual = soft_backup(r, g, succ, prob, lam, v, q, pi, rhs, v_new)
        if not residual < np.inf:
            return iteration, residual
        scale = 1.0
        for s in range(n_s):
            scale = max(scale, abs(v_new[s]))
            v[s] = v_new[s]
        if residual <= tolerance * scale:
            return iteration, residual
    return max_iterations, residual


# -------------------------------------------------------------------------------------------------- softmax policies


@njit(cache=True)
def softmax_state(q, lam, weight, top, total, value):
    """Fill weight, top, total and value from q (module docstring)."""
    for s in range(q.shape[0]):
        _rebase(q, lam, s, weight, top, total)
        value[s] = top[s] + lam * math.log(total[s])


@njit(cache=True)
def _rebase(q, lam, s, weight, top, total):
    """Compute one state's weights anew, with the largest q(s, .) as reference."""
    n_a = q.shape[1]
    highest = q[s, 0]
    for a in range(1, n_a):
        highest = max(highest, q[s, a])
    summed = 0.0
    for a in range(n_a):
        w = math.exp((q[s, a] - highest) / lam)
        weight[s, a] = w
        summed += w
    top[s] = highest
    total[s] = summed


@njit(cache=True, inline="always")
def _draw(weight, s, u):
    """The action whose share of the weights of state s contains ``u``, a uniform number times their total."""
    last = weight.shape[1] - 1
    a = 0
    while a < last and u >= weight[s, a]:
        u -= weight[s, a]
        a += 1
    return a


@njit(cache=True)
def policy_table(weight, total, out):
    """out(s, a) = weight(s, a) / total(s)."""
    n_s, n_a = weight.shape
    for s in range(n_s):
        for a in range(n_a):
            out[s, a] = weight[s, a] / total[s]
    return out


# ---------------------------------------------------------------------------------------------------- soft Q-learning


@njit(cache=True)
def soft_q_learning(
    q,  # (S, A), and its softmax state (module docstring): changed in place
    weight,
    top,
    total,
    value,
    counts,  # (S, A) int64: updates of each pair so far
    reward,
    termination,
    threshold,  # (S M, K): successor tables
    packed,
    rows,  # (A,): the row of each action
    start_threshold,  # (1, S): tables of the initial distribution
    start_packed,
    behaviour_threshold,  # (S, A): tables of the fixed part of the behaviour policy
    behaviour_packed,
    fixed,  # probability of drawing the action from that part, rather than from the softmax of the current q
    pairs,  # True: state-action pairs are drawn uniformly, no trajectory is followed
    gamma,
    lam,
    scale,  # step sizes scale / (n + offset), constant where offset is negative
    offset,
    per_pair,
    clock,  # updates done before
    steps,
    cursor,  # (1,) int64: the state the trajectory is in, -1 if an episode is to begin
    rng,
):
    """Soft Q-learning (Algorithm 4, corrected). Returns -1, or the pair s A + a whose value is not finite."""
    s0, s1, s2, s3 = rng[0], rng[1], rng[2], rng[3]
    n_s = np.uint64(q.shape[0])
    n_a = np.uint64(q.shape[1])
    n_k = np.uint64(threshold.shape[1])
    n_m = np.uint64(threshold.shape[0]) // n_s
    flat_q = q.reshape(-1)
    flat_weight = weight.reshape(-1)
    flat_counts = counts.reshape(-1)
    flat_reward = reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_threshold = threshold.reshape(-1)
    flat_packed = packed.reshape(-1)
    flat_behaviour = behaviour_threshold.reshape(-1)
    flat_choices = behaviour_packed.reshape(-1)
    inverse = 1.0 / lam
    constant = offset < 0.0
    bad = np.int64(-1)
    is_open = cursor[0] >= 0
    s = np.uint64(max(cursor[0], 0))
    for t in range(clock, clock + steps):
        bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
        u = unit(bits)
        if pairs:
            sa = np.uint64(u * (n_s * n_a))
            s = sa // n_a
        else:
            if not is_open:
                u *= n_s
                slot = np.uint64(u)
                s = start_packed[0, slot, np.uint64(u - slot >= start_threshold[0, slot])]
                is_open = True
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                u = unit(bits)
            if u < fixed:
                u *= n_a / fixed
                choice = min(np.uint64(u), n_a - ONE)
                slot = s * n_a + choice
                sa = s * n_a + flat_choices[(slot << ONE) + np.uint64(u - choice >= flat_behaviour[slot])]
            else:
                sa = s * n_a + np.uint64(_draw(weight, s, (u - fixed) / (1.0 - fixed) * total[s]))
        target = flat_reward[sa]
        stop = flat_stop[sa]
        ended = False
        if stop > 0.0:
            ended = stop >= 1.0
            if not ended:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                ended = unit(bits) < stop
        following = s
        if not ended:
            bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
            u = unit(bits) * n_k
            slot = np.uint64(u)
            m = (s * n_m + np.uint64(rows[sa - s * n_a])) * n_k + slot
            following = flat_packed[(m << ONE) + np.uint64(u - slot >= flat_threshold[m])]
            target += gamma * value[following]

        if constant:
            alpha = scale
        elif per_pair:
            alpha = scale / (flat_counts[sa] + offset)
        else:
            alpha = scale / (t + offset)
        flat_counts[sa] += 1
        updated = flat_q[sa] + alpha * (target - flat_q[sa])
        if not abs(updated) < np.inf:
            bad = np.int64(sa)
            break
        flat_q[sa] = updated

        exponent = (updated - top[s]) * inverse
        if exponent < _HIGHEST:
            flat_weight[sa] = math.exp(exponent)
            summed = 0.0
            for i in range(s * n_a, (s + ONE) * n_a):
                summed += flat_weight[i]
            total[s] = summed
        if exponent >= _HIGHEST or total[s] < _LEAST:
            _rebase(q, lam, s, weight, top, total)
        value[s] = top[s] + lam * math.log(total[s])

        is_open = not ended
        s = following
    rng[0], rng[1], rng[2], rng[3] = s0, s1, s2, s3
    cursor[0] = np.int64(s) if is_open and not pairs else -1
    return bad


# ---------------------------------------------------------------------------------------------------- policy gradient


@njit(cache=True)
def policy_gradient(
    theta,  # (S, A) logits, and their softmax state with lam = 1 (module docstring): changed in place
    weight,
    top,
    total,
    value,
    baseline,  # (S,) mean return seen from each state, and visits (S,) int64: changed in place; without visits, not used
    visits,
    reward,
    termination,
    threshold,  # (S M, K): successor tables
    packed,
    rows,  # (A,): the row of each action
    start_threshold,  # (1, S): tables of the initial distribution
    start_packed,
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
    n_k = np.uint64(threshold.shape[1])
    n_m = np.uint64(threshold.shape[0]) // n_s
    flat_reward = reward.reshape(-1)
    flat_stop = termination.reshape(-1)
    flat_threshold = threshold.reshape(-1)
    flat_packed = packed.reshape(-1)
    root = math.sqrt(gamma)
    states = np.empty(batch, np.uint64)
    chosen = np.empty(batch, np.uint64)
    returns = np.empty(batch)
    bad = np.int64(-1)
    for t in range(clock, clock + iterations):
        found = 0
        for _ in range(batch):
            bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
            u = unit(bits) * n_s
            slot = np.uint64(u)
            s = start_packed[0, slot, np.uint64(u - slot >= start_threshold[0, slot])]
            seeking = True  # s_0 .. s_T first, then the return from there
            going = gamma
            discount = 1.0
            ret = 0.0
            while True:
                bits, s0, s1, s2, s3 = next_bits(s0, s1, s2, s3)
                a = np.uint64(_draw(weight, s, unit(bits) * total[s]))
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
                u = unit(bits) * n_k
                slot = np.uint64(u)
                m = (s * n_m + np.uint64(rows[a])) * n_k + slot
                s = flat_packed[(m << ONE) + np.uint64(u - slot >= flat_threshold[m])]
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
            _rebase(theta, 1.0, s, weight, top, total)
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


# ------------------------------------------------------------------------------------------- natural policy gradient


@njit(cache=True)
def sampled_q(
    threshold,  # (S, A K) and packed (S, A K, 2): joint tables of action and next state (bocmdp_gym.kernels.alias.policy_tables)
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
