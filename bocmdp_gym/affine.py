r"""`Affine`: parts of a model that are affine in z = parametrization(x), as a sparse matrix.

Rewards, bonuses, tolls and penalties are nearly always r = b + M z. Then their values and reverse passes,

    r = b + M z,        sum_i w_i dr_i/dz = M^T w,

are sparse products, and no graph is built or run back. Either the user says so, ``reward=bocmdp_gym.Affine(b, M)``, or it is
found out when a model is made (`bocmdp_gym.recognition`).
"""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from scipy import sparse
from torch import Tensor

from bocmdp_gym.arguments import Constructed
from bocmdp_gym.errors import ModelError
from bocmdp_gym.kernels.bounds import LARGEST, all_within
from bocmdp_gym.options import as_array
from bocmdp_gym.parametrizations import Identity, Parametrization

Array = npt.NDArray[np.float64]


class Affine(Constructed):
    """base + M z, for ``reward`` and ``leader_reward`` of a `TabularBOCMDP`.

    Args:
        base: b: an array of three axes that broadcasts to ``(C, S, A)``.
        matrix: M, a dense or scipy.sparse matrix ``(base.size, n)``: a row for each entry of b, in reading order.

    Raises:
        ModelError: shapes that do not fit, or entries that are not finite.

    Attributes:
        n_parameters: n, how many numbers z has.
    """

    def __init__(self, base: npt.ArrayLike | Tensor, matrix: Any):
        array = as_array(base)
        if array is None or array.ndim != 3 or not array.size or not np.isfinite(array).all():
            raise ModelError(f"base of an Affine is {base!r}; expected finite numbers that broadcast to (C, S, A).")
        given = matrix if sparse.issparse(matrix) else as_array(matrix)
        if given is None or given.shape[:1] != (array.size,) or given.ndim != 2 or given.dtype.kind not in "biuf":
            what = f"{matrix!r}" if given is None else f"of shape {given.shape} and type {given.dtype}"
            raise ModelError(f"matrix is {what}; expected real numbers ({array.size}, n): a row for each entry of base.")
        rows = sparse.csr_array(given, dtype=np.float64)
        if not np.isfinite(rows.data).all():
            raise ModelError("matrix of an Affine has entries that are not finite.")
        rows.sum_duplicates()
        self._base = np.ascontiguousarray(array)
        self.n_parameters = int(rows.shape[1])
        self._rows = (rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data)
        longest = abs(rows).sum(axis=1).max() if rows.nnz else 0.0
        largest = float(abs(self._base).max())
        #: |z| up to which no value overflows
        self.bound = (LARGEST / 4.0 - largest) / max(float(longest), 1.0) if largest < LARGEST / 4.0 else 0.0
        counts = np.diff(self._rows[0])
        self._torch = (
            torch.from_numpy(self._base.reshape(-1)),
            torch.from_numpy(np.repeat(np.arange(array.size), counts)),
            torch.from_numpy(self._rows[1]),
            torch.from_numpy(self._rows[2]),
        )

    def __repr__(self) -> str:
        return f"<Affine: {self._base.shape}, {self.n_parameters} parameters, {len(self._rows[2])} entries>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values: three sizes, 1 where they broadcast."""
        return self._base.shape

    def __call__(self, z: Tensor) -> Tensor:
        """b + M z by torch, with its graph, for z of n numbers in any shape."""
        base, rows, columns, entries = self._torch
        flat = z.reshape(-1)
        if flat.shape != (self.n_parameters,):
            raise ModelError(f"an Affine of {self.n_parameters} parameters was given {tuple(z.shape)}; expected as many numbers.")
        return base.index_add(0, rows, entries * flat[columns]).reshape(self._base.shape)

    def values(self, z: Array, context: int, out: Array) -> Array:
        """One context's values ``(S, A)`` at z ``(n,)``, written into ``out``."""
        values: Array = affine_values(self._base, *self._rows, z, context, out)
        return values

    def batch_values(self, z: Array, contexts: npt.NDArray[np.int64], out: Array) -> Array:
        """`values` at every z ``(B, n)`` in its context, ``(B,)``: ``out`` ``(B, S, A)``."""
        values: Array = affine_batch_values(self._base, *self._rows, z, contexts, out)
        return values

    def batch_pull(self, weight: Array, contexts: npt.NDArray[np.int64], out: Array) -> Array:
        """`pull` of weights ``(B, S, A)`` in contexts ``(B,)``: to ``out`` ``(B, n)``."""
        pulled: Array = affine_batch_pull(self._base, *self._rows, weight, contexts, out)
        return pulled

    def pull(self, weight: Array, context: int, out: Array) -> Array:
        """Add M^T w to ``out`` ``(n,)``, for weights ``(S, A)`` on one context's values."""
        pulled: Array = affine_pull(self._base, *self._rows, weight, context, out)
        return pulled


class Point:
    """x ``(..., d)`` as an array, and as the leaf of a graph once one is asked for.

    Args:
        array: x, which nobody moves any more.
    """

    def __init__(self, array: Array):
        self.array = array

    @cached_property
    def tensor(self) -> Tensor:
        return torch.from_numpy(self.array.copy()).requires_grad_()


class AffineParts(NamedTuple):
    """Those parts of a problem at one x that are affine in z = parametrization(x), and the reverse pass through them."""

    parts: Mapping[str, Affine]
    z: Array  # (n,), or (B, n)
    closed: Parametrization | None  # whose reverse pass is known
    graph: Tensor | None  # z with its graph, where it is not

    def batch_values(self, name: str, contexts: npt.NDArray[np.int64], out: Array) -> None:
        """One context of a part for every z of a batch, written into ``out`` ``(B, S, A)``."""
        self.parts[name].batch_values(self.z, contexts, out)

    def of(self, context: int, shape: tuple[int, int]) -> dict[str, Array]:
        """One context of all parts, ``(S, A)`` each."""
        return {name: part.values(self.z, context, np.empty(shape)) for name, part in self.parts.items()}

    def pull(self, weights: Mapping[str, Array], context: int | npt.NDArray[np.int64]) -> Array:
        """Weights ``(S, A)`` on one context's parts, or ``(B, S, A)`` in contexts ``(B,)``, as weights on z."""
        pulled = np.zeros_like(self.z)
        for name, weight in weights.items():
            part, weight = self.parts[name], np.ascontiguousarray(weight)
            if pulled.ndim == 1:
                part.pull(weight, int(context), pulled)
            else:
                part.batch_pull(weight, np.full(len(pulled), context), pulled)
        return pulled


class AffineFunctions:
    """Those functions of a model that are affine in z, and how z comes from x.

    Args:
        parts: the functions, by name; there may be none.
        parametrization: z of x ``(d,)``; None: z = x.
        parameters: the same, as the model calls it.
    """

    def __init__(self, parts: Mapping[str, Affine], parametrization: Any, parameters: Callable[[Tensor], Any]):
        self.parts, self._parameters = parts, parameters
        self._closed: Parametrization | None = Identity() if parametrization is None else None
        if isinstance(parametrization, Parametrization):
            self._closed = parametrization
        self._bound = min((part.bound for part in parts.values()), default=0.0)

    def at(self, point: Point) -> AffineParts | None:
        """At x ``(d,)`` or ``(B, d)``; None where there are none, or their values would overflow."""
        if not self.parts:
            return None
        graph: Tensor | None = None
        if self._closed is not None:
            z = self._closed.value(point.array)
        else:
            x = point.tensor
            graph = self._parameters(x) if x.ndim == 1 else torch.func.vmap(self._parameters)(x)
            z = np.ascontiguousarray(graph.detach().numpy().reshape(*x.shape[:-1], -1))
        if not all_within(z.reshape(-1), -self._bound, self._bound):
            return None
        return AffineParts(self.parts, z, self._closed, graph)


@njit(cache=True)
def affine_values(base, indptr, indices, data, z, context, out):
    """Write base + M z of one context ``(S, A)`` into ``out``; base ``(C', S', A')``, sizes 1 where it broadcasts, z ``(n,)``."""
    c_size, s_size, a_size = base.shape
    c = context if c_size > 1 else 0
    n_s, n_a = out.shape
    for s in range(n_s):
        own = s if s_size > 1 else 0
        for a in range(n_a):
            if a_size == 1 and a > 0:
                out[s, a] = out[s, 0]
                continue
            row = (c * s_size + own) * a_size + a
            total = base[c, own, a]
            for k in range(indptr[row], indptr[row + 1]):
                total += data[k] * z[indices[k]]
            out[s, a] = total
    return out


@njit(cache=True)
def affine_pull(base, indptr, indices, data, weight, context, out):
    """out ``(n,)`` += M^T weight, of weights ``(S, A)`` on one context's values."""
    c_size, s_size, a_size = base.shape
    c = context if c_size > 1 else 0
    n_s, n_a = weight.shape
    for s in range(n_s):
        own = s if s_size > 1 else 0
        for a in range(a_size if a_size > 1 else 1):
            row = (c * s_size + own) * a_size + a
            if indptr[row] == indptr[row + 1]:
                continue
            w = weight[s, a]
            if a_size == 1:
                for b in range(1, n_a):
                    w += weight[s, b]
            for k in range(indptr[row], indptr[row + 1]):
                out[indices[k]] += data[k] * w
    return out


@njit(cache=True)
def affine_batch_values(base, indptr, indices, data, z, contexts, out):
    """`affine_values` of every z ``(B, n)`` in its context ``(B,)``."""
    for b in range(len(z)):
        affine_values(base, indptr, indices, data, z[b], contexts[b], out[b])
    return out


@njit(cache=True)
def affine_batch_pull(base, indptr, indices, data, weight, contexts, out):
    """`affine_pull` of weights ``(B, S, A)`` in contexts ``(B,)``."""
    for b in range(len(out)):
        affine_pull(base, indptr, indices, data, weight[b], contexts[b], out[b])
    return out
