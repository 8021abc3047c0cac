"""Sample efficiency on Four-Rooms: error of the gradient and the leader's value, against follower steps per update.

``python -m benchmarks.sample_efficiency [PART ...]`` stores, for each part, a JSON file and a table in ``results/``:

- ``steps``: three cells of the paper's table over steps per update (``sample_efficiency.json``, with a plot);
- ``cells``: all nine cells at 1,000 steps per update, Monte-Carlo at 10,000 beside it (``sample_efficiency_cells.json``).

Each estimator makes its own runs of HPGD. Every few iterations its gradient is compared with the exact one at the same x and
context, before clipping: the relative error (one that always answers 0 has error 1) and the cosine are averaged along the run,
and again after its first tenth, in which the pooled estimator knows little. The leader's value is exact, at the last x. Steps are
those asked for; the last episode of an update is finished on top (20 to 60 steps here, all counted in the JSON file).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import RESULTS, store
from leaders.gradients import Estimate, ExactEstimator, Loss, MonteCarloEstimator, PolicyEstimator, PooledEstimator
from leaders.updates import Update

#: lambda, beta, learning rate of all leaders.
CELLS = ((0.001, 1.0, 0.5), (0.003, 3.0, 0.5), (0.005, 1.0, 0.1))
STEPS = (100, 200, 400, 1_000, 10_000)
ALL_CELLS = tuple((lam, beta, rate) for lam, rate in ((0.001, 0.5), (0.003, 0.5), (0.005, 0.1)) for beta in (1.0, 3.0, 5.0))
BESIDE = (("Monte-Carlo", 10_000), ("pooled", 1_000), ("pooled, contexts too", 1_000))
SEEDS = 5
ITERATIONS = 2_000
LONG_ITERATIONS, LONG_STEPS = 10_000, 1_000  # the paper's number of updates, at the steps a target is set for
COMPARE_EVERY = 5
ESTIMATORS: dict[str, Callable[[int], PolicyEstimator]] = {
    "Monte-Carlo": lambda steps: MonteCarloEstimator(steps),
    "pooled": lambda steps: PooledEstimator(steps),
    "pooled, contexts too": lambda steps: PooledEstimator(steps, share_contexts=True),
}
COLOURS = {"Monte-Carlo": "#b0413e", "pooled": "#2668be", "pooled, contexts too": "#3d8b5f"}


class Compared(PolicyEstimator):
    """An estimator whose every few estimates are compared with the exact gradient; the numbers go into the history."""

    needs_model = True

    def __init__(self, estimator: PolicyEstimator):
        super().__init__()
        self.compared, self._exact, self._calls = estimator, ExactEstimator(), 0

    def bind(self, oracle: followers.TrajectoryOracle, loss: Loss | None = None) -> None:
        for estimator in (super(), self.compared, self._exact):
            estimator.bind(oracle, loss)
        self._calls = 0

    def estimate_policy(
        self, oracle: followers.TrajectoryOracle, policy: followers.Policy, x: Tensor, context: Any, rng: np.random.Generator
    ) -> Estimate:
        estimate = self.compared.estimate_policy(oracle, policy, x, context, rng)
        if self._calls % COMPARE_EVERY == 0:
            exact, found = self._exact.estimate(oracle, x, context, rng).gradient.numpy(), estimate.gradient.numpy()
            norm, size = np.linalg.norm(exact), np.linalg.norm(found)
            estimate.metrics["relative_error"] = float(np.linalg.norm(found - exact) / norm)
            estimate.metrics["cosine"] = float(found @ exact / (norm * size)) if size > 0.0 else 0.0
        self._calls += 1
        return estimate


def environment(penalty_cost: float) -> gym.Env[Any, Any]:
    """Four-Rooms with the published table's dynamics."""
    return gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=penalty_cost)


def one_run(cell: tuple[float, float, float], estimator: PolicyEstimator, iterations: int, seed: int) -> dict[str, float]:
    """One run of HPGD with this estimator."""
    regularization, penalty_cost, learning_rate = cell
    leader = leaders.Leader(Compared(estimator), Update(learning_rate, max_gradient_norm=1.0))
    result = leaders.optimize(
        environment(penalty_cost),
        leader,
        followers.SoftPolicyIteration(regularization),
        iterations,
        seed=seed,
        evaluate_every=iterations,
        progress=False,
    )
    error, cosine = (result.history[name][::COMPARE_EVERY] for name in ("relative_error", "cosine"))
    late = len(error) // 10
    assert result.leader_return is not None
    return {
        "relative_error": float(error.mean()),
        "median_relative_error": float(np.median(error)),
        "cosine": float(cosine.mean()),
        "relative_error_after_first_tenth": float(error[late:].mean()),
        "cosine_after_first_tenth": float(cosine[late:].mean()),
        "leader_return": result.leader_return,
        "env_steps_per_update": result.env_steps / iterations,
    }


def exact_return(cell: tuple[float, float, float], seed: int) -> float:
    """Where as many exact steps lead."""
    regularization, penalty_cost, learning_rate = cell
    follower, leader = followers.SoftPolicyIteration(regularization), leaders.ExactGradient(learning_rate)
    result = leaders.optimize(environment(penalty_cost), leader, follower, ITERATIONS, seed=seed, progress=False)
    assert result.leader_return is not None
    return result.leader_return


def summary(values: list[float]) -> dict[str, float]:
    """Mean over seeds, its standard error, and the worst seeds."""
    found = np.array(values)
    error = float(found.std(ddof=1) / len(found) ** 0.5)
    return {"mean": float(found.mean()), "standard_error": error, "min": float(found.min()), "max": float(found.max())}


def measure(cell: tuple[float, float, float], name: str, steps: int, iterations: int) -> dict[str, Any]:
    """All seeds of one estimator, every number summarised."""
    runs = [one_run(cell, ESTIMATORS[name](steps), iterations, seed) for seed in range(SEEDS)]
    return {key: summary([run[key] for run in runs]) for key in runs[0]}


def picture(results: dict[str, Any]) -> Figure:
    """Error, 1 - cosine and leader's value, per cell."""
    figure = Figure(figsize=(4.6 * len(CELLS), 9.6), layout="constrained")
    axes = figure.subplots(3, len(CELLS), sharex=True, sharey="row", squeeze=False)
    shown = (("relative_error", 0.3), ("cosine", 0.05), ("leader_return", None))
    for column, (name_of_cell, found) in enumerate(results.items()):
        for ax, (key, target) in zip(axes[:, column], shown, strict=True):
            for name in ESTIMATORS:
                points = [found[name][str(steps)][key] for steps in STEPS]
                mean, error = (np.array([p[part] for p in points]) for part in ("mean", "standard_error"))
                mean = 1.0 - mean if key == "cosine" else mean
                ax.errorbar(STEPS, mean, error, fmt="o-", color=COLOURS[name], capsize=3, label=name)
            ax.set_xscale("log")
            ax.grid(alpha=0.25)
            if target is not None:
                ax.set_yscale("log")
                ax.axhline(target, color="black", linestyle=":", linewidth=1, label="target at 1,000 steps")
                ax.axvline(1_000, color="black", linestyle=":", linewidth=0.5)
            else:
                ax.axhline(found["exact"]["mean"], color="black", linestyle="--", linewidth=1, label="exact gradient")
                ax.set_xlabel("follower steps per update")
        axes[0, column].set_title(name_of_cell)
    labels = (
        "relative error of the gradient",
        "1 - cosine with the exact gradient",
        f"leader's value after {ITERATIONS:,} updates",
    )
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    axes[0, 0].legend(frameon=False, fontsize=9)
    axes[2, 0].legend(frameon=False, fontsize=9)
    return figure


def rows(groups: list[tuple[str, dict[str, Any]]], first: str) -> str:
    """Means over seeds in Markdown, one row per (name, summaries)."""
    keys = ("relative_error", "relative_error_after_first_tenth", "cosine", "cosine_after_first_tenth")
    header = (first, "relative error", "after the first tenth", "cosine", "after the first tenth", "leader's value")
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for name, row in groups:
        value = "{mean:.3f} ± {standard_error:.3f}".format(**row["leader_return"])
        lines.append(f"| {name} | " + " | ".join([*(f"{row[key]['mean']:.3f}" for key in keys), value]) + " |")
    return "\n".join(lines) + "\n"


def title(cell: tuple[float, float, float]) -> str:
    """A cell's name."""
    return "lambda {}, beta {:g}".format(*cell)


def steps() -> None:
    """Three cells over steps per update."""
    results: dict[str, Any] = {}
    long: dict[str, Any] = {}
    tables = []
    with tqdm(total=len(CELLS) * (len(ESTIMATORS) * len(STEPS) + 1)) as bar:
        for cell in CELLS:
            name = title(cell)
            found = results[name] = {"exact": summary([exact_return(cell, seed) for seed in range(SEEDS)])}
            groups = []
            for estimator in ESTIMATORS:
                found[estimator] = {}
                for n in STEPS:
                    found[estimator][str(n)] = measure(cell, estimator, n, ITERATIONS)
                    groups.append((f"{estimator}, {n:,} steps", found[estimator][str(n)]))
                    bar.update()
            long[name] = measure(cell, "pooled", LONG_STEPS, LONG_ITERATIONS)
            groups.append((f"pooled, {LONG_STEPS:,} steps, {LONG_ITERATIONS:,} updates", long[name]))
            bar.update()
            tables.append(
                f"{name}; leader's value with exact gradients {found['exact']['mean']:.3f}\n\n{rows(groups, 'estimator')}"
            )
    picture(results).savefig(RESULTS / "sample_efficiency.png", dpi=130)
    (RESULTS / "sample_efficiency.md").write_text("\n".join(tables))
    settings = {"iterations": ITERATIONS, "seeds": SEEDS, "learning rates": [cell[2] for cell in CELLS]}
    store("sample_efficiency", {**settings, "cells": results, f"pooled, {LONG_ITERATIONS} updates of {LONG_STEPS} steps": long})


def cells() -> None:
    """All cells at the steps a target is set for."""
    results: dict[str, Any] = {}
    groups = []
    with tqdm(total=len(ALL_CELLS) * len(BESIDE)) as bar:
        for cell in ALL_CELLS:
            for estimator, n in BESIDE:
                name = f"{title(cell)}, {estimator}, {n:,} steps"
                results[name] = measure(cell, estimator, n, ITERATIONS)
                groups.append((name, results[name]))
                bar.update()
    (RESULTS / "sample_efficiency_cells.md").write_text(rows(groups, "cell, estimator"))
    settings = {"iterations": ITERATIONS, "seeds": SEEDS, "learning rates": [cell[2] for cell in ALL_CELLS]}
    store("sample_efficiency_cells", {**settings, "rows": results})


PARTS = {"steps": steps, "cells": cells}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
