"""A softmax policy beside its parameters, in a form that compiled kernels update in place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from bocmdp_gym.mdps import ContextArrays
from followers._softmax_kernels import fill, normalise
from followers.policies import Array


class SoftmaxState(NamedTuple):
    """softmax(q / temperature) over actions, with q.

    value(s) = temperature logsumexp(q(s, .) / temperature); the rest is in `followers._softmax_kernels`.
    """

    q: Array  # (S, A)
    weight: Array  # (S, A)
    top: Array  # (S,)
    total: Array  # (S,)
    value: Array  # (S,)

    @classmethod
    def begin(cls, arrays: ContextArrays, q: Array | None, temperature: float) -> SoftmaxState:
        """The state that belongs to a copy of ``q``, zeros if None; actions that do not exist in ``arrays`` have q = -inf."""
        own = np.zeros(arrays.reward.shape) if q is None else q.copy()
        if arrays.action_mask is not None:
            own[~arrays.action_mask] = -np.inf
        state = cls(own, np.empty_like(own), *np.empty((3, len(own))))
        state.refresh(temperature)
        return state

    def refresh(self, temperature: float) -> None:
        """Bring everything up to date after ``q`` changed."""
        fill(self.q, temperature, self.weight, self.top, self.total, self.value)

    def kept(self) -> Array:
        """q for another to begin from: itself, with 0 where an action does not exist."""
        missing = self.q == -np.inf
        return np.where(missing, 0.0, self.q) if missing.any() else self.q

    def table(self) -> Array:
        """The policy's probabilities ``(S, A)``, a fresh array."""
        table: Array = normalise(self.weight, self.total, np.empty_like(self.q))
        return table


def soft_value(q: Array, temperature: float) -> Array:
    """temperature logsumexp(q / temperature), over actions."""
    value: Array = temperature * logsumexp(q / temperature, axis=-1)
    return value
