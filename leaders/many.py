"""`optimize_many`: runs that differ in their seeds or leaders, made at once where the problem allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.arguments import known_options
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.options import as_list, check_count
from bocmdp_gym.threads import available_threads
from followers import Follower, TrajectoryOracle
from leaders.annealing import Annealing, LambdaSchedule, check_schedule
from leaders.constraints import Constraint
from leaders.gradients import Loss
from leaders.gradients.batch import BatchEstimator, Pending
from leaders.gradients.estimate import WeightedContexts
from leaders.leaders import Leader
from leaders.loop import Calls, closing_on_error, complete, one_torch_thread, progress_bar
from leaders.objectives import Objective, as_objective
from leaders.result import Callback, Result
from leaders.run import LeaderRun, OracleFactory, RunOptions
from leaders.run_arguments import check_options, check_period
from leaders.sampled_constraints import SampledConstraint

_ONE = {
    "seed": "a list of them is called seeds.",
    "leaders": "a list of them may be given for leader.",
    **dict.fromkeys(("checkpoints", "resume"), "there are no checkpoints here; leaders.sweep keeps those of many runs."),
}
#: Fewer runs than this are moved all together.
_FEWEST_TO_SPLIT = 8


@known_options(elsewhere=_ONE)
@with_gradients
def optimize_many(
    env: gym.Env[Any, Any] | TabularBOCMDP,
    leader: Leader | Sequence[Leader],
    follower: Follower,
    iterations: int,
    *,
    seeds: Sequence[int] = (0,),
    device: str | None = None,
    x0: npt.ArrayLike | Tensor | None = None,
    loss: Loss | None = None,
    objective: Objective | Callable[[Tensor], Tensor] | None = None,
    constraints: Sequence[Constraint | SampledConstraint] = (),
    constraint_penalty: float = 50.0,
    contexts: int | Literal["all"] = 1,
    regularization_schedule: Annealing | LambdaSchedule | None = None,
    oracle: OracleFactory = TrajectoryOracle,
    evaluate_every: int = 100,
    callback: Callback | None = None,
    callback_every: int | timedelta | None = None,
    progress: bool | None = None,
) -> list[Result]:
    """Make a run of `leaders.optimize` for every seed, or for every leader, or for pairs of them.

    Each is the run of its seed and leader alone. HPGD with trajectories and ExactGradient make all of them at once, on all cores,
    where only the rewards of a small tabular problem depend on x (`leaders.gradients.batch`, which also says where last
    bits may differ);
    all else runs one after another. There are no checkpoints: `leaders.sweep` keeps each run's.

    Args:
        env: a configurable environment, or a `TabularBOCMDP`; all runs use it.
        leader: one for all runs, or a list: step sizes to compare, say.
        follower: who responds; each run has a copy, which starts from scratch.
        iterations: T >= 1, of each run.
        seeds: whole numbers. One leader makes a run for each, one seed a run with each leader; else there must be as many.
        device: have ExactGradient solve its problems at once by batched LU factorisations of torch, in float64, on this device
            ("cuda"; "cpu" is for comparison only); None: compiled kernels.
        x0, loss, objective, constraints, constraint_penalty, contexts, regularization_schedule: as for `leaders.optimize`.
        oracle, evaluate_every, callback_every, progress: as for `leaders.optimize`.
        callback: as for `leaders.optimize`; `Progress.run` says which run it is, and True stops that run alone.

    Returns:
        The results in the order of the seeds or leaders, each with an oracle of its own.

    Raises:
        OptionError, UnsupportedError, RegularizationError: settings that cannot work together, before anything runs.
        ConvergenceError: a gradient that is not finite, naming the iteration, the run and x.
    """
    evaluate_every = check_count("evaluate_every", evaluate_every)
    callback_every = check_period(callback_every, evaluate_every)
    check_options(
        loss=loss,
        constraints=constraints,
        constraint_penalty=constraint_penalty,
        oracle=oracle,
        callback=callback,
        progress=progress,
    )
    if device is not None and not isinstance(device, str):
        raise OptionError(f"device is {device!r}; expected the name of a device of torch, such as 'cuda', or None.")
    leaders, numbers = _one_per_run(leader, seeds)
    if device is not None and loss is not None:
        raise UnsupportedError("device= is for the leader's return, not for a general loss; leave one of them out.")
    if device is not None and regularization_schedule is not None:
        raise UnsupportedError("device= is for one lambda, not for a regularization_schedule; leave one of them out.")
    if device is not None and oracle is not TrajectoryOracle:
        raise UnsupportedError("device= solves the follower's problem itself and asks no other oracle; leave one of them out.")
    options = RunOptions(
        x0=x0,
        loss=loss,
        objective=as_objective(objective),
        constraints=constraints,
        constraint_penalty=constraint_penalty,
        contexts=contexts,
        regularization_schedule=check_schedule(regularization_schedule),
    )

    runs: list[LeaderRun] = []

    def start(i: int) -> LeaderRun:
        runs.append(LeaderRun(env, leaders[i], _copied(follower), iterations, numbers[i], options, oracle))
        return runs[-1]

    with closing_on_error(runs):
        first, batch = start(0), None
        alone = any(isinstance(one, SampledConstraint) for one in constraints)
        if loss is None and oracle is TrajectoryOracle and regularization_schedule is None and not alone:
            batch = leaders[0].estimator.batched(first.oracle, [one.estimator for one in leaders], device)
        others = range(1, len(leaders))
        if batch is not None:
            return _complete_at_once([first, *map(start, others)], batch, evaluate_every, callback, callback_every, progress)
        finish = partial(
            complete, evaluate_every=evaluate_every, callback=callback, callback_every=callback_every, progress=progress
        )
        return [finish(first), *(finish(start(i), index=i) for i in others)]


def _one_per_run(leader: Any, seeds: Any) -> tuple[list[Leader], list[Any]]:
    """A leader and a seed for every run; leaders of equal settings share an estimator, never an update.

    Raises:
        OptionError: seeds that are not a list, no seeds or leaders, or lists of different lengths.
    """
    listed = as_list(seeds)
    if not listed:
        raise OptionError(f"seeds is {seeds!r}; expected a list of whole numbers.")
    numbers = [check_count("a seed", seed, 0) for seed in listed]
    leaders = list(leader) if isinstance(leader, Sequence) else [leader] * len(numbers)
    if len(numbers) == 1:
        numbers = numbers * len(leaders)
    if not leaders or len(leaders) != len(numbers):
        raise OptionError(
            f"there are {len(leaders)} leaders for {len(numbers)} seeds; expected as many, one leader, or one seed."
        )
    for one in leaders:
        if not isinstance(one, Leader):
            raise OptionError(f"a leader is {one!r}; expected a Leader, for example HPGD().")
    return [Leader(one.estimator, copy(one.update)) for one in leaders], numbers


def _copied(follower: Any) -> Any:
    """A copy of a follower; `LeaderRun` refuses what is none."""
    return follower.copy() if isinstance(follower, Follower) else follower


class _Group:
    """Neighbouring runs of a batch, which make their iterations together.

    Args:
        runs: of the group.
        batch: their estimator.
        first: the number of the first of them, in the batch and among the results.
    """

    def __init__(self, runs: list[LeaderRun], batch: BatchEstimator, first: int):
        self.runs, self.first, self._batch = runs, first, batch
        self._slice = slice(first, first + len(runs))
        self._drawn: list[WeightedContexts] = [[] for _ in runs]
        self._pending: Pending = list
        self._weigh = None if runs[0].coupling is None else self._weighed

    def begin(self) -> None:
        """Begin the next iteration. A run that its callback stopped keeps its place, and is not moved any more."""
        self._drawn = [before if run.finished else run.draw() for run, before in zip(self.runs, self._drawn, strict=True)]
        x = np.stack([run.point.numpy() for run in self.runs])
        self._pending = self._batch.begin(self._slice, x, self._drawn, [run.rng for run in self.runs], self._weigh)

    def finish(self, due: bool, callback: Callback | None) -> int:
        """Wait for the iteration's estimates, and move along them. Returns how many runs were moved."""
        moved = 0
        for i, (run, contexts, estimate) in enumerate(
            zip(self.runs, self._drawn, self._pending(), strict=True), start=self.first
        ):
            if run.finished:
                continue
            run.oracle.count_steps(estimate.env_steps)
            run.take(contexts, estimate, due, None, f" of run {i}")
            moved += 1
            if callback is not None:
                run.report(callback, i)
        return moved

    def _weighed(self, b: int, contexts: WeightedContexts, returns: Sequence[float]) -> tuple[list[float], float]:
        coupling = self.runs[b - self.first].coupling
        assert coupling is not None
        return coupling.weigh(contexts, returns)


def _complete_at_once(
    runs: list[LeaderRun],
    batch: BatchEstimator,
    evaluate_every: int,
    callback: Callback | None,
    callback_every: int | timedelta,
    progress: bool | None,
) -> list[Result]:
    """Make all runs in step: in two groups, so that threads work on one while the other is moved."""
    iterations = runs[0].iterations
    results: dict[int, Result] = {}
    for run in runs:
        run.share = 1.0 / len(runs)
    half = -(-len(runs) // 2) if len(runs) >= _FEWEST_TO_SPLIT else len(runs)
    groups = [_Group(runs[first : first + half], batch, first) for first in range(0, len(runs), half)]
    calls = Calls(callback_every, iterations)
    threads = ThreadPoolExecutor(min(available_threads(), len(runs)))
    with one_torch_thread(), threads as batch.pool, progress_bar(iterations * len(runs), progress) as bar:
        for group in groups:
            group.begin()
        for iteration in range(iterations):
            due = iteration % evaluate_every == 0 or iteration == iterations - 1
            called = callback is not None and calls.due(iteration)
            for group in groups:
                bar.update(group.finish(due, callback if called else None))
                for i, run in enumerate(group.runs, start=group.first):
                    if run.finished and i not in results:
                        results[i] = run.result()
                if not all(run.finished for run in group.runs):
                    group.begin()
            if due:
                mean = float(np.mean([run.history[-1].get("leader_return", np.nan) for run in runs]))
                bar.set_postfix_str(f"mean leader return {mean:.4f}", refresh=False)
            groups = [group for group in groups if not all(run.finished for run in group.runs)]
            if not groups:
                break
    return [results[i] for i in range(len(runs))]
