"""`TensorModel`: a model's functions, given tensors whatever the trajectories hold, as the functions of wrappers are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bocmdp_gym.model import BOCMDP
from bocmdp_gym.wrappers.functions import as_batch, as_context


class TensorModel(BOCMDP):
    """A model as estimators and replay buffers call it: observations, actions and continuous contexts become tensors.

    Floating-point numbers arrive as float64, integers and booleans as they are; dicts and tuples entry by entry.

    Args:
        model: the problem's own.
    """

    def __init__(self, model: BOCMDP):
        self.model = model
        self.leader_dim, self.noise_dim = model.leader_dim, model.noise_dim
        self.discount, self.leader_discount = model.discount, model.leader_discount
        self.outcomes, self.pays_on_arrival = model.outcomes, model.pays_on_arrival

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
