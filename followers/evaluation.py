r"""What a policy is worth to the follower, exactly: V^pi = M_pi^-1 (sum_a pi r + lambda H(pi)), Q^pi = r + g P V^pi."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import entr

from bocmdp_gym.kernels.newton import EPSILON
from bocmdp_gym.mdps import ContextArrays
from followers.policies import Array


class PolicyValues(NamedTuple):
    """A policy's regularised values in one context."""

    value: Array  # V^pi (S,)
    q: Array  # Q^pi (S, A)


def policy_values(arrays: ContextArrays, policy: Array, regularization: float) -> PolicyValues:
    """The follower's V^pi and Q^pi of a policy ``(S, A)``, entropy included; see `evaluate`.

    Args:
        arrays: the context's MDP.
        policy: action probabilities.
        regularization: lambda >= 0; 0 gives the plain values.
    """
    return evaluate(arrays, policy, arrays.reward, arrays.continuation, regularization)


def evaluate(
    arrays: ContextArrays, policy: Array, reward: Array, continuation: Array, regularization: float = 0.0
) -> PolicyValues:
    """V^pi and Q^pi for any reward r and continuation g ``(S, A)``."""
    system = arrays.solver.factor(policy * continuation, arrays.stored_probabilities)
    value = system.solve((policy * reward).sum(-1) + regularization * entropy(policy))
    return PolicyValues(value, reward + continuation * arrays.expectation(value))


def rounding(arrays: ContextArrays, policy: Array, value: Array) -> Array:
    """What rounding leaves uncertain of a soft Bellman residual, ``(S,)``: a few units in the last place of what is added up.

    Actions weigh in by their probability: a state is as exact as what is done there, whatever else could be done.
    """
    parts = np.abs(arrays.reward) + arrays.continuation * arrays.expectation(np.abs(value))
    level: Array = 4.0 * EPSILON * ((policy * parts).sum(-1) + np.abs(value))
    return level


def largest_gap(arrays: ContextArrays, value: Array, gaps: Array) -> Array:
    """The largest |gap| of a state's Q ``(S, A)``, but for what rounding leaves uncertain of each action's, ``(S,)``."""
    level = 4.0 * EPSILON * (np.abs(arrays.reward) + arrays.continuation * arrays.expectation(np.abs(value)))
    largest: Array = np.maximum(np.where(arrays.available, np.abs(gaps) - level, 0.0), 0.0).max(-1)
    return largest


def q_values(arrays: ContextArrays, value: Array) -> Array:
    """Q = r + g P V, ``(S, A)``."""
    return arrays.reward + arrays.continuation * arrays.expectation(value)


def visitation(arrays: ContextArrays, policy: Array) -> Array:
    """Discounted visits of a policy ``(S, A)`` by state: d^pi = M_pi^-T mu, ``(S,)``."""
    system = arrays.solver.factor(policy * arrays.continuation, arrays.stored_probabilities)
    return system.solve_transposed(arrays.initial)


def entropy(policy: Array) -> Array:
    """H(pi(. | s)), over the last axis."""
    summed: Array = entr(policy).sum(-1)
    return summed
