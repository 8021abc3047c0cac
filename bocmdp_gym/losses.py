"""General losses f(x, policy, context), minimised in the place of maximising the leader's return: their one form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.errors import ModelError
from bocmdp_gym.options import as_number

#: f(x, policy (S, A), context) -> torch scalar.
Loss = Callable[[Tensor, Tensor, Any], Tensor]


def check_loss(value: Any) -> Tensor:
    """What a loss returned, as a torch scalar.

    Raises:
        ModelError: it is not one real number.
    """
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return value.reshape(())
        got = f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    else:
        number = as_number(value)
        if not np.isnan(number):
            return torch.tensor(number, dtype=torch.float64)
        got = repr(value)
    raise ModelError(f"the loss f(x, policy (S, A), context) returned {got}; expected a torch scalar.")


def evaluate_loss(loss: Loss, x: Tensor, policy: Tensor, context: Any) -> Tensor:
    """A loss at one point, as a scalar.

    Raises:
        ModelError: it returned something else than one finite number; or, where x carries a gradient, a number without a graph.
    """
    value = check_loss(loss(x, policy, context))
    if not bool(torch.isfinite(value.detach()).all()):
        raise ModelError(f"the loss is {float(value.detach())} at x = {x.tolist()}, context {context}; expected a finite number.")
    if x.requires_grad and not value.requires_grad:
        raise ModelError(
            "the loss f(x, policy, context) depends on neither x nor the policy, as far as torch can see; expected torch "
            "operations on both, without .detach(), .numpy(), .item() or torch.no_grad()."
        )
    return value
