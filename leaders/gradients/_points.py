"""A model's functions at the points of one batch of trajectories, and their weighted sums' gradient in x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import BOCMDP, TabularBOCMDP, Trajectories
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.leaks import check_leaks
from bocmdp_gym.tensor_model import TensorModel
from leaders.gradients.base import Array

#: Points at which a model's functions are compared with their graphs.
_POINTS = 64


def check_points(model: BOCMDP, x: Tensor, batch: Trajectories, space: gym.spaces.Box) -> None:
    """Refuse a model whose functions leave torch on their way from x, at the first points of a batch.

    Raises:
        ModelError: naming the function.
    """
    few = batch.episodes(np.arange(1 + int(np.searchsorted(batch.ends[:-1], _POINTS))))

    given = TensorModel(model)

    def values(z: Tensor) -> dict[str, Tensor | None]:
        seen, following, scored = points(model, few)
        first = np.arange(min(few.n_steps, _POINTS))
        inner = first[scored[first]]
        outcomes = few.outcomes_of(model.outcomes, first)
        named: dict[str, Tensor | None] = {
            "model.rewards": given.rewards(z, seen[first], few.actions[first], few.context, **outcomes),
            "model.leader_rewards": given.leader_rewards(z, seen[first], few.actions[first], few.context, **outcomes),
            "model.log_initials": given.log_initials(z, seen[few.starts], few.context),
        }
        if model.noise_dim is None:
            named["model.log_transitions"] = given.log_transitions(
                z, seen[inner], few.actions[inner], following[inner], few.context
            )
        else:
            noise = torch.linspace(0.1, 0.9, len(first) * model.noise_dim, dtype=torch.float64).reshape(len(first), -1)
            named["model.draw_transitions"] = given.draw_transitions(z, seen[first], few.actions[first], noise, few.context)
        return named

    check_leaks(values, x.detach().numpy(), space)


def points(model: BOCMDP, batch: Trajectories) -> tuple[Any, Any, npt.NDArray[np.bool_]]:
    """What a model's functions take: states or observations, those that follow, and whether log P counts there.

    Raises:
        UnsupportedError: a tabular model's trajectories carry no states.
    """
    seen, following = batch.observations, batch.next_observations
    if isinstance(model, TabularBOCMDP) and model.takes_states:
        states, following_states = batch.states, batch.next_states
        if states is None or following_states is None:
            raise UnsupportedError("the trajectories carry no state indices, which this tabular model is a function of.")
        seen, following = states, following_states
    return seen, following, np.ones(batch.n_steps, dtype=np.bool_) if model.pays_on_arrival else batch.continued


@dataclass
class PointWeights:
    """Weights at the points of one batch.

    Attributes:
        reward, leader_reward: of r and rbar, ``(N,)``; or of every action, ``(N, A)``.
        transition: of log P, ``(N,)``; what it is at an episode's end does not matter, unless the model pays on arrival.
        initial: of log mu, ``(E,)``.
    """

    reward: Array
    leader_reward: Array
    transition: Array
    initial: Array


def no_weights(batch: Trajectories, actions: int | None) -> PointWeights:
    """Weights of 0, of every one of so many actions, or (None) of what was done."""
    shape = (batch.n_steps,) if actions is None else (batch.n_steps, actions)
    return PointWeights(np.zeros(shape), np.zeros(shape), np.zeros(batch.n_steps), np.zeros(batch.n_episodes))


class Points:
    """r, rbar, log P and log mu of one batch as functions of x.

    Args:
        model: the environment's.
        x: where.
        batch: the trajectories.
        every: take rewards of every action of this space at each step; None: of what was done, as for rewards of outcomes.
    """

    def __init__(self, model: BOCMDP, x: Tensor, batch: Trajectories, every: gym.spaces.Discrete | None = None):
        self.x = x.detach().clone().requires_grad_()
        seen, following, self._scored = points(model, batch)
        model = TensorModel(model)
        self._model, self._batch, self._seen = model, batch, seen
        at, actions = seen, batch.actions
        if every is not None:
            at, actions = self._every(every)
        scored = self._scored
        outcomes = batch.outcomes_of(model.outcomes)
        self._rewards = model.rewards(self.x, at, actions, batch.context, **outcomes)
        self._leader_rewards = model.leader_rewards(self.x, at, actions, batch.context, **outcomes)
        self._transitions = model.log_transitions(self.x, seen[scored], batch.actions[scored], following[scored], batch.context)
        self._initials = model.log_initials(self.x, seen[batch.starts], batch.context)

    @property
    def needs_follower(self) -> bool:
        """Whether the follower's values enter: transitions depend on x."""
        return self._transitions is not None and self._transitions.requires_grad

    @property
    def needs_values(self) -> bool:
        """Whether values enter at all: transitions or starts depend on x."""
        return self.needs_follower or (self._initials is not None and self._initials.requires_grad)

    def _every(self, space: gym.spaces.Discrete) -> tuple[Any, Any]:
        """Each state once per action, and the actions."""
        actions = np.arange(space.start, space.start + space.n, dtype=self._batch.actions.dtype)
        return np.repeat(np.asarray(self._seen), int(space.n), axis=0), np.tile(actions, self._batch.n_steps)

    def leader_rewards_of(self, actions: Any) -> Array:
        """rbar of other actions in the states visited ``(N,)``."""
        with torch.no_grad():
            values: Array = self._model.leader_rewards(self.x, self._seen, actions, self._batch.context).double().numpy()
        return values

    def leader_rewards_of_every(self, space: gym.spaces.Discrete) -> Array:
        """rbar of all actions in the states visited ``(N, A)``."""
        values = self._leader_rewards.detach()
        if len(values) != self._batch.n_steps * int(space.n):
            with torch.no_grad():
                values = self._model.leader_rewards(self.x, *self._every(space), self._batch.context)
        table: Array = values.double().numpy().reshape(self._batch.n_steps, int(space.n))
        return table

    def gradient(self, weights: PointWeights) -> Tensor:
        """The gradient in x of the weighted sums."""
        total = torch.zeros((), dtype=torch.float64)
        for values, own in (
            (self._rewards, weights.reward),
            (self._leader_rewards, weights.leader_reward),
            (self._transitions, weights.transition[self._scored]),
            (self._initials, weights.initial),
        ):
            if values is not None and values.requires_grad:
                total = total + (values * torch.from_numpy(own.reshape(-1)).to(values)).sum()
        if not total.requires_grad:
            return torch.zeros_like(self.x)
        return torch.autograd.grad(total, self.x, retain_graph=True)[0]
