"""Rollouts of the first-order estimator, with common random numbers, and the gradient that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import TabularBOCMDP, Trajectories, Weights
from bocmdp_gym.kernels.returns import returns_to_go
from bocmdp_gym.mdps import ConfiguredMDPs
from followers import TrajectoryOracle
from leaders.gradients._points import Points, PointWeights, check_points
from leaders.gradients.base import Array, add_scores
from leaders.gradients.estimate import Indices


@dataclass(frozen=True)
class Paid:
    """One side's rollout.

    Attributes:
        batch: its trajectories, with the rewards r + s rbar.
        share: s.
        coefficient: of dU_s/dx in the estimate.
        bonus: lambda times the entropy at every step ``(N,)``, where the follower maximises that and it is needed.
    """

    batch: Trajectories
    share: float
    coefficient: float
    bonus: Array | None

    def episodes(self, chosen: Indices) -> Paid:
        """Some of the episodes alone."""
        batch = self.batch
        steps = np.concatenate([np.arange(batch.ends[e] - batch.lengths[e], batch.ends[e]) for e in chosen])
        return replace(self, batch=batch.episodes(chosen), bonus=None if self.bonus is None else self.bonus[steps])


class SampledGradient:
    """sum_s c_s dU_s/dx from some episodes of each side; see `leaders.gradients.first_order`.

    Args:
        oracle: of the environment without shares.
        x: where.
        sides: the rollouts.
        by_state: weigh on the arrays of a tabular model; else of the model's functions at the points visited.
        check: look whether the functions of a model that is no table stay in torch.

    Raises:
        ModelError: they do not.
    """

    def __init__(self, oracle: TrajectoryOracle, x: Tensor, sides: Sequence[Paid], *, by_state: bool, check: bool):
        self._x, self._sides = x, sides
        assert oracle.seen_model is not None
        self._model = oracle.seen_model
        self._mdps: ConfiguredMDPs | None = oracle.configure(x) if by_state else None
        if self._mdps is None and check:
            check_points(self._model, x, sides[0].batch, oracle.core.leader_space)

    def __call__(self, chosen: Sequence[Indices]) -> Tensor:
        """From the episodes with these indices, of each side: ``(d,)``."""
        total = torch.zeros_like(self._x)
        for side, episodes in zip(self._sides, chosen, strict=True):
            one = side if len(episodes) == side.batch.n_episodes else side.episodes(episodes)
            total = total + (self._at_points(one) if self._mdps is None else self._by_state(one, self._mdps))
        return total

    def _by_state(self, side: Paid, mdps: ConfiguredMDPs) -> Tensor:
        """Weights of visits on the arrays, and one reverse pass."""
        model, batch = mdps.model, side.batch
        states, following_states = batch.states, batch.next_states
        assert states is not None
        assert following_states is not None
        n_states, n_actions = model.n_states, model.n_actions
        pairs = states.astype(np.int64) * n_actions + batch.actions
        scale = side.coefficient / batch.n_episodes
        power = scale * _discounts(batch, model.discount)

        def on_pairs(values: Array) -> Array:
            return _summed(pairs, values, n_states * n_actions).reshape(n_states, n_actions)

        visits = on_pairs(power)
        weights = Weights(reward=visits, leader_reward=side.share * visits)
        if set(model.moving) <= {"reward", "leader_reward"}:
            return mdps.vjp(weights, batch.context)
        returns, following, continued = _returns(side, model.discount)
        baseline, start_baseline = _baselines(side, returns, following, continued, states)
        score = model.discount * power * np.where(continued, following - baseline, 0.0)
        arrays = mdps.arrays(batch.context)
        rows = arrays.rows[batch.actions]
        match = (arrays.stored_successors[states, rows] == following_states[:, None]) & continued[:, None]
        slots = match.argmax(-1)
        w_transition = np.zeros(arrays.stored_probabilities.shape)
        np.add.at(w_transition, (states[continued], rows[continued], slots[continued]), score[continued])
        w_initial = _summed(states[batch.starts], scale * (returns[batch.starts] - start_baseline), n_states)
        w_continued = on_pairs(model.discount * power * np.where(continued, following, 0.0))
        add_scores(weights, model.moving, arrays, w_transition, w_initial, w_continued)
        return mdps.vjp(weights, batch.context)

    def _at_points(self, side: Paid) -> Tensor:
        """The same where visits have no states."""
        model, batch = self._model, side.batch
        states = batch.states if isinstance(model, TabularBOCMDP) else None
        returns, following, continued = _returns(side, model.discount)
        if model.pays_on_arrival:  # log P decides what this step pays, too, and whether it ends the episode
            target, factor, counted = returns, 1.0, np.ones_like(continued)
        else:
            target, factor, counted = following, model.discount, continued
        baseline, start_baseline = _baselines(side, returns, target, counted, states)
        scale = side.coefficient / batch.n_episodes
        power = scale * _discounts(batch, model.discount)
        weights = PointWeights(
            reward=power,
            leader_reward=side.share * power,
            transition=factor * power * (target - baseline),
            initial=scale * (returns[batch.starts] - start_baseline),
        )
        return Points(model, self._x, batch).gradient(weights)


def _discounts(batch: Trajectories, discount: float) -> Array:
    """gamma^t of every step ``(N,)``."""
    powers: Array = np.power(discount, batch.times.astype(np.float64))
    return powers


def _summed(keys: npt.NDArray[Any], values: Array, size: int) -> Array:
    """Sums of values by key, ``(size,)``."""
    sums: npt.NDArray[Any] = np.bincount(keys, values, size)
    return sums


def _returns(side: Paid, discount: float) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Returns to go from every step ``(N,)``, from the step after it (0: none), and whether the episode continued after it."""
    batch = side.batch
    rewards = batch.rewards if side.bonus is None else batch.rewards + side.bonus
    returns = returns_to_go(rewards, batch.ends, np.zeros(batch.n_episodes), discount)
    following = np.append(returns[1:], 0.0)
    following[batch.ends - 1] = 0.0
    return returns, following, batch.continued


def _baselines(
    side: Paid, returns: Array, following: Array, continued: npt.NDArray[np.bool_], states: npt.NDArray[Any] | None
) -> tuple[Array, Array]:
    """What returns are compared with, from episodes of the other half: after every step ``(N,)``, and from the starts ``(E,)``.

    After a step it is the mean over steps of its number, and where there are states the mean over visits to its state of what
    that leaves; neither knows where the step led, so scores stay without bias.
    """
    batch = side.batch
    second = np.arange(batch.n_episodes) % 2 == 1
    keys = [batch.times] if states is None else [batch.times, states.astype(np.int64)]
    baseline, starts = np.zeros(batch.n_steps), np.zeros(batch.n_episodes)
    for own in (second, ~second):
        here, there = np.repeat(own, batch.lengths), np.repeat(~own, batch.lengths)
        there = there & continued
        if not own.any() or own.all() or not there.any():
            continue
        level = np.full(batch.n_steps, following[there].mean())
        for key in keys:
            size = int(key.max()) + 1
            count = np.bincount(key[there], minlength=size)
            rest = np.bincount(key[there], (following - level)[there], size)
            level = level + (rest / np.maximum(count, 1))[key]
        baseline[here] = level[here]
        starts[own] = returns[batch.starts][~own].mean()
    return baseline, starts
