r"""The problem at one x: all contexts' MDPs as tensors, one context's as arrays, and the reverse pass through them.

`TabularBOCMDP.configure` makes a `ConfiguredMDPs`; symbols as in `bocmdp_gym.tabular`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import Variable

from bocmdp_gym.action_mask import ActionMask
from bocmdp_gym.affine import AffineParts, Point
from bocmdp_gym.arguments import Constructed
from bocmdp_gym.autodiff import gradients_enabled
from bocmdp_gym.errors import ConvergenceError, LeaderParameterError, ModelError, OptionError, UnsupportedError
from bocmdp_gym.kernels import bellman
from bocmdp_gym.kernels.alias import AliasTables, SuccessorTables, initial_tables
from bocmdp_gym.kernels.newton import FINEST
from bocmdp_gym.options import as_array, check_count, check_number, check_regularization
from bocmdp_gym.parts import check_part
from bocmdp_gym.soft_bellman import MAX_ITERATIONS, TOLERANCE, policy_entropy, policy_solve, soft_optimum, soft_policy
from bocmdp_gym.solvers import PolicySolver
from bocmdp_gym.transitions import TransitionOperator

Array = npt.NDArray[np.float64]
_REWARDS = ("reward", "leader_reward")
#: Values above this overflow when they are multiplied with each other.
_LARGEST_VALUE = 1e150


@dataclass(frozen=True)
class Solution(Constructed):
    """The follower's optimum. Tensors are differentiable in x where x requires gradients.

    Attributes:
        value: V*, ``(..., C, S)``.
        q: Q*, ``(..., C, S, A)``; -inf for actions that do not exist.
        policy: pi* = softmax(Q*/lambda), ``(..., C, S, A)``.
        residual: largest |T V - V| over states, contexts and batch.
        iterations: Newton steps of the slowest context.
        regularization: lambda.
        policy_error: bound on max |pi - pi*|, rounding included (`bocmdp_gym.kernels.newton`).
    """

    value: Tensor
    q: Tensor
    policy: Tensor
    residual: float
    iterations: int
    regularization: float
    policy_error: float


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
    draws: SuccessorTables  # for draws of a successor
    solver: PolicySolver
    action_mask: npt.NDArray[np.bool_] | None = None  # (S, A): which actions exist; None: all

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

    @property
    def available(self) -> npt.NDArray[np.bool_]:
        """Which actions exist, ``(S, A)``."""
        return np.ones(self.reward.shape, dtype=np.bool_) if self.action_mask is None else self.action_mask

    def masked(self, q: Array) -> Array:
        """``q`` (S, A) with -inf where an action does not exist, as a softmax takes it; ``q`` itself where all exist."""
        return q if self.action_mask is None else np.where(self.action_mask, q, -np.inf)

    def expectation(self, v: Array) -> Array:
        """P v, ``(S,) -> (S, A)``."""
        succ = self.stored_successors
        future = bellman.expectation(succ, self.stored_probabilities, v, np.empty(succ.shape[:2]))
        return future if self.moves is None else future[:, self.moves]

    def adjoint(self, w: Array) -> Array:
        """P^T w, ``(S, A) -> (S,)``."""
        return bellman.adjoint(self.stored_successors, self.stored_probabilities, self._per_move(w), np.empty(len(w)))

    def outer(self, w: Array, v: Array) -> Array:
        """Derivative of sum w (P v) with respect to the stored probabilities, ``(S, M, K)``."""
        outer: Array = self._per_move(w)[..., None] * v[self.stored_successors]
        return outer

    def _per_move(self, w: Array) -> Array:
        if self.moves is None:
            return w
        per_move: Array = bellman.gather_moves(w, self.moves, np.zeros(self.stored_successors.shape[:2]))
        return per_move


@dataclass
class Weights(Constructed):
    """One context's weights of the four sums: dF_xi/dx = sum W_r dr + sum W_P dP + sum W_mu dmu + sum W_rbar drbar (+ W_q dq).

    None where a function does not depend on x, or an estimator has nothing to say about it.
    """

    reward: Array | None = None  # (S, A)
    leader_reward: Array | None = None  # (S, A)
    transition: Array | None = None  # (S, M, K): on the stored values of P (M = A unless factored)
    initial: Array | None = None  # (S,)
    termination: Array | None = None  # (S, A)


class Problem(Protocol):
    """The model of `ConfiguredMDPs`: what these, and their users, read of a `TabularBOCMDP`."""

    leader_dim: int
    n_contexts: int
    n_states: int
    n_actions: int
    discount: float
    leader_discount: float
    context_probabilities: Array
    moving: Collection[str]
    mask: ActionMask | None
    constant_arrays: dict[int, ContextArrays]

    def jacobians(self, x: Any) -> dict[str, Tensor]:
        """Derivatives of the parts that depend on x."""

    def evaluate(self, x: Tensor, names: Collection[str], z: Any = None) -> dict[str, Any]:
        """Parts that depend on x, by torch."""


class LazyParts(dict[str, Any]):
    """The parts of a model at one x, of which those that depend on x are evaluated by torch when they are first asked for.

    Args:
        model, point: the problem, and where.
        parts: those that are there.
    """

    def __init__(self, model: Problem, point: Point, parts: Mapping[str, Any]):
        super().__init__(parts)
        self._model, self._point = model, point

    def __missing__(self, name: str) -> Any:
        self.fill()
        return self[name]

    def fill(self) -> None:
        """Evaluate all that are missing."""
        missing = [name for name in self._model.moving if name not in self]
        with gradients_enabled():
            self.update(self._model.evaluate(self._point.tensor, missing))


class _Contexts(dict[int, ContextArrays]):
    """The arrays of those contexts that were asked for, at one x; what does not depend on x is taken from `constant_arrays`."""

    def __init__(self, model: Problem, parts: dict[str, Any], numbers: Mapping[str, Array | None], affine: AffineParts | None):
        super().__init__()
        self._model, self._parts, self._numbers, self._affine = model, parts, numbers, affine

    def __missing__(self, context: int) -> ContextArrays:
        model, kept = self._model, self._model.constant_arrays.get(context)
        if kept is not None:
            arrays = kept._replace(**self._rewards(context, [name for name in _REWARDS if name in model.moving]))
        else:
            arrays = self._all(context)
            if not {"transition", "initial", "termination"} & set(model.moving):
                model.constant_arrays[context] = arrays
        self[context] = arrays
        return arrays

    def _rewards(self, context: int, names: Collection[str]) -> dict[str, Any]:
        """These of both sides' rewards, by name."""
        shape = (self._model.n_states, self._model.n_actions)
        found = {} if self._affine is None else self._affine.of(context, shape)
        for name in names:
            if name not in found:
                found[name] = self._array(name, context)
        return found

    def _all(self, context: int) -> ContextArrays:
        operator: TransitionOperator = self._parts["transition"]
        succ, values = operator.successors(), operator.values[0 if operator.n_contexts == 1 else context]
        termination = self._array("termination", context)
        initial = self._array("initial", context)
        stored = succ[0 if len(succ) == 1 else context], np.ascontiguousarray(values.detach().numpy())
        return ContextArrays(
            **self._rewards(context, _REWARDS),
            stored_successors=stored[0],
            stored_probabilities=stored[1],
            moves=operator.index,
            initial=initial,
            termination=termination,
            continuation=self._model.discount * (1.0 - termination),
            leader_continuation=self._model.leader_discount * (1.0 - termination),
            starts=initial_tables(initial),
            draws=SuccessorTables(*stored),
            solver=operator.solver(context),
            action_mask=None if self._model.mask is None else self._model.mask.of(context),
        )

    def _array(self, name: str, context: int) -> Array:
        """One context of a part, at full size and contiguous."""
        values = self._numbers.get(name)
        if values is None:
            values = self._parts[name].detach().numpy()
        full = np.empty((self._model.n_states, self._model.n_actions)[: values.ndim - 1])
        full[...] = values[0 if len(values) == 1 else context]
        return full


class ConfiguredMDPs:
    """All contexts' MDPs at one x (the paper's contextual MDP M_x); made by `TabularBOCMDP.configure`.

    Attributes:
        model, x: where it comes from.
        reward, leader_reward, termination: ``(..., C, S, A)`` tensors.
        initial: ``(..., C, S)``.
        transition: the operator.
        continuation, leader_continuation: g and g_L, ``(..., C, S, A)``.
        arrays: one context's MDP as NumPy arrays, ``arrays(context)`` (x without batch dimensions); made once.
    """

    def __init__(
        self,
        model: Problem,
        x: Tensor | Point,
        parts: dict[str, Any],
        numbers: Mapping[str, Array | None],
        affine: AffineParts | None = None,
    ):
        self.model, self._where = model, x
        self._parts, self._affine = parts, affine
        self.transition: TransitionOperator = parts["transition"]
        self.arrays: Callable[[int], ContextArrays] = _Contexts(model, parts, numbers, affine).__getitem__
        self._has_graph = isinstance(x, Point) or (x.requires_grad and torch.is_grad_enabled())

    @property
    def x(self) -> Tensor:
        return self._where.tensor if isinstance(self._where, Point) else self._where

    def to(self, device: torch.device | str) -> ConfiguredMDPs:
        """The same arrays on another device of torch, with their graph."""
        moved = object.__new__(ConfiguredMDPs)
        moved.model, moved._where, moved.arrays, moved._has_graph = self.model, self.x, self.arrays, self._has_graph
        moved._affine = None
        moved._parts = {name: part.to(device) for name, part in self._all_parts().items() if name != "transition"}
        moved.transition = self.transition.with_values(self.transition.values.to(device))
        moved._parts["transition"] = moved.transition
        return moved

    def with_leader_share(self, weight: float) -> ConfiguredMDPs:
        """The same problem where the follower is paid ``weight`` times the leader's reward on top: r + s rbar for r."""
        shared, inner = object.__new__(ConfiguredMDPs), self.arrays
        shared.model, shared._where, shared.transition, shared._has_graph = self.model, self.x, self.transition, self._has_graph
        parts, shared._affine = self._all_parts(), None
        shared._parts = {**parts, "reward": parts["reward"] + weight * parts["leader_reward"]}

        @cache
        def arrays(context: int) -> ContextArrays:
            own = inner(context)
            return own._replace(reward=own.reward + weight * own.leader_reward)

        shared.arrays = arrays
        return shared

    def _all_parts(self) -> dict[str, Any]:
        """All parts, as tensors."""
        if isinstance(self._parts, LazyParts):
            self._parts.fill()
        return self._parts

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
        for name, part in self._all_parts().items():
            check_part(name, part)

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
        tolerance = max(check_number("tolerance", tolerance, above=0.0), FINEST)
        max_iterations = check_count("max_iterations", max_iterations)
        if initial_value is not None:
            initial_value = self._check_value(initial_value)
        reward = self.reward if self.model.mask is None else self.model.mask.hide(self.reward)
        try:
            value, policy, statistics = soft_optimum(
                reward, self.transition, self.continuation, regularization, initial_value, tolerance, max_iterations
            )
        except ConvergenceError:
            self._explain()
            raise
        q = reward + self.continuation * self.transition.expectation(value)
        return Solution(
            value,
            q,
            soft_policy(q, policy, regularization),
            statistics.residual,
            statistics.iterations,
            regularization,
            policy_error=statistics.error,
        )

    def _check_value(self, value: Any) -> Tensor:
        """A start for the solver that broadcasts to ``(..., C, S)``, in float64.

        Raises:
            OptionError: anything else.
        """
        wanted = (*self.x.shape[:-1], self.model.n_contexts, self.model.n_states)
        if isinstance(value, Tensor) and is_functorch_wrapped_tensor(value):
            return value
        array = as_array(value)
        if array is None or not np.isfinite(array).all():
            raise OptionError(f"initial_value is {value!r}; expected finite numbers of shape {wanted}.")
        fits = 1 <= array.ndim <= len(wanted) and all(n in (1, m) for n, m in zip(array.shape[::-1], wanted[::-1], strict=False))
        if not fits:
            raise OptionError(f"initial_value has shape {array.shape}; expected {wanted}, or one that broadcasts to it.")
        return torch.from_numpy(array).to(self.reward.device)

    def _explain(self) -> None:
        """Find the fault of a solve that failed in the numbers of the model, if it is theirs.

        Raises:
            ModelError: an array is not finite, or so large that the follower's values overflow.
        """
        reward = self.reward.detach()
        if is_functorch_wrapped_tensor(reward) or is_functorch_wrapped_tensor(self.transition.values):
            return
        self.validate()
        largest = float(reward.abs().max())
        effective = 1.0 / max(1.0 - float(self.continuation.detach().max()), np.finfo(np.float64).eps)
        if not largest * effective < _LARGEST_VALUE:
            raise ModelError(
                f"rewards reach {largest:.3g}, and the follower's values overflow float64; expected rewards of a reasonable "
                "size: divide rewards and regularization by a common factor."
            )

    def policy_return(self, policy: Tensor) -> Tensor:
        """The leader's return F_xi of any policy ``(..., C, S, A)``: ``(..., C)``, differentiable in policy and x.

        Raises:
            ActionError: here, and by what follows: it takes actions that do not exist.
        """
        self._check_policy(policy)
        return self._discounted(policy * self.leader_continuation, (policy * self.leader_reward).sum(-1))

    def follower_return(self, policy: Tensor, regularization: float) -> Tensor:
        """The follower's regularised return J_lambda (paper eq. 1) of any policy ``(..., C, S, A)``: ``(..., C)``."""
        self._check_policy(policy)
        bonus = regularization * policy_entropy(policy)
        return self._discounted(policy * self.continuation, (policy * self.reward).sum(-1) + bonus)

    def discounted_sum(self, policy: Tensor, quantity: Tensor) -> Tensor:
        """E sum gamma^t quantity(s_t, a_t) of any policy ``(..., C, S, A)``; the quantity broadcasts to it. ``(..., C)``."""
        self._check_policy(policy)
        return self._discounted(policy * self.continuation, (policy * quantity).sum(-1))

    def _check_policy(self, policy: Tensor) -> None:
        if self.model.mask is not None:
            self.model.mask.check_policy(policy)

    def _discounted(self, k: Tensor, gains: Tensor) -> Tensor:
        """mu^T (I - K_k)^-1 of what is gained per state ``(..., C, S)``: ``(..., C)``."""
        return (self.initial * policy_solve(self.transition, k, gains)).sum(-1)

    def vjp(self, weights: Weights, context: int | npt.NDArray[np.int64]) -> Tensor:
        """One reverse pass: the weighted sums of one context, ``(d,)`` (`Weights`).

        For x ``(B, d)``, all at once: weights ``(B, ...)`` and contexts ``(B,)`` to ``(B, d)``.

        Raises:
            LeaderParameterError: the model was configured without a graph.
        """
        if self.model.moving and not self._has_graph:
            raise LeaderParameterError(
                "this x carries no gradient, so there is nothing to differentiate; configure the model at x.requires_grad_(), "
                "and not under torch.no_grad() or torch.inference_mode()."
            )
        outputs, cotangents = [], []
        affine = self._affine
        own = {n: w for n, w in vars(weights).items() if affine is not None and n in affine.parts and w is not None}
        closed: Array | None = None  # the reverse pass that needs no graph
        if affine is not None and own:
            pulled = affine.pull(own, context)
            if affine.closed is not None:
                closed = affine.closed.pull(affine.z, pulled)
            elif affine.graph is not None and affine.graph.requires_grad:
                outputs.append(affine.graph)
                cotangents.append(torch.from_numpy(pulled).reshape(affine.graph.shape))
        if closed is not None and len(own) == len(self.model.moving):
            return torch.from_numpy(closed)
        lead = self.x.ndim - 1
        for name, weight in vars(weights).items():
            if weight is None or name not in self.model.moving or name in own:
                continue
            output: Tensor = self.transition.values if name == "transition" else self._parts[name]
            if not output.requires_grad:
                continue
            for axis, size in enumerate(output.shape[lead + 1 :], start=lead):
                if size == 1 and weight.shape[axis] > 1:
                    weight = weight.sum(axis, keepdims=True)
            full = np.zeros(output.shape)
            where = 0 if full.shape[lead] == 1 else context
            full[(np.arange(len(full)), where) if lead else where] = weight
            outputs.append(output)
            cotangents.append(torch.from_numpy(full))
        if not outputs:
            return torch.zeros_like(self.x) if closed is None else torch.from_numpy(closed)
        gradient = _reverse_pass(outputs, cotangents, self.x)
        return gradient if closed is None else gradient + torch.from_numpy(closed)

    def batch_rows(self, name: str, contexts: npt.NDArray[np.int64], rows: Array) -> Array:
        """Write one context of a part ``(S, A)`` per entry of x ``(B, d)`` into ``rows`` ``(B, S, A)``, contiguous; returned."""
        if self._affine is not None and name in self._affine.parts:
            self._affine.batch_values(name, contexts, rows)
            return rows
        values = self._parts[name].detach().numpy()
        if values.ndim == 3:
            rows[...] = values[0 if len(values) == 1 else contexts]
        else:
            rows[...] = values[np.arange(len(contexts)), 0 if values.shape[1] == 1 else contexts]
        return rows


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
