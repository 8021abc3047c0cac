r"""`TabularBOCMDP`: a finite problem as arrays that are differentiable functions of x.

The mathematics. For every context xi and parameter x: rewards r and rbar (the leader's), transitions P, initial distribution
mu, and q(s, a), the probability that the episode ends after acting. P(.|s, a) is conditional on going on; acting pays r and
rbar first; after the end there is nothing, no value and no entropy. With g = gamma (1 - q) and g_L = gamma_L (1 - q),

    V = lambda logsumexp(Q / lambda),  Q = r + g P V,  pi = softmax(Q / lambda)           the follower (paper eq. 1, 2)
    Vbar = sum_a pi (rbar + g_L P Vbar),   F_xi = sum_s mu Vbar,   F = E_xi F_xi           the leader   (paper eq. 3, 7)

and dF/dx is exact, by implicit differentiation (see `bocmdp_gym.soft_bellman`).

Shapes: C contexts, S states, A actions, d = dimension of x; x may carry leading batch dimensions, and then everything does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd import Variable

from bocmdp_gym import kernels
from bocmdp_gym.alias import AliasTables, initial_tables
from bocmdp_gym.errors import DiscountError, LeaderParameterError, ModelError, RegularizationError, UnsupportedError
from bocmdp_gym.model import BOCMDP
from bocmdp_gym.policy_solvers import PolicySolver, check_method
from bocmdp_gym.soft_bellman import MAX_ITERATIONS, TOLERANCE, policy_entropy, policy_solve, soft_optimal_value, soft_policy
from bocmdp_gym.transitions import (
    PROBABILITY_TOLERANCE,
    DenseTransitions,
    SuccessorTransitions,
    TransitionOperator,
    as_probabilities,
    as_transitions,
)
from bocmdp_gym.validation import check_context_probabilities, check_discount, refuse_multi_agent

Array = npt.NDArray[np.float64]
#: An array, or a differentiable function of x that returns one.
Function = Callable[[Tensor], Any] | Any


@dataclass(frozen=True)
class Solution:
    """The follower's optimum. Tensors are differentiable in x where x requires gradients.

    Attributes:
        value: V*, ``(..., C, S)``.
        q: Q*, ``(..., C, S, A)``.
        policy: pi* = softmax(Q*/lambda), ``(..., C, S, A)``.
        residual: largest remaining error of the soft Bellman equation.
        iterations: Newton steps of the slowest context.
        regularization: lambda.
    """

    value: Tensor
    q: Tensor
    policy: Tensor
    residual: float
    iterations: int
    regularization: float


class ContextArrays(NamedTuple):
    """One context's MDP at one x, as contiguous float64 arrays for the compiled kernels."""

    reward: Array  # (S, A)
    leader_reward: Array  # (S, A)
    stored_successors: npt.NDArray[np.int32]  # (S, M, K)
    stored_probabilities: Array  # (S, M, K)
    moves: npt.NDArray[np.int64] | None  # (A,): the row of each action; None: M = A
    initial: Array  # (S,)
    termination: Array  # (S, A)
    continuation: Array  # (S, A), gamma (1 - q)
    leader_continuation: Array  # (S, A), gamma_L (1 - q)
    starts: AliasTables  # for draws from `initial`
    solver: PolicySolver

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The stored row of each action, ``(A,)``."""
        return np.arange(self.reward.shape[1]) if self.moves is None else self.moves

    @property
    def successors(self) -> npt.NDArray[np.int32]:
        """Successors per action, ``(S, A, K)``.

        Raises:
            UnsupportedError: the actions share rows.
        """
        self._check_listed()
        return self.stored_successors

    @property
    def probabilities(self) -> Array:
        """Their probabilities, ``(S, A, K)``.

        Raises:
            UnsupportedError: the actions share rows.
        """
        self._check_listed()
        return self.stored_probabilities

    def _check_listed(self) -> None:
        if self.moves is not None:
            raise UnsupportedError(
                "this model's transitions are factored (FactoredTransitions), and this method reads a list of successors for "
                "every action; use SoftPolicyIteration with ExactGradient or ZeroOrder, or give the model a SuccessorTransitions."
            )

    def expectation(self, v: Array) -> Array:
        """P v, ``(S,) -> (S, A)``."""
        succ = self.stored_successors
        future = kernels.expectation(succ, self.stored_probabilities, v, np.empty(succ.shape[:2]))
        return future if self.moves is None else future[:, self.moves]

    def adjoint(self, w: Array) -> Array:
        """P^T w, ``(S, A) -> (S,)``."""
        return kernels.adjoint(self.stored_successors, self.stored_probabilities, self._per_move(w), np.empty(len(w)))

    def outer(self, w: Array, v: Array) -> Array:
        """Derivative of sum w (P v) with respect to the stored probabilities, ``(S, M, K)``."""
        outer: Array = self._per_move(w)[..., None] * v[self.stored_successors]
        return outer

    def _per_move(self, w: Array) -> Array:
        if self.moves is None:
            return w
        per_move: Array = kernels.gather_moves(w, self.moves, np.zeros(self.stored_successors.shape[:2]))
        return per_move


@dataclass
class Weights:
    """One context's weights of the four sums: dF_xi/dx = sum W_r dr + sum W_P dP + sum W_mu dmu + sum W_rbar drbar (+ W_q dq).

    None where a function does not depend on x, or an estimator has nothing to say about it.
    """

    reward: Array | None = None  # (S, A)
    leader_reward: Array | None = None  # (S, A)
    transition: Array | None = None  # (S, M, K): on the stored values of P (M = A unless factored)
    initial: Array | None = None  # (S,)
    termination: Array | None = None  # (S, A)


class TabularBOCMDP(BOCMDP):
    """A finite bilevel problem: C contexts, S states, A actions.

    Args:
        reward: the follower's reward, ``(C, S, A)`` or any shape that broadcasts to it, such as ``(C, S, 1)``: an array, or a
            function of x (a torch tensor ``(d,)``, float64) that returns a torch tensor. So for all the arrays below.
        leader_reward: the leader's reward, ``(C, S, A)`` or broadcastable.
        transition: P, dense ``(C or 1, S, A, S)``, a `TransitionOperator`, a scipy.sparse matrix ``(S A, S)`` or a list of A of
            them ``(S, S)``; conditional on the episode going on. A function of x must keep its sparsity pattern.
        initial: the initial distribution, ``(C, S)``, or ``(S,)`` for all contexts.
        context_probabilities: P_xi, ``(C,)``; uniform if None.
        termination: probability that the episode ends after acting, ``(C or 1, S)`` or ``(C or 1, S, A)``; never if None.
        discount: the follower's gamma, in [0, 1]; 1 only where every policy's episodes end with certainty, or where those
            that need not end lose at every step (a regularised follower then ends: a shortest path problem).
        leader_discount: the leader's gamma_L; the follower's if None.
        leader_dim: dimension d of x.
        parametrization: what the functions take instead of x, such as ``softmax(x)`` or tax rates ``2 sigmoid(x)``: a
            differentiable function of x, computed once per x.
        leader_space: space of x; all of R^d if None.
        example: a valid x, to find the shapes with; the point of ``leader_space`` nearest to 0 if None.
        solver: method for the linear systems: "banded", "dense", "krylov", "sparse-lu", or "auto", the fastest for the model's
            structure (see `bocmdp_gym.policy_solvers`).

    Raises:
        ModelError: shapes do not fit, rows of P or mu do not sum to 1, NaN in an array.
        DiscountError: a discount outside [0, 1], or 1 where some policy's episodes need not end.

    Attributes:
        takes_states: whether `rewards` and the other functions of visited points take state indices (always so here); False
            where they take an environment's observations, as those of a grid that stands for a continuous problem do.
    """

    takes_states = True

    def __init__(
        self,
        *,
        reward: Function,
        leader_reward: Function,
        transition: Function,
        initial: Function,
        leader_dim: int,
        discount: float,
        leader_discount: float | None = None,
        context_probabilities: npt.ArrayLike | None = None,
        termination: Function | None = None,
        parametrization: Callable[[Tensor], Any] | None = None,
        leader_space: gym.spaces.Box | None = None,
        example: npt.ArrayLike | None = None,
        solver: str = "auto",
    ):
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.leader_dim = int(leader_dim)
        self.leader_space = leader_space or gym.spaces.Box(-np.inf, np.inf, (self.leader_dim,), np.float64)
        if self.leader_space.shape != (self.leader_dim,):
            raise ModelError(f"leader_space has shape {self.leader_space.shape}; expected ({self.leader_dim},).")
        self.discount = check_discount(discount)
        self.leader_discount = self.discount if leader_discount is None else check_discount(leader_discount, "leader_")
        self._functions: dict[str, Callable[[Any], Any]] = {}
        self._parametrization = parametrization
        self._constants: dict[str, Any] = {}
        parts = {"reward": reward, "leader_reward": leader_reward, "transition": transition, "initial": initial}
        parts["termination"] = 0.0 if termination is None else termination
        for name, part in parts.items():
            if callable(part) and not isinstance(part, Tensor):
                self._functions[name] = part
            else:
                self._constants[name] = part
        self._solver = check_method(solver)
        self._template: TransitionOperator | None = None
        self._shapes: dict[str, torch.Size] = {}  # full-rank shapes that were checked
        self.constant_arrays: dict[int, ContextArrays] = {}  # per context, where only rewards depend on x
        self._discover_shapes(example, context_probabilities)
        self.context_probabilities = check_context_probabilities(
            np.full(self.n_contexts, 1.0 / self.n_contexts) if context_probabilities is None else context_probabilities,
            self.n_contexts,
        )
        self._context_weights = torch.from_numpy(self.context_probabilities)

    # ------------------------------------------------------------------------------------------------ construction

    def _discover_shapes(self, example: npt.ArrayLike | None, context_probabilities: npt.ArrayLike | None) -> None:
        low, high = self.leader_space.low, self.leader_space.high
        x = self.check_leader(np.clip(np.zeros(self.leader_dim), low, high) if example is None else example)
        self.example: Array = x.numpy().copy()
        z = self._parameters(x)
        raw = {name: function(z) for name, function in self._functions.items()} | self._constants
        transition = as_transitions(raw["transition"])
        if "transition" in self._constants:
            self._constants["transition"] = transition
        self.n_states, self.n_actions = transition.n_states, transition.n_actions
        contexts = [transition.n_contexts]
        for name in ("reward", "leader_reward", "initial", "termination"):
            shape = np.shape(raw[name])
            rank = 2 if name == "initial" or (name == "termination" and len(shape) == 2) else 3
            contexts.append(int(shape[0]) if len(shape) == rank else 1)
        self.n_contexts = max(contexts) if context_probabilities is None else len(np.atleast_1d(context_probabilities))
        for name in list(self._constants):
            self._constants[name] = self._canonical(name, self._constants[name])
        self.configure(x).validate()

    def _canonical(self, name: str, value: Any) -> Any:
        """Check the shape of one part; tensors come back with their full rank, sizes 1 left to broadcast."""
        c, s, a = self.n_contexts, self.n_states, self.n_actions
        if name == "transition":
            operator = as_transitions(value)
            if operator.n_contexts not in (1, c) or (operator.n_states, operator.n_actions) != (s, a):
                raise ModelError(
                    f"transition is for {operator.n_contexts} contexts, {operator.n_states} states and "
                    f"{operator.n_actions} actions; expected 1 or {c}, {s} and {a}."
                )
            if self._template is None:
                operator = self._template = operator if self._solver == "auto" else operator.with_solver(self._solver)
            elif operator is not self._template:
                if not operator.same_structure(self._template):
                    raise ModelError(
                        "transition(x) returned other successor states than at the first x; expected a fixed pattern. Store "
                        "every state that can be reached at some x, with probability 0 where it cannot."
                    )
                operator = self._template.with_values(operator.values)  # keeps orderings and factorisation workspaces
            return operator
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        if tensor.dtype != torch.float64:
            tensor = as_probabilities(tensor) if name == "initial" else tensor.to(torch.float64)
        if self._shapes.get(name) == tensor.shape:
            return tensor
        expected: tuple[int, ...] = (c, s, a)
        if name == "initial":
            expected = (c, s)
            tensor = tensor.unsqueeze(0) if tensor.ndim == 1 else tensor
        elif name == "termination":
            if tensor.ndim == 0:
                tensor = tensor.reshape(1, 1, 1)
            elif tensor.ndim == 2:
                tensor = tensor.unsqueeze(-1)
        fits = tensor.ndim == len(expected) and all(n in (1, m) for n, m in zip(tensor.shape, expected, strict=True))
        if not fits or (name == "initial" and tensor.shape[-1] != s):
            raise ModelError(
                f"{name} has shape {tuple(tensor.shape)}; expected {expected}, that is (contexts, states, actions) without "
                "actions for initial, or sizes 1 that broadcast to it."
            )
        self._shapes[name] = tensor.shape
        return tensor

    @property
    def factored(self) -> bool:
        """Whether actions share rows of P (`FactoredTransitions`), which not every method can read."""
        return self._template is not None and self._template.index is not None

    def check_leader(self, x: Any) -> Tensor:
        """x as a float64 tensor ``(..., d)``.

        Raises:
            LeaderParameterError: wrong shape, or not finite.
        """
        if not isinstance(x, Tensor):
            try:
                x = torch.as_tensor(np.array(x, dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise LeaderParameterError(f"leader parameter {x!r} is not an array of numbers: {error}") from error
        if x.dtype != torch.float64:
            x = x.to(torch.float64)
        if x.shape[-1:] != (self.leader_dim,):
            raise LeaderParameterError(
                f"leader parameter has shape {tuple(x.shape)}; expected ({self.leader_dim},), or (..., {self.leader_dim}) "
                "with leading batch dimensions."
            )
        if not _is_wrapped(x) and not bool(torch.isfinite(x).all()):  # inside torch.func the solver reports NaN
            raise LeaderParameterError(
                "leader parameter has entries that are not finite; if a leader produced them, lower its learning rate "
                "or clip its gradient."
            )
        return x

    def configure(self, x: Any) -> ConfiguredMDPs:
        """The contextual MDP that x configures: all arrays at this x, with their graph if x requires gradients."""
        return self.configure_checked(self.check_leader(x))

    def configure_checked(self, x: Tensor) -> ConfiguredMDPs:
        """`configure` for an x that `check_leader` has seen."""
        parts = dict(self._constants)
        if x.ndim == 1:
            z = self._parameters(x)
            for name, function in self._functions.items():
                parts[name] = self._canonical(name, function(z))
        else:
            parts |= self._configure_batch(x)
        if _is_wrapped(x):
            pass  # inside torch.func numbers cannot be asked for; a problem without an optimum then fails to converge
        elif self.discount == 1.0:
            check_proper(parts["transition"], parts["termination"], "discount is 1", parts["reward"])
        elif self.leader_discount == 1.0:
            check_proper(parts["transition"], parts["termination"], "leader_discount is 1")
        return ConfiguredMDPs(self, x, parts)

    def _parameters(self, x: Tensor) -> Any:
        return x if self._parametrization is None else self._parametrization(x)

    def _configure_batch(self, x: Tensor) -> dict[str, Any]:
        """Evaluate the functions under vmap over the leading dimensions of x."""
        lead = x.shape[:-1]
        stacked = torch.func.vmap(self._moving_values)(x.reshape(-1, self.leader_dim)) if self._functions else ()
        parts: dict[str, Any] = {n: t.unflatten(0, lead) for n, t in zip(self._functions, stacked, strict=True)}
        if "transition" in parts and self._template is not None:
            parts["transition"] = self._template.with_values(parts["transition"])
        return parts

    def replace(self, **changes: Any) -> TabularBOCMDP:
        """The same model with other constructor arguments."""
        return TabularBOCMDP(**{**self._arguments, **changes})

    def part(self, name: str, z: Any) -> Any:
        """One part as the functions see it: "reward", "leader_reward", ... at z = x, or at z = parametrization(x)."""
        return self._canonical(name, self._functions[name](z)) if name in self._functions else self._constants[name]

    def _moving_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parts that depend on x, as tensors (the stored values of P)."""
        z = self._parameters(x)
        values = (self._canonical(name, function(z)) for name, function in self._functions.items())
        return tuple(v.values if isinstance(v, TransitionOperator) else v for v in values)

    def jacobians(self, x: Any) -> dict[str, Tensor]:
        """Derivatives of the parts that depend on x, by name: the part's own shape (sizes 1 left to broadcast), then d.

        For methods that need all of them, such as adaptive model design; weighted sums are `ConfiguredMDPs.vjp`'s work.
        """
        x = self.check_leader(x).detach()
        vjp: Any = torch.func.vjp
        values, pullback = vjp(self._moving_values, x)
        # the pullback is linear, and its own pullback is the Jacobian: d products, and no need of forward-mode derivatives
        _, pushforward = vjp(pullback, tuple(torch.zeros_like(value) for value in values))
        (columns,) = torch.func.vmap(pushforward)((torch.eye(self.leader_dim, dtype=x.dtype),))
        return {name: column.movedim(0, -1) for name, column in zip(self._functions, columns, strict=True)}

    @property
    def moving(self) -> Collection[str]:
        """Names of the parts that are functions of x: "reward", "leader_reward", "transition", "initial", "termination"."""
        return self._functions.keys()

    # ------------------------------------------------------------------------------------------------------ solving

    def solve(
        self,
        x: Any,
        regularization: float,
        *,
        initial_value: Tensor | None = None,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
    ) -> Solution:
        """The follower's regularised optimum at x, by soft policy iteration.

        Args:
            x: ``(..., d)``.
            regularization: lambda > 0.
            initial_value: V to start from, ``(..., C, S)`` (warm start).
            tolerance: bound on the soft Bellman residual, relative to max(1, max |V|).
            max_iterations: Newton steps allowed.

        Raises:
            LeaderParameterError, RegularizationError, ModelError, ConvergenceError.
        """
        return self.configure(x).solve(
            regularization, initial_value=initial_value, tolerance=tolerance, max_iterations=max_iterations
        )

    def leader_return(self, x: Any, regularization: float, *, per_context: bool = False, **options: Any) -> Tensor:
        """F(x) = E_xi E sum_t gamma_L^t rbar under the follower's optimum: a scalar, or ``(...,)`` for batched x.

        Differentiable in x, by `backward` or torch.func. With ``per_context``, F_xi: ``(..., C)``. Options go to `solve`.
        """
        mdps = self.configure(x)
        solution = mdps.solve(regularization, **options)
        returns = mdps.policy_return(solution.policy)
        return returns if per_context else returns @ self._context_weights.to(returns.device)

    def loss(self, x: Any, f: Callable[[Tensor, Tensor], Tensor], *, regularization: float, **options: Any) -> Tensor:
        """E_xi f(x, pi*_xi) for a differentiable ``f(x, policy (C, S, A)) -> (C,)``; options go to `solve`.

        Raises:
            ModelError: f does not return one number per context.
        """
        x = self.check_leader(x)
        if x.ndim > 1:
            return torch.func.vmap(lambda z: self.loss(z, f, regularization=regularization, **options))(x)
        values = f(x, self.solve(x, regularization, **options).policy)
        if tuple(values.shape) != (self.n_contexts,):
            raise ModelError(
                f"f(x, policy) returned shape {tuple(values.shape)}; expected ({self.n_contexts},), one per context."
            )
        return values @ self._context_weights.to(values.device)

    # ---------------------------------------------------------------------------------------- the BOCMDP interface

    def _visited(self, name: str, x: Tensor, states: Any, actions: Any, context: int) -> Tensor:
        table = self.part(name, self._parameters(x)).expand(self.n_contexts, self.n_states, self.n_actions)
        return table[context, torch.as_tensor(states).long(), torch.as_tensor(actions).long()]

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """r_{x, xi}(s, a) for states and actions ``(N,)``."""
        return self._visited("reward", x, observations, actions, context)

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
        """rbar_{x, xi}(s, a) for states and actions ``(N,)``."""
        return self._visited("leader_reward", x, observations, actions, context)

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        """log P_{x, xi}(s'|s, a) for ``(N,)`` transitions; None if P is constant."""
        if "transition" not in self._functions:
            return None
        operator = self._canonical("transition", self._functions["transition"](self._parameters(x)))
        context = 0 if operator.n_contexts == 1 else context
        s, a = torch.as_tensor(observations).long(), torch.as_tensor(actions).long()
        a = a if operator.index is None else torch.from_numpy(operator.index)[a]
        succ = torch.from_numpy(operator.successors())[0 if len(operator.successors()) == 1 else context]
        match = succ[s, a] == torch.as_tensor(next_observations).long()[:, None]
        return torch.where(match, operator.values[context, s, a], 0.0).sum(-1).log()

    def log_initials(self, x: Tensor, observations: Any, context: Any) -> Tensor | None:
        """log mu_{x, xi}(s) for ``(N,)`` states; None if mu is constant."""
        if "initial" not in self._functions:
            return None
        mu = self._canonical("initial", self._functions["initial"](self._parameters(x)))
        return mu[0 if len(mu) == 1 else context, torch.as_tensor(observations).long()].log()

    @classmethod
    def from_gymnasium(
        cls,
        env: gym.Env[Any, Any],
        *,
        reward: Function | None = None,
        leader_reward: Function | None = None,
        leader_dim: int | None = None,
        discount: float = 0.99,
        **options: Any,
    ) -> TabularBOCMDP:
        """A model from an environment that publishes its tables (FrozenLake, Taxi, CliffWalking: ``env.unwrapped.P``).

        Gymnasium's tables end an episode on arrival; here the same episodes end after acting (see `gymnasium_tables`).

        Args:
            env: the environment, wrapped or not.
            reward: the follower's reward ``(C, S, A)`` or a function of x; the environment's own if None.
            leader_reward: the leader's; the environment's own reward if None.
            leader_dim: as for the constructor; if None, that of ``leader_space`` or ``example`` where given, else 1.
            discount, options: as for the constructor.

        Raises:
            UnsupportedError: the environment publishes no tables.
            ModelError: a function fails at the x of dimension 1 that was assumed without ``leader_dim``.
        """
        tables = gymnasium_tables(env)
        arguments: dict[str, Any] = {
            "reward": tables.reward if reward is None else reward,
            "leader_reward": tables.reward if leader_reward is None else leader_reward,
            "transition": tables.transition,
            "initial": tables.initial,
            "termination": tables.termination,
            "discount": discount,
            **options,
        }
        if leader_dim is not None:
            return cls(leader_dim=leader_dim, **arguments)
        if options.get("leader_space") is not None:
            return cls(leader_dim=options["leader_space"].shape[0], **arguments)
        if options.get("example") is not None:
            return cls(leader_dim=np.size(options["example"]), **arguments)
        try:
            return cls(leader_dim=1, **arguments)
        except (ModelError, RuntimeError, IndexError) as error:
            if not any(callable(part) for part in arguments.values()):
                raise
            raise ModelError(
                f"x was taken to have dimension 1, and a function of it failed: {error} Give leader_dim=."
            ) from error


class ConfiguredMDPs:
    """All contexts' MDPs at one x (the paper's contextual MDP M_x); made by `TabularBOCMDP.configure`.

    Attributes:
        model, x: where it comes from.
        reward, leader_reward, termination: ``(..., C, S, A)`` tensors.
        initial: ``(..., C, S)``.
        transition: the operator.
        continuation, leader_continuation: g and g_L, ``(..., C, S, A)``.
    """

    def __init__(self, model: TabularBOCMDP, x: Tensor, parts: dict[str, Any]):
        self.model, self.x = model, x
        self._parts = parts
        self.transition: TransitionOperator = parts["transition"]
        self._arrays: dict[int, ContextArrays] = {}
        if "transition" in model.moving and not _is_wrapped(self.transition.values):
            self.transition.validate()
        if "initial" in model.moving and not _is_wrapped(parts["initial"]):
            _check_initial(parts["initial"].detach())

    def to(self, device: torch.device | str) -> ConfiguredMDPs:
        """The same arrays on another device of torch, with their graph."""
        moved = object.__new__(ConfiguredMDPs)
        moved.model, moved.x, moved._arrays = self.model, self.x, {}
        moved._parts = {name: part.to(device) for name, part in self._parts.items() if name != "transition"}
        moved.transition = self.transition.with_values(self.transition.values.to(device))
        moved._parts["transition"] = moved.transition
        return moved

    def _full(self, name: str) -> Tensor:
        part: Tensor = self._parts[name]
        sizes = (self.model.n_contexts, self.model.n_states, self.model.n_actions)
        rank = 2 if name == "initial" else 3
        return part.expand(*part.shape[: part.ndim - rank], *sizes[:rank])

    @cached_property
    def reward(self) -> Tensor:
        return self._full("reward")

    @cached_property
    def leader_reward(self) -> Tensor:
        return self._full("leader_reward")

    @cached_property
    def initial(self) -> Tensor:
        return self._full("initial")

    @cached_property
    def termination(self) -> Tensor:
        return self._full("termination")

    @cached_property
    def continuation(self) -> Tensor:
        return self.model.discount * (1.0 - self.termination)

    @cached_property
    def leader_continuation(self) -> Tensor:
        return self.model.leader_discount * (1.0 - self.termination)

    def validate(self) -> None:
        """Check every array.

        Raises:
            ModelError: naming the array, state, action and context of the first fault.
        """
        for name in ("reward", "leader_reward", "termination"):
            values = getattr(self, name).detach()
            bad = ~torch.isfinite(values)
            if name == "termination":
                bad |= (values < 0) | (values > 1)
            if bool(bad.any()):
                *_, c, s, a = (int(i) for i in bad.nonzero()[0])
                expected = "a probability in [0, 1]" if name == "termination" else "a finite number"
                value = float(values[tuple(bad.nonzero()[0])])
                raise ModelError(f"{name} is {value} at state {s}, action {a}, context {c}; expected {expected}.")
        self.transition.validate()
        _check_initial(self.initial.detach())

    def arrays(self, context: int) -> ContextArrays:
        """One context's MDP as NumPy arrays (x without batch dimensions)."""
        if context not in self._arrays:
            kept = self.model.constant_arrays.get(context)
            if kept is not None:
                rewards: dict[str, Any] = {
                    n: self._array(n, context) for n in ("reward", "leader_reward") if n in self.model.moving
                }
                self._arrays[context] = kept._replace(**rewards)
                return self._arrays[context]
            operator = self.transition
            succ = operator.successors()
            termination = self._array("termination", context)
            initial = self._array("initial", context)
            arrays = ContextArrays(
                reward=self._array("reward", context),
                leader_reward=self._array("leader_reward", context),
                stored_successors=succ[0 if len(succ) == 1 else context],
                stored_probabilities=_numpy(operator.values[0 if operator.n_contexts == 1 else context]),
                moves=operator.index,
                initial=initial,
                termination=termination,
                continuation=self.model.discount * (1.0 - termination),
                leader_continuation=self.model.leader_discount * (1.0 - termination),
                starts=initial_tables(initial),
                solver=operator.solver(context),
            )
            self._arrays[context] = arrays
            if not {"transition", "initial", "termination"} & set(self.model.moving):
                self.model.constant_arrays[context] = arrays
        return self._arrays[context]

    def _array(self, name: str, context: int) -> Array:
        """One context of a part, at full size and contiguous."""
        values = self._parts[name].detach().numpy()
        full = np.empty((self.model.n_states, self.model.n_actions)[: values.ndim - 1])
        full[...] = values[0 if len(values) == 1 else context]
        return full

    def solve(
        self,
        regularization: float,
        *,
        initial_value: Tensor | None = None,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
    ) -> Solution:
        """The follower's optimum in every context; see `TabularBOCMDP.solve`."""
        regularization = check_regularization(regularization)
        value, statistics = soft_optimal_value(
            self.reward, self.transition, self.continuation, regularization, initial_value, tolerance, max_iterations
        )
        q = self.reward + self.continuation * self.transition.expectation(value)
        policy = soft_policy(q, regularization)
        return Solution(value, q, policy, statistics.residual, statistics.iterations, regularization)

    def policy_return(self, policy: Tensor) -> Tensor:
        """The leader's return F_xi of any policy ``(..., C, S, A)``: ``(..., C)``, differentiable in policy and x."""
        weighted = (policy * self.leader_reward).sum(-1)
        value = policy_solve(self.transition, policy * self.leader_continuation, weighted)
        return (self.initial * value).sum(-1)

    def follower_return(self, policy: Tensor, regularization: float) -> Tensor:
        """The follower's regularised return J_lambda (paper eq. 1) of any policy ``(..., C, S, A)``: ``(..., C)``."""
        rhs = (policy * self.reward).sum(-1) + regularization * policy_entropy(policy)
        value = policy_solve(self.transition, policy * self.continuation, rhs)
        return (self.initial * value).sum(-1)

    def discounted_sum(self, policy: Tensor, quantity: Tensor) -> Tensor:
        """E sum gamma^t quantity(s_t, a_t) of any policy ``(..., C, S, A)``; the quantity broadcasts to it. ``(..., C)``."""
        value = policy_solve(self.transition, policy * self.continuation, (policy * quantity).sum(-1))
        return (self.initial * value).sum(-1)

    def vjp(self, weights: Weights, context: int) -> Tensor:
        """One reverse pass: the four weighted sums of one context, d-dimensional (`Weights`)."""
        outputs, cotangents = [], []
        for name, weight in vars(weights).items():
            if weight is None or name not in self.model.moving:
                continue
            output: Tensor = self.transition.values if name == "transition" else self._parts[name]
            if not output.requires_grad:
                continue
            full = np.zeros(output.shape)
            for axis, size in enumerate(output.shape[1:]):
                if size == 1 and weight.shape[axis] > 1:
                    weight = weight.sum(axis, keepdims=True)
            full[0 if len(full) == 1 else context] = weight
            outputs.append(output)
            cotangents.append(torch.from_numpy(full))
        if not outputs:
            return torch.zeros_like(self.x)
        return _reverse_pass(outputs, cotangents, self.x)

    def batch_rows(self, name: str, contexts: npt.NDArray[np.int64]) -> Array:
        """One context of "reward", "leader_reward" or "termination" per entry of x ``(B, d)``: ``(B, S, A)``, contiguous."""
        values = self._parts[name].detach().numpy()
        rows = np.empty((len(contexts), self.model.n_states, self.model.n_actions))
        if values.ndim == 3:
            rows[...] = values[0 if len(values) == 1 else contexts]
        else:
            rows[...] = values[np.arange(len(contexts)), 0 if values.shape[1] == 1 else contexts]
        return rows

    def batch_vjp(self, weights: Weights, contexts: npt.NDArray[np.int64]) -> Tensor:
        """`vjp` of every entry of x ``(B, d)`` at once: weights ``(B, S, A)`` of rewards, one context each. ``(B, d)``."""
        outputs, cotangents = [], []
        for name, weight in vars(weights).items():
            if weight is None or name not in self.model.moving or not self._parts[name].requires_grad:
                continue
            output: Tensor = self._parts[name]
            for axis, size in enumerate(output.shape[2:], start=1):
                if size == 1 and weight.shape[axis] > 1:
                    weight = weight.sum(axis, keepdims=True)
            full = np.zeros(output.shape)
            full[np.arange(len(full)), 0 if output.shape[1] == 1 else contexts] = weight
            outputs.append(output)
            cotangents.append(torch.from_numpy(full))
        return _reverse_pass(outputs, cotangents, self.x) if outputs else torch.zeros_like(self.x)


class GymnasiumTables(NamedTuple):
    """Arrays read from an environment's published tables; see `gymnasium_tables`."""

    reward: Tensor  # (1, S, A)
    transition: SuccessorTransitions
    initial: Tensor  # (S,)
    termination: Tensor  # (1, S, A)


def gymnasium_tables(env: gym.Env[Any, Any]) -> GymnasiumTables:
    """Reward, transitions, initial distribution and termination from ``env.unwrapped.P`` (FrozenLake, Taxi, CliffWalking).

    There an episode ends *on arrival* in a done state. Here q(s, a) is the probability of a done successor and P the
    distribution over the others, so no value or entropy is earned after the end.

    Raises:
        UnsupportedError: the environment publishes no tables, or is a multi-agent one.
    """
    refuse_multi_agent(env)
    base = env.unwrapped
    table, initial = getattr(base, "P", None), getattr(base, "initial_state_distrib", None)
    if not isinstance(table, dict) or initial is None:
        raise UnsupportedError(
            f"{type(base).__name__} publishes no tables (env.unwrapped.P and env.unwrapped.initial_state_distrib); expected an "
            "environment such as FrozenLake-v1, Taxi-v4 or CliffWalking-v1. Write the arrays yourself and pass them to "
            "TabularBOCMDP, or use a leader wrapper."
        )
    n_states, n_actions = len(table), len(table[0])
    width = max(len(table[s][a]) for s in table for a in table[s])
    succ = np.zeros((n_states, n_actions, width), dtype=np.int32)
    prob = np.zeros((n_states, n_actions, width))
    reward, termination = np.zeros((1, n_states, n_actions)), np.zeros((1, n_states, n_actions))
    for s in range(n_states):
        for a in range(n_actions):
            for k, (p, successor, r, done) in enumerate(table[s][a]):
                reward[0, s, a] += p * r
                succ[s, a, k] = successor
                if done:
                    termination[0, s, a] += p
                else:
                    prob[s, a, k] = p
            going_on = prob[s, a].sum()
            if going_on > 0.0:
                prob[s, a] /= going_on
            else:  # certain end: where it would go does not matter
                succ[s, a], prob[s, a, 0] = s, 1.0
                termination[0, s, a] = 1.0
    return GymnasiumTables(
        torch.from_numpy(reward),
        SuccessorTransitions(succ, torch.from_numpy(prob)),
        torch.as_tensor(np.asarray(initial, dtype=np.float64)),
        torch.from_numpy(termination.clip(0.0, 1.0)),
    )


def check_regularization(value: Any) -> float:
    """Lambda as a float.

    Raises:
        RegularizationError: not a positive finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 < number < float("inf"):
        raise RegularizationError(
            f"regularization is {value!r}; expected a positive finite number (lambda). The unregularised problem (lambda = 0) "
            "has no unique optimum to differentiate; use a small lambda such as 1e-3."
        )
    return number


def _reverse_pass(outputs: list[Tensor], cotangents: list[Tensor], x: Tensor) -> Tensor:
    """Sum of the outputs' vector-Jacobian products with respect to x.

    The same as ``torch.autograd.grad(outputs, x, cotangents, retain_graph=True)``, whose Python-side checks of shapes known to
    be right cost as much as a small model's reverse pass itself.
    """
    engine = Variable._execution_engine
    (gradient,) = engine.run_backward(
        tuple(outputs), tuple(cotangents), True, False, (x,), allow_unreachable=True, accumulate_grad=False
    )
    return torch.zeros_like(x) if gradient is None else gradient


def _numpy(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy())


def _is_wrapped(x: Tensor) -> bool:
    """Whether x is inside a torch.func transform, where its numbers cannot be asked for."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _check_initial(initial: Tensor) -> None:
    total = initial.sum(-1)
    bad = ~((total - 1.0).abs() <= PROBABILITY_TOLERANCE) | (initial < -PROBABILITY_TOLERANCE).any(-1)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise ModelError(
            f"the initial distribution of context {where[-1]} sums to {float(total[where]):.12g}; expected non-negative "
            "numbers that sum to 1."
        )


def check_proper(transition: TransitionOperator, termination: Tensor, reason: str, reward: Tensor | None = None) -> None:
    """Check that episodes end with certainty under every policy, as they must where ``reason`` ("discount is 1").

    They do unless some set of states can be stayed in for ever: the largest set Z in which every state has an action with
    q = 0 and all successors in Z is found by removing states that have none. With ``reward``, such a set is allowed if all
    those actions cost, and an end can be reached from everywhere: whoever stays loses without bound, and no optimum does.
    """
    values = transition.values.detach().flatten(0, -5) if transition.values.ndim > 4 else transition.values.detach()
    succ = np.broadcast_to(transition.successors(), values.shape[-4:])
    possible = (values.reshape(-1, *values.shape[-4:]).amax(0) > 0).numpy()
    ends = _smallest(termination) > 0
    n_contexts = max(len(succ), len(ends), 1 if reward is None else reward.shape[-3])
    for context in range(n_contexts):
        c, e = (0 if len(succ) == 1 else context), ends[0 if len(ends) == 1 else context]
        inside = np.ones(succ.shape[1], dtype=bool)
        while True:
            stays = (inside[succ[c]] | ~possible[c]).all(-1)
            stays = (stays if transition.index is None else stays[:, transition.index]) & ~e
            smaller = inside & stays.any(-1)
            if (smaller == inside).all():
                break
            inside = smaller
        if inside.any() and reward is not None:
            costs = (_smallest(-reward) > 0)[0 if reward.shape[-3] == 1 else context]
            inside = (inside[:, None] & stays & ~costs).any(-1) | ~_can_end(succ[c], possible[c], e)
        if inside.any():
            raise DiscountError(
                f"{reason}, but from state {int(np.flatnonzero(inside)[0])} in context {context} some policy's episodes never "
                "end; expected a discount below 1 and a horizon, or termination probabilities that end every episode."
            )


def _smallest(part: Tensor) -> npt.NDArray[np.float64]:
    """The smallest value over leading batch dimensions, ``(C or 1, S, A or 1)``."""
    smallest: npt.NDArray[np.float64] = part.detach().reshape(-1, *part.shape[-3:]).amin(0).numpy()
    return smallest


def _can_end(succ: npt.NDArray[np.int32], possible: npt.NDArray[np.bool_], ends: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """States from which some policy's episodes end, ``(S,)``."""
    reached: Any = np.broadcast_to(ends.any(-1), succ.shape[:1])
    while True:
        larger = reached | (reached[succ] & possible).any((-1, -2))
        if (larger == reached).all():
            return reached
        reached = larger


__all__ = ["ConfiguredMDPs", "DenseTransitions", "Solution", "TabularBOCMDP", "Weights"]
