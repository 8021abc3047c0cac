"""Runs that make their iterations together (`leaders.gradients.batch`): while some are estimated, others are moved."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from bocmdp_gym.threads import available_threads
from leaders.gradients.batch import BatchEstimator, Pending
from leaders.gradients.estimate import WeightedContexts
from leaders.loop import Calls, one_torch_thread, progress_bar
from leaders.result import Callback, Result
from leaders.run import LeaderRun

#: Fewer runs than this are moved all together.
_FEWEST_TO_SPLIT = 8


class Batch(NamedTuple):
    """Runs that share a batch estimator."""

    runs: list[LeaderRun]
    estimator: BatchEstimator
    first: int  # the number of the first run among the results; the others follow


class _Group:
    """Neighbouring runs of a batch, which make their iterations together."""

    def __init__(self, batch: Batch, own: slice):
        self.runs, self.first = batch.runs[own], batch.first + own.start
        self._estimator, self._own = batch.estimator, own
        self._drawn: list[WeightedContexts] = [[] for _ in self.runs]
        self._pending: Pending = list
        self._weigh = None if self.runs[0].coupling is None else self._weighed

    @property
    def finished(self) -> bool:
        return all(run.finished for run in self.runs)

    def begin(self) -> None:
        """Begin the next iteration. A run that its callback stopped keeps its place, and is not moved any more."""
        self._drawn = [before if run.finished else run.draw() for run, before in zip(self.runs, self._drawn, strict=True)]
        x = np.stack([run.point.numpy() for run in self.runs])
        self._pending = self._estimator.begin(self._own, x, self._drawn, [run.rng for run in self.runs], self._weigh)

    def finish(self, due: bool, callback: Callback | None) -> int:
        """Wait for the iteration's estimates, and move along them. Returns how many runs were moved."""
        moved, found = 0, zip(self.runs, self._drawn, self._pending(), strict=True)
        for number, (run, contexts, estimate) in enumerate(found, start=self.first):
            if run.finished:
                continue
            run.oracle.count_steps(estimate.env_steps)
            run.take(contexts, estimate, due, None, f" of run {number}")
            moved += 1
            if callback is not None:
                run.report(callback, number)
        return moved

    def _weighed(self, b: int, contexts: WeightedContexts, returns: Sequence[float]) -> tuple[list[float], float]:
        coupling = self.runs[b - self._own.start].coupling
        assert coupling is not None
        return coupling.weigh(contexts, returns)


def _groups(batches: list[Batch]) -> list[_Group]:
    """The batches, of one alone its halves: so that there are two where there is something to gain."""
    if len(batches) > 1 or len(batches[0].runs) < _FEWEST_TO_SPLIT:
        return [_Group(batch, slice(0, len(batch.runs))) for batch in batches]
    (batch,) = batches
    half = -(-len(batch.runs) // 2)
    return [_Group(batch, slice(0, half)), _Group(batch, slice(half, len(batch.runs)))]


def complete_together(
    batches: list[Batch],
    evaluate_every: int,
    callback: Callback | None,
    callback_every: int | timedelta,
    progress: bool | None,
) -> dict[int, Result]:
    """Make all runs in step. Returns the results by number."""
    runs = [run for batch in batches for run in batch.runs]
    iterations = runs[0].iterations
    results: dict[int, Result] = {}
    for run in runs:
        run.share = 1.0 / len(runs)
    groups, calls = _groups(batches), Calls(callback_every, iterations)
    threads = ThreadPoolExecutor(min(available_threads(), len(runs)))
    with one_torch_thread(), threads as pool, progress_bar(iterations * len(runs), progress) as bar:
        for batch in batches:
            batch.estimator.pool, batch.estimator.first = pool, batch.first
        for group in groups:
            group.begin()
        for iteration in range(iterations):
            due = iteration % evaluate_every == 0 or iteration == iterations - 1
            called = callback is not None and calls.due(iteration)
            for group in groups:
                bar.update(group.finish(due, callback if called else None))
                for number, run in enumerate(group.runs, start=group.first):
                    if run.finished and number not in results:
                        results[number] = run.result()
                if not group.finished:
                    group.begin()
            if due:
                mean = float(np.mean([run.history[-1].get("leader_return", np.nan) for run in runs]))
                bar.set_postfix_str(f"mean leader return {mean:.4f}", refresh=False)
            groups = [group for group in groups if not group.finished]
            if not groups:
                break
    return results
