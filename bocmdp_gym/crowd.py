r"""A population at one x and given loads: every class at its optimum, the loads that all of them produce, and derivatives.

The mathematics. Class xi of mass m_xi solves its MDP with the rewards r(x, rho), transitions P(x, rho), ... that the loads rho in
R^K make for it. Its visits are y(s, a) = m_xi E sum_t beta^t 1{s_t = s, a_t = a}, and load k is what they add up to,

    Phi_k(x, rho) = sum_xi sum_{s,a} b_k(s, a) y_xi(s, a),        y = d pi,   d = M_beta^-T (m mu),

with beta = 1 for total visits. So all classes together are one MDP of C S states, block by block, whose initial measure is m mu:
one Newton iteration solves them all, one factorisation serves every derivative, and Phi_k is its leader's return for the reward
b_k.

Pulling a weight eta on the loads back to the arrays is therefore `leaders.gradients.exact` with rbar = sum_k eta_k b_k, and
pushing changes of the arrays forward to the loads is the same linearisation read the other way:

    dV = M^-1 sum_a pi (dr + g dP V + dg P V)      dQ = dr + g dP V + dg P V + g P dV       dpi = pi (dQ - sum_b pi dQ) / lambda
    M_beta^T dd = m dmu + P^T (beta-continued d dpi) + dP^T (g_beta y) + P^T (dg_beta y)      drho = B (d dpi + dd pi)

Nothing here has the size of loads times parameters. Symbols as in `bocmdp_gym.tabular`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from bocmdp_gym.autodiff import gradients_enabled
from bocmdp_gym.kernels import bellman
from bocmdp_gym.soft_bellman import SolveStatistics, check_convergence
from bocmdp_gym.solvers import PolicySolver, policy_solver
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.transitions import TransitionOperator

Array = npt.NDArray[np.float64]
#: Accepted bound on the error of the classes' policies: finer than a single follower's, as loads are differences of them.
POLICY_TOLERANCE = 1e-9
MAX_POLICY_ITERATIONS = 500
#: The parts of a problem that loads may move, in the order in which they are differentiated.
PARTS = ("reward", "transition", "initial", "termination")


class Structure:
    """What never changes of a population: sizes, successors of the C S states, how visits become loads.

    Args:
        problem: the classes' MDPs, as a model of (x, loads); its leader's discount is that of the loads.
        transition: its operator, at any point.
        mass: m ``(C,)``.
        load: B, ``(K, S A)`` or ``(K, C S A)``.
    """

    def __init__(self, problem: TabularBOCMDP, transition: TransitionOperator, mass: Array, load: sparse.csr_array):
        self.problem, self.mass, self.load = problem, mass, load
        self.sizes = (problem.n_contexts, problem.n_states, problem.n_actions)
        c, s, a = self.sizes
        self.shared_load = load.shape[1] == s * a
        succ, self.moves = transition.successors(), transition.index
        first = (np.arange(c) * s)[:, None, None, None]
        self.succ: npt.NDArray[np.int32] = np.ascontiguousarray((succ + first).reshape(c * s, *succ.shape[2:]), dtype=np.int32)
        self.solver: PolicySolver = policy_solver(self.succ, self.moves)
        self.nonnegative: npt.NDArray[np.bool_] = load.minimum(0.0).sum(axis=1) >= 0.0  # loads that cannot fall below 0
        self._load_transposed = sparse.csr_array(load.T)

    def flat(self, part: Tensor, *trailing: int) -> Array:
        """One part of all classes ``(C or 1, S, ...)`` as an array ``(C S, ...)``, contiguous."""
        c, s, _ = self.sizes
        full = part.detach().expand(c, s, *trailing).numpy()
        return np.ascontiguousarray(full.reshape(c * s, *trailing))

    def loads(self, visits: Array) -> Array:
        """Phi ``(K,)`` of visits ``(C S, A)``."""
        c, s, a = self.sizes
        total = visits.reshape(c, s * a).sum(0) if self.shared_load else visits.reshape(-1)
        loads: Array = self.load @ total
        return loads

    def producible(self, reached: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which loads ``(K,)`` can be other than 0 where these of the C S states are visited, and any action is taken there."""
        c, s, a = self.sizes
        visits = np.repeat(reached, a).astype(np.float64)
        can: npt.NDArray[np.bool_] = abs(self.load) @ (visits.reshape(c, s * a).sum(0) if self.shared_load else visits) > 0.0
        return can

    def spread(self, eta: Array) -> Array:
        """sum_k eta_k b_k ``(C S, A)``: what a visit adds to the weighted loads."""
        c, s, a = self.sizes
        weighted = self._load_transposed @ eta
        return np.tile(weighted.reshape(s, a), (c, 1)) if self.shared_load else weighted.reshape(c * s, a)

    def expectation(self, prob: Array, v: Array) -> Array:
        """P v, ``(C S,) -> (C S, A)``."""
        future = bellman.expectation(self.succ, prob, v, np.empty(self.succ.shape[:2]))
        return future if self.moves is None else future[:, self.moves]

    def adjoint(self, prob: Array, w: Array) -> Array:
        """P^T w, ``(C S, A) -> (C S,)``."""
        return bellman.adjoint(self.succ, prob, self._per_move(w), np.empty(len(w)))

    def outer(self, w: Array, v: Array) -> Array:
        """Derivative of sum w (P v) with respect to the stored probabilities, ``(C S, M, K)``."""
        outer: Array = self._per_move(w)[..., None] * v[self.succ]
        return outer

    def _per_move(self, w: Array) -> Array:
        if self.moves is None:
            return w
        per_move: Array = bellman.gather_moves(w, self.moves, np.zeros(self.succ.shape[:2]))
        return per_move


@dataclass
class _Change:
    """A change of the arrays, or weights on them; None for what does not move."""

    reward: Array | None = None  # (C S, A)
    transition: Array | None = None  # (C S, M, K)
    initial: Array | None = None  # (C S,)
    termination: Array | None = None  # (C S, A)


class Crowd:
    """The population at one x and given loads.

    Args:
        structure: what does not change.
        x, loads: ``(d,)`` and ``(K,)``.
        regularization: lambda.
        value: where to start the classes' values ``(C S,)``; None: nowhere in particular.

    Raises:
        ModelError: an array is not finite, or no distribution, at this point.
        ConvergenceError: a class's values do not converge, or are infinite.

    Attributes:
        loads: the loads given.
        produced: Phi(x, loads) ``(K,)``.
        value, policy: of the classes, ``(C S,)`` and ``(C S, A)``.
        policy_iterations: Newton steps their solution took.
    """

    def __init__(self, structure: Structure, x: Array, loads: Array, regularization: float, value: Array | None = None):
        self.structure, self.x, self.loads, self.regularization = structure, x, loads, regularization
        problem, (_, s, a) = structure.problem, structure.sizes
        with gradients_enabled():
            self._point = torch.from_numpy(np.concatenate([x, loads])).requires_grad_()
            z = (self._point[: len(x)], self._point[len(x) :])
            parts = {name: problem.part(name, z) for name in PARTS}
        values = parts["transition"].values
        self._parts = {**parts, "transition": values}
        self._moving = [name for name in PARTS if name in problem.moving and self._parts[name].requires_grad]
        self._reward = structure.flat(parts["reward"], a)
        self._prob = structure.flat(values[0] if values.ndim > 4 else values, *structure.succ.shape[1:])
        self._continuing = 1.0 - structure.flat(parts["termination"], a)
        self._g, self._g_load = problem.discount * self._continuing, problem.leader_discount * self._continuing
        self.value = np.zeros(len(self._reward)) if value is None else value.copy()
        found = structure.solver.policy_iteration(
            self._reward, self._g, self._prob, regularization, self.value, POLICY_TOLERANCE, MAX_POLICY_ITERATIONS
        )
        statistics = SolveStatistics(found.residual, found.error, found.iterations)
        check_convergence(statistics, regularization, 10.0 * POLICY_TOLERANCE, MAX_POLICY_ITERATIONS, " of a class")
        self.policy, self.policy_iterations = found.policy, found.iterations
        self._system = structure.solver.factor(self.policy * self._g, self._prob)
        same = problem.discount == problem.leader_discount
        self._load_system = self._system if same else structure.solver.factor(self.policy * self._g_load, self._prob)
        self._initial = structure.flat(parts["initial"]) * np.repeat(structure.mass, s)
        self._visitation = self._load_system.solve_transposed(self._initial)
        self.visits = self._visitation[:, None] * self.policy
        self.produced = structure.loads(self.visits)
        self._future: Array | None = None
        self._pushforward: tuple[Tensor, list[Tensor]] | None = None

    @property
    def gap(self) -> Array:
        """Phi(x, loads) - loads, 0 at an equilibrium."""
        return self.produced - self.loads

    @property
    def _expected(self) -> Array:
        """P V."""
        if self._future is None:
            self._future = self.structure.expectation(self._prob, self.value)
        return self._future

    # --------------------------------------------------------------------------------------------------- derivatives

    def pull(self, by_loads: Array | None = None, by_value: Array | None = None) -> tuple[Array, Array]:
        """Derivatives of by_loads . Phi + by_value . V with respect to x ``(d,)`` and to the loads ``(K,)``."""
        structure, weights = self.structure, _Change(reward=np.zeros_like(self.policy))
        assert weights.reward is not None
        sensitivity = np.zeros_like(self.value) if by_value is None else by_value
        leader: Array | None = None
        if by_loads is not None:
            gain = structure.spread(by_loads)
            leader = self._load_system.solve((self.policy * gain).sum(-1))
            advantage = bellman.softmax_derivative(
                self.policy, gain + self._g_load * structure.expectation(self._prob, leader), np.empty_like(gain)
            )
            w = self._visitation[:, None] * advantage / self.regularization
            weights.reward += w
            sensitivity = sensitivity + structure.adjoint(self._prob, self._g * w)
            weights.initial = np.repeat(structure.mass, structure.sizes[1]) * leader
        weights.reward += self._system.solve_transposed(sensitivity)[:, None] * self.policy
        if "transition" in self._moving:
            weights.transition = structure.outer(self._g * weights.reward, self.value)
            if leader is not None:
                weights.transition += structure.outer(self._g_load * self.visits, leader)
        if "termination" in self._moving:
            weights.termination = -structure.problem.discount * weights.reward * self._expected
            if leader is not None:
                discounted = structure.problem.leader_discount * self.visits
                weights.termination -= discounted * structure.expectation(self._prob, leader)
        gradient = self._pull_back(weights)
        return gradient[: len(self.x)], gradient[len(self.x) :]

    def push(self, dx: Array | None = None, dloads: Array | None = None) -> tuple[Array, Array]:
        """The change of Phi ``(K,)``, and that of V ``(C S,)``, along a change of x or of the loads."""
        direction = np.concatenate(
            [np.zeros_like(part) if change is None else change for part, change in ((self.x, dx), (self.loads, dloads))]
        )
        change, structure = self._push_forward(direction), self.structure
        dq = np.zeros_like(self.policy) if change.reward is None else change.reward
        if change.transition is not None:
            dq = dq + self._g * structure.expectation(change.transition, self.value)
        if change.termination is not None:
            dq = dq - structure.problem.discount * change.termination * self._expected
        dv = self._system.solve((self.policy * dq).sum(-1))
        dq = dq + self._g * structure.expectation(self._prob, dv)
        moved = self._visitation[:, None] * bellman.softmax_derivative(self.policy, dq, np.empty_like(dq)) / self.regularization
        mass = structure.adjoint(self._prob, self._g_load * moved)
        if change.transition is not None:
            mass += structure.adjoint(change.transition, self._g_load * self.visits)
        if change.termination is not None:
            leaving = structure.problem.leader_discount * change.termination
            mass -= structure.adjoint(self._prob, leaving * self.visits)
        if change.initial is not None:
            mass += np.repeat(structure.mass, structure.sizes[1]) * change.initial
        moved += self._load_system.solve_transposed(mass)[:, None] * self.policy
        return structure.loads(moved), dv

    def _outputs(self) -> list[Tensor]:
        return [self._parts[name] for name in self._moving]

    def _pull_back(self, weights: _Change) -> Array:
        """The weights' reverse pass through the functions of (x, loads)."""
        if not self._moving:
            return np.zeros(len(self._point))
        cotangents = [self._cotangent(name, getattr(weights, name)) for name in self._moving]
        (gradient,) = torch.autograd.grad(self._outputs(), self._point, cotangents, retain_graph=True, allow_unused=True)
        return np.zeros(len(self._point)) if gradient is None else gradient.numpy()

    def _cotangent(self, name: str, weight: Array | None) -> Tensor:
        part = self._parts[name]
        if weight is None:
            return torch.zeros_like(part)
        c, s, _ = self.structure.sizes
        return torch.from_numpy(weight.reshape(c, s, *weight.shape[1:])).sum_to_size(part.shape)

    def _push_forward(self, direction: Array) -> _Change:
        """Their derivative along a direction: the reverse pass is linear, and its own reverse pass is this."""
        if not self._moving:
            return _Change()
        if self._pushforward is None:
            with gradients_enabled():
                seeds = [torch.zeros_like(part).requires_grad_() for part in self._outputs()]
                (pulled,) = torch.autograd.grad(self._outputs(), self._point, seeds, create_graph=True)
            self._pushforward = pulled, seeds
        pulled, seeds = self._pushforward
        pushed: Sequence[Any] = torch.autograd.grad(
            pulled, seeds, torch.from_numpy(direction), retain_graph=True, allow_unused=True
        )
        trailing = {"transition": self._prob.shape[1:], "initial": ()}
        return _Change(
            **{
                name: self.structure.flat(change, *trailing.get(name, self.policy.shape[1:]))
                for name, change in zip(self._moving, pushed, strict=True)
                if change is not None
            }
        )
