"""How a leader moves: a gradient comes in, x moves. Independent of where the gradient comes from."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.arguments import WithArguments, known_options
from bocmdp_gym.errors import LeaderParameterError, OptionError, UnknownOptionError, suggest
from bocmdp_gym.options import as_number, check_choice, check_number
from bocmdp_gym.saved_state import check_like, count_entry, entry

#: A torch optimiser class, or any function (parameters, lr=...) -> optimiser.
OptimizerFactory = Callable[..., torch.optim.Optimizer]
#: Factor on the learning rate in iteration t of T.
Schedule = Callable[[int, int], float]
#: Maps x to the nearest admissible x.
Projection = Callable[[Tensor], Tensor]

ScheduleName = Literal["constant", "inverse-sqrt", "linear", "cosine"]
SCHEDULES: dict[ScheduleName, Schedule] = {
    "constant": lambda t, T: 1.0,
    "inverse-sqrt": lambda t, T: 1.0 / math.sqrt(t + 1.0),
    "linear": lambda t, T: 1.0 - t / T,
    "cosine": lambda t, T: 0.5 * (1.0 + math.cos(math.pi * t / T)),
}


class Update(WithArguments):
    """Gradient ascent with any torch optimiser, a learning-rate schedule, clipping by norm, and a projection.

    Args:
        learning_rate: step size, > 0.
        optimizer: name of a class of ``torch.optim`` ("SGD", "Adam", ...), or a factory ``(parameters, lr=...)``.
        max_gradient_norm: longer gradients are scaled to this Euclidean norm (the paper's runs: 1); None: never.
        schedule: factor on the learning rate, by name (`SCHEDULES`) or as a function of (iteration, iterations).
        projection: applied after each step, after the projection onto a bounded ``leader_space``, which needs no asking for;
            `project_to_simplex` is one.
        optimizer_options: further keywords of the optimiser, such as ``momentum``.

    Raises:
        OptionError: an unknown optimiser or schedule, one that cannot be called, a keyword that the optimiser does not have or
            refuses, or a value out of range.
    """

    def __init__(
        self,
        learning_rate: float,
        optimizer: str | OptimizerFactory = "SGD",
        max_gradient_norm: float | None = None,
        *,
        schedule: ScheduleName | Schedule = "constant",
        projection: Projection | None = None,
        **optimizer_options: Any,
    ):
        learning_rate = check_number("learning_rate", learning_rate, above=0.0)
        if max_gradient_norm is not None and not as_number(max_gradient_norm) > 0:
            raise OptionError(f"max_gradient_norm is {max_gradient_norm!r}; expected a positive number, or None.")
        if isinstance(schedule, str):
            check_choice("schedule", schedule, SCHEDULES)
        elif not callable(schedule):
            raise OptionError(f"schedule is {schedule!r}; expected a function of (iteration, iterations), or a name.")
        if not (projection is None or callable(projection)):
            raise OptionError(f"projection is {projection!r}; expected a function of x, or None.")
        self.learning_rate, self.max_gradient_norm = learning_rate, max_gradient_norm
        self.schedule: Schedule = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        self.projection = projection
        self._constant = schedule == "constant"
        self._factory, self._options = _optimizer(optimizer, learning_rate, optimizer_options), optimizer_options
        self.optimizer_name = _name(self._factory)
        # plain ascent is one addition: torch's optimiser costs more than solving a small follower, and a second of imports
        self._plain = self._factory is torch.optim.SGD and not optimizer_options
        self._optimizer: torch.optim.Optimizer | None = None  # where it is needed, from start on
        self._bounds: tuple[Tensor, Tensor] | None = None
        self._done, self._iterations = 0, 1
        self._parameter: Tensor | None = None  # what `start` returned, and its values
        self._values = np.empty(0)

    def start(self, x: Tensor, iterations: int = 1, space: gym.spaces.Box | None = None) -> Tensor:
        """Begin a run of ``iterations`` steps at x ``(d,)`` in ``space``: returns the parameter that `step` moves in place."""
        parameter = x.detach().clone().requires_grad_()
        if not self._plain:
            self._optimizer = _start(self._factory, parameter, self.learning_rate, self._options)
            for group in self._optimizer.param_groups:
                group["maximize"] = True
        self._done, self._iterations = 0, iterations
        self._parameter, self._values = parameter, parameter.detach().numpy()
        self._bounds = None
        if space is not None and (np.isfinite(space.low).any() or np.isfinite(space.high).any()):
            self._bounds = torch.as_tensor(space.low.copy()), torch.as_tensor(space.high.copy())
        return parameter

    def step(self, x: Tensor, gradient: Tensor) -> float:
        """Move x along ``gradient``. Returns the gradient's norm before clipping."""
        if self._parameter is None:
            raise OptionError("step was called before start(x).")
        ascent = gradient.numpy()
        norm = math.sqrt(np.vdot(ascent, ascent))
        if not norm < math.inf:
            return norm
        scale = 1.0
        if self.max_gradient_norm is not None and norm > self.max_gradient_norm:
            scale = self.max_gradient_norm / norm
        rate = self.learning_rate if self._constant else self.learning_rate * self.schedule(self._done, self._iterations)
        if self._optimizer is None:
            values = self._values if x is self._parameter else x.detach().numpy()
            values += rate * scale * ascent
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
        buffers = {} if self._optimizer is None else self._optimizer.state_dict()["state"]
        return {"done": self._done, "optimizer": dict(buffers)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`; call it after `start`.

        Raises:
            DamagedError: it is not what this optimiser would have by now.
        """
        self._done = count_entry(state, "done")
        if self._optimizer is None:
            check_like("optimizer", entry(state, "optimizer", dict), {})
            return
        if type(self._optimizer).__module__.startswith("torch.optim"):  # others may keep what they like
            check_like("optimizer", entry(state, "optimizer", dict), self._fresh_buffers(self._optimizer))
        buffers = {
            index: {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in saved.items()}
            for index, saved in (state.get("optimizer") or {}).items()
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": buffers, "param_groups": groups})
        for own, saved in zip(self._optimizer.state.values(), buffers.values(), strict=True):
            own.update(saved)  # with the types they had: load_state_dict casts to that of x, and NAdam keeps float32

    def _fresh_buffers(self, running: torch.optim.Optimizer) -> dict[Any, Any]:
        """The buffers of an optimiser that made one step, or none."""
        if self._done == 0:
            return {}
        x = torch.zeros_like(running.param_groups[0]["params"][0]).requires_grad_()
        optimizer = _start(self._factory, x, self.learning_rate, self._options)
        x.grad = torch.zeros_like(x)
        optimizer.step()
        return dict(optimizer.state_dict()["state"])


@known_options()
def project_to_simplex(x: Tensor, total: float = 1.0) -> Tensor:
    """The point nearest to x ``(d,)`` with non-negative entries that sum to ``total`` (Held, Wolfe and Crowder 1974).

    Raises:
        LeaderParameterError: ``total`` is not positive, or x is not one vector of finite numbers.
    """
    total = as_number(total)
    if not 0 < total < 1e300:
        raise LeaderParameterError(f"the simplex has total {total!r}; expected a positive finite number.")
    if not isinstance(x, Tensor) or x.ndim != 1 or not len(x) or x.is_complex() or not bool(torch.isfinite(x).all()):
        raise LeaderParameterError(f"x is {x!r}; expected a vector of finite numbers (d,), a torch tensor.")
    x = x if x.is_floating_point() else x.to(torch.float64)
    descending = torch.sort(x, descending=True).values
    excess = descending.cumsum(0) - total
    counts = torch.arange(1, len(x) + 1, dtype=x.dtype)
    last = int((descending * counts > excess).sum()) - 1
    return (x - excess[last] / (last + 1)).clamp_min(0.0)


#: The base class, and optimisers of sparse gradients, of closures, and of matrices.
_NOT_FOR_US = {getattr(torch.optim, name, None) for name in ("Optimizer", "SparseAdam", "LBFGS", "Muon")}
#: What an optimiser takes that an update sets.
_OURS = ("params", "lr", "maximize")


def optimizer_options(optimizer: str | OptimizerFactory) -> tuple[str, ...] | None:
    """The keywords that an optimiser takes besides its learning rate; None if any.

    Raises:
        OptionError: it is neither the name of one nor a function.
    """
    parameters = list(inspect.signature(_factory(optimizer)).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return tuple(p.name for p in parameters if p.name not in _OURS)


def _factory(optimizer: str | OptimizerFactory) -> OptimizerFactory:
    if not isinstance(optimizer, str):
        if not callable(optimizer):
            raise OptionError(f"optimizer is {optimizer!r}; expected the name of a class of torch.optim, or a factory.")
        return optimizer
    known = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value not in _NOT_FOR_US
    }
    if optimizer not in known:
        raise OptionError(f"unknown optimizer {optimizer!r}. {suggest(optimizer, sorted(known))}")
    return known[optimizer]


def _optimizer(optimizer: str | OptimizerFactory, learning_rate: float, options: dict[str, Any]) -> OptimizerFactory:
    """The factory, once it is known to take these options."""
    factory, known = _factory(optimizer), optimizer_options(optimizer)
    for name in options:
        if name in _OURS:
            raise UnknownOptionError(f"{name} of the optimizer is set by the update; leave it out (lr is learning_rate).")
        if known is not None and name not in known:
            ours = [p for p in inspect.signature(Update).parameters if p != "optimizer_options"]
            raise UnknownOptionError(
                f"neither Update nor {_name(factory)} has an option {name!r}. {suggest(name, [*ours, *known])}"
            )
    if options and isinstance(factory, type):  # values out of range are refused by trying
        _start(factory, torch.zeros(1, dtype=torch.float64, requires_grad=True), learning_rate, options)
    return factory


def _start(factory: OptimizerFactory, x: Tensor, learning_rate: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    """An optimiser of x that can maximise."""
    try:
        made = factory([x], lr=learning_rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{_name(factory)} cannot optimise a vector x with these options: {error}") from error
    if any("maximize" not in group for group in made.param_groups):
        raise OptionError(f"{type(made).__name__} cannot maximise; choose an optimiser with maximize=.")
    return made


def _name(factory: OptimizerFactory) -> str:
    return getattr(factory, "__name__", type(factory).__name__)
