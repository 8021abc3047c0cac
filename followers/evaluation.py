r"""What a policy is worth to the follower, exactly: V^pi = M_pi^-1 (sum_a pi r + lambda H(pi)), Q^pi = r + g P V^pi."""

from __future__ import annotations

from typing import NamedTuple

from scipy.special import entr

from bocmdp_gym.tabular import ContextArrays
from followers.policies import Array


class PolicyValues(NamedTuple):
    """A policy's regularised values in one context."""

    value: Array  # V^pi (S,)
    q: Array  # Q^pi (S, A)


def policy_values(arrays: ContextArrays, policy: Array, regularization: float) -> PolicyValues:
    """V^pi and Q^pi of a policy ``(S, A)``, entropy included; leaves ``arrays.solver`` factored for pi g.

    Args:
        arrays: the context's MDP.
        policy: action probabilities.
        regularization: lambda >= 0; 0 gives the plain values.
    """
    arrays.solver.factor(policy * arrays.continuation, arrays.stored_probabilities)
    value = arrays.solver.solve((policy * arrays.reward).sum(-1) + regularization * entr(policy).sum(-1))
    return PolicyValues(value, q_values(arrays, value))


def q_values(arrays: ContextArrays, value: Array) -> Array:
    """Q = r + g P V, ``(S, A)``."""
    return arrays.reward + arrays.continuation * arrays.expectation(value)
