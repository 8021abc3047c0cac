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

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym.autodiff import Operation
from bocmdp_gym.errors import ConvergenceError
from bocmdp_gym.kernels.newton import EPSILON, ZEAL
from bocmdp_gym.solvers import PolicySolver
from bocmdp_gym.threads import available_threads, part_size
from bocmdp_gym.transitions import TransitionOperator

#: Accepted bound on the error of a policy; solves go on to a hundredth of it, or to rounding.
TOLERANCE = 1e-8
MAX_ITERATIONS = 200
#: States of all problems together from which on threads solve them: some milliseconds of work.
_WORTH_THREADS = 2000
T = TypeVar("T")


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
    """What a solve reports about itself: the largest residual, error and number of Newton steps over contexts and batch."""

    residual: float = 0.0
    error: float = 0.0
    iterations: int = 0

    def include(self, residual: float, error: float, iterations: int) -> None:
        """Take one more problem in; a residual that is NaN stays."""
        self.residual = residual if not residual <= self.residual else self.residual
        self.error = max(self.error, error)
        self.iterations = max(self.iterations, iterations)


class SoftOptimum(NamedTuple):
    """V* of every context and batch entry, and pi* with it.

    Attributes:
        value: ``(..., C, S)``, differentiable in r, g and the values of P.
        policy: ``(..., C, S, A)``, without a graph: `soft_policy` gives it one.
        statistics: how exact they are.
    """

    value: Tensor
    policy: Tensor
    statistics: SolveStatistics


def soft_optimum(
    r: Tensor,
    transition: TransitionOperator,
    g: Tensor,
    regularization: float,
    initial_value: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> SoftOptimum:
    """Solve every context and batch entry; actions that do not exist have r = -inf.

    Raises:
        ConvergenceError: values stopped being finite, or the bound on a policy's error is above ``tolerance`` after
            ``max_iterations`` or at the end of extended precision.
    """
    statistics = SolveStatistics()
    v, policy = SoftOptimalValue.apply(
        r, transition.values, g, transition, regularization, initial_value, tolerance, max_iterations, statistics
    )
    return SoftOptimum(v, policy, statistics)


def policy_solve(transition: TransitionOperator, k: Tensor, b: Tensor) -> Tensor:
    """(I - K_k)^-1 b, K_k(s, s') = sum_a k(s, a) P(s'|s, a); differentiable in k, b and the values of P."""
    y: Any = PolicySolve.apply(k, transition.values, b, transition, False)
    return y


def soft_policy(q: Tensor, policy: Tensor, regularization: float) -> Tensor:
    """softmax(Q / lambda) over actions as a function of Q at the optimum, where it is ``policy``.

    Where values are large beside lambda, Q in double precision says less about the policy than the solver knew: Q enters by its
    derivative alone, and not at all where the policy is 0, as at actions that do not exist (Q = -inf).
    """
    out: Any = _SoftPolicy.apply(q, policy, regularization)
    return out


class _SoftPolicy(Operation):
    """See `soft_policy`. The derivative is exact where a probability is nearly 1.

    It is p (y - sum_b p y) / lambda. There y - y(best) loses no digits, and y - sum_b p y does.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, policy: Tensor, regularization: float) -> Tensor:
        return policy.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.regularization = inputs[2]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def _derivative(p: Tensor, y: Tensor, regularization: float) -> Tensor:
        y = y - y.gather(-1, p.argmax(-1, keepdim=True))
        return p * (y - (p * y).sum(-1, keepdim=True)) / regularization

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _SoftPolicy._derivative(ctx.saved_tensors[0], grads[0], ctx.regularization), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _SoftPolicy._derivative(ctx.saved_tensors[0], tangents[0], ctx.regularization)


def policy_entropy(policy: Tensor) -> Tensor:
    """H(pi; s) ``(..., S)``; its gradient stays finite where probabilities have underflowed to 0."""
    return -torch.xlogy(policy, policy.clamp_min(torch.finfo(policy.dtype).tiny)).sum(-1)


class SoftOptimalValue(Operation):
    """V* = fixed point of the soft Bellman operator, and pi*, which carries no graph; see `soft_optimum`."""

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
    ) -> tuple[Tensor, Tensor]:
        operator = transition.with_values(values)
        lead = np.broadcast_shapes(r.shape[:-2], g.shape[:-2], values.shape[:-3])
        v = r.new_zeros(*lead, r.shape[-2])
        if initial_value is not None:
            v += initial_value.detach().to(v)
        newton = _newton_compiled if v.device.type == "cpu" and not _in_torch.get() else _newton_torch
        v, policy = newton(r, operator, g, regularization, v, tolerance, max_iterations, statistics)
        check_convergence(statistics, regularization, tolerance, max_iterations)
        return v, policy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        r, values, g, ctx.transition, ctx.regularization, *_ = inputs
        v, policy = output
        ctx.mark_non_differentiable(policy)
        ctx.save_for_backward(r, values, g, v, policy)
        ctx.save_for_forward(r, values, g, v, policy)

    @staticmethod
    def _linearised(ctx: Any) -> tuple[TransitionOperator, Tensor, Tensor]:
        """The operator, P V and pi, as functions of what was saved."""
        r, values, g, v, policy = ctx.saved_tensors
        transition = ctx.transition.with_values(values)
        future = transition.expectation(v)
        return transition, future, soft_policy(r + g * future, policy, ctx.regularization)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        r, values, g, v, _ = ctx.saved_tensors
        transition, future, pi = SoftOptimalValue._linearised(ctx)
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
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor | None]:
        dr, dvalues, dg, *_ = tangents
        _, values, g, v, policy = ctx.saved_tensors
        transition, future, pi = SoftOptimalValue._linearised(ctx)
        change = torch.zeros_like(policy)
        change = change if dr is None else change + dr
        change = change if dg is None else change + dg * future
        change = change if dvalues is None else change + g * transition.with_values(dvalues).expectation(v)
        dv: Any = PolicySolve.apply(pi * g, values, (pi * change).sum(-1), ctx.transition, False)
        return dv, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, tuple[int, int]]:
        r, values, g, initial = _batch_first(
            info.batch_size, (args[0], 3), (args[1], 4), (args[2], 3), (args[5], 2), dims=(*in_dims[:3], in_dims[5])
        )
        return SoftOptimalValue.apply(r, values, g, args[3], args[4], initial, *args[6:]), (0, 0)


def check_convergence(
    statistics: SolveStatistics, regularization: float, tolerance: float, max_iterations: int, where: str = ""
) -> None:
    """Check what soft policy iteration says of its result; ``where``: " in context 0", for the message.

    Raises:
        ConvergenceError: values that are not finite, or a policy more uncertain than ``tolerance``.
    """
    if not statistics.residual < float("inf"):
        raise ConvergenceError(
            f"the follower's values are not finite{where}; check that x, reward(x) and transition(x) are finite and of a "
            "reasonable size, and that the discount is below 1 wherever an episode need not end (regularization "
            f"{regularization})."
        )
    if not statistics.error <= tolerance:
        cause = (
            f"after {statistics.iterations} steps; raise max_iterations ({max_iterations})"
            if statistics.iterations >= max_iterations
            else "and cannot get nearer: values are too large beside the regularization for extended precision; raise the "
            "regularization, lower a discount close to 1, or make the largest rewards smaller"
        )
        raise ConvergenceError(
            f"soft policy iteration left a residual of {statistics.residual:.3g}{where}, with which the policy may be wrong by "
            f"{statistics.error:.3g} (regularization {regularization}); expected at most {tolerance:.3g}. It stopped {cause}."
        )


class PolicySolve(Operation):
    """(I - K)^-1 b or, transposed, (I - K)^-T b; see `policy_solve`."""

    @staticmethod
    def forward(k: Tensor, values: Tensor, b: Tensor, transition: TransitionOperator, transposed: bool) -> Tensor:
        operator = transition.with_values(values)
        if k.device.type != "cpu" or _in_torch.get():
            matrix = operator.policy_matrix(k)
            system = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device) - matrix
            return torch.linalg.solve(system.mT if transposed else system, b.unsqueeze(-1)).squeeze(-1)
        out = torch.empty(np.broadcast_shapes(k.shape[:-1], b.shape, values.shape[:-2]), dtype=b.dtype)

        def solve(problem: _Problem) -> None:
            k_i, b_i = problem.operands
            system = problem.solver.factor(k_i, problem.probabilities)
            problem.outputs[0][:] = system.solve_transposed(b_i) if transposed else system.solve(b_i)

        _each(solve, _problems(operator, ((k, 1), (b, 0)), (out,)), out.numel())
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        k, values, b, ctx.transition, ctx.transposed = inputs
        ctx.save_for_backward(k, values, b, output)
        ctx.save_for_forward(k, values, b, output)

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
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        dk, dvalues, db, *_ = tangents
        k, values, _, y = ctx.saved_tensors
        transition = ctx.transition.with_values(values)
        change = torch.zeros_like(y) if db is None else db  # of b + K y, or b + K^T y
        if ctx.transposed:
            change = change if dk is None else change + transition.adjoint(dk * y.unsqueeze(-1))
            moved = None if dvalues is None else transition.with_values(dvalues).adjoint(k * y.unsqueeze(-1))
        else:
            change = change if dk is None else change + (dk * transition.expectation(y)).sum(-1)
            moved = None if dvalues is None else (k * transition.with_values(dvalues).expectation(y)).sum(-1)
        change = change if moved is None else change + moved
        dy: Any = PolicySolve.apply(k, values, change, ctx.transition, ctx.transposed)
        return dy

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


class _Problem(NamedTuple):
    """One context of one entry of a batch, as arrays."""

    solver: PolicySolver
    operands: list[Any]
    outputs: list[Any]  # views of what is written to
    probabilities: Any


def _each(solve: Callable[[_Problem], T], problems: Iterator[_Problem], n_states: int) -> list[T]:
    """``solve`` of every problem, in threads where they have so many states together that it pays; kernels hold no lock."""
    threads = available_threads()
    if threads == 1 or n_states < _WORTH_THREADS:
        return [solve(problem) for problem in problems]
    listed = list(problems)
    if len(listed) == 1:
        return [solve(listed[0])]
    size = part_size(len(listed), threads)
    parts = [listed[i : i + size] for i in range(0, len(listed), size)]
    with ThreadPoolExecutor(threads) as pool:
        return [one for part in pool.map(lambda part: [solve(problem) for problem in part], parts) for one in part]


def _problems(
    transition: TransitionOperator, operands: Sequence[tuple[Tensor, int]], outputs: Sequence[Tensor]
) -> Iterator[_Problem]:
    """Walk over batch and contexts.

    Each operand is (tensor, number of dimensions after S); the common leading shape ``(..., C)`` is found by broadcasting.
    Outputs are written to, so they must have it already.
    """
    values = transition.values
    lead = np.broadcast_shapes(values.shape[:-3], *(t.shape[: t.ndim - 1 - tail] for t, tail in operands))
    prob = values.expand(*lead, *values.shape[-3:]).detach().numpy()
    inputs = [t.expand(*lead, *t.shape[t.ndim - 1 - tail :]).detach().numpy() for t, tail in operands]
    results = [t.detach().numpy() for t in outputs]
    for index in np.ndindex(*lead):
        solver: PolicySolver = transition.solver(index[-1])
        own = [np.ascontiguousarray(view[index]) for view in inputs]
        yield _Problem(solver, own, [view[index] for view in results], np.ascontiguousarray(prob[index]))


def _newton_compiled(
    r: Tensor,
    transition: TransitionOperator,
    g: Tensor,
    regularization: float,
    v: Tensor,
    tolerance: float,
    max_iterations: int,
    statistics: SolveStatistics,
) -> tuple[Tensor, Tensor]:
    """V* from ``v`` (overwritten) and pi*, one problem at a time."""
    policy = r.new_empty(*v.shape, r.shape[-1])

    def solve(problem: _Problem) -> tuple[float, float, int]:
        (r_i, g_i), (v_i, policy_i) = problem.operands, problem.outputs
        prob = problem.probabilities
        found = problem.solver.policy_iteration(r_i, g_i, prob, regularization, v_i, tolerance, max_iterations)
        policy_i[:] = found.policy
        return found.residual, found.error, found.iterations

    for found in _each(solve, _problems(transition, ((r, 1), (g, 1)), (v, policy)), v.numel()):
        statistics.include(*found)
    return v, policy


def _newton_torch(
    r: Tensor,
    transition: TransitionOperator,
    g: Tensor,
    regularization: float,
    v: Tensor,
    tolerance: float,
    max_iterations: int,
    statistics: SolveStatistics,
) -> tuple[Tensor, Tensor]:
    """The same for all problems at once, on any device; what rounding leaves uncertain is left to the compiled solvers."""
    identity = torch.eye(r.shape[-2], dtype=r.dtype, device=r.device)
    amplification = 1.0 / (1.0 - g.amax((-2, -1)).clamp_max(1.0))
    top = r.masked_fill(r == -torch.inf, 0.0).abs().amax((-2, -1))
    before = torch.full_like(v[..., 0], torch.inf)
    start = v
    for iteration in range(max_iterations + 1):
        future = g * transition.expectation(v)
        q = r + future
        pi = torch.softmax(q / regularization, -1)
        new = regularization * torch.logsumexp(q / regularization, -1)
        residual, scale = (new - v).abs().amax(-1), new.abs().amax(-1) + top
        noise = EPSILON * scale
        goal = torch.maximum(ZEAL * tolerance * regularization / amplification, 4.0 * noise)
        done = ~(residual > goal) | ((residual < 1e4 * noise) & (residual > 0.5 * before))
        if bool(done.all()) or iteration == max_iterations:
            break
        before = residual
        rhs = new - (pi * future).sum(-1)
        v = torch.linalg.solve(identity - transition.policy_matrix(pi * g), rhs.unsqueeze(-1)).squeeze(-1)
    error = amplification * torch.maximum(residual, noise) / regularization
    if iteration == max_iterations or bool((error <= tolerance).all()):
        statistics.include(float(residual.max()), float(error.max()), iteration)
        return new, pi
    on_cpu = transition.with_values(transition.values.cpu())
    exact, pi = _newton_compiled(
        r.cpu(), on_cpu, g.cpu(), regularization, start.cpu().clone(), tolerance, max_iterations, statistics
    )
    return exact.to(r.device), pi.to(r.device)
