"""The adjoint critic beyond tables: one context's features, and the estimate from one batch of trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from scipy.special import entr
from torch import Tensor

from bocmdp_gym import BOCMDP, Trajectories
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.kernels.returns import returns_to_go
from bocmdp_gym.options import check_count
from followers import Policy, TrajectoryOracle
from followers.regularization import sampled_regularization
from leaders.gradients._adjoint import RIDGES, Features, Fit
from leaders.gradients._adjoint_draws import Draws, DrawWeights, drawn_weights, moves_draws
from leaders.gradients._adjoint_steps import (
    Advantages,
    Problem,
    discrete_advantages,
    groups_of,
    halves,
    ridge_regression,
    sampled_weights,
)
from leaders.gradients._adjoint_tables import relative_error
from leaders.gradients._features import (
    LinearFeatures,
    ModelFeatures,
    NetworkFeatures,
    no_probabilities,
    policy_probabilities,
    spaces,
    vectors,
)
from leaders.gradients._points import Points, no_weights
from leaders.gradients.base import Array

#: Actions asked per state of policies that answer batches.
_BATCHED_SAMPLES = 4
#: Up to this many actions, all are looked at in every step.
_FEW_ACTIONS = 64
#: Numbers of a policy's probabilities looked at for entropies in one estimate.
_ENTROPIES = 2_000_000


class Parts(NamedTuple):
    """What an estimate is made of: gradients of groups of episodes, which sum to it; values after cuts (E,); errors."""

    gradients: list[Tensor]
    tails: Array
    metrics: dict[str, float]


class Settings(NamedTuple):
    """The estimator's, see `leaders.gradients.critic.CriticEstimator`."""

    regularization: float
    trace: float
    widths: tuple[int, ...]
    known: bool
    epochs: int
    learning_rate: float
    batch_size: int
    action_samples: int | None
    error_groups: int
    draws: bool

    def samples(self, policy: Policy) -> int:
        """Actions asked of a policy per state."""
        return (_BATCHED_SAMPLES if policy.batched else 0) if self.action_samples is None else self.action_samples


class StepCritic:
    """Features of values and of advantages in one context, carried from estimate to estimate.

    An estimate uses the features that earlier batches gave, and fits them to its own batch afterwards, so that features and
    batch are independent; the first estimate fits them before.

    Args:
        settings: the estimator's.
        seed: of the networks' first weights.
    """

    def __init__(self, settings: Settings, seed: int):
        self._settings, self._seed = settings, seed
        self._networks: dict[str, NetworkFeatures] = {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        networks = {name: {"sizes": network.sizes, **network.state()} for name, network in self._networks.items()}
        return {"seed": self._seed, "networks": networks}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._seed = check_count("seed", state["seed"], 0)
        self._networks = {}
        for name, saved in state["networks"].items():
            n_inputs, n_outputs = (check_count("a size", size) for size in saved["sizes"])
            self._networks[name] = self._new(n_inputs, n_outputs, name)
            self._networks[name].load_state(saved)

    def _new(self, n_inputs: int, n_outputs: int, name: str) -> NetworkFeatures:
        own = self._settings
        seed = (self._seed + (name == "actions")) % 2**63
        return NetworkFeatures(n_inputs, n_outputs, own.widths, own.learning_rate, own.batch_size, seed)

    def _network(self, name: str, n_inputs: int, n_outputs: int) -> tuple[NetworkFeatures, bool]:
        """The network of that name, and whether it is new."""
        is_new = name not in self._networks
        if is_new:
            self._networks[name] = self._new(n_inputs, n_outputs, name)
        self._networks[name].check_sizes((n_inputs, n_outputs))
        return self._networks[name], is_new

    def estimate(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, batch: Trajectories, rng: np.random.Generator
    ) -> Parts:
        """One estimate's parts.

        Raises:
            UnsupportedError: the follower's values are needed, and the policy exposes no probabilities; or next states are
                drawn, and an episode terminated.
        """
        seen, space = spaces(oracle)
        model, own = oracle.seen_model, self._settings
        assert model is not None
        inputs, finals = vectors(seen, batch.observations), vectors(seen, batch.final_observations)
        told, every = None, None
        if isinstance(space, gym.spaces.Discrete):
            told = policy_probabilities(policy, batch.observations, batch.states)
            every = space if told is not None and space.n <= _FEW_ACTIONS and not model.outcomes else None
        if own.draws and batch.terminated.any():
            raise UnsupportedError(
                "the model draws next states of a problem that goes on for ever, and an episode has terminated; leave "
                "draw_transitions out and give log_transitions, which may say that x moves the ends of episodes."
            )
        points = None if own.draws else Points(model, x, batch, every)
        needs_follower = moves_draws(model, x, batch) if points is None else points.needs_follower
        values: Any = ModelFeatures(model) if own.known else LinearFeatures()
        is_new, bonus = False, np.zeros(batch.n_steps)
        if own.widths:
            values, is_new = self._network("values", inputs.shape[-1], 1 + needs_follower)
        if needs_follower:
            bonus = own.regularization * _entropies(policy, batch, told, values, inputs, rng)
        if is_new:
            self._fit_values(values, model, batch, inputs, bonus, np.zeros((2, batch.n_episodes)), needs_follower)
        features = _features(values, batch, inputs, finals)
        common = (own.regularization, model.discount, model.leader_discount, own.trace, model.pays_on_arrival)
        groups = groups_of(batch, min(own.error_groups, batch.n_episodes // 2))
        if points is None:
            actions = [batch.actions, *(_act(policy, batch.observations, rng) for _ in range(max(own.samples(policy), 2) - 1))]
            draws = Draws(model, x, batch, actions, values, rng)
            features = features._replace(following=draws.expected_following())
            problem = Problem(batch, features, draws.leader_rewards.mean(0), draws.rewards.mean(0) + bonus, *common)
            fits, errors = best_fits(problem, bonus, needs_follower)
            heads = np.stack([value for fit in fits for value in (fit.follower, fit.leader)])
            drawn = [DrawWeights(len(actions), batch, heads) for _ in groups]
            for number, (half, fit) in enumerate(zip(halves(batch), fits, strict=True)):
                drawn_weights(problem, half, number, fit, draws, groups, drawn)
            gradients = [draws.gradient(weights) for weights in drawn]
        else:
            problem = Problem(batch, features, batch.leader_rewards, batch.rewards + bonus, *common)
            fits, errors = best_fits(problem, bonus, needs_follower)
            advantages = self._advantages(model, problem, fits, points, policy, space, inputs, told, rng)
            sums = [no_weights(batch, None if every is None else int(every.n)) for _ in groups]
            for half, fit, advantage in zip(halves(batch), fits, advantages, strict=True):
                sampled_weights(problem, half, fit, advantage, groups, sums)
            gradients = [points.gradient(weights) for weights in sums]
        tails = tails_of(problem, fits)
        if not is_new:
            self._fit_values(values, model, batch, inputs, bonus, tails, needs_follower)
        names = ("critic_error", "follower_critic_error")[: 1 + needs_follower]
        metrics = dict(zip(names, errors, strict=False)) | sampled_regularization(oracle, policy, batch, told)
        return Parts(gradients, tails[0], metrics)

    def _fit_values(
        self, values: Any, model: Any, batch: Trajectories, inputs: Tensor, bonus: Array, tails: Array, needs_follower: bool
    ) -> None:
        targets = [returns_to_go(batch.leader_rewards, batch.ends, tails[0], model.leader_discount)]
        if needs_follower:
            targets.append(returns_to_go(batch.rewards + bonus, batch.ends, tails[1], model.discount))
        values.fit(inputs, torch.from_numpy(np.stack(targets, -1)), self._settings.epochs)

    def _advantages(
        self,
        model: BOCMDP,
        problem: Problem,
        fits: list[Fit],
        points: Points,
        policy: Policy,
        space: gym.Space[Any],
        inputs: Tensor,
        told: Array | None,
        rng: np.random.Generator,
    ) -> list[Advantages]:
        """Abar by each half's fit: what the model knows of rbar of every action, and a regression of the rest.

        The rest is what is paid beside the model's rbar, and what follows.
        """
        batch, (phi, following, _) = problem.batch, problem.features
        knows = not model.outcomes and not (isinstance(space, gym.spaces.Discrete) and space.n > _FEW_ACTIONS)
        n_drawn = 0 if told is not None else self._settings.samples(policy)
        drawn = [_act(policy, batch.observations, rng) for _ in range(n_drawn)]

        def expected(taken: Array, of: Callable[[Any], Array]) -> list[Array]:
            """What something of the actions is on average over the policy's, for each half: of those drawn, else regressed."""
            if drawn:
                return [np.mean([of(actions) for actions in drawn], 0)] * 2
            means = [taken[half.fitted].mean(0) for half in halves(batch)]  # which no ridge should shrink
            return [
                mean + phi @ ridge_regression(phi[half.fitted], taken[half.fitted] - mean)
                for half, mean in zip(halves(batch), means, strict=True)
            ]

        known = points.leader_rewards_of(batch.actions) if knows else np.zeros(batch.n_steps)
        # with the mean of what is known a constant added to the leader's reward leaves what is regressed alone
        future = [
            batch.leader_rewards - known + (problem.leader_discount * following - phi) @ fit.leader + known[half.fitted].mean()
            for half, fit in zip(halves(batch), fits, strict=True)
        ]
        if isinstance(space, gym.spaces.Discrete):
            taken = vectors(space, batch.actions).numpy()
            chosen = np.asarray(batch.actions, dtype=np.int64).reshape(-1) - int(space.start)
            paid = points.leader_rewards_of_every(space) if knows else np.zeros((1, 1))
            shares = [told] * 2 if told is not None else expected(taken, lambda actions: vectors(space, actions).numpy())
            return [
                discrete_advantages(phi, chosen, share, one, paid, half.fitted, told is not None and knows)
                for half, share, one in zip(halves(batch), shares, future, strict=True)
            ]
        pairs = torch.cat([inputs, vectors(space, batch.actions)], -1)
        psi, is_new = self._network("actions", pairs.shape[-1], 1) if self._settings.widths else (LinearFeatures(), False)
        targets = torch.from_numpy(np.mean(future, 0)).unsqueeze(-1)
        if is_new:
            psi.fit(pairs, targets, self._settings.epochs)

        def features(actions: Any) -> Array:
            with torch.no_grad():
                found: Array = psi(torch.cat([inputs, vectors(space, actions)], -1)).numpy()
            return found

        taken, advantages = features(batch.actions), []
        # regressed on what was done: a centre is the mean of few draws, whose noise would shrink the weights
        known_of = np.concatenate([phi, taken], -1)
        means = expected(known, points.leader_rewards_of) if knows else [known] * 2
        for half, one, centre, mean in zip(halves(batch), future, expected(taken, features), means, strict=True):
            slopes = ridge_regression(known_of[half.fitted], one[half.fitted])[phi.shape[-1] :]
            advantages.append(Advantages(known - mean + (taken - centre) @ slopes))
        if not is_new:
            psi.fit(pairs, targets, self._settings.epochs)
        return advantages


def best_fits(problem: Problem, bonus: Array, needs_follower: bool) -> tuple[list[Fit], list[float]]:
    """Both halves' fits and their held-out errors, with the least ridge that leaves no error above that of a constant.

    Where none does, the one with the least errors: temporal differences can be near to singular where few episodes, or new
    places, meet many features.
    """
    found: list[tuple[float, list[Fit], list[float]]] = []
    for ridge in RIDGES:
        fits = [problem.fit(half, ridge) for half in halves(problem.batch)]
        errors = held_out_errors(problem, fits, problem.batch.rewards + bonus)[: 1 + needs_follower]
        found.append((max(errors), fits, errors))
        if max(errors) < 1.0:
            break
    _, fits, errors = min(found, key=lambda one: one[0])
    return fits, errors


def tails_of(problem: Problem, fits: list[Fit]) -> Array:
    """Values of leader and follower after cuts ``(2, E)``."""
    finals = problem.features.finals
    tails: Array = np.mean([(finals @ fit.leader, finals @ fit.follower) for fit in fits], 0)
    return tails


def held_out_errors(problem: Problem, fits: list[Fit], augmented: Array) -> list[float]:
    """Squared errors of leader's and follower's values on the halves not fitted, relative to the variance of returns there."""
    batch, errors = problem.batch, []
    tails = tails_of(problem, fits)
    leader = returns_to_go(batch.leader_rewards, batch.ends, tails[0], problem.leader_discount)
    follower = returns_to_go(augmented, batch.ends, tails[1], problem.discount)
    for half, fit in zip(halves(batch), fits, strict=True):
        held_out = problem.features.phi[~half.fitted]
        errors.append(
            [
                relative_error(held_out @ value, returns[~half.fitted])
                for value, returns in ((fit.leader, leader), (fit.follower, follower))
            ]
        )
    means: list[float] = np.mean(errors, 0).tolist()
    return means


def _features(values: Any, batch: Trajectories, inputs: Tensor, finals: Tensor) -> Features:
    with torch.no_grad():
        phi, last = values(inputs).numpy(), values(finals).numpy()
    last = last * ~batch.terminated[:, None]
    following = np.concatenate([phi[1:], phi[:1]])
    following[batch.ends - 1] = last
    return Features(phi, following, last)


def _entropies(
    policy: Policy, batch: Trajectories, told: Array | None, features: Any, inputs: Tensor, rng: np.random.Generator
) -> Array:
    """Entropies of the policy's actions ``(N,)``; where probabilities are many, of some steps, and fitted elsewhere.

    The fit's errors at those steps are put back with the weight of the steps left out, so that weighted sums have no bias.
    """
    n, own = batch.n_steps, policy.entropies(batch.observations)
    if own is not None:
        return own
    if told is None and not policy.exposes_probabilities and policy.table is None:
        raise no_probabilities(policy)
    if told is not None:
        known: Array = entr(told).sum(-1)
        return known
    size = np.asarray(policy_probabilities(policy, batch.observations[:1], _first(batch.states))).size
    looked_at = min(n, max(_ENTROPIES // size, 256))
    chosen = np.arange(n) if looked_at == n else np.sort(rng.choice(n, looked_at, replace=False))
    rows = []
    for some in np.array_split(chosen, -(-looked_at * size // _ENTROPIES) * 4):
        states = None if batch.states is None else batch.states[some]
        probabilities = policy_probabilities(policy, batch.observations[some], states)
        assert probabilities is not None
        rows.append(entr(probabilities).reshape(len(some), -1).sum(-1))
    found = np.concatenate(rows)
    if looked_at == n:
        return found
    with torch.no_grad():
        phi = features(inputs).numpy()
    fitted: Array = phi @ ridge_regression(phi[chosen], found)
    fitted[chosen] += n / looked_at * (found - fitted[chosen])
    return fitted


def _first(states: Any) -> Any:
    return None if states is None else states[:1]


def _act(policy: Policy, observations: Any, rng: np.random.Generator) -> Any:
    """One action per observation."""
    return np.asarray(policy.act_batch(observations, rng))
