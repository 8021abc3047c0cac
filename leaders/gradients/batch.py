r"""Estimates for many runs at once: what `leaders.optimize` does with a list of seeds.

Runs that differ in their seeds (or step sizes) alone ask the same question about different x in every iteration. Together,

    x (B, d)  ->  rewards (B, S, A), one graph  ->  B solves, samples and weights, threads  ->  gradients (B, d), one reverse pass

the Python and torch work of an iteration is done once instead of B times, and the compiled part runs on all cores. Each run has
a generator, warm starts and a history of its own. The compiled part of a run is that of a run alone, number for number;
`CompiledBatch` says where last bits may differ.

A compiled call makes the iteration of some of the runs: those in ``rows``, whose context is the same. Arrays of runs are
(B, S, A) and (B, S); nothing but a run's own row is read or written, so threads may share them, and which runs share a call
changes no number. No call holds Python's lock. An estimator says by `Estimator.batched` whether it can work so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP, Weights
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.kernels.newton import FINEST
from bocmdp_gym.soft_bellman import SolveStatistics, check_convergence
from bocmdp_gym.solvers import BandedSolver
from bocmdp_gym.threads import available_threads, part_size
from followers import TrajectoryOracle
from leaders.gradients.estimate import Estimate, Weigh, WeightedContexts, weighted

Array = npt.NDArray[np.float64]
#: Fewer runs than this are faster one after another.
_FEWEST = 4


class BatchEstimator(ABC):
    """The estimates of one iteration of B runs."""

    @abstractmethod
    def estimate(
        self,
        x: Tensor,
        drawn: Sequence[WeightedContexts],
        rngs: Sequence[np.random.Generator],
        weigh: Weigh | None = None,
    ) -> list[Estimate]:
        """At x ``(B, d)``, each run's estimate: that of its contexts, weighted.

        Args:
            x: of the runs.
            drawn: their contexts, with weights.
            rngs: their generators.
            weigh: what an objective makes of the weights, called once for each run; None: they stay.

        Raises:
            ConvergenceError: a follower's problem was not solved.
        """

    def close(self) -> None:  # noqa: B027 - optional hook
        """Release the threads."""


def compiled_model(oracle: TrajectoryOracle, n_runs: int) -> TabularBOCMDP | None:
    """The model of a problem that `CompiledBatch` serves, and is faster for; None: it is not.

    That is a tabular problem with banded solvers and discounts below 1, of which the rewards alone depend on x.
    """
    model = oracle.model
    if n_runs < _FEWEST or type(oracle) is not TrajectoryOracle or not isinstance(model, TabularBOCMDP):
        return None
    if not set(model.moving) <= {"reward", "leader_reward"} or 1.0 in (model.discount, model.leader_discount):
        return None
    mdps = model.configure(model.example)
    banded = all(type(mdps.arrays(context).solver) is BandedSolver for context in range(model.n_contexts))
    return model if banded else None


class CompiledBatch(BatchEstimator):
    """Solves and samples in threads of compiled code, which do for each run what its own kernels would do.

    Last bits may differ from a run alone in two places: where torch adds up the rewards' functions of x in another order for
    ``(B, d)`` than for ``(d,)`` (matrix products do, elementwise functions and softmax do not), and, for `ExactBatch`, where
    NumPy adds up 8 actions or more in pairs.

    Args:
        model: the problem.
        regularization, tolerance, max_iterations: of the follower's problem.
        n_runs: B.
    """

    def __init__(self, model: TabularBOCMDP, regularization: float, tolerance: float, max_iterations: int, n_runs: int):
        self.model, self.regularization = model, regularization
        self.tolerance, self.max_iterations, self.n_runs = max(tolerance, FINEST), max_iterations, n_runs
        self._threads = min(available_threads(), n_runs)
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._values: dict[int, Array] = {}  # V* of each run's last solve, by context
        shape = (n_runs, model.n_states, model.n_actions)
        self._w_reward, self._w_leader = np.zeros(shape), np.zeros(shape)
        self._residuals, self._errors, self._iterations = np.zeros(n_runs), np.zeros(n_runs), np.zeros(n_runs, np.int64)
        self._constant = model.configure(model.example)  # of all that does not depend on x

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    @with_gradients
    def estimate(
        self,
        x: Tensor,
        drawn: Sequence[WeightedContexts],
        rngs: Sequence[np.random.Generator],
        weigh: Weigh | None = None,
    ) -> list[Estimate]:
        mdps = self.model.configure_with_graph(self.model.check_leader(x).detach().numpy())
        slots = [self._slot(mdps, np.array([contexts[k][0] for contexts in drawn]), rngs) for k in range(len(drawn[0]))]
        if weigh is None:
            return [weighted(estimates, [w for _, w in run]) for run, *estimates in zip(drawn, *slots, strict=True)]
        found = []
        for b, (run, *estimates) in enumerate(zip(drawn, *slots, strict=True)):
            weights, value = weigh(b, run, [estimate.leader_return for estimate in estimates])
            found.append(weighted(estimates, weights))
            found[-1].leader_return = value
        return found

    def _slot(self, mdps: ConfiguredMDPs, contexts: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]) -> list[Estimate]:
        """One estimate per run, in one context each."""
        reward, leader_reward = mdps.batch_rows("reward", contexts), mdps.batch_rows("leader_reward", contexts)
        if self.model.mask is not None:  # as the follower's solver takes actions that do not exist
            reward[~self.model.mask.of(contexts)] = -np.inf
        self._prepare(rngs)
        self._call(contexts, reward, leader_reward)
        self._check(mdps, contexts)
        gradients = mdps.vjp(Weights(reward=self._w_reward, leader_reward=self._w_leader), contexts)
        returns, steps = self._returns(leader_reward), self._steps()
        residuals, iterations = self._residuals.tolist(), self._iterations.tolist()
        return [
            Estimate(
                gradients[b],
                returns[b],
                steps[b],
                metrics={**own, "follower_iterations": iterations[b], "follower_residual": residuals[b]},
            )
            for b, own in enumerate(self._metrics())
        ]

    def _call(self, contexts: npt.NDArray[np.int64], reward: Array, leader_reward: Array) -> None:
        """Run the compiled part for all runs, grouped by context, in threads."""
        calls: list[Callable[[], None]] = []
        size = part_size(self.n_runs, self._threads)
        for context in sorted(set(contexts.tolist())):
            rows = np.flatnonzero(contexts == context)
            if context not in self._values:
                self._values[context] = np.zeros((self.n_runs, self.model.n_states))
            parts = [rows[i : i + size] for i in range(0, len(rows), size)]
            calls += [partial(self._compiled, part, context, reward, leader_reward) for part in parts]
        if self._pool is None:
            for call in calls:
                call()
        else:
            for done in [self._pool.submit(call) for call in calls]:
                done.result()

    def _check(self, mdps: ConfiguredMDPs, contexts: npt.NDArray[np.int64]) -> None:
        bad = np.flatnonzero(~(self._errors <= self.tolerance))
        if len(bad):
            b = int(bad[0])
            self.model.configure(mdps.x[b].detach()).validate()
            statistics = SolveStatistics(float(self._residuals[b]), float(self._errors[b]), int(self._iterations[b]))
            where = f" in context {contexts[b]} of run {b}"
            check_convergence(statistics, self.regularization, self.tolerance, self.max_iterations, where)

    def _prepare(self, rngs: Sequence[np.random.Generator]) -> None:
        """Draw what the compiled part needs."""

    def _steps(self) -> list[int]:
        """Environment steps per run."""
        return [0] * self.n_runs

    def _metrics(self) -> list[dict[str, float]]:
        """What else a run's history shall have."""
        return [{}] * self.n_runs

    @abstractmethod
    def _compiled(self, rows: npt.NDArray[np.int64], context: int, reward: Array, leader_reward: Array) -> None:
        """The compiled part for these runs, in one context."""

    @abstractmethod
    def _returns(self, leader_reward: Array) -> list[float]:
        """The leader's returns that were seen."""
