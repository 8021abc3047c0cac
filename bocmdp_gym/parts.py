"""The numbers of a model's parts: checked at every x, inside torch.func too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from bocmdp_gym.autodiff import look_at
from bocmdp_gym.errors import ModelError
from bocmdp_gym.kernels.bounds import LARGEST, all_within
from bocmdp_gym.transitions import PROBABILITY_TOLERANCE, TransitionOperator

Array = npt.NDArray[np.float64]


def check_part(name: str, part: Tensor | TransitionOperator) -> Array | None:
    """Check the numbers of one part of a model.

    Args:
        name: "reward", "leader_reward", "transition", "initial" or "termination".
        part: the operator, or a tensor ``(..., C, S, A)`` (``initial``: ``(..., C, S)``), of which sizes may be 1.

    Returns:
        The numbers of a tensor; None where they are an operator's, torch.func's or another device's.

    Raises:
        ModelError: rewards that are not finite, rows of P or mu that are no distributions, ends that are no probabilities;
            it names the part, state, action and context of the first fault.
    """
    if not isinstance(part, Tensor):
        part.validate()
        return None
    if is_functorch_wrapped_tensor(part):
        look_at(_LOOKS[name], part)
        return None
    values = part.detach()
    low, high = _BOUNDS[name]
    if not values.is_cpu:
        _LOOKS[name](values)
        return None
    numbers: Array = values.numpy()
    if not all_within(numbers.reshape(-1), low, high):  # on arrays of this size compiled code answers sooner than torch
        _LOOKS[name](values)
    return numbers


def _look_at_reward(values: Tensor, name: str = "reward") -> None:
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise _fault(name, values, bad, "a finite number")


def _look_at_leader_reward(values: Tensor) -> None:
    _look_at_reward(values, "leader_reward")


def _look_at_termination(values: Tensor) -> None:
    bad = ~((values >= -PROBABILITY_TOLERANCE) & (values <= 1.0 + PROBABILITY_TOLERANCE))
    if bool(bad.any()):
        raise _fault("termination", values, bad, "a probability in [0, 1]")


def _look_at_initial(values: Tensor) -> None:
    total = values.sum(-1)
    bad = ~((total - 1.0).abs() <= PROBABILITY_TOLERANCE) | (values < -PROBABILITY_TOLERANCE).any(-1)
    if not bool(bad.any()):
        return
    *batch, context = index = tuple(int(i) for i in bad.nonzero()[0])
    row = values[index]
    where = f"the initial distribution of context {context}{_of_batch(batch)}"
    if bool((row < -PROBABILITY_TOLERANCE).any()):
        raise ModelError(f"{where} has the entry {float(row.min()):.3g}; expected non-negative numbers that sum to 1.")
    raise ModelError(f"{where} sums to {float(row.sum()):.12g}; expected non-negative numbers that sum to 1.")


#: Numbers that the compiled check lets pass; the rest is for the looks to judge.
_BOUNDS = {
    "reward": (-LARGEST, LARGEST),
    "leader_reward": (-LARGEST, LARGEST),
    "termination": (0.0, 1.0),
    "initial": (np.inf, -np.inf),  # their sums count too
}
_LOOKS = {
    "reward": _look_at_reward,
    "leader_reward": _look_at_leader_reward,
    "termination": _look_at_termination,
    "initial": _look_at_initial,
}


def _fault(name: str, values: Tensor, bad: Tensor, expected: str) -> ModelError:
    *batch, context, state, action = index = tuple(int(i) for i in bad.nonzero()[0])
    return ModelError(
        f"{name} is {float(values[index]):.12g} at state {state}, action {action}, context {context}{_of_batch(batch)}; expected "
        f"{expected}. Where {name} is a function of x, check it at this x."
    )


def _of_batch(index: list[int]) -> str:
    return f", entry {', '.join(map(str, index))} of the batch" if index else ""
