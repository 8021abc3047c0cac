"""The Monte-Carlo estimates of many runs at once (`leaders.gradients.batch`)."""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.kernels.alias import policy_tables
from bocmdp_gym.kernels.random import generator_state
from bocmdp_gym.kernels.simulate import simulate
from bocmdp_gym.solvers.banded import banded_policy_iteration
from followers import SoftPolicyIteration
from leaders.gradients._monte_carlo_kernels import monte_carlo_weights
from leaders.gradients.batch import Array, CompiledBatch


class MonteCarloBatch(CompiledBatch):
    """`MonteCarloEstimator` of many runs, with `SoftPolicyIteration` as their followers.

    Args:
        model: the problem.
        follower: of each run.
        n_runs: B.
        horizon: steps after which an episode is cut.
        env_steps, bootstrap_truncated: the estimator's.
    """

    def __init__(
        self,
        model: TabularBOCMDP,
        follower: SoftPolicyIteration,
        n_runs: int,
        horizon: int,
        env_steps: int,
        bootstrap_truncated: bool,
    ):
        super().__init__(model, follower.regularization, follower.tolerance, follower.max_iterations, n_runs)
        self._horizon, self._env_steps, self._bootstrap_truncated = horizon, env_steps, bootstrap_truncated
        self._generators = np.zeros((n_runs, 4), np.uint64)
        self._n_steps = np.zeros(n_runs, np.int64)

    def _prepare(self, rngs: Sequence[np.random.Generator]) -> None:
        for b, rng in enumerate(rngs):
            self._generators[b] = generator_state(rng)

    def _compiled(self, rows: npt.NDArray[np.int64], context: int, reward: Array, leader_reward: Array) -> None:
        arrays, model = self._constant.arrays(context), self.model
        solver: Any = arrays.solver
        monte_carlo_runs(
            rows,
            reward,
            leader_reward,
            arrays.continuation,
            arrays.termination,
            arrays.successors,
            arrays.probabilities,
            solver.position,
            solver.band,
            *arrays.starts,
            self.regularization,
            model.discount,
            model.leader_discount,
            self.tolerance,
            self.max_iterations,
            self._horizon,
            self._env_steps,
            self._bootstrap_truncated,
            self._generators,
            self._values[context],
            self._residuals,
            self._errors,
            self._iterations,
            self._n_steps,
            self._w_reward,
            self._w_leader,
        )

    def _returns(self, leader_reward: Array) -> list[float]:
        return [float(np.vdot(w, r)) for w, r in zip(self._w_leader, leader_reward, strict=True)]

    def _steps(self) -> list[int]:
        steps: list[int] = self._n_steps.tolist()
        return steps


@njit(cache=True, nogil=True)
def monte_carlo_runs(
    rows,  # (R,) int64
    reward,  # (B, S, A) and leader_reward: at each run's x
    leader_reward,
    continuation,  # (S, A) gamma (1 - q), and so on: this context's, the same in all runs
    termination,
    succ,
    prob,
    position,  # the order of `BandedSolver`, and its bandwidth
    band,
    start_threshold,
    start_packed,
    lam,
    gamma,
    gamma_leader,
    tolerance,
    max_iterations,
    horizon,
    budget,
    bootstrap,
    generators,  # (B, 4) uint64, one per run
    values,  # (B, S): V* of each run's last solve in this context, overwritten with the new one
    residuals,  # (B,), errors (B,), iterations (B,), steps (B,), w_reward (B, S, A), w_leader (B, S, A): results
    errors,
    iterations,
    steps,
    w_reward,
    w_leader,
):
    """Soft policy iteration, ``budget`` steps of its policy, and their Monte-Carlo weights (`monte_carlo_weights`)."""
    n_s, n_a, n_k = prob.shape
    q = np.empty((n_s, n_a))
    pi = np.empty((n_s, n_a))
    lu = np.empty((n_s, 2 * band + 1))
    threshold = np.empty((n_s, n_a * n_k))
    packed = np.empty((n_s, n_a * n_k, 2), np.uint64)
    no_threshold = np.empty((0, 0))
    no_packed = np.empty((0, 0, 2), np.uint64)
    no_index = np.empty(0, np.int64)
    no_starts = np.empty((0, 2), np.int64)
    capacity = budget + horizon
    states = np.empty(capacity, np.int32)
    actions = np.empty(capacity, np.int32)
    rewards = np.empty(capacity)
    leader_rewards = np.empty(capacity)
    ends = np.empty(capacity, np.int64)
    terminated = np.empty(capacity, np.bool_)
    final_states = np.empty(capacity, np.int32)
    carry = np.empty(2, np.int64)
    for i in range(rows.shape[0]):
        b = rows[i]
        residual, error, iteration = banded_policy_iteration(
            reward[b],
            continuation,
            succ,
            prob,
            lam,
            position,
            band,
            False,
            tolerance,
            max_iterations,
            values[b],
            q,
            pi,
            lu,
        )
        residuals[b] = residual
        errors[b] = error
        iterations[b] = iteration
        if not error <= tolerance:
            continue
        policy_tables(pi, succ, prob, threshold, packed)
        carry[0] = -1
        carry[1] = 0
        n_steps, n_episodes = simulate(
            threshold,
            packed,
            no_threshold,
            no_packed,
            no_index,
            start_threshold,
            start_packed,
            no_starts,
            succ,
            prob,
            reward[b],
            leader_reward[b],
            termination,
            horizon,
            budget,
            carry,
            generators[b],
            states,
            actions,
            rewards,
            leader_rewards,
            ends,
            terminated,
            final_states,
        )
        n = np.int64(n_steps)
        e = np.int64(n_episodes)
        steps[b] = n
        w_r, w_rbar, _, _, _, _ = monte_carlo_weights(
            states[:n],
            actions[:n],
            leader_rewards[:n],
            ends[:e],
            terminated[:e],
            final_states[:e],
            n_s,
            n_a,
            gamma,
            gamma_leader,
            lam,
            bootstrap,
        )
        w_reward[b] = w_r
        w_leader[b] = w_rbar
