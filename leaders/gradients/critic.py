r"""The hypergradient from trajectories and fitted values, for any environment: an adjoint critic.

The mathematics. Under the follower's policy E_a Abar(s, a) = 0, so dV drops out of the product of Abar with dA = dQ - dV, and
with c = 0 after the end of an episode, 1 elsewhere,

    dF = E sum_t gamma_L^t { Abar(s_t, a_t) / lambda (g_t + gamma c_t dV_lambda(s_{t+1}) - dV_lambda(s_t))
                             + drbar(s_t, a_t) + gamma_L c_t dlogP_t (Vbar(s_{t+1}) - Vbar(s_t)) }
         + E dlog mu(s_0) (Vbar(s_0) - b),
    g_t = dr(s_t, a_t) + gamma c_t dlogP_t (V_lambda(s_{t+1}) - V_lambda(s_t)).

dV_lambda is never computed: it is a fit to g, linear in g, and the transpose of its linear system turns what multiplies it into
weights on g (`leaders.gradients._adjoint`). The weights meet the env's model (a `BOCMDP`) in one reverse pass. Half of the
episodes fits what the other half is weighed by, both ways round.

Expectations replace samples where they are known: over actions where policies tell probabilities; over next states where the
model draws them differentiably, or is a table whose transitions depend on x. Rollouts are stopped at the effective horizon,
ln(0.01) / ln(max(gamma, gamma_L)) steps, and continued by the values.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from bocmdp_gym import BOCMDP, TabularBOCMDP, TabularEnv, Trajectories, Weights
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import CriticWarning, OptionError, UnsupportedError
from bocmdp_gym.kernels.returns import returns_to_go
from bocmdp_gym.losses import Loss
from bocmdp_gym.options import check_count, check_number
from followers import Policy, TrajectoryOracle
from leaders.gradients import _adjoint_tables as tables
from leaders.gradients._adjoint_steps import groups_of, halves
from leaders.gradients._critic_steps import Parts, Settings, StepCritic
from leaders.gradients._features import check_space, check_widths, no_probabilities, spaces
from leaders.gradients._points import check_points
from leaders.gradients.base import Array, PolicyEstimator
from leaders.gradients.estimate import Estimate, check_groups, combine_groups
from leaders.gradients.needs import look_for_rules

#: What is left of a return's weight at the effective horizon.
_TAIL = 0.01
#: Held-out error, relative to the variance of returns, from which values are said to be worthless: a constant has 1,
#: and a little more where episodes are few.
_WORTHLESS = 2.0


class CriticEstimator(PolicyEstimator):
    """dF_xi/dx from ``env_steps`` steps of any environment whose core has a model, with adjoint weights.

    On tables, where trajectories carry states, features are one-hot and everything is an average by state; elsewhere they are
    a constant, the observation and the last hidden layer of a network fitted to the values, or linear, or the model's own.

    Args:
        env_steps: steps per estimate; the last episode is finished and its steps are counted too.
        trace: kappa, 0 to 1: how much of the past an action's weight carries along its episode. 0 is local and has the least
            noise; 1 is unbiased however poorly derivatives of values are fitted.
        horizon: steps after which episodes are stopped and continued by the values; None: the effective horizon, at which
            max(gamma, gamma_L)^t is 0.01 (none at discount 1).
        hidden: widths of the networks' hidden layers; () for linear features. None: by state on tables, linear where
            observations are Discrete, in what the model says that values are linear in (`bocmdp_gym.BOCMDP.value_features`) where
            it draws next states and knows such features, two layers of 64 elsewhere.
        epochs: rounds of regression per estimate; networks continue from the context's last estimate.
        learning_rate: of Adam.
        batch_size: points per Adam step.
        action_samples: actions asked of the policy per visited state, for expectations over them, where it exposes no
            probabilities; 0: none, and the expectations are regressed on the states' features. None: 4 where the policy answers
            batches in hardly more time than one (`Policy.batched`), 0 elsewhere, so that an agent is called for the steps it
            takes and no more. Where the model draws next states: actions in all, the one taken included, at least 2.
        error_groups: split the episodes into this many groups and report a standard error from their spread, at one reverse
            pass each (it takes the fitted values as given, not their derivatives); 0: none.
        regularization: lambda; the follower's if None.

    ``metrics``: ``critic_error``, the held-out squared error of the leader's values relative to the variance of the returns (it
    includes the returns' own noise), and ``follower_critic_error`` where transitions depend on x. How often the agent of a
    `CallableFollower` was called is its policy's: ``agent_calls``.

    Raises:
        OptionError: a value out of range.

    Warns:
        CriticWarning: once per run, where held-out values are worse than a constant.
    """

    needs_rewards = True
    takes_draws = True
    replays = True
    #: the follower's values include the policy's entropy
    needs_probabilities_for = frozenset({"transition", "termination"})

    def __init__(
        self,
        env_steps: int = 10_000,
        trace: float = 0.0,
        horizon: int | None = None,
        hidden: Sequence[int] | None = None,
        epochs: int = 2,
        learning_rate: float = 3e-3,
        batch_size: int = 256,
        action_samples: int | None = None,
        error_groups: int = 0,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        self.env_steps = check_count("env_steps", env_steps)
        self.trace = check_number("trace", trace, 0.0, 1.0)
        self.horizon = None if horizon is None else check_count("horizon", horizon)
        self.hidden = check_widths(hidden)
        self.epochs, self.batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
        self.action_samples = None if action_samples is None else check_count("action_samples", action_samples, 0)
        self.error_groups = check_groups(error_groups, "env_steps", self.env_steps)
        self.learning_rate = check_number("learning_rate", learning_rate, above=0.0)
        self._widths: tuple[int, ...] = ()
        self._known = False  # whether the model says what values are linear in
        self._by_state = self._draws = False
        self._is_warned = False
        self._critics: dict[Any, StepCritic] = {}  # per context; None: contexts that do not recur

    def bind(self, oracle: TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        model = oracle.model
        self._by_state = isinstance(model, TabularBOCMDP) and oracle.exposes_states and not self.hidden
        self._critics, self._is_warned = {}, False
        if self._by_state:
            return
        seen, actions = spaces(oracle)
        check_space(seen)
        check_space(actions)
        if isinstance(model, TabularBOCMDP) and "termination" in model.moving:
            raise UnsupportedError(
                f"{type(self).__name__} with hidden={self.hidden} is for models whose termination x does not move, and here "
                'termination is a function of x. Leave hidden out, or use HPGD(estimator="monte_carlo") or ExactGradient.'
            )
        points = oracle.seen_model
        drawing = points is not None and points.noise_dim is not None and not isinstance(oracle.core, TabularEnv)
        self._draws = drawing and isinstance(seen, gym.spaces.Box)
        if model is not None and model.pathwise_only and not self._draws:
            raise UnsupportedError(
                f"{type(self).__name__} differentiates next states that are vectors of numbers, and observations are {seen}; "
                "give the wrapper log_transitions=, or use ZeroOrder."
            )
        self._known = self.hidden is None and self._draws and _has_features(points, seen)
        linear = self._known or isinstance(seen, gym.spaces.Discrete)
        self._widths = self.hidden if self.hidden is not None else () if linear else (64, 64)

    @with_gradients
    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        model = oracle.model
        assert model is not None
        batch = oracle.sample(policy, self.env_steps, rng, horizon=self._stop(model.discount, model.leader_discount))
        if batch.n_episodes < 2:
            raise OptionError(
                f"env_steps={self.env_steps} is one episode of this environment; expected at least two, half to fit values and "
                "half to weigh with them. Raise env_steps."
            )
        if not self._is_checked:
            self._check(oracle, policy, x, batch)
        if self._by_state:
            parts = self._on_table(oracle, policy, x, batch)
        else:
            key = context if isinstance(context, int) else None  # contexts that do not recur share theirs
            if key not in self._critics:
                self._critics[key] = StepCritic(self._settings(), int(rng.integers(2**63)))
            parts = self._critics[key].estimate(oracle, policy, x, batch, rng)
        self._warn(parts.metrics)
        n = len(parts.gradients)
        mean, error = combine_groups([n * gradient for gradient in parts.gradients], [1] * n)
        returns = returns_to_go(batch.leader_rewards, batch.ends, parts.tails, model.leader_discount)
        return Estimate(mean, float(returns[batch.starts].mean()), batch.n_steps, error, parts.metrics)

    def _check(self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, batch: Trajectories) -> None:
        """What the first trajectories show, once a run."""
        if not self._by_state:
            assert oracle.seen_model is not None
            check_points(oracle.seen_model, x, batch, oracle.core.leader_space)
        look_for_rules(type(self).__name__, oracle, policy, batch)
        self._is_checked = True

    def _settings(self) -> Settings:
        return Settings(
            self._lambda,
            self.trace,
            self._widths,
            self._known,
            self.epochs,
            self.learning_rate,
            self.batch_size,
            self.action_samples,
            self.error_groups,
            self._draws,
        )

    def _stop(self, discount: float, leader_discount: float) -> int | None:
        """Steps after which the oracle stops an episode."""
        if self.horizon is not None:
            return self.horizon
        largest = max(discount, leader_discount)
        if largest <= 0.0:
            return 1
        return math.ceil(math.log(_TAIL) / math.log(largest)) if largest < 1.0 else None

    def _warn(self, metrics: dict[str, float]) -> None:
        bad = [name for name in ("critic_error", "follower_critic_error") if metrics.get(name, 0.0) > _WORTHLESS]
        if bad and not self._is_warned:
            self._is_warned = True
            numbers = " and ".join(f"{name} {metrics[name]:.3g}" for name in bad)
            warnings.warn(
                f"{numbers}: on episodes they were not fitted to, the critic's values are worse than a constant (1), so this "
                f"gradient says little. Raise env_steps (now {self.env_steps}), lower the discount, or give other hidden layers.",
                CriticWarning,
                stacklevel=5,
            )

    def state(self) -> dict[Any, Any]:
        return {-1 if context is None else context: critic.state() for context, critic in self._critics.items()}

    def load_state(self, state: dict[Any, Any]) -> None:
        self._critics, self._is_checked = {}, True
        for context, saved in state.items():
            critic = self._critics[None if context == -1 else context] = StepCritic(self._settings(), 0)
            critic.load_state(saved)

    # ------------------------------------------------------------------------------------------------------ on tables

    def _on_table(self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, batch: Trajectories) -> Parts:
        model, mdps = oracle.model, oracle.configure(x)
        assert isinstance(model, TabularBOCMDP)
        moving = frozenset(model.moving)
        told, knows = oracle.tabulate(policy), not moving.isdisjoint({"transition", "termination"})
        if told is None and knows:
            raise no_probabilities(policy)
        arrays = mdps.arrays(batch.context)
        table = tables.Table(
            arrays, None if told is None else told.table, knows, self._lambda, model.discount, model.leader_discount
        )
        groups = groups_of(batch, min(self.error_groups, batch.n_episodes // 2))
        totals: list[list[Weights]] = [[] for _ in groups]
        errors = []
        for half in halves(batch):
            fitted, weighed = (batch.episodes(np.flatnonzero(m)) for m in (half.fitted_episodes, ~half.fitted_episodes))
            fit = tables.fit_table(table, fitted)
            whole = tables.table_weights(table, fit, weighed, self.trace)
            for group, total in zip(groups, totals, strict=True):
                scale, share = 1.0 / (2 * half.n_weighed), 0.5 / len(groups)
                if len(groups) == 1:
                    w_reward, w_leader, starts = whole.reward, whole.leader_reward, share * fit.leader
                else:
                    own = batch.episodes(np.flatnonzero(group & ~half.fitted_episodes))
                    w_reward, w_leader, _ = tables.table_weights(table, fit, own, self.trace)
                    starts = share * fit.leader
                    if not knows:
                        others = batch.episodes(np.flatnonzero(group & half.fitted_episodes))
                        w_reward = w_reward + tables.table_influence(table, fit, whole.z, others)
                        starts = starts + 0.5 * tables.value_influence(table, fit, others)
                total.append(tables.model_weights(table, fit, scale * w_reward, scale * w_leader, starts, moving))
            errors.append(tables.held_out_errors(table, fit, weighed))
        gradients = [mdps.vjp(_sum(total), batch.context) for total in totals]
        leader_error, follower_error = np.mean(errors, 0).tolist()
        metrics = {"critic_error": leader_error} | ({"follower_critic_error": follower_error} if knows else {})
        tails = np.where(batch.terminated, 0.0, fit.leader[batch.final_states])
        return Parts(gradients, tails, metrics)


def _has_features(model: BOCMDP | None, seen: gym.Space[Any]) -> bool:
    """Whether a model has features of what is seen."""
    size = gym.spaces.flatdim(seen)
    return model is not None and model.value_features(torch.zeros(1, size, dtype=torch.float64)) is not None


def _sum(parts: list[Weights]) -> Weights:
    """Weights of both halves together."""

    def total(name: str) -> Array | None:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else np.sum(arrays, 0)

    return Weights(*(total(name) for name in ("reward", "leader_reward", "transition", "initial", "termination")))
