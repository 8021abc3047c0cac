"""`TensorModel`: a model's functions, given tensors whatever the trajectories hold, as the functions of wrappers are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bocmdp_gym.model import ModelLayer
from bocmdp_gym.wrappers.functions import as_batch, as_context


class TensorModel(ModelLayer):
    """A model as estimators and replay buffers call it: observations, actions and continuous contexts become tensors.

    Floating-point numbers arrive as float64, integers and booleans as they are; dicts and tuples entry by entry.

    Args:
        model: the problem's own.
    """

    def rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        return self.model.rewards(x, as_batch(observations), as_batch(actions), as_context(context), **outcomes)

    def leader_rewards(self, x: Tensor, observations: Any, actions: Any, context: Any, **outcomes: Any) -> Tensor:
        return self.model.leader_rewards(x, as_batch(observations), as_batch(actions), as_context(context), **outcomes)

    def log_transitions(self, x: Tensor, observations: Any, actions: Any, next_observations: Any, context: Any) -> Tensor | None:
        if not len(actions):  # every episode ended with its first step: no next state is of consequence
            return None
        points = as_batch(observations), as_batch(actions), as_batch(next_observations)
        return self.model.log_transitions(x, *points, as_context(context))

    def draw_transitions(self, x: Tensor, observations: Any, actions: Any, noise: Tensor, context: Any) -> Tensor:
        return self.model.draw_transitions(x, as_batch(observations), as_batch(actions), noise, as_context(context))

    def log_initials(self, x: Tensor, observations: Any, context: Any) -> Tensor | None:
        return self.model.log_initials(x, as_batch(observations), as_context(context))
