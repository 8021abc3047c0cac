r"""The adjoint critic on sampled steps of any environment: advantages by regression, expectations over actions where known.

The mathematics is in `leaders.gradients._adjoint`; here g has scores, and the values at s under them as baselines:

    g_i = dr_i + gamma c_i dlogP_i (V_lambda(s'_i) - V_lambda(s_i)),

or, where the state arrived in decides reward and end (`BOCMDP.pays_on_arrival`), so that c_i and r_i are functions of s'_i,

    g_i = dr_i + dlogP_i (r_i + gamma c_i V_lambda(s'_i) - V_lambda(s_i)).

The temporal differences rbar + gamma_L c Vbar(s') - Vbar(s) of A are regressed on (s, a), and centred under pi(.|s).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import linalg

from bocmdp_gym import Trajectories
from leaders.gradients._adjoint import (
    Features,
    Fit,
    Mask,
    Steps,
    Weighed,
    fit_influence,
    fit_values,
    step_weights,
    weigh,
)
from leaders.gradients._points import PointWeights
from leaders.gradients.base import Array


class Half(NamedTuple):
    """Episodes that are fitted, and the others, which are weighed."""

    fitted_episodes: Mask  # (E,)
    fitted: Mask  # (N,): their steps

    @property
    def n_weighed(self) -> int:
        """How many episodes are weighed."""
        return int((~self.fitted_episodes).sum())


def halves(batch: Trajectories) -> list[Half]:
    """Every other episode, both ways round."""
    even = np.arange(batch.n_episodes) % 2 == 0
    return [Half(chosen, np.repeat(chosen, batch.lengths)) for chosen in (even, ~even)]


def groups_of(batch: Trajectories, groups: int) -> list[Mask]:
    """Masks ``(E,)`` of disjoint groups of episodes, each with episodes of both halves."""
    owners = np.arange(batch.n_episodes) // 2 % max(groups, 1)
    return [owners == group for group in range(max(groups, 1))]


class Problem(NamedTuple):
    """What both halves share."""

    batch: Trajectories
    features: Features
    leader_rewards: Array  # (N,), expected over actions or sampled
    augmented: Array  # (N,): r + lambda H
    regularization: float
    discount: float
    leader_discount: float
    trace: float
    pays_on_arrival: bool = False

    def advances(self, follower: Array, leader: Array) -> tuple[Array, Array]:
        """What multiplies dlogP, of follower and leader ``(N,)``: values of the next state, less those of this one."""
        phi, following, _ = self.features
        values, later = (phi @ follower, phi @ leader), (following @ follower, following @ leader)
        discounts = (self.discount, self.leader_discount)
        if self.pays_on_arrival:
            paid = (self.batch.rewards, self.batch.leader_rewards)
            one, other = (r + d * n - v for r, d, n, v in zip(paid, discounts, later, values, strict=True))
        else:
            one, other = (self.batch.continued * d * (n - v) for d, n, v in zip(discounts, later, values, strict=True))
        return one, other

    def fit(self, half: Half, ridge: float) -> Fit:
        """Values and systems of A."""
        phi, following, _ = self.features
        at = half.fitted
        discounts = (self.discount, self.leader_discount)
        return fit_values(phi[at], following[at], self.leader_rewards[at], self.augmented[at], *discounts, ridge)

    def steps(self, half: Half, fit: Fit, kicks: Array, cross: Array, groups: list[Mask]) -> Iterator[tuple[Steps, Mask]]:
        """Weights of each group of episodes, and which episodes of the group are weighed.

        The weights of all groups sum to those of the estimate. With more than one group they have the noise of A's episodes in
        the fit, too, so that their spread is that of the estimate.
        """
        batch, gamma = self.batch, self.discount
        every: Weighed = weigh(kicks, batch.ends, self.trace, gamma, self.leader_discount)
        weighed = every.only(~half.fitted, ~half.fitted_episodes)
        total = step_weights(fit, self.features, cross, weighed, half.fitted, gamma)
        if len(groups) == 1:
            yield total, ~half.fitted_episodes
            return
        owned = [np.repeat(group, batch.lengths) for group in groups]
        known = [np.where(half.fitted & own, total.base, 0.0) for own in owned]
        noise = [fit_influence(fit, self.features, one, half.fitted, gamma) for one in known]
        mean = np.mean(noise, 0)  # 0, but for the ridge
        for group, own, one in zip(groups, owned, noise, strict=True):
            base, visits = step_weights(fit, self.features, cross, weighed.only(own, group), half.fitted, gamma)
            yield Steps(base + one - mean, visits), group & ~half.fitted_episodes


def sampled_weights(
    problem: Problem, half: Half, fit: Fit, advantages: Advantages, groups: list[Mask], totals: list[PointWeights]
) -> None:
    """Add one half's weights to those of each group, ``totals``, as means over the episodes weighed."""
    batch, (phi, following, _), gamma = problem.batch, problem.features, problem.discount
    kicks = advantages.taken / problem.regularization
    cross = kicks[:, None] * (gamma * following - phi)
    advances = problem.advances(fit.follower, fit.leader)
    starts = (phi @ fit.leader)[batch.starts]
    scale = 1.0 / (2 * half.n_weighed)
    for (base, visits), episodes, total in _zip(problem.steps(half, fit, kicks, cross, groups), totals):
        w = base + visits * kicks
        if advantages.every is None or advantages.probabilities is None:
            total.reward += scale * w
            total.leader_reward += scale * visits
        else:
            every = advantages.every / problem.regularization
            total.reward += scale * advantages.probabilities * (base[:, None] + visits[:, None] * every)
            total.leader_reward += scale * advantages.probabilities * visits[:, None]
        total.transition += scale * (w * advances[0] + visits * advances[1])
        baseline = starts[half.fitted_episodes].mean()
        total.initial += scale * np.where(episodes, starts - baseline, 0.0)


def _zip(steps: Iterator[tuple[Steps, Mask]], totals: list[PointWeights]) -> Iterator[tuple[Steps, Mask, PointWeights]]:
    for (one, episodes), total in zip(steps, totals, strict=True):
        yield one, episodes, total


class Advantages(NamedTuple):
    """Abar of what was done, and of each action where the policy tells its probabilities."""

    taken: Array  # (N,)
    every: Array | None = None  # (N, A)
    probabilities: Array | None = None  # (N, A)


def discrete_advantages(
    phi: Array, actions: npt.NDArray[np.int64], shares: Array, future: Array, paid: Array, fitted: Mask, told: bool
) -> Advantages:
    """Abar with ``future``, gamma_L c Vbar(s') - Vbar(s) ``(N,)``, regressed on features per action.

    Args:
        phi: features ``(N, K)``.
        actions: what was done ``(N,)``, from 0.
        shares: probabilities ``(N, A)``, or shares of drawn actions, to centre under.
        future: what is regressed.
        paid: rbar of every action ``(N, A)``, known.
        fitted: the steps of A.
        told: whether ``shares`` are the policy's probabilities.
    """
    n_features, n_actions = phi.shape[1], shares.shape[1]
    weights = np.zeros((n_features, n_actions))
    for action in range(n_actions):
        chosen = fitted & (actions == action)
        weights[:, action] = ridge_regression(phi[chosen], future[chosen])
    q = paid + phi @ weights
    every = q - (shares * q).sum(-1, keepdims=True)
    taken = np.take_along_axis(every, actions[:, None], 1)[:, 0]
    return Advantages(taken, every, shares) if told else Advantages(taken)


def ridge_regression(phi: Array, targets: Array) -> Array:
    """Least squares with the weight of one observation on 0 in every direction."""
    gram = phi.T @ phi + np.eye(phi.shape[1])
    weights: Array = linalg.solve(gram, phi.T @ targets, assume_a="pos")
    return weights
