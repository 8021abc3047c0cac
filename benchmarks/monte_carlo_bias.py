"""Bias of the Monte-Carlo hypergradient against the exact one, over batch sizes, with and without the 200-step limit.

``python -m benchmarks.monte_carlo_bias`` stores ``results/monte_carlo_bias.json`` and a plot. For each batch size the mean
of many independent estimates is compared with the exact gradient: relative error of the mean (bias, plus what noise is left
in the mean, reported as its standard error) and of a single estimate.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
import leaders
from benchmarks.common import RESULTS, store
from leaders.gradients import Estimator, ExactEstimator, MonteCarloEstimator

TOTAL_STEPS = 80_000_000  # per batch size and variant
CONTEXT = 0  # the goal far from the marked cell: there long episodes pay the leader
POINTS = ((0.001, 0), (0.005, 1000), (0.005, 5000))  # lambda, exact steps from x_0
BATCHES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
VARIANTS = {
    "200-step limit": {"horizon": 200, "bootstrap": False},
    "200-step limit, bootstrapped": {"horizon": 200, "bootstrap": True},
    "no limit": {"horizon": None, "bootstrap": False},
}


def measure(regularization: float, ascent: int, horizon: int | None, bootstrap: bool) -> list[dict[str, float]]:
    """Relative errors of the Monte-Carlo gradient after ``ascent`` exact steps from x_0 (seed 0), `CONTEXT`, per batch size."""
    env = gym.make("bocmdp/FourRooms-v0", slip_probability=0.44, penalty_cost=1.0, horizon=horizon)
    follower = followers.SoftPolicyIteration(regularization)
    oracle = followers.TrajectoryOracle(env, follower)
    rng = np.random.default_rng(0)
    x = torch.tensor(oracle.core.initial_leader(rng))
    if ascent:
        x = leaders.optimize(env, leaders.ExactGradient(learning_rate=1.0), follower, ascent, x0=x, progress=False).x
    exact_estimator = ExactEstimator()
    exact_estimator.bind(oracle)
    exact = exact_estimator.estimate(oracle, x, CONTEXT, rng).gradient.numpy()
    rows = []
    for batch in BATCHES:
        estimator: Estimator = MonteCarloEstimator(batch, bootstrap_truncated=bootstrap)
        estimator.bind(oracle)
        repeats = max(2, TOTAL_STEPS // batch)
        draws = np.stack([estimator.estimate(oracle, x, CONTEXT, rng).gradient.numpy() for _ in range(repeats)])
        size = np.linalg.norm(exact)
        rows.append(
            {
                "env_steps": batch,
                "repeats": repeats,
                "error_of_mean": float(np.linalg.norm(draws.mean(0) - exact) / size),
                "standard_error_of_mean": float(np.sqrt((draws.var(0, ddof=1) / repeats).sum()) / size),
                "error_of_one_estimate": float(np.linalg.norm(draws - exact, axis=1).mean() / size),
            }
        )
    return rows


def main() -> None:
    results: dict[str, Any] = {}
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    axes = figure.subplots(1, len(POINTS), sharey=True)
    for ax, (regularization, ascent) in zip(axes, POINTS, strict=True):
        title = f"lambda {regularization}, beta 1, after {ascent:,} exact steps"
        cell = results[title] = {}
        for name, options in VARIANTS.items():
            rows = cell[name] = measure(regularization, ascent, **options)
            steps = [row["env_steps"] for row in rows]
            (line,) = ax.loglog(steps, [row["error_of_mean"] for row in rows], "o-", label=name)
            ax.loglog(steps, [row["standard_error_of_mean"] for row in rows], ":", color=line.get_color())
        ax.set(title=title, xlabel="environment steps per estimate")
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("relative error of the mean estimate\n(dotted: its standard error)")
    axes[0].legend(frameon=False)
    figure.savefig(RESULTS / "monte_carlo_bias.png", dpi=130)
    store("monte_carlo_bias", results)


if __name__ == "__main__":
    main()
