"""`optimize_many`: runs that differ in seeds, leaders, environments or followers, made at once where the problem allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from datetime import timedelta
from itertools import groupby
from typing import Any, Literal

import gymnasium as gym
import numpy.typing as npt
from torch import Tensor

from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.arguments import known_options
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import OptionError, UnsupportedError
from bocmdp_gym.options import as_list, check_count
from followers import Follower, TrajectoryOracle
from leaders.annealing import Annealing, LambdaSchedule, check_schedule
from leaders.constraints import Constraint
from leaders.gradients import Estimator, Loss
from leaders.leaders import Leader
from leaders.loop import closing_on_error, complete
from leaders.objectives import Objective, as_objective
from leaders.result import Callback, Result
from leaders.run import LeaderRun, OracleFactory, RunOptions
from leaders.run_arguments import check_options, check_period
from leaders.sampled_constraints import SampledConstraint
from leaders.together import Batch, complete_together

_ONE = {
    "seed": "a list of them is called seeds.",
    "leaders": "a list of them may be given for leader.",
    **dict.fromkeys(("checkpoints", "resume"), "there are no checkpoints here; leaders.sweep keeps those of many runs."),
}


@known_options(elsewhere=_ONE)
@with_gradients
def optimize_many(
    env: gym.Env[Any, Any] | TabularBOCMDP | Sequence[gym.Env[Any, Any] | TabularBOCMDP],
    leader: Leader | Sequence[Leader],
    follower: Follower | Sequence[Follower],
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
    """Make a run of `leaders.optimize` for every seed, or for every leader, environment or follower of a list.

    Each is the run of its seed and leader alone. HPGD with trajectories and ExactGradient make all of them at once, on all cores,
    where only the rewards of a small tabular problem depend on x (`leaders.gradients.batch`, which also says where last bits may
    differ), and where neighbours with the same environment and follower are four or more and estimate alike; all else runs one
    after another.
    There are no checkpoints: `leaders.sweep` keeps each run's.

    Args:
        env: a configurable environment, or a `TabularBOCMDP`; one for all runs, or a list with that of each.
        leader: one, or a list: step sizes to compare, say.
        follower: who responds, one or a list; each run has a copy, which starts from scratch.
        iterations: T >= 1, of each run.
        seeds: whole numbers, one of each run; lists must have the same length, and a list of one stands for all.
        device: "cuda", for what is made at once: HPGD's Monte-Carlo estimates by kernels of numba, or ExactGradient by batched LU
            factorisations of torch, in float64 (of which "cpu" is for comparison); None: the cores of this machine.
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
        raise OptionError(f"device is {device!r}; expected the name of a device, such as 'cuda', or None.")
    envs, leaders, followers, numbers = _one_per_run(env, leader, follower, seeds)
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
    results: dict[int, Result] = {}
    batches: list[Batch] = []

    def start(i: int) -> LeaderRun:
        runs.append(LeaderRun(envs[i], leaders[i], _copied(followers[i]), iterations, numbers[i], options, oracle))
        return runs[-1]

    alone = any(isinstance(one, SampledConstraint) for one in constraints)
    at_once = loss is None and oracle is TrajectoryOracle and regularization_schedule is None and not alone
    with closing_on_error(runs):
        for _, alike in groupby(range(len(leaders)), key=lambda i: (id(envs[i]), id(followers[i]))):
            first, *others = alike
            run, batch = start(first), None
            if at_once:
                estimators = [leaders[i].estimator for i in (first, *others)]
                batch = estimators[0].batched(run.oracle, estimators, device)
            if batch is not None:
                batches.append(Batch([run, *map(start, others)], batch, first))
                continue
            for i in (first, *others):
                own = run if i == first else start(i)
                results[i] = complete(own, evaluate_every, callback, callback_every, progress, index=i)
        if batches:
            results |= complete_together(batches, evaluate_every, callback, callback_every, progress)
    return [results[i] for i in range(len(leaders))]


def _one_per_run(env: Any, leader: Any, follower: Any, seeds: Any) -> tuple[list[Any], list[Leader], list[Any], list[Any]]:
    """An environment, a leader, a follower and a seed for every run.

    Neighbouring runs with the same environment, leader and follower share an estimator, never an update.

    Raises:
        OptionError: seeds that are not a list, no seeds or leaders, or lists of different lengths.
    """
    listed = as_list(seeds)
    if not listed:
        raise OptionError(f"seeds is {seeds!r}; expected a list of whole numbers.")
    numbers = [check_count("a seed", seed, 0) for seed in listed]
    given = {"environments": _listed(env), "leaders": _listed(leader), "followers": _listed(follower), "seeds": numbers}
    n_runs = max(map(len, given.values()))
    lengths = {len(values) for values in given.values()} - {1}
    if len(lengths) > 1 or 0 in lengths:
        found = ", ".join(f"{len(values)} {name}" for name, values in given.items() if len(values) != 1)
        raise OptionError(f"there are {found}; expected as many of each as there are runs, or one for all.")
    for one in given["leaders"]:
        if not isinstance(one, Leader):
            raise OptionError(f"a leader is {one!r}; expected a Leader, for example HPGD().")
    envs, leaders, followers, numbers = (values * n_runs if len(values) == 1 else values for values in given.values())
    estimators: dict[Any, Estimator] = {}
    made = []
    for one_env, one, one_follower in zip(envs, leaders, followers, strict=True):
        # bound to what it works with: one for each environment and follower, but one and the same where these are
        estimator = estimators.setdefault((id(one.estimator), id(one_env), id(one_follower)), copy(one.estimator))
        made.append(Leader(estimator, copy(one.update)))
    return envs, made, followers, numbers


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _copied(follower: Any) -> Any:
    """A copy of a follower; `LeaderRun` refuses what is none."""
    return follower.copy() if isinstance(follower, Follower) else follower
