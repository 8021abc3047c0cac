r"""Functions of x that leave torch: found before anything runs, by comparing their graphs with differences of their values.

A function that takes the numbers out of x (``x.detach().numpy()``, ``float(x[0])``, ``x.item()``) has a value that depends on x
and a graph that does not, or not all of it: gradients then are 0, or wrong, without a word. So each function is evaluated near a
valid x and at another one. Without a graph its values must be equal. With one, its derivative along a direction u,

    J u  (two reverse passes)      against      (f(x + h u) - f(x)) / h,      h = +-1e-5, +-1e-3 times the size of x,

must fit in every entry. It counts as wrong only where all four differences agree with each other and none with J u, so neither
kinks nor jumps, rounding or float32 inside raise an alarm.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.autodiff import gradients_enabled
from bocmdp_gym.errors import ModelError

#: Functions by name, at x: tensors, or anything else that is a number or an array; None where there is nothing to look at.
Values = Callable[[Tensor], Mapping[str, Any]]

#: Steps of the differences, relative to the size of x.
_STEPS = (1e-5, -1e-5, 1e-3, -1e-3)
#: Relative error from which a derivative is wrong, and spread of the differences up to which they agree.
_WRONG, _AGREE = 0.02, 0.1
#: Rounding errors of values, relative to them, or to a share of the largest in their row.
_ROUNDING = 1e-10
#: Of functions with more numbers than the first, derivatives at the second point are compared in random rows of so many.
_MANY, _SAMPLE = 100_000, 10_000


class _Point(NamedTuple):
    """A function's values at one x."""

    x: Tensor
    values: dict[str, Tensor]


def check_leaks(values: Values, x: npt.ArrayLike, space: gym.spaces.Box | None = None) -> None:
    """Refuse functions of x that leave torch.

    Args:
        values: the functions; it may fail at other x than the one given.
        x: a valid x ``(d,)``.
        space: the space of x; all of R^d if None.

    Raises:
        ModelError: naming the function, and the entry where it leaves torch in part.
    """
    with gradients_enabled(), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns where numbers are taken out of x; what we say is clearer
        valid = torch.tensor(np.array(x, dtype=np.float64))
        rng = np.random.default_rng(0)
        low, high = (np.full(len(valid), b) for b in (-np.inf, np.inf)) if space is None else (space.low, space.high)
        width = np.minimum(high - low, 1e3)
        size = np.minimum(np.maximum(np.abs(valid.numpy()), 1.0), width)
        seen = [_Point(valid, _numbers(values(valid.clone().requires_grad_())))]
        for reach in (0.05, 1.0):
            near = valid.numpy() + reach * size * rng.standard_normal(len(valid))
            direction = torch.from_numpy(size * rng.choice([-1.0, 1.0], len(valid)) * rng.uniform(0.5, 1.0, len(valid)))
            point = torch.from_numpy(np.clip(near, low + 0.01 * width, high - 0.01 * width)).requires_grad_()
            found = _evaluate(values, point)
            if found is None:
                continue
            for before in seen:
                _compare_constants(before.values, found)
            _compare_derivatives(_Rows(values, found, everything=reach < 1.0), point, found, direction)
            seen.append(_Point(point.detach(), found))


class _Rows:
    """Functions of x, of which large ones show some rows: the same random ones at every x."""

    def __init__(self, values: Values, here: Mapping[str, Tensor], *, everything: bool):
        self._values, self._shapes, self._rows = values, {name: value.shape for name, value in here.items()}, dict[str, Tensor]()
        rng = np.random.default_rng(0)
        for name, value in here.items():
            if value.numel() > _MANY and value.ndim > 1 and not everything:
                width = value.shape[-1]
                rows = rng.choice(value.numel() // width, -(-_SAMPLE // width), replace=False)
                self._rows[name] = torch.from_numpy(rows)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        return self.of(_numbers(self._values(x)))

    def of(self, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows shown of these numbers."""
        chosen = dict(numbers)
        for name, rows in self._rows.items():
            if chosen[name].shape == self._shapes[name]:
                chosen[name] = chosen[name].flatten(0, -2)[rows]
        return chosen

    def entry(self, name: str, index: tuple[int, ...]) -> list[int]:
        """Where the entry with this index of what is shown stands in the function's value."""
        if name not in self._rows:
            return list(index)
        row = int(self._rows[name][index[0]])
        return [*(int(i) for i in np.unravel_index(row, self._shapes[name][:-1])), index[1]]


def _numbers(values: Mapping[str, Any]) -> dict[str, Tensor]:
    numbers = {}
    for name, value in values.items():
        tensor = None if value is None else value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        if tensor is not None and tensor.numel() > 0:
            numbers[name] = tensor
    return numbers


def _evaluate(values: Values, x: Tensor) -> dict[str, Tensor] | None:
    """The functions elsewhere than at the valid x; None where they fail, as they may."""
    try:
        return _numbers(values(x))
    except Exception:  # noqa: BLE001 - whatever a user's function raises
        return None


def _compare_constants(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Functions without a graph must have equal values."""
    for name in first:
        one, other = first[name], second.get(name)
        if other is None or one.requires_grad or other.requires_grad:
            continue
        same = one.shape == other.shape
        if same:
            a, b = one.to(torch.float64), other.to(torch.float64)
            both = torch.isfinite(a) & torch.isfinite(b)
            changed = both & ((a - b).abs() > 1e-12 * torch.maximum(a.abs(), b.abs()))
            if not bool(changed.any()):
                continue
        raise ModelError(
            f"{name} depends on x, and its value has no graph: it leaves torch, so its gradient would be 0. {_HOW} If it moves "
            "by steps alone and its derivative is indeed 0, add 0.0 * x.sum() to it."
        )


_HOW = "Compute it from x by torch operations, without .detach(), .numpy(), .item(), float(x[0]), torch.tensor(x) or NumPy."


def _compare_derivatives(values: _Rows, x: Tensor, found: Mapping[str, Tensor], direction: Tensor) -> None:
    """Functions with a graph must have the derivatives it says."""
    here = values.of(found)
    derivatives = {name: _derivative(value, x, direction) for name, value in here.items() if value.requires_grad}
    known = {name: d for name, d in derivatives.items() if d is not None}
    differences: dict[str, list[Tensor]] = {name: [] for name in known}
    for step in _STEPS:
        there = _evaluate(values, (x + step * direction).detach().requires_grad_()) if known else None
        if there is None:
            return
        _compare_constants(here, there)
        for name in list(known):
            value = here[name].detach().to(torch.float64)
            if name not in there or there[name].shape != value.shape:
                del known[name]
                continue
            difference = (there[name].detach().to(torch.float64) - value) / step
            differences[name].append(difference)
            if not bool(_off(difference, known[name], value, step).any()):
                del known[name]  # it fits, which is the usual case
    for name, derivative in known.items():
        value, slopes = here[name].detach().to(torch.float64), torch.stack(differences[name])
        wrong = torch.stack([_off(d, derivative, value, s) for d, s in zip(slopes, _STEPS, strict=True)]).all(0)
        wrong &= slopes.amax(0) - slopes.amin(0) <= _AGREE * torch.maximum(slopes.abs().amax(0), derivative.abs())
        if bool(wrong.any()):
            entry = tuple(wrong.nonzero()[0].tolist())
            raise ModelError(
                f"{name} leaves torch in part: at entry {values.entry(name, entry)} it changes by "
                f"{float(slopes[(0, *entry)]):.6g} along a "
                f"direction of x, and its graph says {float(derivative[entry]):.6g}, so its gradient would be wrong. {_HOW}"
            )


def _off(difference: Tensor, derivative: Tensor, value: Tensor, step: float) -> Tensor:
    """Where a difference does not fit the derivative."""
    size = torch.nan_to_num(value, 0.0, 0.0, 0.0).abs()
    if value.ndim:
        size = torch.maximum(size, 1e-4 * size.amax(-1, keepdim=True))
    rounding = _ROUNDING * size / abs(step)
    allowed = _WRONG * torch.maximum(difference.abs(), derivative.abs()) + rounding
    return torch.isfinite(difference) & torch.isfinite(derivative) & ((difference - derivative).abs() > allowed)


def _derivative(value: Tensor, x: Tensor, direction: Tensor) -> Tensor | None:
    """The derivative along a direction by the graph: the reverse pass is linear, and its own reverse pass is J u."""
    zeros = torch.zeros(value.shape, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    try:
        weights = torch.randn(value.shape, generator=generator, dtype=value.dtype).requires_grad_()
        (pulled,) = torch.autograd.grad((weights * value).sum(), x, create_graph=True, allow_unused=True)
        if pulled is None:
            return zeros
        pushed = None
        if pulled.requires_grad:
            (pushed,) = torch.autograd.grad(pulled @ direction, weights, allow_unused=True)
    except Exception:  # noqa: BLE001 - a function of the user's own that cannot be differentiated twice
        return None
    derivative = zeros if pushed is None else pushed.detach().to(torch.float64)
    one, other = float((weights.detach() * derivative).sum()), float(pulled.detach() @ direction)
    sizes = float((weights.detach() * derivative).abs().sum()) + float((pulled.detach() * direction).abs().sum())
    return None if abs(one - other) > 1e-4 * sizes else derivative  # part of it cannot be differentiated twice


def tensors_in(value: Any) -> Tensor | None:
    """All numbers of what a parametrization returned, as one tensor; None where it holds none that can be read."""
    leaves: Iterable[Any] = torch.utils._pytree.tree_leaves(value)
    numbers = [leaf.reshape(-1).to(torch.float64) for leaf in map(_as_tensor, leaves) if leaf is not None]
    return torch.cat(numbers) if numbers else None


def _as_tensor(leaf: Any) -> Tensor | None:
    if isinstance(leaf, Tensor):
        return leaf
    if isinstance(leaf, (bool, int, float, np.ndarray, np.generic)):
        array = np.asarray(leaf)
        return torch.from_numpy(np.array(array, dtype=np.float64)) if array.dtype.kind in "biuf" else None
    return None


def call(name: str, function: Callable[[Any], Any], z: Any) -> Any:
    """``function(z)``; what torch objects to is said in the function's name.

    Raises:
        ModelError: it asks for the numbers of a tensor that stands for a function of x, or uses tensors that no graph can hold.
    """
    try:
        return function(z)
    except RuntimeError as error:
        refuse_misuse(name, error)
        raise


def refuse_misuse(name: str, error: RuntimeError) -> None:
    """Say in a function's name what torch objected to, where that is known.

    Raises:
        ModelError: as `call`.
    """
    text = str(error).splitlines()[0] if str(error) else ""
    if "Inference tensor" in text:
        raise ModelError(
            f"{name} uses a tensor made under torch.inference_mode, through which no gradient can pass; make it outside, or "
            "use its .clone() made outside."
        ) from error
    if "requires grad" in text or "functorch" in text or "vmap" in text:
        raise ModelError(f"{name} leaves torch: {text} {_HOW}") from error
