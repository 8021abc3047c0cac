"""What the leader's wrappers share: contexts taken over from inside, and user functions called safely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.env import ConfigurableWrapper
from bocmdp_gym.errors import ModelError, UnsupportedError
from bocmdp_gym.wrappers.context import contextual_layer

#: A function (x (d,), observations (N, ...), actions (N, ...), context) -> (N,), in torch.
PointFunction = Callable[[Tensor, Any, Any, Any], Tensor]
_PROBES = 3


class LeaderWrapper(ConfigurableWrapper):
    """A leader for an environment that has none. Contexts are those of the outermost layer inside that has some."""

    def __init__(
        self,
        env: gym.Env[Any, Any],
        leader_space: gym.spaces.Box,
        discount: float,
        leader_discount: float | None,
        leader: npt.ArrayLike | None = None,
    ):
        super().__init__(env)
        self._contextual = contextual_layer(env)
        inner = self._contextual
        nearest_to_zero = np.clip(np.zeros(leader_space.shape), leader_space.low, leader_space.high)
        self._setup_configuration(
            leader_space,
            gym.spaces.Discrete(1) if inner is None else inner.context_space,
            discount,
            leader_discount,
            None if inner is None else inner.context_probabilities,
            leader=nearest_to_zero if leader is None else leader,
        )
        self._observation: Any = None

    def sample_context(self, rng: np.random.Generator) -> Any:
        """One draw of xi ~ P_xi; always 0 where nothing inside has contexts."""
        return 0 if self._contextual is None else self._contextual.sample_context(rng)

    def _configured(self) -> None:
        if self._contextual is not None and self._episode_context is not None:
            self._contextual.set_context(self._episode_context)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see `bocmdp_gym.ConfigurableEnv.reset`."""
        self._observation, info = super().reset(seed=seed, options=options)
        return self._observation, info

    def _act(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's own step, with its reward as a float.

        Raises:
            UnsupportedError: the reward is not one number.
        """
        reward: Any
        observation, reward, terminated, truncated, info = self.env.step(action)
        if np.shape(reward) not in ((), (1,)):
            raise UnsupportedError(
                f"{type(self.unwrapped).__name__} rewards with shape {np.shape(reward)}; {type(self).__name__} needs an "
                "environment whose reward is one number for one follower."
            )
        self._observation = observation
        return observation, float(np.reshape(reward, -1)[0]), bool(terminated), bool(truncated), dict(info)

    def _evaluate(self, name: str, function: PointFunction, observation: Any, action: Any) -> float:
        """One value of a leader's function at the x and context in force."""
        with torch.no_grad():
            x = torch.tensor(self._episode_leader)
            value = evaluate(name, function, x, as_batch([observation]), as_batch([action]), as_context(self._episode_context), 1)
        return float(value[0])


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


def probe(name: str, function: PointFunction, env: gym.Env[Any, Any], x: npt.NDArray[np.float64], context: Any) -> Tensor:
    """Call a leader's function once, on sampled points, so that its mistakes show before anything runs.

    Values need not be finite there: sampled observations may lie where no episode goes.

    Raises:
        ModelError: a result of a wrong type or shape.
    """
    spaces = [gym.vector.utils.batch_space(space, _PROBES) for space in (env.observation_space, env.action_space)]
    for space in spaces:
        space.seed(0)
    observations, actions = (as_batch(space.sample()) for space in spaces)

    def finite(*arguments: Any) -> Any:
        value = function(*arguments)
        return torch.nan_to_num(value) if isinstance(value, Tensor) else value

    return evaluate(name, finite, torch.tensor(x, requires_grad=True), observations, actions, as_context(context), _PROBES)


def as_batch(points: Any) -> Any:
    """Observations or actions as tensors with a leading batch dimension; dicts and tuples entry by entry."""
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
