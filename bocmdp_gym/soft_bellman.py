r"""The follower's optimum and its derivatives.

The mathematics (paper eq. 1 and 2; M_pi, g, q as in the docstring of `TabularBOCMDP`). For one context,

    V = lambda logsumexp(Q / lambda),   Q = r + g P V,   pi = softmax(Q / lambda),   g = gamma (1 - q).

*Solve.* Soft policy iteration is Newton's method on that equation: V <- M_pi^-1 (sum_a pi r + lambda H(pi)), with
M_pi(s, s') = 1{s = s'} - sum_a pi(a|s) g(s, a) P(s'|s, a); 5 to 10 iterations cold, 1 to 3 warm.

*Differentiate.* pi is optimal, so dV = M_pi^-1 sum_a pi (dr + dg P V + g dP V): one transposed solve u = M_pi^-T dL/dV gives
every derivative. Nothing is unrolled and no array carries the dimension of x: `SoftOptimalValue` and `PolicySolve` below are
the two functions torch needs to know, everything else (policies, leader values, losses) is ordinary torch code around
them. Their backward passes are written in differentiable operations, so second derivatives are right too.

Shapes: ``(..., C, S)`` and ``(..., C, S, A)`` with any leading batch dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.errors import ConvergenceError
from bocmdp_gym.policy_solvers import PolicySolver
from bocmdp_gym.transitions import TransitionOperator

TOLERANCE = 1e-10
MAX_ITERATIONS = 200


_in_torch: ContextVar[bool] = ContextVar("_in_torch", default=False)


@contextmanager
def torch_linear_algebra() -> Iterator[None]:
    """Solve all problems of a batch at once by torch's LU, on the CPU as on other devices, instead of one by one in kernels."""
    token = _in_torch.set(True)
    try:
        yield
    finally:
        _in_torch.reset(token)


@dataclass
class SolveStatistics:
    """What a solve reports about itself: the largest residual and number of Newton steps over contexts and batch."""

    residual: float = 0.0
    iterations: int = 0

    def include(self, residual: float, iterations: int) -> None:
        """Take one more problem in; a residual that is NaN stays."""
        self.residual = residual if not residual <= self.residual else self.residual
        self.iterations = max(self.iterations, iterations)


def soft_optimal_value(
    r: Tensor,
    transition: TransitionOperator,
    g: Tensor,
    regularization: float,
    initial_value: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Tensor, SolveStatistics]:
    """V* of every context and batch entry, ``(..., C, S)``, differentiable in r, g and the values of ``transition``.

    Raises:
        ConvergenceError: values stopped being finite, or the residual is above ``tolerance`` after ``max_iterations``.
    """
    statistics = SolveStatistics()
    v: Any = SoftOptimalValue.apply(
        r, transition.values, g, transition, regularization, initial_value, tolerance, max_iterations, statistics
    )
    return v, statistics


def policy_solve(transition: TransitionOperator, k: Tensor, b: Tensor) -> Tensor:
    """(I - K_k)^-1 b, K_k(s, s') = sum_a k(s, a) P(s'|s, a); differentiable in k, b and the values of P."""
    y: Any = PolicySolve.apply(k, transition.values, b, transition, False)
    return y


def check_bounded(value: float, reward: float, n_actions: int, regularization: float) -> None:
    """Check that the largest |V| is no sum without end: at discount 1 the linear systems of such a follower are singular.

    Raises:
        ConvergenceError: it is, given the largest |r|.
    """
    if value > 1e11 * (reward + regularization * np.log(n_actions)):
        raise ConvergenceError(
            f"the follower's values diverge (one is {value:.3g}): at discount 1 and regularization {regularization} the entropy "
            "it earns by going on for ever outweighs the rewards; lower the regularization or the discount."
        )


def soft_policy(q: Tensor, regularization: float) -> Tensor:
    """softmax(Q / lambda) over actions."""
    return torch.softmax(q / regularization, -1)


def policy_entropy(policy: Tensor) -> Tensor:
    """H(pi; s) ``(..., S)``; its gradient stays finite where probabilities have underflowed to 0."""
    return -torch.xlogy(policy, policy.clamp_min(torch.finfo(policy.dtype).tiny)).sum(-1)


class SoftOptimalValue(torch.autograd.Function):
    """V* = fixed point of the soft Bellman operator; see `soft_optimal_value`."""

    @staticmethod
    def forward(
        r: Tensor,
        values: Tensor,
        g: Tensor,
        transition: TransitionOperator,
        regularization: float,
        initial_value: Tensor | None,
        tolerance: float,
        max_iterations: int,
        statistics: SolveStatistics,
    ) -> Tensor:
        operator = transition.with_values(values)
        lead = torch.broadcast_shapes(r.shape[:-2], g.shape[:-2], values.shape[:-3])
        v = r.new_zeros(*lead, r.shape[-2])
        if initial_value is not None:
            v += initial_value.detach().to(v)
        v = _newton(r, operator, g, regularization, v, tolerance, max_iterations, statistics)
        if not statistics.residual < float("inf"):
            raise ConvergenceError(
                "the follower's values are not finite; check that x, reward(x) and transition(x) are finite and that "
                f"the discount is below 1 wherever an episode need not end (regularization {regularization})."
            )
        if statistics.iterations >= max_iterations and statistics.residual > tolerance * max(1.0, float(v.abs().max())):
            raise ConvergenceError(
                f"soft policy iteration stopped at residual {statistics.residual:.3g} after {max_iterations} steps; "
                f"expected at most {tolerance:.3g}. Raise tolerance, max_iterations or the regularization; a "
                "discount close to 1 may need solver='sparse-lu'."
            )
        if float(g.max()) >= 1.0:
            check_bounded(float(v.abs().max()), float(r.abs().max()), r.shape[-1], regularization)
        return v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        r, values, g, ctx.transition, ctx.regularization, *_ = inputs
        ctx.save_for_backward(r, values, g, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        r, values, g, v = ctx.saved_tensors
        transition = ctx.transition.with_values(values)
        future = transition.expectation(v)
        pi = soft_policy(r + g * future, ctx.regularization)
        u: Any = PolicySolve.apply(pi * g, values, grads[0], ctx.transition, True)
        w = u.unsqueeze(-1) * pi
        needs_r, needs_values, needs_g, *_ = ctx.needs_input_grad
        return (
            _sum_to(w, r) if needs_r else None,
            _sum_to(transition.outer(w * g, v), values) if needs_values else None,
            _sum_to(w * future, g) if needs_g else None,
            *(None,) * 6,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:
        r, values, g, initial = _batch_first(
            info.batch_size, (args[0], 3), (args[1], 4), (args[2], 3), (args[5], 2), dims=(*in_dims[:3], in_dims[5])
        )
        return SoftOptimalValue.apply(r, values, g, args[3], args[4], initial, *args[6:]), 0


class PolicySolve(torch.autograd.Function):
    """(I - K)^-1 b or, transposed, (I - K)^-T b; see `policy_solve`."""

    @staticmethod
    def forward(k: Tensor, values: Tensor, b: Tensor, transition: TransitionOperator, transposed: bool) -> Tensor:
        operator = transition.with_values(values)
        if k.device.type != "cpu" or _in_torch.get():
            matrix = operator.policy_matrix(k)
            system = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device) - matrix
            return torch.linalg.solve(system.mT if transposed else system, b.unsqueeze(-1)).squeeze(-1)
        out = torch.empty(torch.broadcast_shapes(k.shape[:-1], b.shape, values.shape[:-2]), dtype=b.dtype)
        for solver, (k_i, b_i, out_i), prob in _problems(operator, (k, 1), (b, 0), (out, 0)):
            solver.factor(k_i, prob)
            out_i[:] = solver.solve_transposed(b_i) if transposed else solver.solve(b_i)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        k, values, b, ctx.transition, ctx.transposed = inputs
        ctx.save_for_backward(k, values, b, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        k, values, b, y = ctx.saved_tensors
        z: Any = PolicySolve.apply(k, values, grads[0], ctx.transition, not ctx.transposed)
        left, right = (y, z) if ctx.transposed else (z, y)  # d out = ... left(s) dK(s, s') right(s')
        transition = ctx.transition.with_values(values)
        needs_k, needs_values, needs_b, *_ = ctx.needs_input_grad
        return (
            _sum_to(left.unsqueeze(-1) * transition.expectation(right), k) if needs_k else None,
            _sum_to(transition.outer(left.unsqueeze(-1) * k, right), values) if needs_values else None,
            _sum_to(z, b) if needs_b else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:
        k, values, b = _batch_first(info.batch_size, (args[0], 3), (args[1], 4), (args[2], 2), dims=in_dims[:3])
        return PolicySolve.apply(k, values, b, *args[3:]), 0


def _sum_to(grad: Tensor, like: Tensor) -> Tensor:
    """Undo broadcasting: sum ``grad`` to the shape of ``like``."""
    return grad if grad.shape == like.shape else grad.sum_to_size(like.shape)


def _batch_first(size: int, *args: tuple[Any, int], dims: tuple[int | None, ...]) -> list[Any]:
    """Move vmap's dimension to the front of each (tensor, core rank), aligning leading dimensions for broadcasting."""
    lead = max(t.ndim - core - (dim is not None) for (t, core), dim in zip(args, dims, strict=True) if t is not None)
    out: list[Any] = []
    for (t, core), dim in zip(args, dims, strict=True):
        if t is None:
            out.append(None)
            continue
        t = t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
        missing = lead - (t.ndim - 1 - core)
        t = t.reshape(t.shape[0], *(1,) * missing, *t.shape[1:])
        out.append(t.expand(size, *t.shape[1:]))
    return out


def _problems(transition: TransitionOperator, *operands: tuple[Tensor, int]) -> Any:
    """Walk over batch and contexts: yields (solver, NumPy views of each operand's problem, probabilities).

    Each operand is (tensor, number of dimensions after S); the common leading shape ``(..., C)`` is found by broadcasting.
    The last operand is the output: its views are written to, so it must already have that full shape.
    """
    values = transition.values
    lead = torch.broadcast_shapes(values.shape[:-3], *(t.shape[: t.ndim - 1 - tail] for t, tail in operands))
    prob = values.expand(*lead, *values.shape[-3:]).detach().numpy()
    views = [t.expand(*lead, *t.shape[t.ndim - 1 - tail :]).detach().numpy() for t, tail in operands]
    for index in np.ndindex(*lead):
        solver: PolicySolver = transition.solver(index[-1])
        *inputs, output = (view[index] for view in views)
        yield solver, [*map(np.ascontiguousarray, inputs), output], np.ascontiguousarray(prob[index])


def _newton(
    r: Tensor,
    transition: TransitionOperator,
    g: Tensor,
    regularization: float,
    v: Tensor,
    tolerance: float,
    max_iterations: int,
    statistics: SolveStatistics,
) -> Tensor:
    """Soft policy iteration from ``v`` (overwritten): compiled, one problem at a time, or all at once in torch."""
    if v.device.type == "cpu" and not _in_torch.get():
        for solver, (r_i, g_i, v_i), prob in _problems(transition, (r, 1), (g, 1), (v, 0)):
            *_, residual, iterations = solver.policy_iteration(r_i, g_i, prob, regularization, v_i, tolerance, max_iterations)
            statistics.include(residual, iterations)
        return v
    identity = torch.eye(r.shape[-2], dtype=r.dtype, device=r.device)
    for iteration in range(max_iterations + 1):
        future = g * transition.expectation(v)
        q = r + future
        pi = soft_policy(q, regularization)
        new = regularization * torch.logsumexp(q / regularization, -1)
        residual = float((new - v).abs().max())
        scale = max(1.0, float(new.abs().max()))
        if not residual > tolerance * scale or iteration == max_iterations:
            statistics.include(residual, iteration)
            v = new
            break
        rhs = new - (pi * future).sum(-1)
        v = torch.linalg.solve(identity - transition.policy_matrix(pi * g), rhs.unsqueeze(-1)).squeeze(-1)
    return v
