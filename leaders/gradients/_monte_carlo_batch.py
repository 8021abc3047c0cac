"""The Monte-Carlo estimates of many runs at once (`leaders.gradients.batch`)."""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym import TabularBOCMDP
from followers import SoftPolicyIteration
from leaders.gradients._monte_carlo_kernels import monte_carlo_weights
from leaders.gradients._sampled_batch import SampledBatch, solve_and_play, space_to_play


class MonteCarloBatch(SampledBatch):
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
        super().__init__(model, follower, n_runs, horizon, env_steps)
        self._bootstrap_truncated = bootstrap_truncated
        self._generators = np.zeros((n_runs, 4), np.uint64)

    def _prepare(self, runs: slice, rngs: Sequence[np.random.Generator]) -> None:
        for b, rng in enumerate(rngs, start=runs.start):
            self._generators[b] = rng.bit_generator.random_raw(4)

    def _compiled(self, rows: npt.NDArray[np.int64], context: int) -> None:
        self._run(
            monte_carlo_runs,
            rows,
            context,
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


@njit(cache=True, nogil=True)
def monte_carlo_runs(
    rows,  # (R,) int64
    reward,  # (B, S, A) and leader_reward: at each run's x
    leader_reward,
    continuation,  # (S, A) gamma (1 - q), and so on: this context's, the same in all runs
    termination,
    succ,
    prob,
    position,  # the order of `BandedSolver`, and how far it reaches
    reach,
    starts,
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
    space = space_to_play(n_s, n_a, n_k, reach, budget + horizon)
    tables, by_state = np.empty((3, n_s, n_a)), np.empty((3, n_s))
    _, _, _, _, _, _, states, actions, _, leader_rewards, ends, terminated, final_states = space
    for i in range(rows.shape[0]):
        b = rows[i]
        residuals[b], errors[b], iterations[b], n, e = solve_and_play(
            reward[b],
            leader_reward[b],
            continuation,
            termination,
            succ,
            prob,
            position,
            reach,
            starts,
            lam,
            tolerance,
            max_iterations,
            horizon,
            budget,
            generators[b],
            values[b],
            space,
        )
        if not errors[b] <= tolerance:
            continue
        steps[b] = n
        monte_carlo_weights(
            states[:n],
            actions[:n],
            leader_rewards[:n],
            ends[:e],
            terminated[:e],
            final_states[:e],
            gamma,
            gamma_leader,
            lam,
            bootstrap,
            tables,
            by_state,
        )
        w_reward[b] = tables[0]
        w_leader[b] = tables[1]
