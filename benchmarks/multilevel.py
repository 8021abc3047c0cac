"""Randomised multilevel Monte Carlo (paper, C.2) against the plain estimator: follower iterations, mean and variance.

``python -m benchmarks.multilevel`` stores ``results/multilevel.json`` and a plot. For K = 4..12 the multilevel estimator is
compared with the geometric estimator after 2^K updates of soft Q-learning, begun afresh for every estimate: follower
iterations per estimate, the distance of the two means in standard errors, and the variance of one estimate.

What is seen: iterations grow by about 2 per level instead of doubling, and the means agree. The variance grows with K, while the
plain estimator's stays: draws for the two policies of a pair part ways with a probability of the order of the policies'
distance, which falls more slowly than p_k. At equal variance the plain estimator needs fewer iterations here
(``variance_times_iterations``): the scheme pays where a follower's iterations cost far more than draws and noise is cheap.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure

import bocmdp_gym  # noqa: F401 - registers the environments
import followers
from benchmarks.common import RESULTS, store
from leaders.gradients import Estimator, ExactEstimator, GeometricEstimator, MultilevelEstimator

LEVELS = range(4, 13)
RUNS = 3000
SAMPLES = 1000
REGULARIZATION = 1.0


def problem() -> Any:
    return gym.make("bocmdp/RandomMDP-v0", seed=0, n_states=4, n_actions=3, n_contexts=1, discount=0.5, leader_dim=3)


def draws(estimator: Estimator, follower: followers.Follower) -> tuple[torch.Tensor, float]:
    """Independent estimates ``(RUNS, d)``, and the follower's iterations per estimate."""
    oracle = followers.TrajectoryOracle(problem(), follower)
    estimator.bind(oracle)
    rng, x = np.random.default_rng(0), torch.full((3,), 0.5, dtype=torch.float64)
    estimates = [estimator.estimate(oracle, x, 0, rng) for _ in range(RUNS)]
    return torch.stack([e.gradient for e in estimates]), float(np.mean([e.metrics["follower_iterations"] for e in estimates]))


def measure(levels: int, exact: torch.Tensor) -> dict[str, float]:
    follower = followers.SoftQLearning(REGULARIZATION, iterations=2**levels, warm_start=False)
    multilevel, iterations = draws(MultilevelEstimator(levels, SAMPLES), follower)
    plain, plain_iterations = draws(GeometricEstimator(SAMPLES), follower)
    error = ((multilevel.var(0) + plain.var(0)) / RUNS).sqrt()
    size = float(exact.square().sum())
    return {
        "levels": levels,
        "iterations": iterations,
        "plain_iterations": plain_iterations,
        "deviation_in_standard_errors": float(((multilevel.mean(0) - plain.mean(0)).abs() / error).max()),
        "relative_variance": float(multilevel.var(0).sum()) / size,
        "plain_relative_variance": float(plain.var(0).sum()) / size,
        "variance_times_iterations": float(multilevel.var(0).sum()) / size * iterations,
        "plain_variance_times_iterations": float(plain.var(0).sum()) / size * plain_iterations,
        "plain_relative_bias": float((plain.mean(0) - exact).norm()) / size**0.5,
    }


def main() -> None:
    oracle, exact = followers.TrajectoryOracle(problem(), followers.SoftPolicyIteration(REGULARIZATION)), ExactEstimator()
    exact.bind(oracle)
    gradient = exact.estimate(oracle, torch.full((3,), 0.5, dtype=torch.float64), 0, np.random.default_rng(0)).gradient
    rows = [measure(levels, gradient) for levels in LEVELS]
    slope, intercept = np.polyfit([row["levels"] for row in rows], [row["iterations"] for row in rows], 1)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = list(LEVELS)
    left.semilogy(levels, [row["iterations"] for row in rows], "o-", label="multilevel, measured")
    left.semilogy(levels, [2 * (k - 1) / (1 - 0.5 ** (k - 1)) for k in levels], "k:", label="2 (K - 1) / (1 - 2^-(K-1))")
    left.semilogy(levels, [row["plain_iterations"] for row in rows], "s-", label="plain: 2^K")
    left.set(xlabel="levels K", ylabel="follower iterations per estimate")
    right.semilogy(levels, [row["relative_variance"] for row in rows], "o-", label="multilevel")
    right.semilogy(levels, [row["plain_relative_variance"] for row in rows], "s-", label="plain, after 2^K iterations")
    right.semilogy(levels, [row["plain_relative_bias"] ** 2 for row in rows], "k:", label="squared bias of both")
    right.set(xlabel="levels K", ylabel="variance of one estimate / |dF/dx|²")
    for ax in (left, right):
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=9)
    figure.savefig(RESULTS / "multilevel.png", dpi=130)
    settings = {"runs": RUNS, "samples": SAMPLES}
    store("multilevel", {"settings": settings, "rows": rows, "iterations_per_level": float(slope), "intercept": float(intercept)})


if __name__ == "__main__":
    main()
