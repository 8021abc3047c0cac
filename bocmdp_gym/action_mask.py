r"""Actions that do not exist in some states: what a model makes of ``action_mask``.

The mathematics. With A(s) the actions that exist in s, all of the theory stays as it is, with sums over A(s):

    V(s) = lambda log sum_{a in A(s)} exp(Q(s, a) / lambda),      pi(a|s) = 0 for a not in A(s).

That is Q = -inf there, in the softmax and nowhere else: what does not exist is not chosen, and adds no entropy. Elsewhere, where
0 * inf would be no number, every pair keeps finite numbers. A pair that does not exist *repeats the first action of its state
that does*, so that what a model's structure decides (whether episodes end, which states can be reached, how long values remember)
is what the actions that exist decide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.autodiff import look_at
from bocmdp_gym.errors import ActionError, ModelError
from bocmdp_gym.transitions import TransitionOperator

Mask = npt.NDArray[np.bool_]


class ActionMask(Constructed):
    """Which actions exist, and the numbers that stand for those that do not.

    Args:
        allowed: ``(C or 1, S, A)``, at least one action in each state.

    Attributes:
        allowed: as given.
        source: the action whose numbers stand at each pair, ``(C or 1, S, A)``: itself where it exists.
    """

    def __init__(self, allowed: Mask):
        self.allowed = allowed
        first = allowed.argmax(-1)[..., None]
        self.source = torch.from_numpy(np.where(allowed, np.arange(allowed.shape[-1]), first))
        self._absent = torch.from_numpy(~allowed)

    def of(self, context: int | npt.NDArray[np.int64]) -> Mask:
        """That of one context ``(S, A)``, or of each of several ``(N, S, A)``."""
        return self.allowed[np.minimum(context, len(self.allowed) - 1)]

    def fill(self, part: Tensor) -> Tensor:
        """A part ``(C or 1, S or 1, A or 1)`` with the numbers that stand for actions that do not exist."""
        if part.shape[-1] == 1:  # the same for all actions
            return part
        sizes = np.broadcast_shapes(part.shape, self.source.shape)
        return part.expand(sizes).gather(-1, self.source.expand(sizes))

    def fill_transitions(self, transition: TransitionOperator) -> TransitionOperator:
        """The same for P."""
        return transition.with_actions(self.source)

    def check_policy(self, policy: Tensor) -> None:
        """Refuse a policy ``(..., C, S, A)`` that takes actions which do not exist.

        Raises:
            ActionError: naming the first.
        """
        look_at(lambda numbers: check_exist(numbers.cpu().numpy(), self.allowed), policy)

    def hide(self, q: Tensor) -> Tensor:
        """``q`` ``(..., C, S, A)`` with -inf where an action does not exist."""
        return q.masked_fill(self._absent.to(q.device), -torch.inf)


def check_exist(policy: npt.NDArray[Any], allowed: Mask, where: str = "") -> None:
    """Refuse a policy ``(..., S, A)`` that takes actions which do not exist by ``allowed``, which broadcasts to it.

    Raises:
        ActionError: naming the first; ``where``: " in context 0", for the message.
    """
    wrong = np.argwhere((policy > 0.0) & ~allowed)
    if len(wrong):
        *_, state, action = (int(i) for i in wrong[0])
        raise ActionError(
            f"the policy takes action {action} in state {state}{where} with probability {policy[tuple(wrong[0])]:.3g}, and that "
            "does not exist there (action_mask); expected probability 0."
        )


def as_mask(value: Any) -> Mask:
    """A mask as a model is given it, ``(S, A)`` or ``(C or 1, S, A)``, as an array ``(C or 1, S, A)``.

    Raises:
        ModelError: no booleans, or another number of axes.
    """
    try:
        array = np.array(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError):  # ragged lists
        array = np.array(None)
    if array.dtype != np.bool_:
        kind = type(value).__name__ if array.dtype.kind == "O" else array.dtype
        raise ModelError(
            f"action_mask is of type {kind}; expected booleans (S, A) or (C, S, A), True where an action exists. Other numbers, "
            "such as Gymnasium's int8, become some by mask.astype(bool)."
        )
    if array.ndim not in (2, 3):
        raise ModelError(f"action_mask has shape {array.shape}; expected (S, A), or (C, S, A) with one mask for each context.")
    return array[None] if array.ndim == 2 else array


def check_mask(allowed: Mask, n_contexts: int, n_states: int, n_actions: int) -> ActionMask | None:
    """The mask ``(C or 1, S, A)`` of a model of these sizes; None if it allows everything.

    Raises:
        ModelError: another shape, or a state in which no action exists.
    """
    if allowed.shape not in ((1, n_states, n_actions), (n_contexts, n_states, n_actions)):
        raise ModelError(
            f"action_mask has shape {allowed.shape}; expected ({n_states}, {n_actions}), that is (states, actions), or "
            f"({n_contexts}, {n_states}, {n_actions}), (contexts, states, actions)."
        )
    stuck = ~allowed.any(-1)
    if stuck.any():
        context, state = (int(i) for i in np.argwhere(stuck)[0])
        raise ModelError(
            f"action_mask leaves state {state} without any action in context {context}; expected at least one in each state. A "
            "state that nobody leaves has an action that ends the episode (termination 1) or stays."
        )
    return None if allowed.all() else ActionMask(allowed)
