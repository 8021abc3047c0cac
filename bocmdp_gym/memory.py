"""Memory that belongs to somebody else: whatever is kept is copied at the door, and large arrays go back to the system.

Environments may return one buffer again and again, agents may do so with their actions, and callers may reuse an array that
they made a model from. What we keep of theirs would change under our hands.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

#: Arrays of this many bytes and more go back to the system when they are freed, in models that have such.
LARGE = 16 * 2**20
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


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


@cache
def give_back_large_arrays() -> bool:
    """Have glibc give arrays of `LARGE` and more back to the system when they are freed. Returns whether it does.

    By itself it keeps pieces of up to 32 MB, in the hope that they are asked for again: a solve of a million states then takes a
    quarter more memory, and no less time. This holds for the whole process. Where the environment variable
    MALLOC_MMAP_THRESHOLD_ says otherwise, or the C library is another, nothing is changed.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE))
    except (AttributeError, OSError, TypeError):
        return False
