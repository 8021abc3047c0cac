r"""Estimates for many runs at once: what `leaders.optimize` does with a list of seeds.

Runs that differ in their seeds (or step sizes) alone ask the same question about different x in every iteration. Together,

    x (B, d)  ->  rewards (B, S, A), one graph  ->  B solves, samples and weights, threads  ->  gradients (B, d), one reverse pass

the Python and torch work of an iteration is done once instead of B times, and the compiled part runs on all cores. Each run has
a generator, warm starts and a history of its own. The compiled part of a run is that of a run alone, number for number;
`CompiledBatch` says where last bits may differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bocmdp_gym import ConfiguredMDPs, TabularBOCMDP, Weights
from bocmdp_gym.errors import ConvergenceError, UnsupportedError
from bocmdp_gym.kernels.random import generator_state
from bocmdp_gym.policy_solvers import BandedSolver
from bocmdp_gym.soft_bellman import torch_linear_algebra
from followers import SoftPolicyIteration, TrajectoryOracle
from leaders import kernels
from leaders.gradients import Estimate, Estimator, ExactEstimator, MonteCarloEstimator

Array = npt.NDArray[np.float64]
#: The contexts of one run's iteration, with their weights.
Drawn = list[tuple[Any, float]]
#: Fewer runs than this are faster one after another.
_FEWEST = 4
#: Compiled calls per thread and iteration: small enough that no thread waits long for another.
_CALLS = 4


class BatchEstimator(ABC):
    """The estimates of one iteration of B runs."""

    @abstractmethod
    def estimate(self, x: Tensor, drawn: Sequence[Drawn], rngs: Sequence[np.random.Generator]) -> list[Estimate]:
        """At x ``(B, d)``, each run's estimate: that of its contexts, weighted.

        Raises:
            ConvergenceError: a follower's problem was not solved.
        """

    def close(self) -> None:  # noqa: B027 - optional hook
        """Let threads go."""


def batch_estimator(
    oracle: TrajectoryOracle, estimators: Sequence[Estimator], device: str | None = None
) -> BatchEstimator | None:
    """How these estimators, one per run and bound, can work at once in the oracle's environment; None: they cannot.

    Args:
        oracle: of one of the runs, which are alike.
        estimators: of each run.
        device: None: compiled kernels; else a device of torch, which must be served.

    Raises:
        UnsupportedError: a device was asked for, and this leader or environment cannot use it.
    """
    first, model = estimators[0], oracle.model
    alike = all(type(e) is type(first) and _settings(e) == _settings(first) for e in estimators)
    if device is not None:
        if type(first) is not ExactEstimator or not alike or not isinstance(model, TabularBOCMDP):
            raise UnsupportedError(
                f"device={device!r} is for ExactGradient (equal in all runs) in tabular problems: trajectories are sampled on "
                "the CPU. Leave device out; a list of seeds then uses all cores."
            )
        return DeviceBatch(model, first, len(estimators), device)
    if len(estimators) < _FEWEST or not alike or type(oracle) is not TrajectoryOracle or not isinstance(model, TabularBOCMDP):
        return None
    if not set(model.moving) <= {"reward", "leader_reward"} or 1.0 in (model.discount, model.leader_discount):
        return None
    context_solvers = (model.configure(model.example).arrays(context).solver for context in range(model.n_contexts))
    if any(type(solver) is not BandedSolver for solver in context_solvers):
        return None
    if type(first) is ExactEstimator:
        return ExactBatch(model, first, len(estimators))
    sampled = type(oracle.follower) is SoftPolicyIteration and oracle.compiled and oracle.horizon is not None
    if type(first) is MonteCarloEstimator and first.error_groups == 0 and sampled:
        return MonteCarloBatch(model, first, len(estimators), oracle)
    return None


def _settings(estimator: Estimator) -> dict[str, Any]:
    """What decides an estimator's numbers."""
    settled = ("solver", "regularization", "loss")  # by binding, which only the first has seen
    settings = {name: value for name, value in vars(estimator).items() if name not in settled}
    if isinstance(estimator, ExactEstimator):
        settings |= {"tolerance": estimator.solver.tolerance, "max_iterations": estimator.solver.max_iterations}
    return settings


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
        self.tolerance, self.max_iterations, self.n_runs = tolerance, max_iterations, n_runs
        self._threads = min(numba.get_num_threads(), n_runs)
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._values: dict[int, Array] = {}  # V* of each run's last solve, by context
        shape = (n_runs, model.n_states, model.n_actions)
        self._w_reward, self._w_leader = np.zeros(shape), np.zeros(shape)
        self._residuals, self._iterations = np.zeros(n_runs), np.zeros(n_runs, np.int64)
        self._constant = model.configure(model.example)  # of all that does not depend on x

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def estimate(self, x: Tensor, drawn: Sequence[Drawn], rngs: Sequence[np.random.Generator]) -> list[Estimate]:
        mdps = self.model.configure(x.detach().requires_grad_())
        slots = [self._slot(mdps, np.array([contexts[k][0] for contexts in drawn]), rngs) for k in range(len(drawn[0]))]
        return [weighted(estimates, [w for _, w in run]) for run, *estimates in zip(drawn, *slots, strict=True)]

    def _slot(self, mdps: ConfiguredMDPs, contexts: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]) -> list[Estimate]:
        """One estimate per run, in one context each."""
        reward, leader_reward = mdps.batch_rows("reward", contexts), mdps.batch_rows("leader_reward", contexts)
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
                metrics={"follower_iterations": iterations[b], "follower_residual": residuals[b]},
            )
            for b in range(self.n_runs)
        ]

    def _call(self, contexts: npt.NDArray[np.int64], reward: Array, leader_reward: Array) -> None:
        """Run the compiled part for all runs, grouped by context, in threads."""
        calls: list[Callable[[], None]] = []
        size = -(-self.n_runs // (_CALLS * self._threads)) if self._threads > 1 else self.n_runs
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
        bad = np.flatnonzero((self._iterations >= self.max_iterations) | ~(self._residuals < np.inf))
        if len(bad):
            b = int(bad[0])
            self.model.configure(mdps.x[b].detach()).validate()
            raise ConvergenceError(
                f"soft policy iteration left a residual of {self._residuals[b]:.3g} after {self._iterations[b]} steps in context "
                f"{contexts[b]} of run {b} (regularization {self.regularization}); expected at most {self.tolerance:.3g} * "
                "max(1, max |V|)."
            )

    def _prepare(self, rngs: Sequence[np.random.Generator]) -> None:
        """Draw what the compiled part needs."""

    def _steps(self) -> list[int]:
        """Environment steps per run."""
        return [0] * self.n_runs

    @abstractmethod
    def _compiled(self, rows: npt.NDArray[np.int64], context: int, reward: Array, leader_reward: Array) -> None:
        """The compiled part for these runs, in one context."""

    @abstractmethod
    def _returns(self, leader_reward: Array) -> list[float]:
        """The leader's returns that were seen."""


class MonteCarloBatch(CompiledBatch):
    """`MonteCarloEstimator` of many runs, with exact followers."""

    def __init__(self, model: TabularBOCMDP, estimator: MonteCarloEstimator, n_runs: int, oracle: TrajectoryOracle):
        follower: Any = oracle.follower
        super().__init__(model, follower.regularization, follower.tolerance, follower.max_iterations, n_runs)
        self._estimator, self._horizon = estimator, oracle.horizon
        self._generators = np.zeros((n_runs, 4), np.uint64)
        self._n_steps = np.zeros(n_runs, np.int64)

    def _prepare(self, rngs: Sequence[np.random.Generator]) -> None:
        for b, rng in enumerate(rngs):
            self._generators[b] = generator_state(rng)

    def _compiled(self, rows: npt.NDArray[np.int64], context: int, reward: Array, leader_reward: Array) -> None:
        arrays, model = self._constant.arrays(context), self.model
        solver: Any = arrays.solver
        kernels.monte_carlo_runs(
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
            self._estimator.env_steps,
            self._estimator.bootstrap_truncated,
            self._generators,
            self._values[context],
            self._residuals,
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


class ExactBatch(CompiledBatch):
    """`ExactEstimator` of many runs."""

    def __init__(self, model: TabularBOCMDP, estimator: ExactEstimator, n_runs: int):
        assert estimator.regularization is not None
        super().__init__(model, estimator.regularization, estimator.solver.tolerance, estimator.solver.max_iterations, n_runs)
        self._found = np.zeros(n_runs)

    def _compiled(self, rows: npt.NDArray[np.int64], context: int, reward: Array, leader_reward: Array) -> None:
        arrays, model = self._constant.arrays(context), self.model
        solver: Any = arrays.solver
        kernels.exact_runs(
            rows,
            reward,
            leader_reward,
            arrays.continuation,
            arrays.leader_continuation,
            arrays.successors,
            arrays.probabilities,
            solver.position,
            solver.band,
            arrays.initial,
            self.regularization,
            model.discount == model.leader_discount,
            self.tolerance,
            self.max_iterations,
            self._values[context],
            self._residuals,
            self._iterations,
            self._found,
            self._w_reward,
            self._w_leader,
        )

    def _returns(self, leader_reward: Array) -> list[float]:
        returns: list[float] = self._found.tolist()
        return returns


class DeviceBatch(BatchEstimator):
    """`ExactEstimator` of many runs by batched LU factorisations of torch in float64, on any of its devices.

    The functions of x are evaluated on the CPU, where they and their constants live; everything that grows with S x S is done on
    the device, for all contexts at once whichever are drawn, and torch differentiates through both. Numbers agree with the
    compiled kernels to the tolerance of the solves, not to the bit.

    Args:
        model: the problem.
        estimator: its regularization, tolerance and iterations are taken.
        n_runs: B.
        device: "cpu", "cuda", ...

    Raises:
        UnsupportedError: torch has no such device here.
    """

    def __init__(self, model: TabularBOCMDP, estimator: ExactEstimator, n_runs: int, device: str):
        assert estimator.regularization is not None
        try:
            self._device = torch.device(device)
            self._start = torch.zeros(n_runs, model.n_contexts, model.n_states, dtype=torch.float64, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise UnsupportedError(f"torch cannot use device {device!r} here: {str(error).splitlines()[0]}") from error
        self.model, self._solver, self.regularization = model, estimator.solver, estimator.regularization

    def estimate(self, x: Tensor, drawn: Sequence[Drawn], rngs: Sequence[np.random.Generator]) -> list[Estimate]:
        del rngs
        x = x.detach().requires_grad_()
        weights = torch.zeros(len(drawn), self.model.n_contexts, dtype=torch.float64)
        for b, run in enumerate(drawn):
            for context, weight in run:
                weights[b, context] += weight
        with torch_linear_algebra():
            mdps = self.model.configure(x).to(self._device)
            solution = mdps.solve(
                self.regularization,
                initial_value=self._start,
                tolerance=self._solver.tolerance,
                max_iterations=self._solver.max_iterations,
            )
            returns = (mdps.policy_return(solution.policy).cpu() * weights).sum(-1)
            (gradients,) = torch.autograd.grad(returns.sum(), x)
        self._start = solution.value.detach()
        metrics = {"follower_iterations": solution.iterations, "follower_residual": solution.residual}
        return [Estimate(g, value, metrics=dict(metrics)) for g, value in zip(gradients, returns.tolist(), strict=True)]


def weighted(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """The estimate of an iteration from those in its contexts; metrics are the first one's."""
    first = estimates[0]
    if len(estimates) == 1 and weights[0] == 1.0:
        return first
    pairs = list(zip(weights, estimates, strict=True))
    errors = [w * e.standard_error for w, e in pairs if e.standard_error is not None]
    return Estimate(
        torch.stack([w * e.gradient for w, e in pairs]).sum(0),
        sum(w * e.leader_return for w, e in pairs),
        sum(e.env_steps for e in estimates),
        torch.stack(errors).square().sum(0).sqrt() if len(errors) == len(pairs) else None,
        first.metrics,
    )
