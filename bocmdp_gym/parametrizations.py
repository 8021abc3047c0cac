"""Parametrizations z(x) whose reverse pass has a closed form: computed without a graph wherever none is asked for.

Each is a function of x ``(..., d)`` like any other that `TabularBOCMDP` takes, and besides knows its values and its reverse pass
in NumPy.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from scipy.special import expit
from torch import Tensor

from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import as_array

Array = npt.NDArray[np.float64]


class Parametrization(WithArguments, ABC):
    """z(x) with a reverse pass of its own."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """z ``(..., n)`` of x ``(..., d)``, by torch."""

    @abstractmethod
    def value(self, x: Array) -> Array:
        """z ``(..., n)`` of x ``(..., d)``."""

    @abstractmethod
    def pull(self, z: Array, weight: Array) -> Array:
        """sum_i weight_i dz_i/dx ``(..., d)``, for weights ``(..., n)``, where z(x) is this z."""


class Identity(Parametrization):
    """z = x."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def value(self, x: Array) -> Array:
        return x

    def pull(self, z: Array, weight: Array) -> Array:
        return weight


class Softmax(Parametrization):
    """z = softmax(x): shares of a whole."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    def value(self, x: Array) -> Array:
        z: Array = (softmax if x.ndim == 1 else batch_softmax)(x, np.empty_like(x))
        return z

    def pull(self, z: Array, weight: Array) -> Array:
        pulled: Array = (softmax_pull if z.ndim == 1 else batch_softmax_pull)(z, weight, np.empty_like(z))
        return pulled


class Sigmoid(Parametrization):
    """z = low + (high - low) sigmoid(x): numbers between bounds.

    Args:
        low, high: bounds, numbers or ``(d,)``.

    Raises:
        OptionError: bounds that are no finite numbers, or not below each other.
    """

    def __init__(self, low: npt.ArrayLike = 0.0, high: npt.ArrayLike = 1.0):
        self.low, self.high = _bounds("low", low), _bounds("high", high)
        fits = self.low.ndim == 0 or self.high.ndim == 0 or self.low.shape == self.high.shape
        if not fits or not self.low.size or not self.high.size or not (self.low < self.high).all():
            raise OptionError(f"low is {low!r} and high {high!r}; expected low < high, numbers or one for each entry of x.")
        self._width = np.asarray(self.high - self.low)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.low) + torch.from_numpy(self._width) * torch.sigmoid(x)

    def value(self, x: Array) -> Array:
        z: Array = self.low + self._width * expit(x)
        return z

    def pull(self, z: Array, weight: Array) -> Array:
        share = (z - self.low) / self._width
        return weight * self._width * share * (1.0 - share)


def _bounds(name: str, value: npt.ArrayLike) -> Array:
    array = as_array(value)
    if array is None or array.ndim > 1 or not np.isfinite(array).all():
        raise OptionError(f"{name} is {value!r}; expected a finite number, or one for each entry of x.")
    return array


@njit(cache=True)
def softmax(x, out):
    """Write the softmax of x ``(n,)`` into ``out``."""
    largest = x.max()
    total = 0.0
    for i in range(len(x)):
        out[i] = np.exp(x[i] - largest)
        total += out[i]
    for i in range(len(x)):
        out[i] /= total
    return out


@njit(cache=True)
def softmax_pull(z, w, out):
    """Write z (w - z . w) ``(n,)`` into ``out``: weights w on z = softmax(x), as weights on x."""
    mean = 0.0
    for i in range(len(z)):
        mean += z[i] * w[i]
    for i in range(len(z)):
        out[i] = z[i] * (w[i] - mean)
    return out


@njit(cache=True)
def batch_softmax(x, out):
    """`softmax` of every row of x ``(B, n)``."""
    for b in range(len(x)):
        softmax(x[b], out[b])
    return out


@njit(cache=True)
def batch_softmax_pull(z, w, out):
    """`softmax_pull` of every row of z and w ``(B, n)``."""
    for b in range(len(z)):
        softmax_pull(z[b], w[b], out[b])
    return out
