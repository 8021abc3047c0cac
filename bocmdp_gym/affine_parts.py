"""The affine functions of a model, at one x: computed, and run back, without a graph (`bocmdp_gym.affine`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.affine import Affine
from bocmdp_gym.kernels.bounds import all_within
from bocmdp_gym.parametrizations import Identity, Parametrization

Array = npt.NDArray[np.float64]


class AffineParts(NamedTuple):
    """Those parts of a problem at one x that are affine in z = parametrization(x), and the reverse pass through them."""

    parts: Mapping[str, Affine]
    z: Array  # (n,), or (B, n)
    closed: Parametrization | None  # whose reverse pass is known
    graph: Tensor | None  # z with its graph, where it is not

    def values(self, name: str, context: int, out: Array, entry: int | None = None) -> Array:
        """One context of a part ``(S, A)``, of one entry of a batch, written into ``out``."""
        return self.parts[name].values(self.z if entry is None else self.z[entry], context, out)

    def pull(self, weights: Mapping[str, Array], context: int | npt.NDArray[np.int64]) -> Array:
        """Weights ``(S, A)`` on one context's parts, or ``(B, S, A)`` in contexts ``(B,)``, as weights on z."""
        pulled = np.zeros_like(self.z)
        for name, weight in weights.items():
            part = self.parts[name]
            if pulled.ndim == 1:
                part.pull(np.ascontiguousarray(weight), int(context), pulled)
                continue
            for b, own in enumerate(np.broadcast_to(context, len(pulled)).tolist()):
                part.pull(weight[b], own, pulled[b])
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

    def at(self, x: Tensor) -> AffineParts | None:
        """At x ``(d,)`` or ``(B, d)``, which carries a graph; None where there are none, or their values would overflow."""
        if not self.parts:
            return None
        graph: Tensor | None = None
        if self._closed is not None:
            z = self._closed.value(x.detach().numpy())
        else:
            graph = self._parameters(x) if x.ndim == 1 else torch.func.vmap(self._parameters)(x)
            z = np.ascontiguousarray(graph.detach().numpy().reshape(*x.shape[:-1], -1))
        if not all_within(z.reshape(-1), -self._bound, self._bound):
            return None
        return AffineParts(self.parts, z, self._closed, graph)
