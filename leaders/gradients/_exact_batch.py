"""The exact estimates of many runs at once (`leaders.gradients.batch`): by compiled kernels, or by torch on a device."""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.kernels.bellman import adjoint, expectation, policy_sum, softmax_derivative
from bocmdp_gym.soft_bellman import torch_linear_algebra
from bocmdp_gym.solvers.banded import (
    banded_factor,
    banded_policy_iteration,
    banded_solve,
    banded_solve_transposed,
    banded_space,
)
from leaders.gradients.batch import Array, BatchEstimator, CompiledBatch, Pending
from leaders.gradients.estimate import Estimate, Weigh, WeightedContexts


class ExactBatch(CompiledBatch):
    """`ExactEstimator` of many runs; the arguments are those of `CompiledBatch`."""

    def __init__(self, model: TabularBOCMDP, regularization: float, tolerance: float, max_iterations: int, n_runs: int):
        super().__init__(model, regularization, tolerance, max_iterations, n_runs)
        self._found = np.zeros(n_runs)

    def _compiled(self, rows: npt.NDArray[np.int64], context: int) -> None:
        arrays, model = self._constant.arrays(context), self.model
        solver: Any = arrays.solver
        exact_runs(
            rows,
            self._reward,
            self._leader_reward,
            arrays.continuation,
            arrays.leader_continuation,
            arrays.successors,
            arrays.probabilities,
            solver.position,
            solver.reach,
            arrays.initial,
            self.regularization,
            model.discount == model.leader_discount,
            self.tolerance,
            self.max_iterations,
            self._values[context],
            self._residuals,
            self._errors,
            self._iterations,
            self._found,
            self._w_reward,
            self._w_leader,
        )

    def _returns(self, runs: slice) -> list[float]:
        returns: list[float] = self._found[runs].tolist()
        return returns


class DeviceBatch(BatchEstimator):
    """`ExactEstimator` of many runs by batched LU factorisations of torch in float64, on any of its devices.

    The functions of x are evaluated on the CPU, where they and their constants live; everything that grows with S x S is done on
    the device, for all contexts at once whichever are drawn, and torch differentiates through both. Numbers agree with the
    compiled kernels to the tolerance of the solves, not to the bit.

    Args:
        model: the problem.
        regularization, tolerance, max_iterations: of the follower's problem.
        n_runs: B.
        device: "cpu", "cuda", ...

    Raises:
        UnsupportedError: torch has no such device here.
    """

    def __init__(
        self, model: TabularBOCMDP, regularization: float, tolerance: float, max_iterations: int, n_runs: int, device: str
    ):
        try:
            self._device = torch.device(device)
            self._start = torch.zeros(n_runs, model.n_contexts, model.n_states, dtype=torch.float64, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise UnsupportedError(f"torch cannot use device {device!r} here: {str(error).splitlines()[0]}") from error
        self.model, self.regularization, self.tolerance, self.max_iterations = model, regularization, tolerance, max_iterations

    @with_gradients
    def begin(
        self,
        runs: slice,
        x: Array,
        drawn: Sequence[WeightedContexts],
        rngs: Sequence[np.random.Generator],
        weigh: Weigh | None = None,
    ) -> Pending:
        del rngs
        point = torch.from_numpy(x).requires_grad_()
        with torch_linear_algebra():
            mdps = self.model.configure(point).to(self._device)
            solution = mdps.solve(
                self.regularization,
                initial_value=self._start[runs],
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
            values = mdps.policy_return(solution.policy).cpu()
            weights, seen = self._weights(values.detach(), runs.start, drawn, weigh)
            returns = (values * weights).sum(-1)
            (gradients,) = torch.autograd.grad(returns.sum(), point)
        self._start[runs] = solution.value.detach()
        metrics = {"follower_iterations": solution.iterations, "follower_residual": solution.residual}
        found = returns.tolist() if seen is None else seen
        estimates = [Estimate(g, value, metrics=dict(metrics)) for g, value in zip(gradients, found, strict=True)]
        return lambda: estimates

    def _weights(
        self, values: Tensor, start: int, drawn: Sequence[WeightedContexts], weigh: Weigh | None
    ) -> tuple[Tensor, list[float] | None]:
        """Each run's weights of its contexts ``(B, C)``; and the return of them all, where an objective says what it is."""
        weights, seen = torch.zeros(len(drawn), self.model.n_contexts, dtype=torch.float64), []
        for b, run in enumerate(drawn):
            given = [weight for _, weight in run]
            if weigh is not None:
                given, value = weigh(start + b, run, [float(values[b, context]) for context, _ in run])
                seen.append(value)
            for (context, _), weight in zip(run, given, strict=True):
                weights[b, context] += weight
        return weights, seen if weigh is not None else None


@njit(cache=True)
def _scaled(pi, w, out):
    """out(s, a) = pi(s, a) w(s, a)."""
    for s in range(pi.shape[0]):
        for a in range(pi.shape[1]):
            out[s, a] = pi[s, a] * w[s, a]


@njit(cache=True, nogil=True)
def exact_runs(
    rows,  # as in `monte_carlo_runs`
    reward,
    leader_reward,
    continuation,
    leader_continuation,
    succ,
    prob,
    position,
    reach,
    initial,
    lam,
    same_discount,
    tolerance,
    max_iterations,
    values,
    residuals,
    errors,
    iterations,
    returns,  # (B,): F_xi
    w_reward,
    w_leader,
):
    """Soft policy iteration, and the exact weights of the rewards (`leaders.gradients.exact`)."""
    n_s, n_a, _ = prob.shape
    q = np.empty((n_s, n_a))
    pi = np.empty((n_s, n_a))
    k = np.empty((n_s, n_a))
    future = np.empty((n_s, n_a))
    lu = banded_space(n_s, reach)
    rhs = np.empty(n_s)
    value = np.empty(n_s)
    visits = np.empty(n_s)
    pushed = np.empty(n_s)
    u = np.empty(n_s)
    scratch = np.zeros(n_s)
    for i in range(rows.shape[0]):
        b = rows[i]
        residual, error, iteration = banded_policy_iteration(
            reward[b],
            continuation,
            succ,
            prob,
            lam,
            position,
            reach,
            False,
            tolerance,
            max_iterations,
            values[b],
            q,
            pi,
            lu,
        )
        residuals[b] = residual
        errors[b] = error
        iterations[b] = iteration
        if not error <= tolerance:
            continue
        _scaled(pi, leader_continuation, k)
        policy_sum(pi, leader_reward[b], rhs)
        banded_factor(k, succ, prob, position, reach, lu, scratch)
        banded_solve(lu, position, reach, rhs, value)
        expectation(succ, prob, value, future)
        banded_solve_transposed(lu, position, reach, initial, visits)
        total = 0.0
        for s in range(n_s):
            total += initial[s] * value[s]
            for a in range(n_a):
                future[s, a] = leader_reward[b, s, a] + leader_continuation[s, a] * future[s, a]
        softmax_derivative(pi, future, future)
        for s in range(n_s):
            for a in range(n_a):
                w = visits[s] * future[s, a] / lam
                w_reward[b, s, a] = w
                future[s, a] = continuation[s, a] * w
                w_leader[b, s, a] = visits[s] * pi[s, a]
        returns[b] = total
        if not same_discount:
            _scaled(pi, continuation, k)
            banded_factor(k, succ, prob, position, reach, lu, scratch)
        adjoint(succ, prob, future, pushed)
        banded_solve_transposed(lu, position, reach, pushed, u)
        for s in range(n_s):
            for a in range(n_a):
                w_reward[b, s, a] += u[s] * pi[s, a]
