r"""Random models of any size, for tests and benchmarks.

The mathematics. Seeded standard normal arrays R, B, M, u, v, ... fix a model in which everything depends on x in R^d:

    r_x(s,a)     = R(s,a) . x / sqrt(d)                                             linear, and 0 at x = 0
    rbar_x(s,a)  = tanh(b(s,a) + B(s,a) . x / sqrt(d))
    P_x(s'|s,a)  = softmax over the successors of l(s,a,s') + (u(s,a) * x) . v(s') / sqrt(d)
    mu_x(s)      = softmax(m(s) + M(s) . x / sqrt(d))

With ``branching=K`` each pair has K different successors, drawn uniformly and shared by the contexts (Garnet problems:
Archibald, McKinnon and Thomas, "On the generation of Markov decision processes", 1995); otherwise all states are.
No episode terminates, so the quadratic loss |x|^2 / 2 + sum_{s,a} pi(a|s)^2 / 2 has a known optimum: both terms are smallest
at x = 0, where rewards are 0 and the follower is uniform; the loss is |S| / (2 |A|) there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym.benchmark import Benchmark
from bocmdp_gym.options import check_count
from bocmdp_gym.pictures import INK, PALETTE, Canvas, PicturedEnv, blend, signed_colour
from bocmdp_gym.tabular import TabularBOCMDP
from bocmdp_gym.tabular_env import TabularVectorEnv
from bocmdp_gym.transitions import SuccessorTransitions

_PICTURED_STATES = 150  # of a larger model only the agent's state and its successors are drawn


class RandomMDP(PicturedEnv):
    r"""A random contextual MDP of any size whose rewards, transitions and start all depend on x.

    ## Description
    Made for tests and benchmarks. All arrays are drawn once from ``seed``; equal arguments give equal models. The module
    docstring has the formulas.

    ## Leader parameter
    x in R^d, d = ``leader_dim``, unbounded; it moves the follower's reward, the leader's reward, the transitions and the
    initial distribution. `initial_leader` draws x_0 ~ N(0, I).

    ## Context
    ``Discrete(n_contexts)``, uniform: each has its own rewards and probabilities.

    ## Action space
    ``Discrete(n_actions)``.

    ## Observation space
    ``Discrete(n_states)``: the state.

    ## Rewards
    Follower: linear in x, 0 at x = 0. Leader: in (-1, 1).

    ## Episode start and end
    Starts are drawn from mu_x. Episodes never terminate; they are truncated after ``horizon`` steps.

    ## Arguments
    seed: seed that the model is drawn from, an integer >= 0 (``reset(seed=...)`` seeds the episodes).
    n_states: number of states.
    n_actions: number of actions.
    n_contexts: number of contexts.
    branching: successors per state and action; None for all states.
    discount: the follower's gamma, below 1.
    horizon: steps until truncation, or None for no limit.
    leader_dim: dimension d of x.
    leader_discount: the leader's gamma_L, below 1; None: gamma.
    render_mode: "rgb_array" or "human".

    Raises:
        OptionError, DiscountError: an argument out of range.

    ## Version history
    v0: first version.
    """

    def __init__(
        self,
        seed: int = 0,
        n_states: int = 20,
        n_actions: int = 4,
        n_contexts: int = 2,
        branching: int | None = None,
        discount: float = 0.95,
        horizon: int | None = 200,
        leader_dim: int = 10,
        leader_discount: float | None = None,
        render_mode: str | None = None,
    ):
        rng = np.random.default_rng(check_count("seed", seed, 0))
        c, s = check_count("n_contexts", n_contexts), check_count("n_states", n_states)
        a, d = check_count("n_actions", n_actions), check_count("leader_dim", leader_dim)
        k = s if branching is None else check_count("branching", branching, 1, s)

        def normal(*shape: int) -> Tensor:
            return torch.from_numpy(rng.standard_normal(shape))

        slope = d**-0.5
        reward, leader_reward, leader_base = slope * normal(c, s, a, d), slope * normal(c, s, a, d), normal(c, s, a)
        logits, pairs, targets = normal(c, s, a, k), slope * normal(c, s, a, d), normal(s, d)
        start_logits, starts = normal(c, s), slope * normal(c, s, d)
        equation, successors = "csad,td->csat", np.empty(0, dtype=np.int64)
        if branching is not None:
            equation, successors = "csad,sakd->csak", distinct_successors(s, a, k, rng)
            targets = targets[torch.from_numpy(successors)]  # (S, A, K, d)

        def probabilities(x: Tensor) -> Tensor:
            return torch.softmax(logits + torch.einsum(equation, pairs * x, targets), -1)

        def sparse(x: Tensor) -> SuccessorTransitions:
            return SuccessorTransitions(successors, probabilities(x))

        model = TabularBOCMDP(
            reward=lambda x: reward @ x,
            leader_reward=lambda x: torch.tanh(leader_base + leader_reward @ x),
            transition=probabilities if branching is None else sparse,
            initial=lambda x: torch.softmax(start_logits + starts @ x, -1),
            discount=discount,
            leader_discount=leader_discount,
            leader_dim=d,
        )
        super().__init__(model, horizon, render_mode)

    def initial_leader(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """x_0 ~ N(0, I)."""
        return rng.standard_normal(self.model.leader_dim)

    @staticmethod
    def quadratic_loss(x: Tensor, policy: Tensor, context: Any) -> Tensor:
        """f(x, pi, xi) = |x|^2 / 2 + sum pi^2 / 2 of a policy ``(S, A)``, for ``leaders.optimize(loss=...)``: a scalar."""
        del context
        return (x**2).sum() / 2 + (policy**2).sum((-2, -1)) / 2

    def benchmark(self, regularization: float | None = None) -> Benchmark:
        """The optimum of `quadratic_loss`, the same at any lambda; no optimum of the leader's return is known."""
        del regularization
        return Benchmark(
            value=self.model.n_states / (2 * self.model.n_actions),
            objective="quadratic_loss, minimised",
            source="both terms are smallest at x = 0, where rewards are 0 and the follower is uniform",
            regularization=None,
            is_optimum=True,
            x=np.zeros(self.model.leader_dim),
        )

    def picture(self) -> npt.NDArray[np.uint8]:
        """States on a circle, coloured by the leader's reward; lines from the agent's state by action and probability."""
        context = self._episode_context or 0
        arrays = self.mdps.arrays(context)
        targets, chances = arrays.successors[self._state], arrays.probabilities[self._state]
        shown = np.arange(self.model.n_states)
        if len(shown) > _PICTURED_STATES:
            likely = targets.reshape(-1)[np.argsort(-chances.reshape(-1))][: _PICTURED_STATES - 1]
            shown = np.unique([self._state, *likely])
        size, n = 560, len(shown)
        canvas = Canvas(size, size)
        angles = 2 * np.pi * np.arange(n) / n - np.pi / 2
        middle, radius = size / 2, size / 2 - 50
        circle = np.stack([middle + radius * np.cos(angles), middle + radius * np.sin(angles)], -1)
        places = dict(zip(shown.tolist(), circle, strict=True))
        for action in range(self.model.n_actions):
            colour = PALETTE[action % len(PALETTE)]
            for k in np.argsort(chances[action]):
                p, target = chances[action, k], int(targets[action, k])
                if p > 0.02 and target in places:
                    line = blend((255, 255, 255), colour, 0.2 + 1.2 * p)
                    canvas.line(places[self._state], places[target], line, 1 + 6 * p)
        disc = min(18.0, 2.4 * radius / n + 4)
        mean = arrays.leader_reward.mean(-1)
        for state, place in places.items():
            here = state == self._state
            canvas.disc(place, disc * (1.25 if here else 1.0), signed_colour(mean[state]), INK, 3.5 if here else 1)
            if n <= 60:
                canvas.text(place, str(state), size=disc * 0.75)
        canvas.text((8, 6), f"context {context}   state {self._state}   fill: leader's reward, red -1 to green 1", anchor="la")
        for action in range(min(self.model.n_actions, len(PALETTE))):
            canvas.text((8 + 72 * action, size - 8), f"action {action}", colour=PALETTE[action], anchor="ls")
        return canvas.array()


def distinct_successors(n_states: int, n_actions: int, branching: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """K different states per pair, every K-subset equally likely, ``(S, A, K)`` (Floyd's algorithm, all pairs at once)."""
    chosen = np.empty((n_states * n_actions, branching), dtype=np.int64)
    for i, largest in enumerate(range(n_states - branching, n_states)):
        drawn = rng.integers(0, largest + 1, len(chosen))
        taken = (chosen[:, :i] == drawn[:, None]).any(1)
        chosen[:, i] = np.where(taken, largest, drawn)
    return chosen.reshape(n_states, n_actions, branching)


def random_mdp_vector(num_envs: int, autoreset_mode: Any = "NextStep", **kwargs: Any) -> TabularVectorEnv:
    """Many copies of `RandomMDP` in one compiled environment; keywords as for `RandomMDP`."""
    return TabularVectorEnv(RandomMDP(**kwargs), num_envs, autoreset_mode)
