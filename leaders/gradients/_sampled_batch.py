"""What the batches of estimators that sample have in common: each run's follower answers, and plays its steps."""
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.sampling import play_episodes
from bocmdp_gym.solvers.banded import banded_policy_iteration, banded_space
from followers import SoftPolicyIteration
from leaders.gradients.batch import CompiledBatch


class SampledBatch(CompiledBatch):
    """Base class of `CompiledBatch`es that sample ``env_steps`` steps of `SoftPolicyIteration` in each run.

    Args:
        model: the problem.
        follower: of each run.
        n_runs: B.
        horizon: steps after which an episode is cut.
        env_steps: the estimator's.
    """

    def __init__(self, model: TabularBOCMDP, follower: SoftPolicyIteration, n_runs: int, horizon: int, env_steps: int):
        super().__init__(model, follower.regularization, follower.tolerance, follower.max_iterations, n_runs)
        self._horizon, self._env_steps = horizon, env_steps
        self._n_steps = np.zeros(n_runs, np.int64)

    def _run(self, kernel: Any, rows: npt.NDArray[np.int64], context: int, *further: Any) -> None:
        """Call a compiled function with whose follower solves what and how long it plays, and what is the estimator's own."""
        arrays = self._constant.arrays(context)
        solver: Any = arrays.solver
        kernel(
            rows,
            self._reward,
            self._leader_reward,
            arrays.continuation,
            arrays.termination,
            arrays.successors,
            arrays.probabilities,
            solver.position,
            solver.reach,
            arrays.starts,
            self.regularization,
            self.model.discount,
            self.model.leader_discount,
            self.tolerance,
            self.max_iterations,
            self._horizon,
            self._env_steps,
            *further,
        )

    def _returns(self, runs: slice) -> list[float]:
        return [float(np.vdot(w, r)) for w, r in zip(self._w_leader[runs], self._leader_reward[runs], strict=True)]

    def _steps(self, runs: slice) -> list[int]:
        steps: list[int] = self._n_steps[runs].tolist()
        return steps


@njit(cache=True)
def space_to_play(n_s, n_a, n_k, reach, capacity):
    """Space for `solve_and_play`: q, pi, an LU, the policy's joint tables, the open episode, the arrays of a `Simulation`."""
    return (
        np.empty((n_s, n_a)),
        np.empty((n_s, n_a)),
        banded_space(n_s, reach),
        np.empty((n_s, n_a * n_k, 2), np.uint64),
        np.empty(n_s, np.bool_),
        np.empty(2, np.int64),
        np.empty(capacity, np.int32),
        np.empty(capacity, np.int32),
        np.empty(capacity),
        np.empty(capacity),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.bool_),
        np.empty(capacity, np.int32),
    )


@njit(cache=True)
def solve_and_play(
    reward,  # (S, A) and leader_reward: at a run's x
    leader_reward,
    continuation,  # (S, A) gamma (1 - q), and so on: the context's
    termination,
    succ,
    prob,
    position,  # the order of `BandedSolver`, and how far it reaches
    reach,
    starts,
    lam,
    tolerance,
    max_iterations,
    horizon,
    budget,
    rng,  # (4,) uint64
    value,  # (S,): V* of the run's last solve in this context, overwritten with the new one
    space,  # of `space_to_play`, overwritten
):
    """Soft policy iteration, and ``budget`` steps of its policy. Returns (residual, error, iterations, steps, episodes).

    No steps are made where the error is above ``tolerance``.
    """
    q, pi, lu, tables, ready, carry, states, actions, rewards, leader_rewards, ends, terminated, final_states = space
    residual, error, iterations = banded_policy_iteration(
        reward, continuation, succ, prob, lam, position, reach, False, tolerance, max_iterations, value, q, pi, lu
    )
    if not error <= tolerance:
        return residual, error, iterations, np.int64(0), np.int64(0)
    carry[0] = -1
    carry[1] = 0
    ready[:] = False
    steps, episodes = play_episodes(
        pi,
        tables,
        ready,
        np.empty((0, 0, 2), np.uint64),
        np.empty(0, np.int64),
        starts,
        np.empty((0, 2), np.int64),
        succ,
        prob,
        reward,
        leader_reward,
        termination,
        horizon,
        budget,
        carry,
        rng,
        states,
        actions,
        rewards,
        leader_rewards,
        ends,
        terminated,
        final_states,
    )
    return residual, error, iterations, np.int64(steps), np.int64(episodes)
