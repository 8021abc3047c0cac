"""Tax design: convergence in the grid size, what interpolation costs, and the optimum from several starts.

``python -m benchmarks.tax_design`` stores ``results/tax_design.json`` and ``results/tax_design.png``. Errors are relative to the
finest grid of `SIZES`. The optimum is sought from `STARTS` points x_0 ~ N(0, 1) by the exact gradient of the model with
`COARSE` grid points, goes on from the best of them with `FINE` points, and is valued with the finest grid.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import followers
import leaders
from benchmarks.common import RESULTS, store
from bocmdp_gym.envs import TaxDesign
from followers.evaluation import policy_values
from leaders.gradients.exact import leader_values

SIZES = (21, 41, 81, 161, 321)
LAMBDAS = (0.1, 0.2, 0.3)
X = np.array([1.4, -1.0, -2.0, 0.0])  # income tax 0.80, VAT 0.54, 0.24, 1.00: near the optimum, off its bounds
CONTEXT = 0
STARTS, COARSE, FINE, ITERATIONS, LEARNING_RATE = 10, 41, 101, 200, 0.2


def convergence(regularization: float) -> list[dict[str, float]]:
    """Errors of the leader's value and gradient at `X` per grid size, and of the grid's policy played between its points."""
    finest = TaxDesign(grid_size=SIZES[-1])
    arrays = finest.model.configure(X).arrays(CONTEXT)
    rows, solved = [], []
    for size in SIZES:
        env = TaxDesign(grid_size=size)
        oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(regularization))
        began = perf_counter()
        rng = np.random.default_rng(0)
        gradient = leaders.ExactGradient().estimate(oracle, X, CONTEXT, rng).numpy()
        seconds = perf_counter() - began
        policy = oracle.respond(X, CONTEXT, rng)
        value = leader_values(oracle.configure(X).arrays(CONTEXT), policy.table).leader_return  # type: ignore[attr-defined]
        assert isinstance(policy, followers.InterpolatedPolicy)
        table = policy.probabilities_batch(finest.model.grid[:, None])
        played = leader_values(arrays, table).leader_return
        follower = float(arrays.initial @ policy_values(arrays, table, regularization).value)
        solved.append((value, gradient, played, follower))
        rows.append({"grid_size": size, "seconds": seconds, "leader_return": value})
    value, gradient, _, follower = solved[-1]
    for row, (v, g, p, f) in zip(rows, solved, strict=True):
        row["error_of_value"] = abs(v - value) / abs(value)
        row["error_of_gradient"] = float(np.linalg.norm(g - gradient) / np.linalg.norm(gradient))
        row["interpolation_leader"] = abs(p - value) / abs(value)
        row["interpolation_follower"] = (follower - f) / abs(follower)
    return rows


def _ascend(size: int, regularization: float, x0: Any) -> Any:
    leader = leaders.ExactGradient(LEARNING_RATE, optimizer="Adam", max_gradient_norm=None)
    follower = followers.SoftPolicyIteration(regularization)
    env = TaxDesign(grid_size=size)
    return leaders.optimize(env, leader, follower, ITERATIONS, contexts="all", x0=x0, evaluate_every=ITERATIONS, progress=False)


def optimum(regularization: float) -> dict[str, Any]:
    """The best of `STARTS` ascents, and what each of them reached."""
    env = TaxDesign(grid_size=COARSE)
    starts = [env.initial_leader(np.random.default_rng(seed)) for seed in range(STARTS)]
    runs = [_ascend(COARSE, regularization, x0) for x0 in starts]
    best = _ascend(FINE, regularization, max(runs, key=lambda run: run.leader_return).x)
    finest = TaxDesign(grid_size=SIZES[-1]).model
    return {
        "from_starts": [run.leader_return for run in runs],
        "rates_from_starts": [env.rates(run.x).round(4).tolist() for run in runs],
        "seconds_per_start": float(np.mean([run.seconds for run in runs])),
        "x": best.x.tolist(),
        "rates": env.rates(best.x).tolist(),
        f"leader_return_{FINE}": best.leader_return,
        f"leader_return_{SIZES[-1]}": float(finest.leader_return(best.x, regularization)),
        f"leader_return_{SIZES[-1]}_without_taxes": float(finest.leader_return(np.full(4, -30.0), regularization)),
    }


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"convergence": {}, "optimum": {}}
    for regularization in LAMBDAS:
        results["optimum"][str(regularization)] = optimum(regularization)
    results["convergence"] = {str(regularization): convergence(regularization) for regularization in (0.1, 0.3)}
    plot(results)
    store("tax_design", results)


def plot(results: dict[str, Any]) -> None:
    """The picture of what `main` measured."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    labels = {
        "error_of_value": "leader's value",
        "error_of_gradient": "gradient",
        "interpolation_leader": "leader's value of the interpolated policy",
        "interpolation_follower": "follower's loss by interpolating",
    }
    for ax, (name, rows) in zip(axes, results["convergence"].items(), strict=False):
        for key, label in labels.items():
            ax.loglog([row["grid_size"] for row in rows[:-1]], [row[key] for row in rows[:-1]], "o-", label=label)
        ax.loglog(SIZES[:-1], [0.1 * (SIZES[0] / size) ** 2 for size in SIZES[:-1]], ":", color="grey", label="second order")
        ax.set(title=f"lambda {name}: error against {SIZES[-1]} points", xlabel="grid points")
        ax.set_xticks(SIZES[:-1], [str(size) for size in SIZES[:-1]])
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=8)
    width = 0.8 / len(LAMBDAS)
    names = ("income tax", "VAT 1", "VAT 2", "VAT 3")
    for i, (name, found) in enumerate(results["optimum"].items()):
        value = found[f"leader_return_{SIZES[-1]}"]
        places = np.arange(len(names)) + (i - (len(LAMBDAS) - 1) / 2) * width
        axes[2].bar(places, found["rates"], width, label=f"lambda {name}: leader's return {value:.2f}")
    axes[2].set(title=f"best rates of {STARTS} starts", xticks=range(len(names)), xticklabels=names)
    axes[2].legend(frameon=False, fontsize=8)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "tax_design.png", dpi=130)


if __name__ == "__main__":
    main()
