"""Observations with a context appended, as one vector, and back."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import flatten, flatten_space, unflatten
from torch import Tensor

from bocmdp_gym.model import BOCMDP, ModelLayer
from bocmdp_gym.spaces import check_numeric, parts_of
from bocmdp_gym.tensor_model import TensorModel


class Appended:
    """An observation and a context as one vector: both flattened (finite choices one-hot), in this order.

    Args:
        observations: space of the observations.
        contexts: space of the contexts.

    Attributes:
        space: a ``Box`` of a float type that holds the numbers of both.

    Raises:
        UnsupportedError: observations that are no numbers.
    """

    def __init__(self, observations: gym.Space[Any], contexts: gym.Space[Any]):
        check_numeric(observations, "ObserveContext")
        self.observations, self.contexts = observations, contexts
        boxes: list[Any] = [flatten_space(observations), flatten_space(contexts)]
        self._size = boxes[0].shape[0]
        shown = [
            part.dtype for space in (observations, contexts) for _, part in parts_of(space) if isinstance(part, gym.spaces.Box)
        ]
        dtype = np.result_type(np.float32, *shown).type  # numbers are kept: wide integers need a float64; one-hot entries do not
        low, high = (np.concatenate([getattr(box, side) for box in boxes]).astype(dtype) for side in ("low", "high"))
        self.space = gym.spaces.Box(low, high, dtype=dtype)

    def combine(self, observation: Any, context: Any) -> npt.NDArray[Any]:
        """The vector of an observation and a context."""
        parts: list[Any] = [flatten(self.observations, observation), flatten(self.contexts, context)]
        return np.concatenate(parts).astype(self.space.dtype)

    def own(self, vectors: Tensor) -> Tensor:
        """The part of vectors ``(..., n)`` that stands for the observations."""
        return vectors[..., : self._size]

    def split(self, vectors: Any) -> Any:
        """The observations in vectors ``(..., n)``, as arrays with the same leading axes."""
        flat, space = np.asarray(vectors)[..., : self._size], self.observations
        if isinstance(space, gym.spaces.Box):
            return flat.reshape(*flat.shape[:-1], *space.shape).astype(space.dtype)
        if isinstance(space, gym.spaces.Discrete):
            return flat.argmax(-1) + space.start
        rows = np.empty(flat.shape[:-1], dtype=object)
        for at in np.ndindex(rows.shape):
            rows[at] = unflatten(space, flat[at])
        return np.array(rows.tolist()) if space.shape is not None else rows[()]


class AppendedModel(ModelLayer):
    """A model of the observations alone, as functions of the vectors that show the context too.

    Args:
        model: takes the observations.
        appended: makes vectors of them.
    """

    def __init__(self, model: BOCMDP, appended: Appended):
        super().__init__(TensorModel(model))
        self._appended = appended
        if not isinstance(appended.observations, gym.spaces.Box):
            self.noise_dim = None

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        return super().rewards(x, self._appended.split(observations), actions, context, **self._split(outcomes))

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        return super().leader_rewards(x, self._appended.split(observations), actions, context, **self._split(outcomes))

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        before, after = map(self._appended.split, (observations, next_observations))
        return super().log_transitions(x, before, actions, after, context)

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        following = super().draw_transitions(x, self._appended.split(observations), actions, noise, context)
        shown = torch.as_tensor(np.asarray(flatten(self._appended.contexts, context)), dtype=following.dtype)
        return torch.cat([following.reshape(len(following), -1), shown.expand(len(following), -1)], -1)

    def log_initials(self, x: Tensor, observations: Any, context: Any) -> Tensor | None:
        return super().log_initials(x, self._appended.split(observations), context)

    def value_features(self, vectors: Tensor) -> Tensor | None:
        own = isinstance(self._appended.observations, gym.spaces.Box)
        return super().value_features(self._appended.own(vectors)) if own else None

    def _split(self, outcomes: dict[str, Any]) -> dict[str, Any]:
        if "next_observations" not in outcomes:
            return outcomes
        return outcomes | {"next_observations": self._appended.split(outcomes["next_observations"])}
