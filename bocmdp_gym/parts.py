"""The numbers of a model's parts: checked at every x, inside torch.func too."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.autodiff import look_at
from bocmdp_gym.errors import ModelError
from bocmdp_gym.transitions import PROBABILITY_TOLERANCE, TransitionOperator


def check_part(name: str, part: Tensor | TransitionOperator) -> None:
    """Check the numbers of one part of a model.

    Args:
        name: "reward", "leader_reward", "transition", "initial" or "termination".
        part: the operator, or a tensor ``(..., C, S, A)`` (``initial``: ``(..., C, S)``), of which sizes may be 1.

    Raises:
        ModelError: rewards that are not finite, rows of P or mu that are no distributions, ends that are no probabilities;
            it names the part, state, action and context of the first fault.
    """
    if isinstance(part, TransitionOperator):
        part.validate()
    else:
        look_at(_LOOKS[name], part)


def _look_at_reward(values: Tensor, name: str = "reward") -> None:
    if not np.isfinite(values.numpy()).all():  # on arrays of this size NumPy answers sooner than torch
        raise _fault(name, values, ~torch.isfinite(values), "a finite number")


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
