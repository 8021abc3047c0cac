r"""The adjoint critic where the model draws next states: expectations over s' and over actions in place of samples and scores.

At each visited state M actions, the one taken and M - 1 more of the policy's, and for each two next states s'(x, u), u being
shared by the actions. The product of advantage and derivative is a covariance over actions, and takes its two factors from
different u, so that neither chance biases it:

    E_a Abar dQ = E 1/(M-1) sum_m (Qbar_m - mean Qbar)(u_1) dQ_m(u_2),     dQ_m(u) = dr_m + gamma d V_lambda(s'_m(x, u)).

Values enter as functions of s', so there is no score and nothing that a constant could add noise to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import BOCMDP, Trajectories
from bocmdp_gym.tensor_model import TensorModel
from leaders.gradients._adjoint import Fit, Mask
from leaders.gradients._adjoint_steps import Half, Problem
from leaders.gradients.base import Array

#: Steps whose next states are drawn at once.
_CHUNK = 4096
#: Next states drawn per action, from different noise.
NODES = 2


def moves_draws(model: BOCMDP, x: Tensor, batch: Trajectories) -> bool:
    """Whether x moves the next states that a model draws."""
    noise = torch.full((1, model.noise_dim or 0), 0.5, dtype=torch.float64)
    point = x.detach().clone().requires_grad_()
    drawn = TensorModel(model).draw_transitions(point, batch.observations[:1], batch.actions[:1], noise, batch.context)
    return drawn.requires_grad


class Draws:
    """Actions and next states drawn at each step of a batch, and their features.

    Args:
        model: draws next states.
        x: where.
        batch: the trajectories.
        actions: M arrays of actions ``(N, ...)``, the first those taken.
        features: of vectors.
        rng: source of the noise.
    """

    def __init__(
        self, model: BOCMDP, x: Tensor, batch: Trajectories, actions: list[Any], features: Any, rng: np.random.Generator
    ):
        self.x = x.detach().clone().requires_grad_()
        model = TensorModel(model)
        self._model, self._batch, self._actions, self._features = model, batch, actions, features
        assert model.noise_dim is not None
        self._moves = moves_draws(model, x, batch)
        self._noise = torch.from_numpy(rng.random((NODES, batch.n_steps, model.noise_dim)))
        self._kept: dict[tuple[int, int, int], Tensor] = {}
        keep = batch.n_steps <= _CHUNK * 4
        parts = []
        for m in range(len(actions)):
            for node in range(NODES):
                pieces = []
                for first in self._chunks():
                    phi = self._next_features(m, node, first)
                    if keep:
                        self._kept[m, node, first] = phi
                    pieces.append(phi.detach().numpy().astype(np.float32))
                parts.append(np.concatenate(pieces))
        shape = (len(actions), NODES, batch.n_steps, -1)
        self.following = np.stack(parts).reshape(shape)
        with torch.no_grad():
            self.leader_rewards = np.stack([self._reward(model.leader_rewards, a).numpy() for a in actions])
            self.rewards = np.stack([self._reward(model.rewards, a).numpy() for a in actions])

    def _chunks(self) -> range:
        return range(0, self._batch.n_steps, _CHUNK)

    def _reward(self, function: Any, actions: Any) -> Tensor:
        values: Tensor = function(self.x, self._batch.observations, actions, self._batch.context)
        return values

    def _next_features(self, m: int, node: int, first: int) -> Tensor:
        """Features of the next states of action m with one noise, of the chunk that begins with step ``first``."""
        at = slice(first, first + _CHUNK)
        batch = self._batch
        following = self._model.draw_transitions(
            self.x, batch.observations[at], self._actions[m][at], self._noise[node, at], batch.context
        )
        phi: Tensor = self._features(following.reshape(len(following), -1))
        return phi if self._moves else phi.detach()

    def expected_following(self) -> Array:
        """Features of the next state, expected over actions and noise ``(N, K)``."""
        return self.following.mean((0, 1), dtype=np.float64)

    def gradient(self, weights: DrawWeights) -> Tensor:
        """The gradient in x of the weighted sums."""
        batch, model = self._batch, self._model
        total = torch.zeros((), dtype=torch.float64)
        for m, actions in enumerate(self._actions):
            for function, own in ((model.rewards, weights.reward[m]), (model.leader_rewards, weights.leader_reward)):
                values = self._reward(function, actions)
                if values.requires_grad:
                    total = total + (values * torch.from_numpy(own)).sum()
        initials = model.log_initials(self.x, batch.observations[batch.starts], batch.context)
        if initials is not None and initials.requires_grad:
            total = total + (initials * torch.from_numpy(weights.initial)).sum()
        gradient = torch.zeros_like(self.x)
        if total.requires_grad:
            gradient = gradient + torch.autograd.grad(total, self.x)[0]
        if not self._moves:
            return gradient
        for m in range(len(self._actions)):
            for node in range(NODES):
                for first in self._chunks():
                    kept = self._kept.get((m, node, first))
                    phi = self._next_features(m, node, first) if kept is None else kept
                    at = slice(first, first + _CHUNK)
                    cotangent = torch.from_numpy(weights.following[m, node, at] @ weights.values)
                    gradient = gradient + torch.autograd.grad(phi, self.x, cotangent, retain_graph=kept is not None)[0]
        return gradient


class DrawWeights:
    """Weights at drawn points, of both halves: of r per action, of rbar, of the values at next states, of log mu."""

    def __init__(self, n_actions: int, batch: Trajectories, values: Array):
        n = batch.n_steps
        self.reward = np.zeros((n_actions, n))
        self.leader_reward = np.zeros(n)
        self.values = values  # (4, K): the follower's and the leader's, of both halves
        self.following = np.zeros((n_actions, NODES, n, len(values)))
        self.initial = np.zeros(batch.n_episodes)


def drawn_weights(
    problem: Problem, half: Half, number: int, fit: Fit, draws: Draws, groups: list[Mask], totals: list[DrawWeights]
) -> None:
    """Add the weights of half ``number`` to those of each group, ``totals``, as means over the episodes weighed."""
    n_actions = len(draws.following)
    phi, gamma, batch = problem.features.phi, problem.discount, problem.batch
    leader = phi @ fit.leader
    following = draws.following @ fit.leader.astype(draws.following.dtype)
    q = draws.leader_rewards[:, None] + problem.leader_discount * following.astype(np.float64)  # (M, 2, N)
    taken = (q[0].mean(0) - leader) / problem.regularization
    kicks = (q - q.mean(0)) / ((n_actions - 1) * problem.regularization)  # the mean over actions included
    crossed = kicks[:, ::-1]  # each factor of the product has its own noise
    cross = np.zeros(phi.shape)
    for m in range(n_actions):
        for node in range(NODES):
            cross += (gamma / NODES * crossed[m, node]).astype(draws.following.dtype)[:, None] * draws.following[m, node]
    starts = leader[batch.starts]
    scale = 1.0 / (2 * half.n_weighed)
    own: Iterator[Any] = problem.steps(half, fit, taken, cross, groups)
    for ((base, visits), episodes), total in zip(own, totals, strict=True):
        total.reward += scale * (base / n_actions + visits * kicks.mean(1))
        total.leader_reward += scale / n_actions * visits
        total.following[..., 2 * number] += scale * gamma / NODES * (base / n_actions + visits * crossed)
        total.following[..., 2 * number + 1] += scale * problem.leader_discount / (NODES * n_actions) * visits
        total.initial += scale * np.where(episodes, starts - starts[half.fitted_episodes].mean(), 0.0)
