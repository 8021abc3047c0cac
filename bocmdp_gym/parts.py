"""A model's parts as they are given, and their numbers: checked at every x, inside torch.func too."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from bocmdp_gym.autodiff import look_at
from bocmdp_gym.errors import ModelError
from bocmdp_gym.kernels.bounds import LARGEST, all_within
from bocmdp_gym.memory import owned
from bocmdp_gym.options import as_array
from bocmdp_gym.transitions import PROBABILITY_TOLERANCE, TransitionOperator, as_transitions

Array = npt.NDArray[np.float64]


def is_function(part: Any) -> bool:
    """Whether a part is a function of x."""
    return callable(part) and not isinstance(part, Tensor)


def owned_part(name: str, part: Any) -> Any:
    """A part that its giver cannot change later: functions as they are, everything else copied."""
    if part is None or is_function(part):
        return part
    if name == "transition":
        return as_transitions(part)  # which owns its numbers
    return part.copy() if sparse.issparse(part) else owned(part)


def dense(name: str, value: Any) -> Tensor:
    """A part other than P as a dense tensor; a scipy.sparse matrix ``(S, A)`` is that of every context.

    Raises:
        ModelError: these are no real numbers.
    """
    if isinstance(value, Tensor):
        value = value if value.layout == torch.strided else value.to_dense()
        if value.is_complex():
            raise ModelError(f"{name} is a tensor of type {value.dtype}; expected real numbers.")
        return value
    if sparse.issparse(value):
        value = value.toarray() if name == "initial" else value.toarray()[None]
    if np.ma.isMaskedArray(value) and np.ma.is_masked(value):
        raise ModelError(f"{name} has masked entries; expected a number at each, such as value.filled(0.0).")
    try:
        given = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, and tensors that NumPy refuses
        given = np.array(None)
    array = given if given.dtype.kind in "biuf" else as_array(value)
    if array is None or array.size == 0 or value is None:
        raise ModelError(
            f"{name} is {value!r}; expected an array of real numbers, or a function of x that returns a tensor of them."
        )
    return torch.as_tensor(array)


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
