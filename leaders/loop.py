"""`optimize`: the outer loop, from x to a better x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from threading import Lock, local
from time import monotonic
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bocmdp_gym import PopulationBOCMDP, TabularBOCMDP
from bocmdp_gym.arguments import known_options
from bocmdp_gym.autodiff import with_gradients
from bocmdp_gym.errors import OptionError
from bocmdp_gym.options import as_list, check_count
from followers import Follower, TrajectoryOracle
from leaders.annealing import Annealing, LambdaSchedule, check_schedule
from leaders.checkpoints import Checkpoints
from leaders.constraints import Constraint
from leaders.gradients import Loss
from leaders.leaders import Leader
from leaders.objectives import Objective, as_objective
from leaders.result import Callback, Result
from leaders.run import LeaderRun, OracleFactory, RunOptions
from leaders.run_arguments import check_options, check_period
from leaders.sampled_constraints import SampledConstraint

#: Runs that end before this show no progress bar, in seconds.
_QUIET_SECONDS = 2.0
_MANY = dict.fromkeys(("device", "seeds", "leaders"), "it makes one run, and leaders.optimize_many has it.")


@known_options(elsewhere=_MANY)
@with_gradients
def optimize(
    env: gym.Env[Any, Any] | TabularBOCMDP | PopulationBOCMDP,
    leader: Leader,
    follower: Follower,
    iterations: int,
    *,
    seed: int | np.random.Generator = 0,
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
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Result:
    """Run a leader against a follower: draw xi ~ P_xi, estimate dF_xi/dx, move x; ``iterations`` times.

    Many seeds, or leaders to compare, are runs of `leaders.optimize_many`.

    Args:
        env: a configurable environment, a `TabularBOCMDP`, or a `PopulationBOCMDP`.
        leader: estimator and update.
        follower: who responds.
        iterations: T >= 1.
        seed: all randomness of the run comes from this seed or generator; equal seeds give equal numbers, bit for bit.
        x0: where to start, ``(d,)``; the environment's ``initial_leader(rng)`` if None.
        loss: a differentiable f(x, policy (S, A), context), minimised instead of maximising the leader's return.
        objective: what is made of the contexts' returns F_1..F_C (`leaders.objectives`): Min, CVaR, SoftMin, ..., or any function
            of them ``(C,)`` that torch can differentiate; the mean, E_xi F_xi, if None. Its value is the run's leader return.
        constraints: on outcomes, by an augmented Lagrangian: exact ones of tabular problems (`leaders.constraints`), or sampled
            ones of any (`leaders.sampled_constraints`).
        constraint_penalty: rho of the augmented Lagrangian: larger presses harder, and too large overshoots.
        contexts: contexts drawn per iteration, whose estimates are averaged; "all": every one of finitely many, weighted by
            its probability.
        regularization_schedule: the follower's lambda over the iterations (`leaders.annealing`), for followers whose lambda may
            change: ``leaders.Annealing(0.1)`` begins with 0.1 and ends with the follower's own, which the results are about; or a
            function of (iteration, iterations).
        oracle: how env and follower are put together; ``functools.partial(RayOracle, workers=4)`` for slow followers, whose
            responses in the contexts of an iteration are then made at the same time.
        evaluate_every: iterations between computations of the exact leader return (tabular models).
        callback: called with a `Progress` after the first iteration, after the last and, between them, as ``callback_every``
            says; if it returns True, the run stops there, and its result says so.
        callback_every: iterations from call to call, or the time that has to pass, ``datetime.timedelta(seconds=10)``; None:
            ``evaluate_every`` iterations.
        checkpoints: where and how often to save the run, which owns the folder meanwhile; SIGTERM, SIGINT (Ctrl-C; a second one
            interrupts at once) and SIGHUP then end it with a checkpoint.
        resume: continue from the newest checkpoint, if there is one.
        progress: show a progress bar; None: for a run that takes longer than two seconds.

    Returns:
        The run's `Result`.

    Raises:
        OptionError, UnsupportedError, RegularizationError: settings that cannot work together, before anything runs.
        CheckpointError: the newest checkpoint is damaged or of another run (what differs is named), or one cannot be written.
        ConvergenceError: a gradient that is not finite, naming the iteration, x and the last good checkpoint.
        FolderInUseError: another process has a run in the folder of checkpoints.
        RunInterruptedError: a signal asked the run to stop, and it was saved.
    """
    _refuse_lists(leader, seed)
    evaluate_every = check_count("evaluate_every", evaluate_every)
    callback_every = check_period(callback_every, evaluate_every)
    check_options(
        loss=loss,
        constraints=constraints,
        constraint_penalty=constraint_penalty,
        oracle=oracle,
        callback=callback,
        checkpoints=checkpoints,
        resume=resume,
        progress=progress,
    )
    if resume and checkpoints is None:
        raise OptionError("resume=True needs checkpoints=, the folder to resume from.")
    options = RunOptions(
        x0=x0,
        loss=loss,
        objective=as_objective(objective),
        constraints=constraints,
        constraint_penalty=constraint_penalty,
        contexts=contexts,
        regularization_schedule=check_schedule(regularization_schedule),
    )
    run = LeaderRun(env, leader, follower, iterations, seed, options, oracle)
    # a run that cannot be made leaves no folder
    with closing_on_error([run]), nullcontext() if checkpoints is None else checkpoints.owned():
        if checkpoints is not None:
            checkpoints.identity = run.identity(evaluate_every)
            if not resume:
                checkpoints.begin()
            elif (saved := checkpoints.latest()) is not None:
                run.load_state(saved)
        return complete(run, evaluate_every, callback, callback_every, progress, checkpoints)


@contextmanager
def closing_on_error(runs: list[LeaderRun]) -> Iterator[None]:
    """Close the oracles of runs, and end their workers, if the block raises; otherwise they are the caller's."""
    try:
        yield
    except BaseException:
        for run in runs:
            run.oracle.close()
        raise


def complete(
    run: LeaderRun,
    evaluate_every: int,
    callback: Callback | None,
    callback_every: int | timedelta,
    progress: bool | None,
    checkpoints: Checkpoints | None = None,
    index: int = 0,
) -> Result:
    """Make all iterations that a run has left; ``index`` is its number among many, the rest as for `optimize`."""
    stoppable = nullcontext() if checkpoints is None else checkpoints.stop_on_signals()
    calls = Calls(callback_every, run.iterations)
    with one_torch_thread(), stoppable, progress_bar(run.iterations, progress, run.done) as bar:
        if checkpoints is not None and checkpoints.last is None:
            checkpoints.save(run.done, run.state(), run.history)
        while not run.finished:
            due = run.done % evaluate_every == 0 or run.done == run.iterations - 1
            record = run.iterate(due, checkpoints)
            if "leader_return" in record:
                bar.set_postfix_str(f"leader return {record['leader_return']:.4f}", refresh=False)
            if callback is not None and calls.due(run.done - 1):
                run.report(callback, index)
            if checkpoints is not None and (checkpoints.due(run.done) or run.stopped):
                checkpoints.save(run.done, run.state(), run.history)
                checkpoints.stop_if_asked()
            bar.update()
    return run.result()


def progress_bar(total: int, progress: bool | None, done: int = 0) -> tqdm[Any]:
    """A bar over ``total`` iterations; ``progress`` as for `optimize`."""
    delay = _QUIET_SECONDS if progress is None else 0.0
    return tqdm(total=total, initial=done, unit="it", disable=progress is False, delay=delay)


class Calls:
    """When callbacks are due.

    Args:
        every: iterations, or time, from call to call.
        iterations: of the run.
    """

    def __init__(self, every: int | timedelta, iterations: int):
        self._every, self._last = every, iterations - 1
        self._called: float | None = None

    def due(self, iteration: int) -> bool:
        """Whether a call is due after this iteration; to be asked after each."""
        if isinstance(self._every, int):
            return iteration % self._every == 0 or iteration == self._last
        now = monotonic()
        if self._called is None or now - self._called >= self._every.total_seconds():
            self._called = now
            return True
        return iteration == self._last


class _TorchThreads:
    """How many threads torch works with: each thread has its own number, and begins with the one that any set last."""

    def __init__(self) -> None:
        self._lock, self._runs, self._before, self._here = Lock(), 0, 1, local()

    @contextmanager
    def one(self) -> Iterator[None]:
        """One, for as long as a run lasts: its tensors are small, so threads would only wait for each other.

        Afterwards it is what it was before the first of the runs that overlap.
        """
        if getattr(self._here, "inside", False):  # a run that another one's callback makes
            yield
            return
        self._here.inside = True
        with self._lock:
            threads = torch.get_num_threads()  # asked in every thread: the first time, it takes over what others set last
            if self._runs == 0:
                self._before = threads
            self._runs += 1
        torch.set_num_threads(1)
        try:
            yield
        finally:
            self._here.inside = False
            with self._lock:
                self._runs -= 1
                torch.set_num_threads(self._before)


one_torch_thread = _TorchThreads().one


def _refuse_lists(leader: Any, seed: Any) -> None:
    """Refuse lists where `optimize` takes one.

    Raises:
        OptionError: naming what to use instead.
    """
    if isinstance(leader, Sequence):
        raise OptionError("leader is a list, and optimize makes one run; use leaders.optimize_many(env, [leader, ...], ...).")
    if as_list(seed) is not None:
        raise OptionError(f"seed is {seed!r}, and optimize makes one run; use leaders.optimize_many(..., seeds=[...]).")
