"""How a leader moves: a gradient comes in, x moves. Independent of where the gradient comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.errors import LeaderParameterError, OptionError, suggest

#: A torch optimiser class, or any function (parameters, lr=...) -> optimiser.
OptimizerFactory = Callable[..., torch.optim.Optimizer]
#: Factor on the learning rate in iteration t of T.
Schedule = Callable[[int, int], float]
#: Maps x to the nearest admissible x.
Projection = Callable[[Tensor], Tensor]

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda t, T: 1.0,
    "inverse-sqrt": lambda t, T: 1.0 / math.sqrt(t + 1.0),
    "linear": lambda t, T: 1.0 - t / T,
    "cosine": lambda t, T: 0.5 * (1.0 + math.cos(math.pi * t / T)),
}


class Update:
    """Gradient ascent with any torch optimiser, a learning-rate schedule, clipping by norm, and a projection.

    Args:
        learning_rate: step size, > 0.
        optimizer: name of a class of ``torch.optim`` ("SGD", "Adam", ...), or a factory ``(parameters, lr=...)``.
        max_gradient_norm: longer gradients are scaled to this Euclidean norm; None: never.
        schedule: factor on the learning rate, by name (`SCHEDULES`) or as a function of (iteration, iterations).
        projection: applied after each step, after the projection onto a bounded ``leader_space``, which needs no asking for;
            `project_to_simplex` is one.
        optimizer_options: further keywords of the optimiser.

    Raises:
        OptionError: an unknown optimiser or schedule, or a value out of range.
    """

    def __init__(
        self,
        learning_rate: float,
        optimizer: str | OptimizerFactory = "SGD",
        max_gradient_norm: float | None = None,
        *,
        schedule: str | Schedule = "constant",
        projection: Projection | None = None,
        **optimizer_options: Any,
    ):
        if isinstance(learning_rate, str) or not 0 < learning_rate < math.inf:
            raise OptionError(f"learning_rate is {learning_rate}; expected a positive number.")
        if max_gradient_norm is not None and not max_gradient_norm > 0:
            raise OptionError(f"max_gradient_norm is {max_gradient_norm}; expected a positive number, or None.")
        if isinstance(schedule, str) and schedule not in SCHEDULES:
            raise OptionError(f"unknown schedule {schedule!r}. {suggest(schedule, SCHEDULES)}")
        self.learning_rate, self.max_gradient_norm = float(learning_rate), max_gradient_norm
        self.schedule: Schedule = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        self.projection = projection
        self._constant = schedule == "constant"
        self._factory, self._options = _optimizer_class(optimizer), optimizer_options
        self.optimizer_name = getattr(self._factory, "__name__", type(self._factory).__name__)
        self._optimizer: torch.optim.Optimizer | None = None
        # plain ascent is one addition, and a torch optimiser object costs more than solving a small follower
        self._plain = self._factory is torch.optim.SGD and not optimizer_options
        self._bounds: tuple[Tensor, Tensor] | None = None
        self._done, self._iterations = 0, 1

    def start(self, x: Tensor, iterations: int = 1, space: gym.spaces.Box | None = None) -> Tensor:
        """Begin a run of ``iterations`` steps at x ``(d,)`` in ``space``: returns the parameter that `step` moves in place."""
        parameter = x.detach().clone().requires_grad_()
        try:
            self._optimizer = self._factory([parameter], lr=self.learning_rate, **self._options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptionError(f"{self.optimizer_name} cannot optimise a vector x with these options: {error}") from error
        for group in self._optimizer.param_groups:
            if "maximize" not in group:
                raise OptionError(f"{type(self._optimizer).__name__} cannot maximise; choose an optimiser with maximize=.")
            group["maximize"] = True
        self._done, self._iterations = 0, iterations
        self._bounds = None
        if space is not None and (np.isfinite(space.low).any() or np.isfinite(space.high).any()):
            self._bounds = torch.as_tensor(space.low.copy()), torch.as_tensor(space.high.copy())
        return parameter

    def step(self, x: Tensor, gradient: Tensor) -> float:
        """Move x along ``gradient``. Returns the gradient's norm before clipping."""
        if self._optimizer is None:
            raise OptionError("step was called before start(x).")
        flat = gradient.numpy().reshape(-1)
        norm = math.sqrt(flat @ flat)
        if not norm < math.inf:
            return norm
        scale = 1.0
        if self.max_gradient_norm is not None and norm > self.max_gradient_norm:
            scale = self.max_gradient_norm / norm
        rate = self.learning_rate if self._constant else self.learning_rate * self.schedule(self._done, self._iterations)
        if self._plain:
            x.detach().add_(gradient, alpha=rate * scale)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            x.grad = gradient * scale
            self._optimizer.step()
        if self._bounds is not None:
            x.detach().clamp_(*self._bounds)
        if self.projection is not None:
            x.detach().copy_(self.projection(x.detach().clone()))
        self._done += 1
        return norm

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the optimiser's buffers and the position in the schedule."""
        assert self._optimizer is not None
        return {"done": self._done, "optimizer": dict(self._optimizer.state_dict()["state"])}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`; call it after `start`."""
        assert self._optimizer is not None
        self._done = int(state["done"])
        buffers = {
            index: {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in entry.items()}
            for index, entry in (state.get("optimizer") or {}).items()
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": buffers, "param_groups": groups})
        for entry, saved in zip(self._optimizer.state.values(), buffers.values(), strict=True):
            entry.update(saved)  # with the types they had: load_state_dict casts to that of x, and NAdam keeps float32


def project_to_simplex(x: Tensor, total: float = 1.0) -> Tensor:
    """The point nearest to x ``(d,)`` with non-negative entries that sum to ``total`` (Held, Wolfe and Crowder 1974).

    Raises:
        LeaderParameterError: ``total`` is not positive.
    """
    if not total > 0:
        raise LeaderParameterError(f"the simplex has total {total}; expected a positive number.")
    descending = torch.sort(x, descending=True).values
    excess = descending.cumsum(0) - total
    counts = torch.arange(1, len(x) + 1, dtype=x.dtype)
    last = int((descending * counts > excess).sum()) - 1
    return (x - excess[last] / (last + 1)).clamp_min(0.0)


#: The base class, and optimisers of sparse gradients, of closures, and of matrices.
_NOT_FOR_US = {getattr(torch.optim, name, None) for name in ("Optimizer", "SparseAdam", "LBFGS", "Muon")}


def _optimizer_class(optimizer: str | OptimizerFactory) -> OptimizerFactory:
    if not isinstance(optimizer, str):
        return optimizer
    known = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value not in _NOT_FOR_US
    }
    if optimizer not in known:
        raise OptionError(f"unknown optimizer {optimizer!r}. {suggest(optimizer, sorted(known))}")
    return known[optimizer]
