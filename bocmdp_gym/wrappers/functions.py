"""Leaders' functions of points, with checks of what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.autodiff import gradients_enabled
from bocmdp_gym.errors import ModelError
from bocmdp_gym.leaks import check_leaks

#: A function (x (d,), observations (N, ...), actions (N, ...), context) -> (N,), in torch.
PointFunction = Callable[[Tensor, Any, Any, Any], Tensor]
POINT_ARGUMENTS = "x, observations, actions, context"
_PROBES = 3


def evaluate(name: str, function: PointFunction, x: Tensor, observations: Any, actions: Any, context: Any, n: int) -> Tensor:
    """``function`` at N points, as float64 ``(N,)``.

    Raises:
        ModelError: it returned something else than a tensor ``(N,)``, or numbers that are not finite.
    """
    value = function(x, observations, actions, context)
    if not isinstance(value, Tensor):
        raise ModelError(
            f"{name}(x, observations, actions, context) returned {type(value).__name__}; expected a torch tensor ({n},), "
            "computed from x by torch operations so that gradients can flow."
        )
    if tuple(value.shape) != (n,):
        raise ModelError(
            f"{name}(x, observations, actions, context) returned shape {tuple(value.shape)} for {n} points; expected ({n},): "
            "one number per row of observations and actions."
        )
    if not bool(torch.isfinite(value).all()):
        where = int((~torch.isfinite(value)).nonzero()[0])
        at = as_points(observations, where)
        raise ModelError(
            f"{name} is {float(value[where])} at observation {at}, action {as_points(actions, where)}, context {context}, "
            f"x = {x.detach().tolist()}; expected finite numbers."
        )
    return value.to(torch.float64)


def probe(
    name: str,
    function: PointFunction,
    env: gym.Env[Any, Any],
    x: npt.NDArray[np.float64],
    context: Any,
    space: gym.spaces.Box | None = None,
) -> Tensor:
    """Call a leader's function on sampled points, so that its mistakes show before anything runs.

    With the ``space`` of x, it is to be differentiated, and must not leave torch.

    Values need not be finite there: sampled observations may lie where no episode goes.

    Raises:
        ModelError: a result of a wrong type or shape, or one that leaves torch on its way from x.
    """
    batches = [gym.vector.utils.batch_space(one, _PROBES) for one in (env.observation_space, env.action_space)]
    for batch in batches:
        batch.seed(0)
    observations, actions = (as_batch(batch.sample()) for batch in batches)

    def finite(*arguments: Any) -> Any:
        value = function(*arguments)
        return torch.nan_to_num(value) if isinstance(value, Tensor) else value

    def at(z: Tensor) -> Tensor:
        return evaluate(name, finite, z, observations, actions, as_context(context), _PROBES)

    with gradients_enabled():
        value = at(torch.tensor(x, requires_grad=True))
    if space is not None:
        check_leaks(lambda z: {name: at(z)}, x, space)
    return value


def as_batch(points: Any) -> Any:
    """Observations or actions as tensors with a leading batch dimension; dicts and tuples entry by entry."""
    if isinstance(points, (list, np.ndarray)) and len(points) and isinstance(points[0], tuple):
        return tuple(as_batch([point[i] for point in points]) for i in range(len(points[0])))
    if isinstance(points, (list, tuple, np.ndarray)) and len(points) and isinstance(points[0], dict):
        return {key: as_batch([point[key] for point in points]) for key in points[0]}
    if isinstance(points, dict):
        return {key: as_batch(value) for key, value in points.items()}
    if isinstance(points, tuple):
        return tuple(as_batch(value) for value in points)
    if isinstance(points, Tensor):
        return points
    array = np.asarray(points)
    return torch.as_tensor(array.astype(np.float64) if array.dtype.kind == "f" else array)


def as_points(batch: Any, index: int) -> Any:
    """One point of a batch, for messages."""
    if isinstance(batch, dict):
        return {key: as_points(value, index) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(as_points(value, index) for value in batch)
    return batch[index].tolist()


def as_context(context: Any) -> Any:
    """The context as leaders' functions get it: an int, or a float64 tensor."""
    return torch.tensor(context, dtype=torch.float64) if isinstance(context, np.ndarray) else context
