r"""A softmax policy beside its parameters, in the form the compiled kernels update in place (`followers.kernels`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from followers import kernels
from followers.base import Array


class SoftmaxState(NamedTuple):
    """softmax(q / temperature) over actions, with q.

    weight(s, a) = exp((q(s, a) - top(s)) / temperature), total(s) = sum_a weight(s, a), and
    value(s) = temperature logsumexp(q(s, .) / temperature).
    """

    q: Array  # (S, A)
    weight: Array  # (S, A)
    top: Array  # (S,)
    total: Array  # (S,)
    value: Array  # (S,)

    @classmethod
    def begin(cls, q: Array, temperature: float) -> SoftmaxState:
        """The state that belongs to ``q`` (kept, not copied)."""
        state = cls(q, np.empty_like(q), *np.empty((3, len(q))))
        state.refresh(temperature)
        return state

    def refresh(self, temperature: float) -> None:
        """Bring everything up to date after ``q`` changed."""
        kernels.softmax_state(self.q, temperature, self.weight, self.top, self.total, self.value)

    def table(self) -> Array:
        """The policy's probabilities ``(S, A)``, a fresh array."""
        table: Array = kernels.policy_table(self.weight, self.total, np.empty_like(self.q))
        return table
