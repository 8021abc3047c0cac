r"""The Monte-Carlo hypergradient from on-policy steps: what the paper's Table 1 calls HPGD.

The mathematics. N steps of the follower's policy in E episodes; Qhat, Vhat are visit-averaged discounted leader returns,
n(s,a), n(s) visit counts. With c(s,a) = (1/(lambda E)) sum_{visits t} gamma_L^t (Qhat - Vhat)(s,a) and c(s) = sum_a c(s,a), one
forward pass per episode,

    e_t = gamma e_{t-1} + c(s_t,a_t)/n(s_t,a_t) - c(s_t)/n(s_t),     W_r(s_t,a_t) += e_t,     W_rbar(s_t,a_t) += gamma_L^t / E.

Where P or mu depends on x, a second pass weighs scores: gamma e_t Vhat_lambda(s_{t+1}) + (gamma_L^(t+1)/E) Vhat(s_{t+1}) on
d log P(s_{t+1}|s_t,a_t), Vhat(s_0)/E on d log mu(s_0), Vhat_lambda being visit averages of the follower's returns, entropy
included; values at s_t, and the mean Vhat(s_0) of the other episodes, are subtracted as baselines. Where q does, an episode
continues with probability (1 - q) P, and d log(1 - q) takes the weight of d log P without them.

Two biases. Qhat - Vhat and the visit averages come from the same trajectories: that vanishes as N grows. A time limit cuts
returns, visitation and traces: that does not, unless ``bootstrap_truncated``, with which a cut episode continues as the
average visit to its last state does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import entr
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, Trajectories, Weights
from bocmdp_gym.errors import UnsupportedError
from bocmdp_gym.options import check_count, check_flag
from followers import Policy, SoftPolicyIteration, TrajectoryOracle
from leaders.gradients._monte_carlo_batch import MonteCarloBatch
from leaders.gradients._monte_carlo_kernels import monte_carlo_weights as monte_carlo_weights_kernel
from leaders.gradients._monte_carlo_scores import monte_carlo_scores
from leaders.gradients.base import Array, Estimator, PolicyEstimator, add_scores, interchangeable, policy_table
from leaders.gradients.batch import BatchEstimator, compiled_model
from leaders.gradients.estimate import Estimate, Indices, check_groups, extrapolated_error
from leaders.gradients.needs import SCORED, look_for_rules


def monte_carlo_weights(
    batch: Trajectories,
    n_states: int,
    n_actions: int,
    discount: float,
    leader_discount: float,
    regularization: float,
    bootstrap_truncated: bool = False,
) -> Weights:
    """Weights of r and rbar from one batch of tabular trajectories (module docstring)."""
    shape, discounts = (n_states, n_actions), (discount, leader_discount)
    tables, _ = _first_pass(batch, shape, discounts, regularization, bootstrap_truncated)
    return Weights(reward=tables[0], leader_reward=tables[1])


def _first_pass(
    batch: Trajectories, shape: tuple[int, int], discounts: tuple[float, float], regularization: float, bootstrap_truncated: bool
) -> tuple[Array, Array]:
    """Weights of r and rbar ``(S, A)``, and what the second pass reads, as `_monte_carlo_kernels` lays them out."""
    if batch.states is None or batch.final_states is None:
        raise UnsupportedError("the trajectories carry no state indices; this estimator needs a tabular environment.")
    tables, by_state = np.empty((3, *shape)), np.empty((3, shape[0]))  # not returned: each array that is takes a microsecond
    monte_carlo_weights_kernel(
        batch.states,
        batch.actions.astype(np.int32, copy=False),
        batch.leader_rewards,
        batch.ends,
        batch.terminated,
        batch.final_states,
        *discounts,
        regularization,
        bootstrap_truncated,
        tables,
        by_state,
    )
    return tables, by_state


def scored_weights(
    batch: Trajectories,
    mdps: ConfiguredMDPs,
    policy: Array | None,
    regularization: float,
    bootstrap_truncated: bool = False,
) -> Weights:
    """Weights of everything that depends on x, from one batch of tabular trajectories at ``mdps`` (module docstring).

    Args:
        batch, mdps: the trajectories, and the model at their x.
        policy: the policy ``(S, A)`` that made them, for its entropy; needed where P or q depends on x.
        regularization: lambda.
        bootstrap_truncated: continue episodes cut by a time limit.
    """
    model, arrays = mdps.model, mdps.arrays(batch.context)
    discounts = (model.discount, model.leader_discount)
    shape = (model.n_states, model.n_actions)
    tables, by_state = _first_pass(batch, shape, discounts, regularization, bootstrap_truncated)
    bonus = np.zeros(model.n_states) if policy is None else regularization * entr(policy).sum(-1)
    w_transition, w_initial, w_continued = monte_carlo_scores(
        batch.states,
        batch.actions,
        batch.rewards,
        batch.ends,
        batch.terminated,
        batch.final_states,
        arrays.stored_successors,
        arrays.rows,
        bonus,
        *discounts,
        bootstrap_truncated,
        tables[2],
        by_state,
    )
    weights = Weights(reward=tables[0], leader_reward=tables[1])
    add_scores(weights, model.moving, arrays, w_transition, w_initial, w_continued)
    return weights


class MonteCarloEstimator(PolicyEstimator):
    """dF_xi/dx from ``env_steps`` steps of the follower's policy.

    Args:
        env_steps: steps per estimate; the last episode is finished and its steps are counted too.
        bootstrap_truncated: let an episode cut by a time limit continue, in sums, as the average visit to its last state does;
            off in the paper's runs.
        error_groups: report a standard error from this many comparisons of random halves of the episodes, and from their
            quarters (`leaders.gradients.estimate.extrapolated_error`), at four more passes over the steps and ten reverse passes
            for every three; 0: none.
        regularization: lambda; the follower's if None.
    """

    needs_model = True
    needs_states = True
    replays = replays_steps = True
    #: parts whose scores weigh the follower's values, which include the policy's entropy
    needs_probabilities_for = frozenset({"transition", "termination"})

    def __init__(
        self,
        env_steps: int = 10_000,
        bootstrap_truncated: bool = False,
        error_groups: int = 0,
        regularization: float | None = None,
    ):
        super().__init__(regularization)
        self.env_steps = check_count("env_steps", env_steps)
        self.error_groups = check_groups(error_groups, "env_steps", self.env_steps)
        self.bootstrap_truncated = check_flag("bootstrap_truncated", bootstrap_truncated)

    @classmethod
    def batched(
        cls, oracle: TrajectoryOracle, estimators: Sequence[Estimator], device: str | None = None
    ) -> BatchEstimator | None:
        """As `Estimator.batched`: compiled where `compiled_model` serves the problem and followers are `SoftPolicyIteration`."""
        first, follower, horizon, n_runs = estimators[0], oracle.follower, oracle.horizon, len(estimators)
        if not interchangeable(MonteCarloEstimator, estimators):
            return super().batched(oracle, estimators, device)
        assert isinstance(first, MonteCarloEstimator)
        model = compiled_model(oracle, n_runs) if device is None else compiled_model(oracle)
        # this very class: the compiled call does what it does, and a subclass may do otherwise
        plain = type(follower) is SoftPolicyIteration and oracle.compiled and first.error_groups == 0
        if model is None or horizon is None or not plain:
            return super().batched(oracle, estimators, device)
        assert isinstance(follower, SoftPolicyIteration)
        if device is None:
            return MonteCarloBatch(model, follower, n_runs, horizon, first.env_steps, first.bootstrap_truncated)
        if first.bootstrap_truncated:
            raise UnsupportedError(f"device={device!r} does not bootstrap truncated episodes; leave one of them out.")
        from leaders.gradients._monte_carlo_cuda import CudaMonteCarloBatch  # numba's CUDA half, which few need

        return CudaMonteCarloBatch(model, follower, n_runs, horizon, first.env_steps, device)

    def estimate_policy(
        self, oracle: TrajectoryOracle, policy: Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        mdps = oracle.configure(policy.leader)
        table = None
        if not self.needs_probabilities_for.isdisjoint(mdps.model.moving):
            table = policy_table(oracle, policy, "the Monte-Carlo estimator, where transitions depend on x,")
        batch = oracle.sample(policy, self.env_steps, rng)
        if not self._is_checked:
            look_for_rules(type(self).__name__, oracle, policy, batch)
            self._is_checked = True
        weights = self._weights(batch, mdps, table)
        assert weights.leader_reward is not None
        leader_return = float(np.vdot(weights.leader_reward, mdps.arrays(context).leader_reward))
        error = None
        if self.error_groups:

            def gradient_of(chosen: Indices) -> Tensor:
                return mdps.vjp(self._weights(batch.episodes(chosen), mdps, table), context)

            error = extrapolated_error(gradient_of, batch.n_episodes, self.error_groups)
        return Estimate(mdps.vjp(weights, context), leader_return, len(batch.rewards), error)

    def _weights(self, batch: Trajectories, mdps: ConfiguredMDPs, policy: Array | None) -> Weights:
        """One batch's weights, of rewards only where nothing else depends on x."""
        model = mdps.model
        if not SCORED.isdisjoint(model.moving):
            return scored_weights(batch, mdps, policy, self._lambda, self.bootstrap_truncated)
        return monte_carlo_weights(
            batch,
            model.n_states,
            model.n_actions,
            model.discount,
            model.leader_discount,
            self._lambda,
            self.bootstrap_truncated,
        )
