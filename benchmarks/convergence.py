"""Theorem 2.5 seen: the squared gradient norm of the uniformly drawn iterate, against T and against the follower's delta.

``python -m benchmarks.convergence`` stores ``results/convergence.json`` and a plot. HPGD with Algorithm 1 (geometric draws, nu
uniform) minimises a general loss on a random MDP in which rewards, transitions and the start depend on x.

- *Rate*: an exact follower and step sizes alpha = 1/sqrt(T). The theorem bounds E|dF(x_hat)/dx|^2 by O(1/sqrt(T)): slope -1/2 in
  logarithms. The expectation over x_hat, uniform on x_0..x_{T-1}, is taken as the mean over 64 evenly spaced iterates of each
  run; the square at the one iterate each run drew itself is reported beside it.
- *Floor*: a follower that learns with N updates of soft Q-learning, begun afresh every time, and stops. The mean over the second
  half of a long run stays above 0 the more, the further its policy is from the optimum (delta = root mean square of
  max |pi - pi*|, measured in every iteration).
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import bocmdp_gym
import followers
import leaders
from benchmarks.common import RESULTS, store
from leaders.gradients import GeometricEstimator
from leaders.updates import Update

REGULARIZATION = 1.0
HORIZONS = (256, 1024, 4096, 16_384, 65_536)  # T
RUNS = 8
STEP = 2.0  # alpha sqrt(T)
UPDATES = (10, 30, 100, 300, 1000, 3000, 10_000)
FLOOR_ITERATIONS, FLOOR_SAMPLES, FLOOR_STEP = 1000, 4000, 0.05


def loss(x: Tensor, policy: Tensor, context: int) -> Tensor:
    """A general f(x, pi): x is wanted at 1, and the policy deterministic in favour of action 0."""
    del context
    return (x - 1.0).square().sum() / 10 - policy[:, 0].square().sum() / 2


def problem() -> Any:
    return gym.make("bocmdp/RandomMDP-v0", seed=0, n_states=5, n_actions=3, n_contexts=2, discount=0.6, leader_dim=4)


MODEL = bocmdp_gym.configurable(problem()).model


def squared_norm(x: Tensor) -> float:
    """|dF/dx|^2, exactly."""

    def total(z: Tensor) -> Tensor:
        return MODEL.loss(z, loss, regularization=REGULARIZATION)

    return float(torch.func.grad(total)(x).square().sum())


def run(
    iterations: int,
    step: float,
    samples: int,
    follower: followers.Follower,
    seed: int,
    every: int,
    contexts: int | Literal["all"] = 1,
) -> tuple[Any, list[Tensor]]:
    """A run, and its iterates x_1, x_{1 + every}, x_{1 + 2 every}, ..."""
    iterates: list[Tensor] = []
    leader = leaders.Leader(GeometricEstimator(samples), Update(step, max_gradient_norm=None))
    result = leaders.optimize(
        problem(),
        leader,
        follower,
        iterations,
        seed=seed,
        x0=np.zeros(4),
        loss=loss,
        contexts=contexts,
        evaluate_every=every,
        callback=lambda progress: iterates.append(progress.x.clone()),
        progress=False,
    )
    return result, iterates


def rate() -> dict[str, Any]:
    rows = []
    for horizon in HORIZONS:
        means, drawn = [], []
        for seed in range(RUNS):
            follower = followers.SoftPolicyIteration(REGULARIZATION)
            result, iterates = run(horizon, STEP / horizon**0.5, 20, follower, seed, horizon // 64)
            means.append(np.mean([squared_norm(x) for x in iterates]))
            drawn.append(squared_norm(result.x_random))
        rows.append(
            {
                "T": horizon,
                "squared_norm": float(np.mean(means)),
                "standard_error": float(np.std(means, ddof=1) / RUNS**0.5),
                "squared_norm_of_drawn_iterates": float(np.mean(drawn)),
            }
        )
    logs = np.log([[row["T"], row["squared_norm"]] for row in rows])
    slope, intercept = np.polyfit(logs[:, 0], logs[:, 1], 1)
    return {"rows": rows, "slope": float(slope), "intercept": float(intercept)}


def floor() -> list[dict[str, float]]:
    rows = []
    for updates in (*UPDATES, None):
        follower: followers.Follower = followers.SoftPolicyIteration(REGULARIZATION)
        if updates is not None:
            follower = followers.SoftQLearning(REGULARIZATION, iterations=updates, warm_start=False)
        result, iterates = run(FLOOR_ITERATIONS, FLOOR_STEP, FLOOR_SAMPLES, follower, 0, 10, contexts="all")
        second_half = iterates[len(iterates) // 2 :]
        delta = 0.0
        if updates is not None:
            delta = float(np.sqrt(np.mean(result.history["follower_delta"][FLOOR_ITERATIONS // 2 :] ** 2)))
        value = float(np.mean([squared_norm(x) for x in second_half]))
        rows.append({"updates": -1 if updates is None else updates, "delta": delta, "squared_norm": value})
    return rows


def plot(rates: dict[str, Any], floors: list[dict[str, float]]) -> None:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    horizons = np.array([row["T"] for row in rates["rows"]], dtype=float)
    values = [row["squared_norm"] for row in rates["rows"]]
    left.errorbar(horizons, values, [row["standard_error"] for row in rates["rows"]], fmt="o", label="measured, exact follower")
    fitted = np.exp(rates["intercept"]) * horizons ** rates["slope"]
    left.plot(horizons, fitted, "-", alpha=0.6, label=f"fitted slope {rates['slope']:.2f}")
    left.plot(horizons, values[0] * (horizons / horizons[0]) ** -0.5, "k:", label="slope -1/2 (Theorem 2.5)")
    left.set(
        xscale="log", yscale="log", xlabel="outer iterations T (step size 1/sqrt(T))", ylabel="E |dF/dx|² at the drawn iterate"
    )
    inexact, exact = floors[:-1], floors[-1]
    deltas = np.array([row["delta"] for row in inexact])
    right.loglog(deltas, [row["squared_norm"] for row in inexact], "o-", label="soft Q-learning cut after N updates")
    for row in inexact:
        right.annotate(
            f"N = {row['updates']:,}", (row["delta"], row["squared_norm"]), (6, -10), textcoords="offset points", fontsize=8
        )
    right.axhline(exact["squared_norm"], color="gray", linestyle=":", label="exact follower (noise of the steps)")
    right.set(xlabel="the follower's delta = max |π − π*|", ylabel="mean |dF/dx|² over the second half")
    for ax in (left, right):
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=9)
    figure.savefig(RESULTS / "convergence.png", dpi=130)


def main() -> None:
    rates, floors = rate(), floor()
    plot(rates, floors)
    settings = {"runs": RUNS, "samples": 20, "floor_iterations": FLOOR_ITERATIONS, "floor_samples": FLOOR_SAMPLES}
    store("convergence", {"settings": settings, "rate": rates, "floor": floors})


if __name__ == "__main__":
    main()
