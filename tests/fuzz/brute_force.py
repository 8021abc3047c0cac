"""The optimum and the return by plain value iteration in extended precision; shares no code with the library."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Optimum(NamedTuple):
    """Of one context."""

    policy: Any  # (S, A)
    value: Any  # (S,)
    leader_return: float


def solve(
    reward: Any, leader_reward: Any, transition: Any, initial: Any, termination: Any, discounts: tuple[float, float], lam: float
) -> Optimum:
    """By V <- lambda logsumexp((r + gamma (1 - q) P V) / lambda) until V stays where it is.

    Args:
        reward, leader_reward, termination: ``(S, A)``.
        transition: ``(S, A, S)``.
        initial: ``(S,)``.
        discounts: gamma and gamma_L, below 1.
        lam: lambda.
    """
    r, rbar, p, mu, q = (np.asarray(a, dtype=np.longdouble) for a in (reward, leader_reward, transition, initial, termination))
    lam = np.longdouble(lam)
    g, g_leader = (np.longdouble(d) * (1 - q) for d in discounts)
    v = np.zeros(len(r), dtype=np.longdouble)
    for _ in range(20_000):
        scores = (r + g * (p @ v)) / lam
        top = scores.max(-1)
        new = lam * (top + np.log(np.exp(scores - top[:, None]).sum(-1)))
        change, v = np.abs(new - v).max(), new
        if change <= 1e-17 * lam:
            break
        if change <= 4 * np.finfo(np.longdouble).eps * np.abs(v).max():
            break
    scores = (r + g * (p @ v)) / lam
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    policy = weights / weights.sum(-1, keepdims=True)
    step = np.einsum("sa,sat->st", policy * g_leader, p)
    gains, u = (policy * rbar).sum(-1), np.zeros(len(r), dtype=np.longdouble)
    for _ in range(20_000):
        new = gains + step @ u
        change, u = np.abs(new - u).max(), new
        if change <= 4 * np.finfo(np.longdouble).eps * np.abs(u).max():
            break
    return Optimum(policy.astype(np.float64), v.astype(np.float64), float(mu @ u))
