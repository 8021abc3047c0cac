r"""TD beyond tables: networks for the leader's Qbar and the follower's V, carried over the run (`leaders.gradients.td`).

Each estimate trains them by a few rounds of regression on targets that the networks make themselves before each round,

    rbar_i + gamma_L c_i E_b Qbar(s'_i, b)          r_i + lambda H_i + gamma c_i V(s'_i),

c = 0 where the episode terminated, else 1; E_b over the policy's probabilities where it exposes them, over actions it draws
elsewhere. The first estimate has no values to continue with and fits returns; where no episode of it terminated, these go on as
if every further reward were the mean. Then, with the trace e_t of the tables,

    sum_t e_t r + gamma_L^t rbar + (Vbar(s_0) - b) log mu(s_0)
        + (gamma e_t (V(s_{t+1}) - V(s_t)) + gamma_L^{t+1} (Vbar(s_{t+1}) - Vbar(s_t))) log P(s_{t+1}|s_t,a_t),

summed over episodes and divided by the mean number E of episodes of the context's estimates so far, is a function of x through
the model's r, rbar, log P, log mu; its gradient is the estimate. b is the mean of Vbar(s_0) over those estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from scipy.special import entr
from torch import Tensor

from bocmdp_gym import BOCMDP, Trajectories
from bocmdp_gym.kernels.returns import returns_to_go
from followers import Policy, TrajectoryOracle
from leaders.gradients._features import (
    NetworkFeatures,
    check_space,
    no_probabilities,
    policy_probabilities,
    spaces,
    vectors,
)
from leaders.gradients._points import Points, PointWeights, check_points
from leaders.gradients._returns import traces
from leaders.gradients.base import Array
from leaders.gradients.estimate import Estimate


@dataclass(frozen=True)
class Training:
    """How networks are made and trained: the estimator's options of the same names."""

    hidden: tuple[int, ...]
    epochs: int
    learning_rate: float
    batch_size: int
    action_samples: int

    def network(self, n_inputs: int, n_outputs: int, seed: int) -> NetworkFeatures:
        """A network that has learnt nothing."""
        return NetworkFeatures(n_inputs, n_outputs, self.hidden, self.learning_rate, self.batch_size, seed)


class _Batch(NamedTuple):
    """One batch of trajectories, as the networks see it."""

    steps: Trajectories
    inputs: Tensor  # (N, n): observations
    following: Tensor  # (N, n): those after the steps
    pairs: Tensor  # (N, m): inputs of Qbar
    choices: Tensor  # (N,): the action, where Qbar has one output per action
    behaviour: Tensor  # what the policy does: probabilities (N, A) of finitely many actions, or M drawn actions (M, N, k)
    following_behaviour: Tensor
    continued: Array  # (N,): 0 where the episode terminated, else 1
    entropies: Array | None  # (N,), where the follower's values are needed


class _Critic:
    """One context's networks.

    Attributes:
        q: Qbar, with an output per action where these are Discrete, of observation and action elsewhere.
        value: the follower's V; None where it is not needed.
        start: mean of Vbar(s_0) over the estimates so far.
        counts: how many these were, and their episodes.
    """

    def __init__(self, q: NetworkFeatures, value: NetworkFeatures | None, start: float = 0.0, counts: tuple[int, int] = (0, 0)):
        self.q, self.value, self.start, self.counts = q, value, start, counts

    def taken(self, batch: _Batch) -> Array:
        """Qbar of what was done, (N,)."""
        taken: Array = self.q.predict(batch.pairs).gather(-1, batch.choices.unsqueeze(-1)).squeeze(-1).numpy()
        return taken

    def expected(self, inputs: Tensor, behaviour: Tensor) -> Array:
        """Vbar = E_b Qbar(s, b) at N observations."""
        if behaviour.ndim == 2:
            mean = (self.q.predict(inputs) * behaviour).sum(-1)
        else:
            mean = torch.stack([self.q.predict(torch.cat([inputs, b], -1)).squeeze(-1) for b in behaviour]).mean(0)
        values: Array = mean.numpy()
        return values

    def follower(self, inputs: Tensor) -> Array:
        """V at N observations."""
        assert self.value is not None
        values: Array = self.value.predict(inputs).squeeze(-1).numpy()
        return values


class NetworkTD:
    """The estimates of `TDEstimator` in one problem that is not a table.

    Args:
        oracle: whose environment has a model.
        regularization: lambda.
        training: of the networks.

    Raises:
        UnsupportedError: observations or actions that cannot be written as vectors.
    """

    def __init__(self, oracle: TrajectoryOracle, regularization: float, training: Training):
        self._spaces = spaces(oracle)
        for space in self._spaces:
            check_space(space)
        self._lambda, self._training = regularization, training
        self._critics: dict[Any, _Critic] = {}  # per context; None: contexts that do not recur
        self._is_checked = False  # whether the model's functions were seen to stay in torch

    def estimate(
        self, oracle: TrajectoryOracle, steps: Trajectories, policy: Policy, x: Tensor, rng: np.random.Generator
    ) -> Estimate:
        """One estimate from trajectories of ``policy`` at x."""
        model = oracle.seen_model
        assert model is not None
        if not self._is_checked:
            check_points(model, x, steps, oracle.core.leader_space)
            self._is_checked = True
        points = Points(model, x, steps)
        batch = self._batch(steps, policy, points.needs_follower, rng)
        critic, error = self._train(model, batch, rng)
        value = critic.expected(batch.inputs, batch.behaviour)
        following = batch.continued * critic.expected(batch.following, batch.following_behaviour)
        gamma, gamma_leader = model.discount, model.leader_discount
        trace, power = traces((critic.taken(batch) - value) / self._lambda, steps.ends, gamma, gamma_leader)
        scores = gamma_leader * power * (following - value)
        if batch.entropies is not None:
            scores += gamma * trace * (critic.follower(batch.following) - critic.follower(batch.inputs))
        starts, (seen, episodes) = value[steps.starts], critic.counts
        mean = float(starts.mean())
        baseline = critic.start if seen else mean
        critic.start, critic.counts = baseline + (mean - baseline) / (seen + 1), (seen + 1, episodes + steps.n_episodes)
        scale = critic.counts[0] / critic.counts[1]
        weights = PointWeights(scale * trace, scale * power, scale * scores, scale * (starts - baseline))
        returns = returns_to_go(steps.leader_rewards, steps.ends, following[steps.ends - 1], gamma_leader)
        return Estimate(points.gradient(weights), float(returns[steps.starts].mean()), steps.n_steps, metrics={"td_error": error})

    def state(self) -> dict[Any, Any]:
        """What a checkpoint keeps: networks, their optimisers, and the mean values of starts."""

        def saved(network: NetworkFeatures | None) -> dict[str, Any]:
            return {} if network is None else {"sizes": network.sizes, **network.state()}

        return {
            -1 if context is None else context: {"q": saved(c.q), "value": saved(c.value), "start": c.start, "counts": c.counts}
            for context, c in self._critics.items()
        }

    def load_state(self, state: dict[Any, Any]) -> None:
        """Continue from `state`."""

        def loaded(saved: dict[str, Any]) -> NetworkFeatures:
            n_inputs, n_outputs = (int(size) for size in saved["sizes"])
            network = self._training.network(n_inputs, n_outputs, 0)
            network.load_state(saved)
            return network

        self._critics = {}
        for context, saved in state.items():
            start, (seen, episodes) = float(saved["start"]), saved["counts"]
            value = loaded(saved["value"]) if saved["value"] else None
            self._critics[None if context == -1 else context] = _Critic(
                loaded(saved["q"]), value, start, (int(seen), int(episodes))
            )

    # ---------------------------------------------------------------------------------------------------- learning

    def _batch(self, steps: Trajectories, policy: Policy, needs_follower: bool, rng: np.random.Generator) -> _Batch:
        """The batch as vectors, and what the policy would do at every observation of it."""
        seen, space = self._spaces
        inputs, following = vectors(seen, steps.observations), vectors(seen, steps.next_observations)
        probabilities = policy_probabilities(policy, steps.observations, steps.states)
        entropies = None
        if needs_follower:
            if probabilities is None:
                raise no_probabilities(policy)
            entropies = entr(probabilities).reshape(steps.n_steps, -1).sum(-1)
        behaviour = self._behaviour(policy, steps.observations, probabilities, rng)
        later = policy_probabilities(policy, steps.next_observations, steps.next_states)
        following_behaviour = self._behaviour(policy, steps.next_observations, later, rng)
        pairs, choices = inputs, torch.zeros(steps.n_steps, dtype=torch.int64)
        if isinstance(space, gym.spaces.Discrete):
            choices = torch.from_numpy(np.asarray(steps.actions, dtype=np.int64).reshape(-1) - int(space.start))
        else:
            pairs = torch.cat([inputs, vectors(space, steps.actions)], -1)
        return _Batch(
            steps,
            inputs,
            following,
            pairs,
            choices,
            behaviour,
            following_behaviour,
            steps.continued.astype(np.float64),
            entropies,
        )

    def _behaviour(self, policy: Policy, observations: Any, probabilities: Array | None, rng: np.random.Generator) -> Tensor:
        """What the policy does at N observations; where it exposes no probabilities, by drawing actions."""
        space = self._spaces[1]
        finite = isinstance(space, gym.spaces.Discrete)
        if finite and probabilities is not None:
            return torch.from_numpy(probabilities)
        draws = [np.asarray(policy.act_batch(observations, rng)) for _ in range(self._training.action_samples)]
        drawn = torch.stack([vectors(space, actions) for actions in draws])
        return drawn.mean(0) if finite else drawn

    def _train(self, model: BOCMDP, batch: _Batch, rng: np.random.Generator) -> tuple[_Critic, float]:
        """The context's networks after this batch, and the root mean squared TD error of Qbar before it."""
        context = batch.steps.context
        key = context if isinstance(context, int) else None
        is_new = key not in self._critics
        if is_new:
            self._critics[key] = self._new_critic(batch, rng)
        critic, error = self._critics[key], None
        for _ in range(self._training.epochs):
            leader, follower = self._targets(model, batch, critic, is_new)
            if error is None:
                error = float(np.sqrt(np.mean((leader - critic.taken(batch)) ** 2)))
            critic.q.fit(batch.pairs, torch.from_numpy(leader), choices=batch.choices)
            if follower is not None:
                assert critic.value is not None
                critic.value.fit(batch.inputs, torch.from_numpy(follower), choices=torch.zeros_like(batch.choices))
        assert error is not None
        return critic, error

    def _new_critic(self, batch: _Batch, rng: np.random.Generator) -> _Critic:
        space = self._spaces[1]
        choices = int(space.n) if isinstance(space, gym.spaces.Discrete) else 1
        q = self._training.network(batch.pairs.shape[-1], choices, int(rng.integers(2**63)))
        if batch.entropies is None:
            return _Critic(q, None)
        return _Critic(q, self._training.network(batch.inputs.shape[-1], 1, int(rng.integers(2**63))))

    def _targets(self, model: BOCMDP, batch: _Batch, critic: _Critic, is_new: bool) -> tuple[Array, Array | None]:
        """What Qbar and V are brought nearer to, (N,)."""
        steps = batch.steps
        rewards = None if batch.entropies is None else steps.rewards + self._lambda * batch.entropies
        if is_new:
            follower = None if rewards is None else _first_returns(rewards, steps, model.discount)
            return _first_returns(steps.leader_rewards, steps, model.leader_discount), follower
        future = critic.expected(batch.following, batch.following_behaviour)
        leader = steps.leader_rewards + model.leader_discount * batch.continued * future
        if rewards is None:
            return leader, None
        return leader, rewards + model.discount * batch.continued * critic.follower(batch.following)


def _first_returns(rewards: Array, steps: Trajectories, discount: float) -> Array:
    """Discounted returns (N,); where no episode terminated, they go on as if each further reward were the mean."""
    tail = float(rewards.mean()) / (1.0 - discount) if discount < 1.0 and not steps.terminated.any() else 0.0
    returns: Array = returns_to_go(rewards, steps.ends, np.full(steps.n_episodes, tail), discount)
    return returns
