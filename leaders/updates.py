"""How a leader moves: a gradient comes in, x moves. Independent of where the gradient comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bocmdp_gym.errors import OptionError, suggest

#: A torch optimiser class, or any function (parameters, lr=...) -> optimiser.
OptimizerFactory = Callable[..., torch.optim.Optimizer]


class Update:
    """Gradient ascent with any torch optimiser and clipping by norm.

    Args:
        learning_rate: step size, > 0.
        optimizer: name of a class of ``torch.optim`` ("SGD", "Adam", ...), or a factory ``(parameters, lr=...)``.
        max_gradient_norm: longer gradients are scaled to this Euclidean norm; None: never.
        optimizer_options: further keywords of the optimiser.

    Raises:
        OptionError: an unknown optimiser, or a value out of range.
    """

    def __init__(
        self,
        learning_rate: float,
        optimizer: str | OptimizerFactory = "SGD",
        max_gradient_norm: float | None = None,
        **optimizer_options: Any,
    ):
        if not learning_rate > 0:
            raise OptionError(f"learning_rate is {learning_rate}; expected a positive number.")
        if max_gradient_norm is not None and not max_gradient_norm > 0:
            raise OptionError(f"max_gradient_norm is {max_gradient_norm}; expected a positive number, or None.")
        self.learning_rate, self.max_gradient_norm = float(learning_rate), max_gradient_norm
        self._factory, self._options = _optimizer_class(optimizer), optimizer_options
        self._optimizer: torch.optim.Optimizer | None = None
        # plain ascent is one addition, and a torch optimiser object costs more than solving a small follower
        self._plain = self._factory is torch.optim.SGD and not optimizer_options

    def start(self, x: Tensor) -> Tensor:
        """Begin at x ``(d,)``: returns the parameter that `step` moves in place."""
        parameter = x.detach().clone().requires_grad_()
        self._optimizer = self._factory([parameter], lr=self.learning_rate, **self._options)
        for group in self._optimizer.param_groups:
            if "maximize" not in group:
                raise OptionError(f"{type(self._optimizer).__name__} cannot maximise; choose an optimiser with maximize=.")
            group["maximize"] = True
        return parameter

    def step(self, x: Tensor, gradient: Tensor) -> float:
        """Move x along ``gradient``. Returns the gradient's norm before clipping."""
        if self._optimizer is None:
            raise OptionError("step was called before start(x).")
        flat = gradient.numpy().reshape(-1)
        norm = math.sqrt(flat @ flat)
        scale = 1.0
        if self.max_gradient_norm is not None and norm > self.max_gradient_norm:
            scale = self.max_gradient_norm / norm
        if self._plain:
            x.detach().add_(gradient, alpha=self.learning_rate * scale)
        else:
            x.grad = gradient * scale
            self._optimizer.step()
        return norm


def _optimizer_class(optimizer: str | OptimizerFactory) -> OptimizerFactory:
    if not isinstance(optimizer, str):
        return optimizer
    known = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if optimizer not in known:
        raise OptionError(f"unknown optimizer {optimizer!r}. {suggest(optimizer, sorted(known))}")
    return known[optimizer]
