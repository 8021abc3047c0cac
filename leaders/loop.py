"""`optimize`: the only outer loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.env import check_leader
from bocmdp_gym.errors import ConvergenceError, OptionError
from bocmdp_gym.soft_bellman import WarmSolver
from followers import Follower, Policy, TrajectoryOracle, suboptimality
from leaders.base import Leader
from leaders.gradients import Loss
from leaders.gradients.exact import leader_values
from leaders.history import History

#: Runs shorter than this show no progress bar.
_QUIET_ITERATIONS = 50


@dataclass
class Result:
    """What a run found.

    Attributes:
        x: the last iterate ``(d,)``.
        x_random: an iterate drawn uniformly from x_0..x_{T-1}, the one Theorem 2.5 speaks of.
        history: one record per iteration (`leaders.history.COLUMNS`).
        leader_return: exact F(x) at ``x`` (minus the loss, with a loss); None without a tabular model.
        env_steps: environment steps used.
        iterations: T.
        seconds: wall-clock time.
    """

    x: Tensor
    x_random: Tensor
    history: History
    leader_return: float | None
    env_steps: int
    iterations: int
    seconds: float


@dataclass
class Progress:
    """What a callback is shown: the state after the record's iteration was taken."""

    iteration: int
    x: Tensor
    record: dict[str, Any]
    oracle: TrajectoryOracle


class Evaluator:
    """Exact E_xi of the leader's return (or of minus a loss) under the follower's optimum, without touching the follower.

    The same optimum says how far the follower's own policy is from it.
    """

    def __init__(self, oracle: TrajectoryOracle, regularization: float, loss: Loss | None):
        self._oracle, self._regularization, self._loss = oracle, regularization, loss
        self._solver = WarmSolver()

    def __call__(self, x: Tensor) -> float:
        mdps = self._oracle.configure(x)
        total = 0.0
        for context, probability in enumerate(mdps.model.context_probabilities):
            policy = self._solver.solve(mdps, context, self._regularization).policy
            if self._loss is None:
                value = leader_values(mdps.arrays(context), policy).leader_return
            else:
                value = -float(self._loss(x.detach(), torch.from_numpy(policy), context))
            total += probability * value
        return total

    def suboptimality(self, policy: Policy) -> dict[str, float]:
        """The columns that say how far a response is from the follower's optimum; none where it tells no probabilities."""
        table = self._oracle.tabulate(policy)
        if table is None:
            return {}
        mdps = self._oracle.configure(table.leader)
        measured = suboptimality(mdps, table, table.leader, self._regularization, solver=self._solver)
        return {"follower_delta": measured.delta, "follower_value_gap": measured.value_gap}


def optimize(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    leader: Leader,
    follower: Follower,
    iterations: int,
    *,
    seed: int | np.random.Generator = 0,
    x0: npt.ArrayLike | Tensor | None = None,
    loss: Loss | None = None,
    evaluate_every: int = 100,
    callback: Callable[[Progress], None] | None = None,
    progress: bool | None = None,
) -> Result:
    """Run a leader against a follower: draw xi ~ P_xi, estimate dF_xi/dx, move x; ``iterations`` times.

    Args:
        env: a configurable environment, or a `TabularBOCMDP`.
        leader: estimator and update.
        follower: who responds.
        iterations: T >= 1.
        seed: all randomness of the run comes from this seed or generator; equal seeds give equal numbers, bit for bit.
        x0: where to start, ``(d,)``; the environment's ``initial_leader(rng)`` if None.
        loss: a differentiable f(x, policy (S, A), context), minimised instead of maximising the leader's return.
        evaluate_every: how often the exact leader return, and how far an inexact follower is from its optimum, are computed
            (tabular models) and ``callback`` is called.
        callback: called with a `Progress` every ``evaluate_every`` iterations and after the last.
        progress: show a progress bar; None: for runs of more than a few iterations.

    Raises:
        OptionError, UnsupportedError, RegularizationError: settings that cannot work together, before anything runs.
        ConvergenceError: a gradient that is not finite, naming the iteration.
    """
    if iterations < 1:
        raise OptionError(f"iterations is {iterations}; expected at least 1.")
    if evaluate_every < 1:
        raise OptionError(f"evaluate_every is {evaluate_every}; expected at least 1.")
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    oracle = TrajectoryOracle(env, follower)
    leader.estimator.bind(oracle, loss)
    start = oracle.core.initial_leader(rng) if x0 is None else np.array(x0, dtype=np.float64)
    x = leader.update.start(torch.tensor(check_leader(start, oracle.core.leader_space)))
    chosen = int(rng.integers(iterations))
    x_random = x.detach().clone()
    evaluate = None
    if isinstance(oracle.model, TabularBOCMDP) and leader.estimator.regularization is not None:
        evaluate = Evaluator(oracle, leader.estimator.regularization, loss)
    history = History()
    began = perf_counter()
    with (
        _one_torch_thread(),
        tqdm(total=iterations, unit="it", disable=iterations < _QUIET_ITERATIONS if progress is None else not progress) as bar,
    ):
        for iteration in range(iterations):
            if iteration == chosen:
                x_random = x.detach().clone()
            context = oracle.sample_context(rng)
            estimate = leader.estimator.estimate(oracle, x.detach(), context, rng)
            record: dict[str, Any] = {
                "iteration": iteration,
                "context": context,
                "sampled_return": estimate.leader_return,
                "env_steps": oracle.env_steps,
                **estimate.metrics,
            }
            due = iteration % evaluate_every == 0 or iteration == iterations - 1
            if due and evaluate is not None:
                record["leader_return"] = evaluate(x)
                if oracle.last_response is not None and not follower.exact:
                    record |= evaluate.suboptimality(oracle.last_response)
                bar.set_postfix_str(f"leader return {record['leader_return']:.4f}", refresh=False)
            record["gradient_norm"] = norm = leader.update.step(x, estimate.gradient)
            if not norm < float("inf"):
                raise ConvergenceError(
                    f"the gradient of iteration {iteration} (context {context}) is not finite: norm {norm}. x had norm "
                    f"{float(torch.linalg.vector_norm(x.detach())):.4g}. Lower the learning rate or clip the gradient."
                )
            record["seconds"] = perf_counter() - began
            history.append(record)
            if due and callback is not None:
                callback(Progress(iteration, x.detach(), record, oracle))
            bar.update()
    found = x.detach().clone()
    return Result(
        x=found,
        x_random=x_random,
        history=history,
        leader_return=None if evaluate is None else evaluate(found),
        env_steps=oracle.env_steps,
        iterations=iterations,
        seconds=perf_counter() - began,
    )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """The loop's tensors are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
