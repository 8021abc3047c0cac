"""The critic's data and values: half of the episodes fits the values that weigh the other half (`leaders.gradients.critic`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import Trajectories
from leaders.gradients.base import Array
from leaders.gradients.value_functions import ValueFunction


class Behaviour(NamedTuple):
    """What the policy does at N observations: probabilities of finitely many actions, or M drawn actions as vectors."""

    probabilities: Tensor | None  # (N, A), or shares of drawn actions
    actions: Tensor | None  # (M, N, n)


class Critic:
    """Fitted values of one half of the episodes."""

    def __init__(self, leader: ValueFunction, follower: ValueFunction):
        self.leader, self.follower = leader, follower

    def expected(self, inputs: Tensor, behaviour: Behaviour) -> Tensor:
        """Vbar = E_b Qbar(s, b) at N observations."""
        if behaviour.probabilities is not None:
            return (self.leader.predict(inputs) * behaviour.probabilities).sum(-1)
        assert behaviour.actions is not None
        return torch.stack([self.leader.predict(torch.cat([inputs, b], -1)).squeeze(-1) for b in behaviour.actions]).mean(0)

    def taken(self, data: Data) -> Array:
        """Qbar of what was done, (N,)."""
        q: Array = self.leader.predict(data.pairs).gather(-1, data.choices.unsqueeze(-1)).squeeze(-1).numpy()
        return q


class Data(NamedTuple):
    """One batch, as the regressions see it."""

    batch: Trajectories
    inputs: Tensor  # (N, n): observations
    pairs: Tensor  # (N, m): inputs of Qbar
    choices: Tensor  # (N,): the action, where Qbar has one output per action
    finals: Tensor  # (E, n): final observations
    steps_behaviour: Behaviour
    finals_behaviour: Behaviour
    entropies: Array | None  # (N,), where the follower's value is needed


class Values(NamedTuple):
    """Fitted values at the steps (N,) and at the final observations (E,), each from the half it was not fitted to."""

    advantage: Array  # Abar(s_t, a_t)
    leader: Array  # Vbar(s_t)
    leader_final: Array
    follower: Array  # V_lambda(s_t), 0 where it is not needed
    follower_final: Array


def halves(batch: Trajectories) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """Episodes a critic is fitted to and episodes it weighs, as masks (E,), for both critics."""
    even = np.arange(batch.n_episodes) % 2 == 0
    return [(even, ~even), (~even, even)]


def crossed_values(critics: list[Critic], data: Data) -> Values:
    """The values that weigh each half of the episodes, by the critic that was fitted to the other."""
    n_steps, n_episodes = data.batch.n_steps, data.batch.n_episodes
    values = Values(*map(np.zeros, (n_steps, n_steps, n_episodes, n_steps, n_episodes)))
    for critic, (_, episodes) in zip(critics, halves(data.batch), strict=True):
        steps = np.repeat(episodes, data.batch.lengths)
        leader = critic.expected(data.inputs, data.steps_behaviour).numpy()
        values.leader[steps] = leader[steps]
        values.advantage[steps] = (critic.taken(data) - leader)[steps]
        values.leader_final[episodes] = critic.expected(data.finals, data.finals_behaviour).numpy()[episodes]
        if data.entropies is not None:
            values.follower[steps] = critic.follower.predict(data.inputs).squeeze(-1).numpy()[steps]
            values.follower_final[episodes] = critic.follower.predict(data.finals).squeeze(-1).numpy()[episodes]
    return values


def following_values(values: Array, finals: Array, batch: Trajectories) -> Array:
    """Values after each step (N,), 0 where the episode terminated."""
    following = np.append(values[1:], 0.0)
    following[batch.ends - 1] = np.where(batch.terminated, 0.0, finals)
    return following


def relative_error(predicted: Tensor, targets: Tensor) -> float:
    """Mean squared error relative to the variance of the targets."""
    return float((predicted - targets).square().mean() / targets.var().clamp(min=1e-12))
