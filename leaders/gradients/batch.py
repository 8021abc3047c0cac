r"""Estimates for many runs at once: what `leaders.optimize` does with a list of seeds.

Runs that differ in their seeds (or step sizes) alone ask the same question about different x in every iteration. Together,

    x (B, d)  ->  rewards (B, S, A), one graph  ->  B solves, samples and weights, threads  ->  gradients (B, d), one reverse pass

the Python and torch work of an iteration is done once instead of B times, and the compiled part runs on all cores. Each run has
a generator, warm starts and a history of its own. The compiled part of a run is that of a run alone, number for number;
`CompiledBatch` says where last bits may differ.

A compiled call makes the iteration of some of the runs: those in ``rows``, whose context is the same. Arrays of runs are
(B, S, A) and (B, S); nothing but a run's own row is read or written, so threads may share them, and which runs share a call
changes no number. No call holds Python's lock, and `BatchEstimator.begin` does not wait: while threads work on some runs, the
others can be moved. An estimator says by `Estimator.batched` whether it can work so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP, Weights
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.kernels.newton import FINEST
from bocmdp_gym.soft_bellman import SolveStatistics, check_convergence
from bocmdp_gym.solvers import BandedSolver
from bocmdp_gym.threads import available_threads
from followers import TrajectoryOracle
from leaders.gradients.estimate import Estimate, Weigh, WeightedContexts, weighted

Array = npt.NDArray[np.float64]
#: Fewer runs than this are faster one after another.
_FEWEST = 4


#: Waits for estimates that were begun, one per run.
Pending = Callable[[], list[Estimate]]


class BatchEstimator(ABC):
    """The estimates of one iteration of B runs.

    Attributes:
        pool: threads for what is compiled; None: it is done at once.
        first: the number of the first of the B among the results, for messages.
    """

    pool: Executor | None = None
    first: int = 0

    @abstractmethod
    def begin(
        self,
        runs: slice,
        x: Array,
        drawn: Sequence[WeightedContexts],
        rngs: Sequence[np.random.Generator],
        weigh: Weigh | None = None,
    ) -> Pending:
        """Begin the estimates of neighbouring runs; others may be begun before these are waited for.

        Args:
            runs: which of the B.
            x: theirs, ``(R, d)``, which nobody moves any more.
            drawn: their contexts, with weights.
            rngs: their generators.
            weigh: what an objective makes of the weights, called once for each run; None: they stay.

        Raises:
            ConvergenceError: here or when waited for: a follower's problem was not solved.
        """


def compiled_model(oracle: TrajectoryOracle, n_runs: int = _FEWEST) -> TabularBOCMDP | None:
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
        self._values: dict[int, Array] = {}  # V* of each run's last solve, by context
        shape = (n_runs, model.n_states, model.n_actions)
        self._reward, self._leader_reward = np.zeros(shape), np.zeros(shape)
        self._w_reward, self._w_leader = np.zeros(shape), np.zeros(shape)
        self._residuals, self._errors, self._iterations = np.zeros(n_runs), np.zeros(n_runs), np.zeros(n_runs, np.int64)
        self._constant = model.configure(model.example)  # of all that does not depend on x

    def begin(
        self,
        runs: slice,
        x: Array,
        drawn: Sequence[WeightedContexts],
        rngs: Sequence[np.random.Generator],
        weigh: Weigh | None = None,
    ) -> Pending:
        mdps = self.model.configure_with_graph(self.model.check_leader(x).detach().numpy())

        def begin(k: int) -> Pending:
            return self._begin(runs, mdps, np.array([contexts[k][0] for contexts in drawn]), rngs)

        first = begin(0)

        def wait() -> list[Estimate]:
            slots = [first(), *(begin(k)() for k in range(1, len(drawn[0])))]
            if weigh is None:
                return [weighted(estimates, [w for _, w in run]) for run, *estimates in zip(drawn, *slots, strict=True)]
            found = []
            for b, (run, *estimates) in enumerate(zip(drawn, *slots, strict=True), start=runs.start):
                weights, value = weigh(b, run, [estimate.leader_return for estimate in estimates])
                found.append(weighted(estimates, weights))
                found[-1].leader_return = value
            return found

        return wait

    def _begin(
        self, runs: slice, mdps: ConfiguredMDPs, contexts: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]
    ) -> Pending:
        """Begin one estimate per run, in one context each."""
        reward, leader_reward = self._reward[runs], self._leader_reward[runs]
        mdps.batch_rows("reward", contexts, reward)
        mdps.batch_rows("leader_reward", contexts, leader_reward)
        if self.model.mask is not None:  # as the follower's solver takes actions that do not exist
            reward[~self.model.mask.of(contexts)] = -np.inf
        self._prepare(runs, rngs)
        calls = self._begin_calls(runs.start, contexts)

        @with_gradients
        def wait() -> list[Estimate]:
            for finish in calls:
                finish()
            self._check(runs.start, mdps, contexts)
            weights = Weights(reward=self._w_reward[runs], leader_reward=self._w_leader[runs])
            gradients, returns, steps = mdps.vjp(weights, contexts), self._returns(runs), self._steps(runs)
            residuals, iterations = self._residuals[runs].tolist(), self._iterations[runs].tolist()
            return [
                Estimate(
                    gradients[i],
                    returns[i],
                    steps[i],
                    metrics={**own, "follower_iterations": iterations[i], "follower_residual": residuals[i]},
                )
                for i, own in enumerate(self._metrics(runs))
            ]

        return wait

    def _begin_calls(self, start: int, contexts: npt.NDArray[np.int64]) -> Sequence[Callable[[], Any]]:
        """Begin the compiled part of the runs from number ``start`` on, grouped by context, in threads. Returns what waits."""
        calls: list[Callable[[], None]] = []
        size = -(-len(contexts) // available_threads())  # few: whoever begins a call waits for Python's lock
        for context in sorted(set(contexts.tolist())):
            rows = start + np.flatnonzero(contexts == context)
            if context not in self._values:
                self._values[context] = np.zeros((self.n_runs, self.model.n_states))
            parts = [rows[i : i + size] for i in range(0, len(rows), size)]
            calls += [partial(self._compiled, part, context) for part in parts]
        if self.pool is not None:
            return [self.pool.submit(call).result for call in calls]
        for call in calls:
            call()
        return []

    def _check(self, start: int, mdps: ConfiguredMDPs, contexts: npt.NDArray[np.int64]) -> None:
        own = slice(start, start + len(contexts))
        bad = np.flatnonzero(~(self._errors[own] <= self.tolerance))
        if len(bad):
            b = int(bad[0])
            run = start + b
            self.model.configure(mdps.x[b].detach()).validate()
            statistics = SolveStatistics(float(self._residuals[run]), float(self._errors[run]), int(self._iterations[run]))
            where = f" in context {contexts[b]} of run {self.first + run}"
            check_convergence(statistics, self.regularization, self.tolerance, self.max_iterations, where)

    def _prepare(self, runs: slice, rngs: Sequence[np.random.Generator]) -> None:
        """Draw what the compiled part of these runs needs."""

    def _steps(self, runs: slice) -> list[int]:
        """Environment steps per run."""
        return [0] * (runs.stop - runs.start)

    def _metrics(self, runs: slice) -> list[dict[str, float]]:
        """What else a run's history shall have."""
        return [{}] * (runs.stop - runs.start)

    @abstractmethod
    def _compiled(self, rows: npt.NDArray[np.int64], context: int) -> None:
        """The compiled part for these runs, in one context."""

    @abstractmethod
    def _returns(self, runs: slice) -> list[float]:
        """The leader's returns that were seen."""
