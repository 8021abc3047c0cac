r"""The exact hypergradient: adjoint of Theorems 2.2 and 2.3 and Proposition C.1.

The mathematics, per context, with pi = pi*, M = I - K_{pi g} and M_L = I - K_{pi g_L} (notation of `bocmdp_gym.tabular`):

    Vbar = M_L^-1 sum_a pi rbar      Qbar = rbar + g_L P Vbar      d = M_L^-T mu          (discounted visitation)
    w(s,a) = d(s) pi(a|s) (Qbar - Vbar)(s,a) / lambda
    u = M^-T P^T(g w)
    W_r = w + u pi      W_rbar = d pi      W_P = g W_r V + g_L W_rbar Vbar      W_mu = Vbar
    W_q = -gamma W_r P V - gamma_L W_rbar P Vbar

For a general loss f(x, pi) only w changes: w = pi/lambda (df/dpi - sum_b pi df/dpi), and df/dx at fixed pi is added.

A model that is no table but solves itself (`bocmdp_gym.BOCMDP.exact_returns`, a linear-quadratic one for example) differentiates
its F_xi itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP, Weights
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.kernels.bellman import policy_sum, softmax_derivative
from bocmdp_gym.losses import Loss, evaluate_loss
from bocmdp_gym.mdps import ConfiguredMDPs, ContextArrays
from bocmdp_gym.optimum import ContextSolution, WarmSolver
from bocmdp_gym.options import check_count, check_number
from bocmdp_gym.soft_bellman import MAX_ITERATIONS, TOLERANCE
from bocmdp_gym.solvers import System
from followers import Policy, TrajectoryOracle
from leaders.gradients._exact_batch import DeviceBatch, ExactBatch
from leaders.gradients.base import Array, Estimator, interchangeable
from leaders.gradients.batch import BatchEstimator, compiled_model
from leaders.gradients.estimate import Estimate
from leaders.gradients.needs import check_loss_leaks


class LeaderValues(NamedTuple):
    """The leader's view of a policy in one context."""

    value: Array  # Vbar (S,)
    q: Array  # Qbar (S, A)
    visitation: Array  # d (S,)
    leader_return: float  # F_xi
    system: System  # the policy's, for g_L


def leader_values(arrays: ContextArrays, policy: Array) -> LeaderValues:
    """Vbar, Qbar, discounted visitation and F_xi of a policy ``(S, A)``."""
    system = arrays.solver.factor(policy * arrays.leader_continuation, arrays.stored_probabilities)
    value = system.solve(policy_sum(policy, arrays.leader_reward, np.empty(len(policy))))
    q = arrays.leader_reward + arrays.leader_continuation * arrays.expectation(value)
    return LeaderValues(value, q, system.solve_transposed(arrays.initial), float(arrays.initial @ value), system)


def policy_return(arrays: ContextArrays, policy: Array) -> float:
    """F_xi of a policy ``(S, A)`` alone."""
    rows = (arrays.leader_continuation, arrays.leader_reward, arrays.stored_probabilities)
    return float(arrays.initial @ arrays.solver.values(policy, *rows))


def _adjoint_weights(
    mdps: ConfiguredMDPs, arrays: ContextArrays, pi: Array, follower: Array | None, w: Array, leader: LeaderValues | None
) -> Weights:
    """The five weights from the sensitivity w(s, a) to Q*(s, a); ``leader`` None for a general loss.

    ``follower``: the follower's values V ``(S,)``, which are read where P or q depends on x.
    """
    g = arrays.continuation
    if leader is None or mdps.model.discount != mdps.model.leader_discount:
        system = arrays.solver.factor(pi * g, arrays.stored_probabilities)
    else:
        system = leader.system
    reward = w + system.solve_transposed(arrays.adjoint(g * w))[:, None] * pi
    weights = Weights(reward=reward)
    if leader is not None:
        weights.leader_reward = leader.visitation[:, None] * pi
        weights.initial = leader.value
    if "transition" in mdps.model.moving:
        assert follower is not None
        weights.transition = arrays.outer(g * reward, follower)
        if weights.leader_reward is not None and leader is not None:
            discounted = arrays.leader_continuation * weights.leader_reward
            weights.transition += arrays.outer(discounted, leader.value)
    if "termination" in mdps.model.moving:
        assert follower is not None
        weights.termination = -mdps.model.discount * reward * arrays.expectation(follower)
        if weights.leader_reward is not None and leader is not None:
            weights.termination -= mdps.model.leader_discount * weights.leader_reward * arrays.expectation(leader.value)
    return weights


def response_return(oracle: TrajectoryOracle, x: Any, context: Any, policy: Policy) -> float | None:
    """F_xi of a follower's response, from the model: its table's, or that of the optimum where an exact follower answered.

    None: neither is known.
    """
    model, follower = oracle.model, oracle.follower
    if isinstance(model, TabularBOCMDP):
        table = oracle.tabulate(policy)
        return None if table is None else policy_return(oracle.configure_for(policy).arrays(context), table.table)
    if not values_responses(oracle):
        return None
    assert model is not None
    assert follower.regularization is not None
    with torch.no_grad():
        return float(model.context_return(x, follower.regularization, context, leader_share=oracle.layers.share))


def values_responses(oracle: TrajectoryOracle) -> bool:
    """Whether a model that is no table can tell `response_return`."""
    model, follower = oracle.model, oracle.follower
    solves = model is not None and model.exact_returns and not isinstance(model, TabularBOCMDP)
    return solves and follower.exact and follower.regularization is not None


def exact_weights(
    mdps: ConfiguredMDPs, context: int, solution: ContextSolution, regularization: float
) -> tuple[Weights, LeaderValues]:
    """The exact weights of dF_xi/dx, and the leader's values they came from (module docstring).

    Args:
        mdps: the model at x.
        context: xi.
        solution: the follower's optimum there.
        regularization: lambda.
    """
    return policy_weights(mdps, mdps.arrays(context), solution.policy, regularization, solution.value)


def policy_weights(
    mdps: ConfiguredMDPs, arrays: ContextArrays, policy: Array, regularization: float, follower: Array | None = None
) -> tuple[Weights, LeaderValues]:
    """The same from arrays of one context that need not be the model's own, and a policy ``(S, A)`` taken for optimal there.

    Args:
        mdps: the model at x; it says what depends on x.
        arrays: one context's MDP.
        policy: the follower's.
        regularization: lambda.
        follower: the follower's values V ``(S,)``; needed where P or q depends on x.
    """
    leader = leader_values(arrays, policy)
    w = leader.visitation[:, None] * softmax_derivative(policy, leader.q, np.empty_like(policy)) / regularization
    return _adjoint_weights(mdps, arrays, policy, follower, w, leader), leader


def exact_loss_gradient(
    mdps: ConfiguredMDPs, context: int, solution: ContextSolution, regularization: float, loss: Loss
) -> tuple[Tensor, float]:
    """d f(x, pi*_xi, xi) / dx ``(d,)`` and the loss itself, for a general differentiable loss (Theorem 2.2)."""
    x = mdps.x.detach().clone().requires_grad_()
    policy = torch.from_numpy(solution.policy).requires_grad_()
    value = evaluate_loss(loss, x, policy, context)
    direct, sensitivity = torch.autograd.grad(value, (x, policy), allow_unused=True)
    gradient = torch.zeros_like(x) if direct is None else direct
    if sensitivity is not None:
        by_policy = sensitivity.numpy()
        w = softmax_derivative(solution.policy, by_policy, np.empty_like(by_policy)) / regularization
        weights = _adjoint_weights(mdps, mdps.arrays(context), solution.policy, solution.value, w, None)
        gradient = gradient + mdps.vjp(weights, context)
    return gradient, float(value.detach())


class ExactEstimator(Estimator):
    """dF_xi/dx without error, from the model: it solves the follower's problem itself and samples nothing.

    Args:
        regularization: lambda; the follower's if None.
        tolerance: accepted bound on the error of the follower's policy, max |pi - pi*|.
        max_iterations: steps of the soft policy iteration after which it is an error not to have reached the tolerance.

    Raises:
        OptionError: a value out of range.

    Attributes:
        solver: solves it, warm-started per context.
    """

    needs_exact_returns = True
    needs_equilibrium = False  # it computes it
    accepts_loss = True

    def __init__(
        self,
        regularization: float | None = None,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
    ):
        super().__init__(regularization)
        self.solver = WarmSolver(check_number("tolerance", tolerance, above=0.0), check_count("max_iterations", max_iterations))

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        if loss is not None:
            if not isinstance(oracle.model, TabularBOCMDP):
                raise UnsupportedError(
                    f"a loss f(x, policy, context) reads the policy as a table, and the model of {type(oracle.core).__name__} is "
                    "none; maximise the leader's return, into which the loss may be written as the leader's reward."
                )
            check_loss_leaks(loss, oracle)
        self.solver.reset()

    @classmethod
    def batched(
        cls, oracle: TrajectoryOracle, estimators: Sequence[Estimator], device: str | None = None
    ) -> BatchEstimator | None:
        """As `Estimator.batched`: on a device of torch, or compiled where `compiled_model` serves the problem."""
        first, model = estimators[0], oracle.model
        if not interchangeable(ExactEstimator, estimators) or not isinstance(model, TabularBOCMDP):
            return super().batched(oracle, estimators, device)
        assert isinstance(first, ExactEstimator)
        options = (first._lambda, first.solver.tolerance, first.solver.max_iterations, len(estimators))
        if device is not None:
            return DeviceBatch(model, *options, device)
        compiled = compiled_model(oracle, len(estimators))
        return None if compiled is None else ExactBatch(compiled, *options)

    def state(self) -> dict[Any, Any]:
        return self.solver.state()

    def load_state(self, state: dict[Any, Any]) -> None:
        self.solver.load_state(state)

    @with_gradients
    def estimate(self, oracle: TrajectoryOracle, x: Tensor, context: Any, rng: np.random.Generator) -> Estimate:
        del rng
        model = oracle.model
        if not isinstance(model, TabularBOCMDP):
            assert model is not None
            point = x.detach().clone().requires_grad_()
            exact = model.context_return(point, self._lambda, context, leader_share=oracle.layers.share)
            return Estimate(torch.autograd.grad(exact, point)[0], float(exact.detach()))
        mdps = oracle.configure(x)
        solution = self.solver.solve(mdps, context, self._lambda)
        metrics = {"follower_iterations": solution.iterations, "follower_residual": solution.residual}
        if self.loss is not None:
            gradient, value = exact_loss_gradient(mdps, context, solution, self._lambda, self.loss)
            return Estimate(-gradient, -value, metrics=metrics)
        weights, leader = exact_weights(mdps, context, solution, self._lambda)
        return Estimate(mdps.vjp(weights, context), leader.leader_return, metrics=metrics)
