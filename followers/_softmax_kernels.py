r"""Compiled updates of a softmax policy that is kept beside its parameters.

Beside the parameters q (S, A) stand unnormalised weights at temperature lam:

    weight(s, a) = exp((q(s, a) - top(s)) / lam)      total(s) = sum_a weight(s, a)      value(s) = top(s) + lam log total(s)

``top(s)`` is any number that keeps the weights in range, so changing one q(s, a) costs one exponential and one logarithm.
Actions that do not exist have q = -inf, and so weight 0.
"""
# mypy: allow-untyped-defs, no-check-untyped-defs

from __future__ import annotations

import math

from numba import njit

#: Exponents above this, or a total below exp(-200), move the reference ``top``.
HIGHEST = 200.0
LEAST = math.exp(-HIGHEST)


@njit(cache=True)
def fill(q, lam, weight, top, total, value):
    """Fill weight, top, total and value from q (module docstring)."""
    for s in range(q.shape[0]):
        rebase(q, lam, s, weight, top, total)
        value[s] = top[s] + lam * math.log(total[s])


@njit(cache=True)
def rebase(q, lam, s, weight, top, total):
    """Compute one state's weights from scratch, with the largest q(s, .) as reference."""
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
def draw(weight, s, u):
    """The action whose share of the weights of state s contains ``u``, a uniform number times their total."""
    last = weight.shape[1] - 1
    a = 0
    while a < last and u >= weight[s, a]:
        u -= weight[s, a]
        a += 1
    while weight[s, a] == 0.0 and a > 0:  # rounding went past the last action that exists
        a -= 1
    return a


@njit(cache=True)
def normalise(weight, total, out):
    """out(s, a) = weight(s, a) / total(s)."""
    n_s, n_a = weight.shape
    for s in range(n_s):
        for a in range(n_a):
            out[s, a] = weight[s, a] / total[s]
    return out
