"""Memory that belongs to somebody else: whatever is kept is copied at the door.

Environments may return one buffer again and again, agents may do so with their actions, and callers may reuse an array that
they made a model from. What we keep of theirs would change under our hands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor


def owned(value: Any) -> Any:
    """A copy of an observation, an action or an argument: arrays and tensors, also within dicts, lists and tuples.

    Everything else comes back as it is; so do tensors computed from x, which carry a graph.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Tensor):
        return owned_tensor(value)
    if isinstance(value, dict):
        return {key: owned(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(owned(part) for part in value)
    return value


def owned_tensor(values: Tensor) -> Tensor:
    """A copy of a tensor, that torch can differentiate through wherever it was made; itself where it carries a graph."""
    if values.requires_grad or is_functorch_wrapped_tensor(values):
        return values
    with torch.inference_mode(False):
        return values.detach().clone()
