"""Which functions are affine: found out when a model is made, from the operations of torch that they make.

A function is evaluated once, and every operation that it makes with numbers that depend on z has to be one that keeps them
affine: sums, shapes, products with constants. Comparisons, numbers taken out of z, and whatever is not known here leave the
function as it is. The matrix found is held against the function at other points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bocmdp_gym.affine import Affine
from bocmdp_gym.autodiff import jacobian_columns

Array = npt.NDArray[np.float64]
#: A function is recognised where its Jacobian has at most this many entries, and few enough of them differ from 0.
_ENTRIES, _NONZEROS = 4_000_000, 200_000
#: Relative difference between a recognised function and its matrix that rounding explains.
_ROUNDING = 1e-13


def recognised(function: Callable[[Any], Any], z: Any, shape: tuple[int, ...]) -> Affine | None:
    """The matrix of a function that is affine in z; None where it is not, cannot be told to be, or is better left to torch.

    Args:
        function: of z, returning a tensor.
        z: where it is evaluated.
        shape: of its values, three axes.
    """
    if isinstance(function, Affine):
        return function
    size = int(np.prod(shape))
    if not isinstance(z, Tensor) or z.dtype != torch.float64 or not z.numel() or z.numel() * size > _ENTRIES:
        return None
    z = z.detach().clone()
    try:
        value = _follow(function, z)
        if value is None or value.dtype != torch.float64 or value.numel() != size:
            return None
        _, (columns,) = jacobian_columns(lambda flat: (function(flat.reshape(z.shape)).reshape(-1),), z.reshape(-1))
        matrix = np.ascontiguousarray(columns.T.numpy())
        if np.count_nonzero(matrix) > _NONZEROS:
            return None
        found = Affine((value.reshape(-1).numpy() - matrix @ z.reshape(-1).numpy()).reshape(shape), matrix)
        rng = np.random.default_rng(0)
        for _ in range(3):
            other = z + torch.from_numpy(rng.normal(size=tuple(z.shape)))
            values = [part(other).reshape(-1).numpy() for part in (found, function)]
            scale = np.abs(matrix) @ np.abs(other.reshape(-1).numpy()) + np.abs(value.reshape(-1).numpy())
            if not (np.abs(values[0] - values[1]) <= _ROUNDING * (scale + np.abs(values[1]))).all():
                return None
    except Exception:  # noqa: BLE001 - whatever a user's function raises at such z: it is left as it is
        return None
    return found


def _follow(function: Callable[[Any], Any], z: Tensor) -> Tensor | None:
    """The function's value, if no operation that it makes with numbers from z is other than affine; else None."""
    with torch.no_grad(), _Follower(z) as follower:
        value = function(z)
    return value.detach() if follower.affine and isinstance(value, Tensor) else None


class _Follower(TorchDispatchMode):
    """Follows what depends on z through torch's operations, by the memory that tensors lie in."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.affine = True
        self._moving = {_memory(z)}
        self._kept: list[Any] = [z]  # memory that is freed would be given to other tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moving = [tensor for tensor in given if _memory(tensor) in self._moving]
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._kept += made
        if moving:
            name = func._schema.name.removeprefix("aten::").removesuffix("_")
            if name in _SHAPED:
                return result
            exact = all(tensor.dtype == torch.float64 for tensor in (*moving, *made))
            self.affine &= exact and self._keeps_affine(name, args, kwargs or {})
            self._moving.update(map(_memory, made))
        return result

    def _keeps_affine(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in _SUMS:
            return "reduce" not in kwargs
        if name not in _PRODUCTS or "rounding_mode" in kwargs:
            return False
        first = _PRODUCTS[name]
        factors = [isinstance(f, Tensor) and _memory(f) in self._moving for f in args[first : first + 2]]
        return factors == [True, False] or (factors == [False, True] and name != "div") or not any(factors)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


#: Operations that read no numbers of their arguments.
_SHAPED = frozenset(("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full"))
#: Operations that are linear in all of their floating-point arguments together.
# fmt: off
_SUMS = frozenset((
    "add", "sub", "rsub", "neg", "sum", "mean", "cumsum", "view", "_unsafe_view", "reshape", "expand", "unsqueeze",
    "squeeze", "permute", "transpose", "t", "select", "slice", "narrow", "split", "split_with_sizes", "unbind", "cat",
    "stack", "clone", "alias", "diagonal", "flip", "roll", "repeat", "index", "gather", "index_select", "take",
    "constant_pad_nd", "as_strided", "copy", "where", "masked_fill", "index_put", "index_add", "index_copy", "scatter",
    "scatter_add", "select_scatter", "slice_scatter", "tril", "triu", "expand_as", "view_as", "_reshape_alias", "lift_fresh",
))
# fmt: on
#: Operations that are linear in each of two factors, and where the first of them stands among the arguments.
_PRODUCTS = {"mul": 0, "div": 0, "mm": 0, "mv": 0, "bmm": 0, "dot": 0, "addcmul": 1, "addmm": 1, "addmv": 1, "baddbmm": 1}
