r"""Equilibria of a population: loads that produce themselves, and their derivatives in x.

The mathematics. An equilibrium is a fixed point rho = Phi(x, rho) (`bocmdp_gym.crowd`), or a zero of F = Phi - rho.

*Solve.* A few averaged steps rho <- rho + (Phi - rho) / (n + 1) (the method of successive averages; Robbins and Monro 1951) come
near; then Newton's method, (I - J) step = F with J = dPhi/drho, by GMRES on products J v, with a line search on |F|
(Newton-Krylov: Knoll and Keyes 2004). Where this fails, followers of twice the lambda, whose loads answer each other more gently,
are led to their equilibrium first, and it is the start.

*Differentiate.* With L(x, rho, V) any function of x, the equilibrium and the classes' values,

    (I - J^T) eta = dL/drho + (dV/drho)^T dL/dV,        dL/dx total = dL/dx + (dV/dx)^T dL/dV + (dPhi/dx)^T eta,

one adjoint solve, whatever the dimension of x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.autodiff import Operation
from bocmdp_gym.crowd import Crowd
from bocmdp_gym.errors import ConvergenceError, UnsupportedError

Array = npt.NDArray[np.float64]
#: Accepted residual, max |Phi - rho| relative to the largest load; solves go on to a hundredth of it where they can.
TOLERANCE = 1e-9
#: Newton steps allowed.
MAX_ITERATIONS = 100
_AVERAGED = 8  # steps before Newton's
_ZEAL = 0.01
_SHORTEST = 2.0**-12  # Newton step, before the search gives up
_PATIENCE = 5  # searches that may fail, with averaged steps after each
_SUBSPACE = 100  # vectors that GMRES keeps
_DOUBLINGS = 12  # of lambda
#: (x, loads, lambda, values to start from) -> the crowd there.
CrowdAt = Callable[[Array, Array, float, Array | None], Crowd]


@dataclass(frozen=True)
class Equilibrium(Constructed):
    """Loads that produce themselves, and what the classes do there.

    Attributes:
        loads: rho ``(..., K)``.
        value, policy: V* ``(..., C, S)`` and pi* ``(..., C, S, A)`` of every class.
        residual: max |Phi(x, rho) - rho| over the largest load (or 1, if that is larger), over the batch.
        iterations: Newton steps, of the slowest of the batch.
        regularization: lambda.
    """

    loads: Tensor
    value: Tensor
    policy: Tensor
    residual: float
    iterations: int
    regularization: float


@dataclass(frozen=True)
class Found(Constructed):
    """One equilibrium as its crowd, with what its search says of itself."""

    crowd: Crowd
    residual: float
    iterations: int


def residual_of(crowd: Crowd) -> float:
    """max |Phi - rho|, relative to the largest load."""
    size = max(float(np.abs(crowd.loads).max()), float(np.abs(crowd.produced).max()), 1e-300)
    return float(np.abs(crowd.gap).max()) / size


def find(
    crowd_at: CrowdAt,
    x: Array,
    regularization: float,
    start: Array,
    value: Array | None = None,
    *,
    near: bool,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    doublings: int = _DOUBLINGS,
) -> Found:
    """An equilibrium at x.

    Args:
        crowd_at: the population at given loads.
        x: ``(d,)``.
        regularization: lambda.
        start: loads to start from ``(K,)``.
        value: the classes' values to start from.
        near: whether an equilibrium is likely to be near the start, so that Newton's method begins at once.
        tolerance, max_iterations: see `TOLERANCE` and `MAX_ITERATIONS`.
        doublings: how often lambda may be doubled in search of a start.

    Raises:
        ConvergenceError: the residual stays above ``tolerance``; the message says where it stopped.
    """
    try:
        return _newton(crowd_at, x, regularization, start, value, near, tolerance, max_iterations)
    except ConvergenceError:
        if doublings == 0:
            raise
        try:
            gentler = find(
                crowd_at, x, 2.0 * regularization, start, near=False, tolerance=1e-3, max_iterations=max_iterations,
                doublings=doublings - 1,
            ).crowd  # fmt: skip
        except ConvergenceError:
            gentler = None
        if gentler is None:
            raise
        return _newton(crowd_at, x, regularization, gentler.loads, gentler.value, True, tolerance, max_iterations)


def _newton(
    crowd_at: CrowdAt,
    x: Array,
    regularization: float,
    start: Array,
    value: Array | None,
    near: bool,
    tolerance: float,
    limit: int,
) -> Found:
    crowd, averaged, stuck = crowd_at(x, start, regularization, value), 0, 0
    if not near:
        crowd, averaged = _average(crowd_at, crowd, 0, _AVERAGED), _AVERAGED
    for iteration in range(limit + 1):
        residual = residual_of(crowd)
        if residual <= _ZEAL * tolerance or iteration == limit or stuck == _PATIENCE:
            break
        step = _solve(crowd, crowd.gap, transposed=False, rtol=min(0.05, residual), strict=False)
        found = _line_search(crowd_at, crowd, step)
        if found is None and residual <= tolerance:  # rounding
            break
        if found is None:
            crowd, averaged = _average(crowd_at, crowd, averaged, averaged + _AVERAGED), averaged + _AVERAGED
            stuck += 1
        else:
            crowd = found
    if not residual <= tolerance:
        raise ConvergenceError(
            f"no equilibrium was found at regularization {regularization}: after {iteration} Newton steps the loads still differ "
            f"from those they produce by {residual:.3g} of the largest; expected at most {tolerance:.3g}. Give "
            "equilibrium(start=...) the loads of a similar x or of a larger regularization, raise max_iterations or the "
            "regularization; or there is none (rewards must be continuous in the loads)."
        )
    return Found(crowd, residual, iteration)


def _average(crowd_at: CrowdAt, crowd: Crowd, first: int, last: int) -> Crowd:
    """The method of successive averages: its steps number ``first`` to ``last``, of which step 0 takes what is produced."""
    for n in range(first, last):
        crowd = crowd_at(crowd.x, crowd.loads + crowd.gap / (n + 1.0), crowd.regularization, crowd.value)
    return crowd


def _line_search(crowd_at: CrowdAt, crowd: Crowd, step: Array) -> Crowd | None:
    """The longest of the steps 1, 1/2, 1/4, ... that brings F nearer to 0; None if none does."""
    size, before = 1.0, float(np.linalg.norm(crowd.gap))
    least = np.where(crowd.structure.nonnegative, 0.0, -np.inf)
    while size >= _SHORTEST:
        loads = np.maximum(crowd.loads + size * step, least)
        try:
            there = crowd_at(crowd.x, loads, crowd.regularization, crowd.value)
        except ConvergenceError:
            there = None
        if there is not None and float(np.linalg.norm(there.gap)) <= (1.0 - 1e-4 * size) * before:
            return there
        size /= 2.0
    return None


def _solve(crowd: Crowd, b: Array, *, transposed: bool, rtol: float, strict: bool = True) -> Array:
    """(I - J) y = b, or (I - J^T) y = b.

    Raises:
        ConvergenceError: ``strict``, and the residual stays above a millionth of b.
    """
    if not b.any():
        return np.zeros_like(b)

    def product(v: Array) -> Array:
        v = v.reshape(-1)
        moved = crowd.pull(by_loads=v)[1] if transposed else crowd.push(dloads=v)[0]
        difference: Array = v - moved
        return difference

    n = len(b)
    system = LinearOperator((n, n), product, dtype=np.float64)
    rounds = max(1, min(10, -(-4 * n // _SUBSPACE)))
    y, failed = gmres(system, b, rtol=max(rtol, 1e-12), atol=0.0, restart=min(n, _SUBSPACE), maxiter=rounds)
    solution: Array = y
    if strict and failed and not np.linalg.norm(b - product(y)) <= 1e-6 * np.linalg.norm(b):
        raise ConvergenceError(
            f"the linear system of an equilibrium's derivative was not solved in {rounds * min(n, _SUBSPACE)} steps: the "
            "equilibrium is singular, or nearly (two of them meet at this x); move x, or raise the regularization."
        )
    return solution


def derivative(crowd: Crowd, dx: Array) -> tuple[Array, Array]:
    """How loads ``(K,)`` and values ``(C S,)`` at the equilibrium change along a change of x."""
    dloads = _solve(crowd, crowd.push(dx=dx)[0], transposed=False, rtol=1e-12)
    return dloads, crowd.push(dx=dx, dloads=dloads)[1]


def adjoint(crowd: Crowd, by_loads: Array, by_value: Array) -> Array:
    """dL/dx ``(d,)`` through the equilibrium, of L with the derivatives given: one adjoint solve."""
    by_x, sensitivity = crowd.pull(by_value=by_value) if by_value.any() else (np.zeros_like(crowd.x), np.zeros_like(by_loads))
    eta = _solve(crowd, by_loads + sensitivity, transposed=True, rtol=1e-12)
    gradient: Array = by_x + crowd.pull(by_loads=eta)[0]
    return gradient


class Search:
    """One call for equilibria, of one x or a batch: how to find one, and the crowds found, which the derivatives read.

    Args:
        find_at: an equilibrium at x ``(d,)``.
    """

    def __init__(self, find_at: Callable[[Array], Found]):
        self._find_at = find_at
        self.found: list[Found] = []

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loads ``(..., K)`` and values ``(..., C S)`` at x ``(..., d)``."""
        self.found = [self._find_at(one.copy()) for one in x.detach().numpy().reshape(-1, x.shape[-1])]
        loads = np.array([one.crowd.loads for one in self.found])
        values = np.array([one.crowd.value for one in self.found])
        lead = x.shape[:-1]
        return torch.from_numpy(loads).reshape(*lead, -1), torch.from_numpy(values).reshape(*lead, -1)


class EquilibriumAt(Operation):
    """x to the loads and values of the equilibrium there; see `Search`."""

    @staticmethod
    def forward(x: Tensor, search: Search) -> tuple[Tensor, Tensor]:
        return search.run(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.search = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        gradient: Any = _Adjoint.apply(*grads, x, ctx.search)
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        change: Any = _Derivative.apply(tangents[0], x, ctx.search)
        return change

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, search: Search) -> Any:
        return EquilibriumAt.apply(x.movedim(in_dims[0] or 0, 0), search), (0, 0)


def _refuse_second(ctx: Any, *grad_inputs: Any) -> Any:
    """Refuse what is not there.

    Raises:
        UnsupportedError: always.
    """
    raise UnsupportedError(
        "second derivatives of an equilibrium in x are not available; take differences of its gradients instead."
    )


class _Adjoint(Operation):
    """Weights on loads ``(..., K)`` and values ``(..., C S)`` to those on x; linear in them."""

    jvp = staticmethod(_refuse_second)

    @staticmethod
    def forward(by_loads: Tensor, by_value: Tensor, x: Tensor, search: Search) -> Tensor:
        lead = np.broadcast_shapes(by_loads.shape[:-1], by_value.shape[:-1], x.shape[:-1])
        weights = _rows(by_loads, lead), _rows(by_value, lead)
        rows = [adjoint(found.crowd, a, b) for found, a, b in zip(_repeated(search, len(weights[0])), *weights, strict=True)]
        return torch.from_numpy(np.array(rows)).reshape(*lead, -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        by_loads, by_value, x, ctx.search = inputs
        ctx.shapes = by_loads.shape, by_value.shape
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[2]:
            _refuse_second(ctx)
        (x,) = ctx.saved_tensors
        loads, values = _Derivative.apply(grads[0], x, ctx.search)
        return loads.sum_to_size(ctx.shapes[0]), values.sum_to_size(ctx.shapes[1]), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:
        return _Adjoint.apply(*_batched(info.batch_size, in_dims, args[:2], args[2]), args[3]), 0


class _Derivative(Operation):
    """Changes of x ``(..., d)`` to those of loads and values; linear in them."""

    jvp = staticmethod(_refuse_second)

    @staticmethod
    def forward(dx: Tensor, x: Tensor, search: Search) -> tuple[Tensor, Tensor]:
        lead = np.broadcast_shapes(dx.shape[:-1], x.shape[:-1])
        rows = _rows(dx, lead)
        pairs = [derivative(found.crowd, one) for found, one in zip(_repeated(search, len(rows)), rows, strict=True)]
        loads, values = (torch.from_numpy(np.array(part)).reshape(*lead, -1) for part in zip(*pairs, strict=True))
        return loads, values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        dx, x, ctx.search = inputs
        ctx.shape = dx.shape
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[1]:
            _refuse_second(ctx)
        (x,) = ctx.saved_tensors
        back: Any = _Adjoint.apply(*grads, x, ctx.search)
        return back.sum_to_size(ctx.shape), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, tuple[int, int]]:
        return _Derivative.apply(*_batched(info.batch_size, in_dims, args[:1], args[1]), args[2]), (0, 0)


def _rows(tensor: Tensor, lead: tuple[int, ...]) -> Array:
    rows: Array = np.ascontiguousarray(tensor.detach().expand(*lead, tensor.shape[-1]).reshape(-1, tensor.shape[-1]).numpy())
    return rows


def _repeated(search: Search, rows: int) -> list[Found]:
    """The crowd of each row: weights may have more leading dimensions than x, in front."""
    return search.found * (rows // len(search.found))


def _batched(size: int, in_dims: tuple[int | None, ...], vectors: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
    """vmap's dimension in front of all vectors, and of x if it has one."""
    moved = [
        v.movedim(dim, 0) if dim is not None else v.unsqueeze(0).expand(size, *v.shape)
        for v, dim in zip(vectors, in_dims, strict=False)
    ]
    dim = in_dims[len(vectors)]
    return [*moved, x if dim is None else x.movedim(dim, 0)]
