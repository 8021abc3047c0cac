"""Algorithms 1, 2 and 5 (corrected) read literally, with NumPy over many draws at once; shares no code with the compiled draws.

Every sign and exponent is an argument, so that errors can be planted: a test on a problem that shows each of them is one that the
library's own draws could not pass with such an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, Weights
from leaders.gradients.base import add_scores


class Formula(NamedTuple):
    """Signs and exponents of the geometric estimators: the theory's."""

    # GradEst (Alg. 2): signs of its terms, then powers of gamma
    q: float = 1.0  # dA = dQ - dV
    v: float = -1.0
    reward: float = 1.0  # d r
    transition: float = 1.0  # d log P
    entropy: float = 1.0  # + lambda H
    horizon: float = 1.0  # T_Q ~ Geo(1 - gamma^1)
    reach: float = 1.0  # gamma^1 / (1 - gamma)
    tail_horizon: float = 0.5  # T_Q' ~ Geo(1 - gamma^0.5)
    tail: float = 0.5  # gamma^(0.5 (t - T_Q - 1))
    # the decomposable estimator (Alg. 5): signs of its terms, then powers of gamma_L
    leader_reward: float = 1.0  # d rbar
    advantage: float = 1.0  # dA G / lambda
    leader_transition: float = 1.0  # d log P(s_T | s_{T-1}, a_{T-1}) G
    initial: float = 1.0  # d log mu(s_0) G, for T = 0
    leader_horizon: float = 1.0  # T ~ Geo(1 - gamma_L^1)
    leader_tail_horizon: float = 0.5  # T' ~ Geo(1 - gamma_L^0.5)
    leader_tail: float = 0.5  # gamma_L^(0.5 (t' - T))


class _Draws:
    """Weights of many draws, in groups, in a model that has one context and a dense kernel."""

    def __init__(self, mdps: ConfiguredMDPs, policy: Any, regularization: float, samples: int, groups: int, rng: Any, f: Formula):
        self.mdps, self.arrays, self.policy, self.rng, self.f = mdps, mdps.arrays(0), policy, rng, f
        self.gamma, self.gamma_leader = mdps.model.discount, mdps.model.leader_discount
        n_states, n_actions = policy.shape
        self.group, self.groups, self.per_group = np.arange(samples) % groups, groups, samples / groups
        self.reward, self.leader = np.zeros((2, groups, n_states, n_actions))
        self.transition, self.initial = np.zeros((groups, n_states, n_actions, n_states)), np.zeros((groups, n_states))
        entropy = -(policy * np.log(policy)).sum(-1, keepdims=True)
        self.augmented = self.arrays.reward + f.entropy * regularization * entropy

    def geometric(self, q: float, n: int) -> Any:
        return self.rng.geometric(1.0 - q, n) - 1

    def pick(self, rows: Any) -> Any:
        return (self.rng.random(len(rows))[:, None] >= rows.cumsum(-1)[:, :-1]).sum(-1)

    def act(self, s: Any) -> Any:
        return self.pick(self.policy[s])

    def move(self, s: Any, a: Any) -> tuple[Any, Any]:
        """Whether the episode ends after (s, a), and the next state if not."""
        return self.rng.random(len(s)) < self.arrays.termination[s, a], self.pick(self.arrays.stored_probabilities[s, a])

    def sums(self, s: Any, a: Any, left: Any, rewards: Any, root: float) -> Any:
        """sum_t root^t rewards(s_t, a_t) over ``left`` further steps after the first, while episodes last."""
        total, alive, factor = np.zeros(len(s)), np.arange(len(s)), 1.0
        while len(alive):
            total[alive] += factor * rewards[s, a]
            factor *= root
            ended, following = self.move(s, a)
            keep = ~ended & (left[alive] > 0)
            left = left - 1
            alive, s = alive[keep], following[keep]
            a = self.act(s)
        return total

    def follow(self, index: Any, s: Any, a: Any, weight: Any) -> None:
        """Add ``weight`` times dQ(s, a), one draw each, for the draws ``index``."""
        f, gamma = self.f, self.gamma
        left = self.geometric(gamma**f.horizon, len(s))
        reached = []
        while len(s):
            np.add.at(self.reward, (self.group[index], s, a), f.reward * weight)
            ended, following = self.move(s, a)
            last, on = ~ended & (left == 0), ~ended & (left > 0)
            reached.append([part[last] for part in (index, s, a, following, weight)])
            index, s, weight, left = index[on], following[on], weight[on], left[on] - 1
            a = self.act(s)
        index, before, before_a, s, weight = (np.concatenate(parts) for parts in zip(*reached, strict=True))
        left = self.geometric(gamma**f.tail_horizon, len(s))
        total = self.sums(s, self.act(s), left, self.augmented, gamma**f.tail)
        score = f.transition * weight * gamma**f.reach / (1.0 - gamma) * total
        np.add.at(self.transition, (self.group[index], before, before_a, s), score)

    def add_advantage(self, index: Any, s: Any, a: Any, weight: Any) -> None:
        """GradEst: add ``weight`` times dA(s, a) = dQ(s, a) - dV(s)."""
        self.follow(index, s, a, self.f.q * weight)
        self.follow(index, s, self.act(s), self.f.v * weight)

    def gradients(self) -> Tensor:
        """One gradient per group, ``(G, d)``."""
        found = []
        for g in range(self.groups):
            weights = Weights(reward=self.reward[g] / self.per_group, leader_reward=self.leader[g] / self.per_group)
            transition, initial = self.transition[g] / self.per_group, self.initial[g] / self.per_group
            add_scores(weights, self.mdps.model.moving, self.arrays, transition, initial, transition.sum(-1))
            found.append(self.mdps.vjp(weights, 0))
        return torch.stack(found)


def return_gradients(
    mdps: ConfiguredMDPs, policy: Any, regularization: float, samples: int, groups: int, rng: Any, f: Formula
) -> Tensor:
    """Alg. 5: gradients of the leader's return, ``(G, d)``."""
    draws = _Draws(mdps, policy, regularization, samples, groups, rng, f)
    gamma, index = draws.gamma_leader, np.arange(samples)
    s = draws.pick(np.broadcast_to(draws.arrays.initial, (samples, len(policy))))
    horizon = draws.geometric(gamma**f.leader_horizon, samples)
    before, before_a = np.zeros((2, samples), dtype=np.int64)
    left, reached = horizon.copy(), []
    while len(s):
        at_end = left == 0
        reached.append([part[at_end] for part in (index, s)])
        index, s, left = index[~at_end], s[~at_end], left[~at_end] - 1
        a = draws.act(s)
        np.add.at(draws.leader, (draws.group[index], s, a), f.leader_reward)
        before[index], before_a[index] = s, a
        ended, following = draws.move(s, a)
        index, s, left = index[~ended], following[~ended], left[~ended]
    index, s = (np.concatenate(parts) for parts in zip(*reached, strict=True))
    a = draws.act(s)
    np.add.at(draws.leader, (draws.group[index], s, a), f.leader_reward)
    left = draws.geometric(gamma**f.leader_tail_horizon, len(s))
    total = draws.sums(s, a, left, draws.arrays.leader_reward, gamma**f.leader_tail) / (1.0 - gamma)
    draws.add_advantage(index, s, a, f.advantage * total / regularization)
    first, group = horizon[index] == 0, draws.group[index]
    np.add.at(draws.initial, (group[first], s[first]), f.initial * total[first])
    i = index[~first]
    np.add.at(draws.transition, (group[~first], before[i], before_a[i], s[~first]), f.leader_transition * total[~first])
    return draws.gradients()


def loss_gradients(
    mdps: ConfiguredMDPs, policy: Any, sensitivity: Any, nu: Any, regularization: float, samples: int, groups: int, rng: Any,
    f: Formula,
) -> Tensor:  # fmt: skip
    """Alg. 1's second term, ``(G, d)``, from df/dpi ``(S, A)`` and the sampling distribution nu ``(S,)``."""
    draws = _Draws(mdps, policy, regularization, samples, groups, rng, f)
    s = draws.pick(np.broadcast_to(nu, (samples, len(policy))))
    a = draws.act(s)
    draws.add_advantage(np.arange(samples), s, a, f.advantage * sensitivity[s, a] / (regularization * nu[s]))
    return draws.gradients()
