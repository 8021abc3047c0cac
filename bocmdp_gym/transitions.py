r"""Transition operators: one interface, several storages.

A transition kernel P(s'|s,a) enters the theory through three linear maps only,

    (P v)(s, a)   = sum_{s'} P(s'|s,a) v(s')                     `expectation`
    (P^T w)(s')   = sum_{s,a} w(s, a) P(s'|s,a)                  `adjoint`
    K_k(s, s')    = sum_a k(s, a) P(s'|s,a)                      `policy_matrix`

and through the derivative of the bilinear form sum w(s,a) (P v)(s,a) with respect to its stored numbers (`outer`).
An operator keeps those numbers in one torch tensor, `values`, so P may be a differentiable function of x: derivatives
are taken with respect to `values` alone, never with respect to a dense S x S array an operator does not store.

Shapes: C contexts (1 if all contexts share the kernel), S states, A actions, K stored successors per row; any
leading batch dimensions come first. A row belongs to a state and one of M *moves*; an operator with an ``index`` (A,) lets
action a make the move index[a], so that many actions may share a row, and without one M = A and every action is its own move.

A large model keeps lists of successors: `SuccessorTransitions`, made from arrays or from scipy.sparse matrices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.autodiff import look_at
from bocmdp_gym.errors import ModelError
from bocmdp_gym.kernels import bellman
from bocmdp_gym.memory import owned_tensor
from bocmdp_gym.options import FLOAT32_TOLERANCE, as_array
from bocmdp_gym.solvers import PolicySolver, policy_solver

#: How far a row of P (or an initial distribution) may be from summing to 1.
PROBABILITY_TOLERANCE = 1e-8
#: From this many stored probabilities on, products with successor lists are compiled loops instead of torch operations.
COMPILED_SIZE = 8_000


class TransitionOperator(Constructed, ABC):
    """A transition kernel for every context, state and action.

    Attributes:
        values: the stored probabilities, ``(..., C or 1, S, M, K)``; the only tensor derivatives refer to.
        index: the move each action makes, ``(A,)`` int64; None: actions are moves, M = A.
    """

    values: Tensor
    index: npt.NDArray[np.int64] | None = None
    _solvers: dict[int, PolicySolver]
    _solver_method = "auto"

    @property
    def n_contexts(self) -> int:
        """Number of contexts stored; 1 means that all contexts share the kernel."""
        return int(self.values.shape[-4])

    @property
    def n_states(self) -> int:
        """Number of states S."""
        return int(self.values.shape[-3])

    @property
    def n_actions(self) -> int:
        """Number of actions A."""
        return int(self.values.shape[-2]) if self.index is None else len(self.index)

    @abstractmethod
    def with_values(self, values: Tensor) -> TransitionOperator:
        """The same structure around other numbers (used to put P through autograd, vmap and devices)."""

    @abstractmethod
    def with_actions(self, source: Tensor) -> TransitionOperator:
        """The kernel in which action a of state s moves as action ``source[c, s, a]`` of this one, ``(C or 1, S, A)`` int64.

        Raises:
            ModelError: actions share rows, the same in every state.
        """

    @abstractmethod
    def expectation(self, v: Tensor) -> Tensor:
        """P v: values of the next state, ``(..., C, S) -> (..., C, S, A)``."""

    @abstractmethod
    def adjoint(self, w: Tensor) -> Tensor:
        """P^T w: mass pushed forward, ``(..., C, S, A) -> (..., C, S)``."""

    @abstractmethod
    def outer(self, w: Tensor, v: Tensor) -> Tensor:
        """Derivative of sum w (P v) with respect to `values`: ``w(s,a) v(s'_k)``, ``(..., C, S, M, K)``."""

    @abstractmethod
    def policy_matrix(self, k: Tensor) -> Tensor:
        """Dense K_k, ``(..., C, S, A) -> (..., C, S, S)``; for small models and for devices without sparse kernels."""

    @abstractmethod
    def successors(self) -> npt.NDArray[np.int32]:
        """Stored successor states, ``(C or 1, S, M, K)`` int32: what the compiled kernels read next to `values`."""

    def same_structure(self, other: TransitionOperator) -> bool:
        """Whether both store the same successors, so that orderings found for one serve the other."""
        if type(self) is not type(other) or not np.array_equal(self.index, other.index):  # type: ignore[arg-type]
            return False
        mine, theirs = self.successors(), other.successors()
        return mine is theirs or (mine.shape == theirs.shape and bool((mine == theirs).all()))

    def solver(self, context: int) -> PolicySolver:
        """The linear solver for one context's successor structure; made once, shared by all operators of that structure."""
        succ = self.successors()
        context = 0 if len(succ) == 1 else context
        if context not in self._solvers:
            self._solvers[context] = policy_solver(succ[context], self.index, self._solver_method)
        return self._solvers[context]

    def with_solver(self, method: str) -> TransitionOperator:
        """The same kernel, its linear systems solved by ``method`` (see `bocmdp_gym.solvers.choice`)."""
        other = self.with_values(self.values)
        other._solver_method, other._solvers = method, {}
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave solvers behind: they are made again when needed."""
        return {**self.__dict__, "_solvers": {}}

    def _copy(self, values: Tensor) -> Any:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.values = values
        return other

    def validate(self) -> None:
        """Check that every row is a distribution.

        Raises:
            ModelError: naming state, action and context of the first bad row.
        """
        look_at(partial(_check_rows, second="action" if self.index is None else "move"), self.values)


class DenseTransitions(TransitionOperator):
    """P as a full array, ``values`` ``(..., C or 1, S, A, S)``."""

    def __init__(self, values: Tensor):
        values = _check_values(values)
        if values.ndim < 4 or values.shape[-1] != values.shape[-3]:
            raise ModelError(
                f"transition has shape {tuple(values.shape)}; expected (C, S, A, S) with the last equal to the number "
                "of states. For sparse kernels pass SuccessorTransitions(successors, probabilities)."
            )
        self.values = owned_tensor(values)
        self._solvers = {}

    def with_values(self, values: Tensor) -> DenseTransitions:
        other: DenseTransitions = self._copy(values)
        return other

    def with_actions(self, source: Tensor) -> DenseTransitions:
        return self.with_values(torch.take_along_dim(self.values, source.unsqueeze(-1), -2))

    def expectation(self, v: Tensor) -> Tensor:
        return torch.einsum("...sat,...t->...sa", self.values, v)

    def adjoint(self, w: Tensor) -> Tensor:
        return torch.einsum("...sa,...sat->...t", w, self.values)

    def outer(self, w: Tensor, v: Tensor) -> Tensor:
        return w.unsqueeze(-1) * v.unsqueeze(-2).unsqueeze(-2)

    def policy_matrix(self, k: Tensor) -> Tensor:
        return torch.einsum("...sa,...sat->...st", k, self.values)

    def successors(self) -> npt.NDArray[np.int32]:
        return _every_state(self.n_states, self.n_actions)


class SuccessorTransitions(TransitionOperator):
    """P as lists of K successors per state-action pair.

    Args:
        successors: integer states, ``(S, A, K)`` or ``(1 or C, S, A, K)``. Pad short lists with any state and probability 0.
            One successor may occur more than once in a list; its probabilities add up.
        values: probabilities, ``(..., C or 1, S, A, K)``, a torch tensor that may depend on x.
    """

    def __init__(self, successors: npt.ArrayLike, values: Tensor):
        values = _check_values(values)
        n_states = values.shape[-3] if values.ndim >= 3 else 0
        self._successors = _check_indices("successors", successors, n_states, "states").astype(np.int32)
        if self._successors.ndim == 3:
            self._successors = self._successors[None]
        if values.ndim == 3:
            values = values.unsqueeze(0)
        if self._successors.ndim != 4 or tuple(values.shape[-3:]) != self._successors.shape[1:]:
            raise ModelError(
                f"successors have shape {self._successors.shape} and values {tuple(values.shape)}; expected "
                "(1 or C, S, A, K) for both (values may carry leading batch dimensions)."
            )
        if self._successors.shape[0] not in (1, values.shape[-4]):
            raise ModelError(
                f"successors are given for {self._successors.shape[0]} contexts and values for {values.shape[-4]}; "
                "expected the same number, or successors shared by all contexts."
            )
        self.values = owned_tensor(values)
        self._solvers = {}
        self._indices: dict[torch.device, Tensor] = {}
        self._entries: Tensor | None = None

    def with_values(self, values: Tensor) -> SuccessorTransitions:
        other: SuccessorTransitions = self._copy(values)
        return other

    def with_actions(self, source: Tensor) -> SuccessorTransitions:
        other = self.with_values(torch.take_along_dim(self.values, source.unsqueeze(-1), -2))
        other._successors = np.take_along_axis(*_aligned(self._successors, source.numpy()[..., None]), -2)
        other._solvers, other._indices, other._entries = {}, {}, None
        return other

    @classmethod
    def from_sparse(cls, matrices: Any) -> SuccessorTransitions:
        """From a scipy.sparse matrix ``(S A, S)``, row s A + a for state s and action a, or one ``(S, S)`` matrix per action.

        The kernel is shared by all contexts. Stored zeros belong to the pattern (see `with_entries`).

        Raises:
            ModelError: shapes that do not fit.
        """
        per_action = not sparse.issparse(matrices)
        parts = matrices if per_action else [matrices]
        if not isinstance(parts, (list, tuple)) or not parts or not all(map(sparse.issparse, parts)):
            raise ModelError(
                f"matrices is {matrices!r}; expected a scipy.sparse matrix (S * A, S), or a list of A matrices (S, S)."
            )
        given = [sparse.csr_array(m, dtype=np.float64) for m in parts]
        n_states = given[0].shape[1]
        n_actions = len(given) if per_action else given[0].shape[0] // max(n_states, 1)
        expected = (n_states, n_states) if per_action else (n_states * n_actions, n_states)
        for i, matrix in enumerate(given):
            if matrix.shape != expected or n_actions == 0:
                raise ModelError(
                    f"transition matrix {i} has shape {matrix.shape}; expected one scipy.sparse matrix (S * A, S), row s * A + a "
                    "for state s and action a, or a list of A matrices (S, S)."
                )
        canonical = all(m.has_canonical_format for m in given)
        if not canonical:
            given = [m.copy() for m in given]
            for matrix in given:
                matrix.sum_duplicates()
        stacked = sparse.vstack(given, format="csr")
        lengths = np.diff(stacked.indptr)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        if per_action:  # action by action, so far
            rows = rows % n_states * n_actions + rows // n_states
        width = max(int(lengths.max(initial=0)), 1)
        first = np.concatenate([stacked.indptr[:-1], [0]])
        entries = rows * width + np.arange(stacked.nnz) - np.repeat(first[:-1], lengths)
        successors = np.repeat(np.repeat(np.arange(n_states, dtype=np.int32), n_actions), width)  # padding stays where it is
        successors[entries] = stacked.indices
        values = np.zeros(len(successors))
        values[entries] = stacked.data
        shape = (1, n_states, n_actions, width)
        operator = cls(successors.reshape(shape), torch.from_numpy(values.reshape(shape)))
        operator._entries = torch.from_numpy(entries) if canonical else None
        return operator

    def with_entries(self, entries: Tensor) -> SuccessorTransitions:
        """The same pattern around other numbers: those stored in the matrices given to `from_sparse`, one after the other.

        Args:
            entries: ``(..., N)`` for N stored numbers, a torch tensor that may depend on x; derivatives are taken with respect
                to these alone.

        Raises:
            ModelError: not made by `from_sparse`, from matrices with unsorted or repeated indices, or a wrong number of entries.
        """
        if self._entries is None:
            raise ModelError(
                "with_entries needs the order of a sparse matrix's stored numbers, and this operator was not made by from_sparse "
                "or its matrix had unsorted or repeated column indices; call matrix.sum_duplicates() before from_sparse."
            )
        if entries.shape[-1:] != self._entries.shape:
            raise ModelError(f"{entries.shape[-1]} entries were given; expected {len(self._entries)}, those the matrices store.")
        index = self._entries.to(entries.device).expand(entries.shape)
        lists = entries.new_zeros(*entries.shape[:-1], self._successors[0].size).scatter(-1, index, entries)
        return self.with_values(lists.reshape(*entries.shape[:-1], *self._successors.shape))

    @property
    def _index(self) -> Tensor:
        """The successors as a tensor to index with, on the device of the values."""
        device = self.values.device
        if device not in self._indices:
            self._indices[device] = torch.from_numpy(self._successors).to(device=device, dtype=torch.int64)
        return self._indices[device]

    def _is_compiled(self, *operands: Tensor) -> bool:
        tensors = (self.values, *operands)
        return self.values.numel() >= COMPILED_SIZE and all(
            t.device.type == "cpu" and t.dtype == torch.float64 and not is_functorch_wrapped_tensor(t) for t in tensors
        )

    def _gather(self, v: Tensor) -> Tensor:
        """v(s'_k): ``(..., C, S) -> (..., C, S, A, K)``."""
        if self._index.shape[0] == 1:
            return v[..., self._index[0]]
        c, s, a, k = self._index.shape
        flat = self._index.reshape(c, -1).expand(*v.shape[:-2], c, -1)
        return torch.gather(v.expand(*v.shape[:-2], c, s), -1, flat).unflatten(-1, (s, a, k))

    def expectation(self, v: Tensor) -> Tensor:
        if self._is_compiled(v):
            product: Tensor = _Product.apply(self.values, v, self, False)
            return product
        return (self.values * self._gather(v)).sum(-1)

    def adjoint(self, w: Tensor) -> Tensor:
        if self._is_compiled(w):
            mass: Tensor = _Product.apply(self.values, w, self, True)
            return mass
        mass = (w.unsqueeze(-1) * self.values).flatten(-3)
        index = self._index.flatten(1).expand(mass.shape)
        return mass.new_zeros(*mass.shape[:-1], self.n_states).scatter_add(-1, index, mass)

    def outer(self, w: Tensor, v: Tensor) -> Tensor:
        return w.unsqueeze(-1) * self._gather(v)

    def policy_matrix(self, k: Tensor) -> Tensor:
        mass = (k.unsqueeze(-1) * self.values).flatten(-2)  # (..., C, S, A K)
        index = self._index.flatten(-2).expand(mass.shape)
        return mass.new_zeros(*mass.shape[:-1], self.n_states).scatter_add(-1, index, mass)

    def successors(self) -> npt.NDArray[np.int32]:
        return self._successors


class _Product(torch.autograd.Function):
    """P v of successor lists, or P^T w where it ``pushes``, compiled; its derivatives are the operator's own maps again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, operand: Tensor, operator: SuccessorTransitions, pushes: bool) -> Tensor:
        ctx.operator, ctx.pushes = operator, pushes
        ctx.save_for_backward(values, operand)
        kernel, rank = (bellman.adjoint, 2) if pushes else (bellman.expectation, 1)
        core = values.shape[-3:-2] if pushes else values.shape[-3:-1]
        succ = operator.successors()
        lead = np.broadcast_shapes(values.shape[:-3], operand.shape[:-rank])
        out = torch.empty(*lead, *core, dtype=torch.float64)
        prob = values.expand(*lead, *values.shape[-3:]).numpy()
        operands, results = operand.expand(*lead, *operand.shape[-rank:]).numpy(), out.numpy()
        for index in np.ndindex(*lead):
            arrays = (np.ascontiguousarray(prob[index]), np.ascontiguousarray(operands[index]))
            kernel(succ[0 if len(succ) == 1 else index[-1]], *arrays, results[index])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, operand = ctx.saved_tensors
        operator = ctx.operator.with_values(values)
        w, v = (operand, grads[0]) if ctx.pushes else (grads[0], operand)
        by_values = operator.outer(w, v).sum_to_size(values.shape) if ctx.needs_input_grad[0] else None
        by_operand = None
        if ctx.needs_input_grad[1]:
            by_operand = (operator.expectation(v) if ctx.pushes else operator.adjoint(w)).sum_to_size(operand.shape)
        return by_values, by_operand, None, None


class FactoredTransitions(TransitionOperator):
    """P through an intermediate index: ``P(s'|s, a) = values[s, index[a], s']``, for actions of which many move alike.

    Nothing of the size of S x A x S is ever formed: P v is computed per move and handed to the actions, masses of actions are
    added up per move and pushed forward from there.

    Args:
        values: probabilities, ``(..., C or 1, S, M, S)`` or ``(S, M, S)``, a torch tensor that may depend on x.
        index: the move of each action, ``(A,)`` integers in 0..M-1.

    Raises:
        ModelError: shapes that do not fit, or moves that do not exist.
    """

    def __init__(self, values: Tensor, index: npt.ArrayLike):
        values = _check_values(values)
        if values.ndim == 3:
            values = values.unsqueeze(0)
        if values.ndim < 4 or values.shape[-1] != values.shape[-3]:
            raise ModelError(
                f"factored transitions have values of shape {tuple(values.shape)}; expected (C, S, M, S) with the last equal to "
                "the number of states."
            )
        given = _check_indices("index", index, values.shape[-2], "moves")
        if given.ndim != 1 or not given.size:
            raise ModelError(f"index has shape {given.shape}; expected (A,) integers, the move of each action.")
        self.values = owned_tensor(values)
        self.index = np.array(given, dtype=np.int64)
        self._moves = torch.from_numpy(self.index).to(values.device)
        self._solvers = {}

    def with_values(self, values: Tensor) -> FactoredTransitions:
        other: FactoredTransitions = self._copy(values)
        other._moves = self._moves.to(values.device)
        return other

    def with_actions(self, source: Tensor) -> FactoredTransitions:
        raise ModelError(
            "actions share rows here (FactoredTransitions), the same in every state, so that no state can be without one; "
            "give a model with action_mask a SuccessorTransitions or a full array (C, S, A, S)."
        )

    def _per_move(self, w: Tensor) -> Tensor:
        """Sums over the actions of each move, ``(..., C, S, A) -> (..., C, S, M)``."""
        return w.new_zeros(*w.shape[:-1], self.values.shape[-2]).index_add(-1, self._moves, w)

    def expectation(self, v: Tensor) -> Tensor:
        return torch.einsum("...smt,...t->...sm", self.values, v)[..., self._moves]

    def adjoint(self, w: Tensor) -> Tensor:
        return torch.einsum("...sm,...smt->...t", self._per_move(w), self.values)

    def outer(self, w: Tensor, v: Tensor) -> Tensor:
        return self._per_move(w).unsqueeze(-1) * v.unsqueeze(-2).unsqueeze(-2)

    def policy_matrix(self, k: Tensor) -> Tensor:
        return torch.einsum("...sm,...smt->...st", self._per_move(k), self.values)

    def successors(self) -> npt.NDArray[np.int32]:
        return _every_state(self.n_states, int(self.values.shape[-2]))


def _aligned(successors: npt.NDArray[np.int32], source: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Both for the same number of contexts."""
    contexts = max(len(successors), len(source))
    return tuple(np.broadcast_to(a, (contexts, *a.shape[1:])) for a in (successors, source))  # type: ignore[return-value]


@lru_cache(maxsize=8)
def _every_state(n_states: int, n_actions: int) -> npt.NDArray[np.int32]:
    """The successor structure of a dense kernel, ``(1, S, A, S)``."""
    return np.tile(np.arange(n_states, dtype=np.int32), (1, n_states, n_actions, 1))


def _check_values(values: Any) -> Tensor:
    """Stored probabilities as a tensor.

    Raises:
        ModelError: these are no real numbers.
    """
    if isinstance(values, Tensor) and not values.is_complex() and values.dtype != torch.bool:
        return values
    array = None if isinstance(values, Tensor) else as_array(values)
    if array is None:
        raise ModelError(f"transition probabilities are {values!r}; expected a torch tensor of real numbers.")
    return torch.from_numpy(array)


def _check_indices(name: str, value: Any, n: int, kind: str) -> npt.NDArray[np.int64]:
    """Indices in 0..n-1 as int64, contiguous; ``kind``: what they are of.

    Raises:
        ModelError: other numbers, or none at all.
    """
    whole = type(value) is np.ndarray and value.dtype.kind in "iu"
    array = value if whole else as_array(value)
    if array is None or not (whole or (np.isfinite(array) & (array == np.floor(array))).all()):
        wrong = "" if array is None else f", one of them {array[~(np.isfinite(array) & (array == np.floor(array)))][0]}"
        raise ModelError(f"{name} is of type {getattr(value, 'dtype', type(value).__name__)}{wrong}; expected integers.")
    if array.size and (array.min() < 0 or array.max() >= n):
        raise ModelError(f"{name} reaches from {array.min():.0f} to {array.max():.0f}; expected {kind} in 0..{n - 1}.")
    return np.ascontiguousarray(array, dtype=np.int64)


def as_transitions(value: Any) -> TransitionOperator:
    """A `TransitionOperator` in float64 from an operator, a tensor, an array ``(C, S, A, S)`` or scipy.sparse matrices."""
    if sparse.issparse(value) or (isinstance(value, Sequence) and len(value) > 0 and all(map(sparse.issparse, value))):
        return SuccessorTransitions.from_sparse(value)
    if isinstance(value, TransitionOperator):
        return value if value.values.dtype == torch.float64 else value.with_values(as_probabilities(value.values))
    return DenseTransitions(as_probabilities(value))


def as_probabilities(value: Any) -> Tensor:
    """Distributions along the last axis as a float64 tensor; those given in float32 are freed of its rounding."""
    kept = isinstance(value, np.ndarray) and value.dtype == np.float32
    given = torch.from_numpy(np.array(value)) if kept else _check_values(value)
    values = given.to(torch.float64)
    if given.dtype != torch.float32:
        return values
    total = values.sum(-1, keepdim=True)
    return values / torch.where((total - 1.0).abs() <= FLOAT32_TOLERANCE, total, 1.0)


def _check_rows(values: Tensor, second: str) -> None:
    """Raise `ModelError` naming the first row that is not a distribution; ``second``: what the rows of a state belong to."""
    total = values.sum(-1)
    bad = ~((total - 1.0).abs() <= PROBABILITY_TOLERANCE) | (values < -PROBABILITY_TOLERANCE).any(-1)
    if not bool(bad.any()):
        return
    *_, context, state, action = (int(i) for i in bad.nonzero()[0])
    row = values[tuple(bad.nonzero()[0])]
    where = f"state {state}, {second} {action}, context {context}"
    if not bool(torch.isfinite(row).all()):
        raise ModelError(f"transition probabilities are not finite at {where}; check transition(x) for NaN at this x.")
    if bool((row < -PROBABILITY_TOLERANCE).any()):
        raise ModelError(f"a transition probability is {float(row.min()):.3g} at {where}; expected values in [0, 1].")
    raise ModelError(
        f"transition row sums to {float(row.sum()):.12g} at {where}; expected 1. Normalise the row; put the probability "
        "that the episode ends into termination=, not into missing mass."
    )
