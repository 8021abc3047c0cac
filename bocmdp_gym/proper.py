"""Whether every policy's episodes end: what a discount of 1, or no horizon, asks of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from bocmdp_gym.autodiff import look_at
from bocmdp_gym.errors import DiscountError
from bocmdp_gym.transitions import TransitionOperator


def check_proper(transition: TransitionOperator, termination: Tensor, reason: str, reward: Tensor | None = None) -> None:
    """Check that episodes end with certainty under every policy, as they must where ``reason`` ("discount is 1").

    They do unless some set of states can be stayed in for ever: the largest set Z in which every state has an action with
    q = 0 and all successors in Z is found by removing states that have none. With ``reward``, such a set is allowed if all
    those actions cost, and an end can be reached from everywhere: whoever stays loses without bound, and no optimum does.
    """
    parts = [transition.values, termination, *([] if reward is None else [reward])]
    if not any(map(is_functorch_wrapped_tensor, parts)):
        _check(transition, reason, *parts)
        return
    shapes, sizes = [part.shape for part in parts], [part.numel() for part in parts]

    def look(numbers: Tensor) -> None:
        lead = numbers.shape[:-1]
        split = numbers.split(sizes, -1)
        _check(transition, reason, *(one.reshape(*lead, *shape) for one, shape in zip(split, shapes, strict=True)))

    look_at(look, torch.cat([part.reshape(-1) for part in parts]))


def _check(
    transition: TransitionOperator, reason: str, values: Tensor, termination: Tensor, reward: Tensor | None = None
) -> None:
    """`check_proper` of plain numbers; dimensions of batches come first."""
    values = values.detach().flatten(0, -5) if values.ndim > 4 else values.detach()
    succ = np.broadcast_to(transition.successors(), values.shape[-4:])
    possible = (values.reshape(-1, *values.shape[-4:]).amax(0) > 0).numpy()
    ends = _smallest(termination) > 0
    n_contexts = max(len(succ), len(ends), 1 if reward is None else reward.shape[-3])
    for context in range(n_contexts):
        c, e = (0 if len(succ) == 1 else context), ends[0 if len(ends) == 1 else context]
        inside = np.ones(succ.shape[1], dtype=bool)
        while True:
            stays = (inside[succ[c]] | ~possible[c]).all(-1)
            stays = (stays if transition.index is None else stays[:, transition.index]) & ~e
            smaller = inside & stays.any(-1)
            if (smaller == inside).all():
                break
            inside = smaller
        if inside.any() and reward is not None:
            costs = (_smallest(-reward) > 0)[0 if reward.shape[-3] == 1 else context]
            inside = (inside[:, None] & stays & ~costs).any(-1) | ~_can_end(succ[c], possible[c], e)
        if inside.any():
            raise DiscountError(
                f"{reason}, but from state {int(np.flatnonzero(inside)[0])} in context {context} some policy's episodes never "
                "end; expected a discount below 1 and a horizon, or termination probabilities that end every episode."
            )


def _smallest(part: Tensor) -> npt.NDArray[np.float64]:
    """The smallest value over leading batch dimensions, ``(C or 1, S, A or 1)``."""
    smallest: npt.NDArray[np.float64] = part.detach().reshape(-1, *part.shape[-3:]).amin(0).numpy()
    return smallest


def _can_end(succ: npt.NDArray[np.int32], possible: npt.NDArray[np.bool_], ends: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """States from which some policy's episodes end, ``(S,)``."""
    reached: Any = np.broadcast_to(ends.any(-1), succ.shape[:1])
    while True:
        larger = reached | (reached[succ] & possible).any((-1, -2))
        if (larger == reached).all():
            return reached
        reached = larger
