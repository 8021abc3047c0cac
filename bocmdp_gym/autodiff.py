"""What torch's modes and transforms do to functions of x: numbers under torch.func, gradients under ``no_grad``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._functorch.utils import unwrap_dead_wrappers

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Record graphs within, whatever the caller switched off (``torch.no_grad``, ``torch.inference_mode``)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def with_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate what needs gradients to do its work: under ``torch.no_grad`` it would find none, and go on with zeros."""

    @wraps(function)
    def enabled(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with gradients_enabled():
            return function(*args, **kwargs)

    return enabled


def jacobian_columns(
    function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Values of a function of x ``(d,)``, and the derivative of each ``(d, ...)``.

    The pullback is linear, and its own pullback is the Jacobian: d products, and no need of forward-mode derivatives.
    """
    vjp: Any = torch.func.vjp
    values, pullback = vjp(function, x)
    _, pushforward = vjp(pullback, tuple(torch.zeros_like(value) for value in values))
    (columns,) = torch.func.vmap(pushforward)((torch.eye(len(x), dtype=x.dtype),))
    return values, columns


class Operation(torch.autograd.Function):
    """A function with derivatives of our own, without the detour that torch takes outside torch.func.

    There torch binds the arguments of ``forward`` to its signature, to fill in defaults, at each call: more than a small model's
    solve takes. Subclasses have no defaults.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def look_at(look: Callable[[Tensor], None], tensor: Tensor) -> None:
    """Call ``look`` with the numbers of a tensor, also inside torch.func, where a tensor stands for others.

    Args:
        look: takes the tensor, without a graph; dimensions of vmap come in front of its own. Errors it raises come through.
        tensor: what to look at.
    """
    if is_functorch_wrapped_tensor(tensor):
        _Look.apply(look, tensor.detach())
    else:
        look(tensor.detach())


class _Look(torch.autograd.Function):
    """`look_at` inside torch.func: the forward pass of a function of our own is given plain tensors."""

    @staticmethod
    def forward(look: Callable[[Tensor], None], tensor: Tensor) -> Tensor:
        look(tensor)
        return tensor.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept: the result is thrown away, so nothing is differentiated."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return torch.zeros((), dtype=torch.float64)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], look: Callable[[Tensor], None], tensor: Tensor) -> Any:
        return _Look.apply(look, tensor if in_dims[1] is None else tensor.movedim(in_dims[1], 0)), None
