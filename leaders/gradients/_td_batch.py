"""The TD estimates of many runs at once (`leaders.gradients.batch`)."""
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym import TabularBOCMDP
from followers import SoftPolicyIteration
from leaders.gradients._sampled_batch import SampledBatch, solve_and_play, space_to_play
from leaders.gradients._td_kernels import learn, trace_weights
from leaders.gradients.batch import Array


class TDBatch(SampledBatch):
    """`TDEstimator` of many runs, with `SoftPolicyIteration` as their followers.

    Args:
        model: the problem.
        follower: of each run.
        n_runs: B.
        horizon: steps after which an episode is cut.
        env_steps, td_rate: the estimator's.
    """

    def __init__(
        self,
        model: TabularBOCMDP,
        follower: SoftPolicyIteration,
        n_runs: int,
        horizon: int,
        env_steps: int,
        td_rate: float,
    ):
        super().__init__(model, follower, n_runs, horizon, env_steps)
        self._td_rate = td_rate
        self._generators = np.zeros((n_runs, 2, 4), np.uint64)
        self._td_errors = np.zeros(n_runs)
        self._tables: dict[int, tuple[Array, npt.NDArray[np.bool_], Array]] = {}

    def _prepare(self, runs: slice, rngs: Sequence[np.random.Generator]) -> None:
        for b, rng in enumerate(rngs, start=runs.start):
            self._generators[b, 0] = rng.bit_generator.random_raw(4)
            self._generators[b, 1] = rng.bit_generator.random_raw(4)

    def _begin_calls(self, start: int, contexts: npt.NDArray[np.int64]) -> Sequence[Callable[[], Any]]:
        for context in set(contexts.tolist()) - self._tables.keys():
            shape = (self.n_runs, self.model.n_states, self.model.n_actions)
            self._tables[context] = np.zeros(shape), np.zeros(shape[:2], dtype=np.bool_), np.zeros((self.n_runs, 2))
        return super()._begin_calls(start, contexts)

    def _compiled(self, rows: npt.NDArray[np.int64], context: int) -> None:
        self._run(
            td_runs,
            rows,
            context,
            self._td_rate,
            not self._constant.arrays(context).termination.any(),  # discounts of 1 are not served
            self._generators,
            *self._tables[context],
            self._values[context],
            self._residuals,
            self._errors,
            self._iterations,
            self._n_steps,
            self._td_errors,
            self._w_reward,
            self._w_leader,
        )

    def _metrics(self, runs: slice) -> list[dict[str, float]]:
        return [{"td_error": error} for error in self._td_errors[runs].tolist()]


@njit(cache=True, nogil=True)
def td_runs(
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
    rate,
    endless,
    generators,  # (B, 2, 4) uint64: of each run's episodes, and of the order in which it learns from their steps
    q_tables,  # (B, S, A), seen (B, S) and counts (B, 2): what each run has learnt in this context, brought up to date
    seen,
    counts,
    values,  # (B, S): V* of each run's last solve in this context, overwritten with the new one
    residuals,  # (B,), errors, iterations, steps and td_errors (B,), w_reward (B, S, A), w_leader (B, S, A): results
    errors,
    iterations,
    steps,
    td_errors,
    w_reward,
    w_leader,
):
    """Soft policy iteration, ``budget`` steps of its policy, what they teach (`learn`), and the weights (`trace_weights`)."""
    n_s, n_a, n_k = prob.shape
    no_bonus = np.empty(0)
    space = space_to_play(n_s, n_a, n_k, reach, budget + horizon)
    _, pi, _, _, _, _, states, actions, rewards, leader_rewards, ends, terminated, final_states = space
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
            generators[b, 0],
            values[b],
            space,
        )
        if not errors[b] <= tolerance:
            continue
        steps[b] = n
        td_errors[b] = learn(
            states[:n],
            actions[:n],
            rewards[:n],
            leader_rewards[:n],
            ends[:e],
            terminated[:e],
            final_states[:e],
            pi,
            no_bonus,
            gamma,
            gamma_leader,
            rate,
            endless,
            generators[b, 1],
            q_tables[b],
            no_bonus,
            seen[b],
            counts[b],
        )
        trace_weights(
            states[:n],
            actions[:n],
            ends[:e],
            pi,
            q_tables[b],
            counts[b],
            gamma,
            gamma_leader,
            lam,
            w_reward[b],
            w_leader[b],
        )
