r"""Tax design: HPGD and zero-order against ExactGradient on one budget of environment steps.

All leaders play the companion on a grid of `GRID` assets (``TabularEnv(TaxDesign().model)``), whose exact leader's value and
gradient say at once how far they are. Nothing of it is told to HPGD's Monte-Carlo estimator but trajectories, the table of the
follower's policy and the derivatives of r, P and rbar. Every leader with samples may use `BUDGET` environment steps (the
published runs used twelve times as many, the follower's training apart); HPGD has two ways to spend them, a few long samples or
more and shorter ones. Zero-order takes two sampled returns per gradient. ExactGradient uses none; its curve is drawn
over the budget by its share of iterations. Everyone moves x by Adam, one drawn context per iteration, from x_0 ~ N(0, 1).

``python -m benchmarks.tax_design_leaders`` stores ``results/tax_design_leaders.json`` and ``.png``; how good the gradients are is
measured by `benchmarks.tax_design_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import followers
import leaders
from benchmarks.common import RESULTS, store
from bocmdp_gym import TabularEnv
from bocmdp_gym.envs import TaxDesign

GRID = 41
LAMBDAS = (0.1, 0.2, 0.3)
BUDGET = 5_000_000
SEEDS = (0, 1, 2)
POINTS = 10
SMOOTHING = 0.5


def environment() -> TabularEnv:
    """The companion as an environment."""
    return TabularEnv(TaxDesign(grid_size=GRID).model, horizon=200)


# ------------------------------------------------------------------------------------------------- leaders on a budget


def _hpgd(steps: int, learning_rate: float) -> Callable[[], leaders.Leader]:
    return lambda: leaders.HPGD(learning_rate, steps, optimizer="Adam", max_gradient_norm=None)


def _zero_order() -> leaders.Leader:
    return leaders.ZeroOrder(0.1, SMOOTHING, decay=False, exact=False, env_steps=50_000, optimizer="Adam", max_gradient_norm=None)


def _exact() -> leaders.Leader:
    return leaders.ExactGradient(0.2, optimizer="Adam", max_gradient_norm=None)


#: Name, leader, iterations.
LEADERS: dict[str, tuple[Callable[[], leaders.Leader], int]] = {
    "ExactGradient": (_exact, 50),
    "HPGD, 10 x 500,000 steps": (_hpgd(500_000, 0.4), 10),
    "HPGD, 50 x 100,000 steps": (_hpgd(100_000, 0.2), 50),
    "zero-order, 50 x 2 x 50,000 steps": (_zero_order, 50),
}


def run(name: str, regularization: float, seed: int) -> dict[str, Any]:
    """One run: values at equal shares of the budget, and what was reached."""
    make, iterations = LEADERS[name]
    env = environment()
    x0 = np.random.default_rng(seed).standard_normal(4)  # as TaxDesign.initial_leader
    result = leaders.optimize(
        env,
        make(),
        followers.SoftPolicyIteration(regularization),
        iterations,
        seed=seed,
        x0=x0,
        evaluate_every=iterations // POINTS,
        progress=False,
    )
    values = result.history["leader_return"][:: iterations // POINTS]
    assert result.leader_return is not None
    return {
        "values": [*map(float, values), result.leader_return],
        "env_steps": result.env_steps,
        "x": result.x.tolist(),
        "rates": TaxDesign(grid_size=GRID).rates(result.x).tolist(),
        "seconds": result.seconds,
    }


def compare(regularization: float) -> dict[str, Any]:
    """All leaders and seeds at one lambda."""
    rows = {}
    for name in LEADERS:
        runs = [run(name, regularization, seed) for seed in SEEDS]
        values = np.array([r["values"] for r in runs])
        rows[name] = {
            "mean": values.mean(0).tolist(),
            "standard_error": (values.std(0, ddof=1) / len(SEEDS) ** 0.5).tolist(),
            "rates": [r["rates"] for r in runs],
            "env_steps": [r["env_steps"] for r in runs],
            "seconds_per_run": float(np.mean([r["seconds"] for r in runs])),
        }
        print(regularization, name, rows[name]["mean"][-1], rows[name]["standard_error"][-1], flush=True)
    return rows


def plot(results: dict[str, Any]) -> Figure:
    """Values over the budget, and the tax rates reached."""
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    axes = figure.subplots(2, len(LAMBDAS))
    share = np.linspace(0, BUDGET / 1e6, POINTS + 1)
    names = ("income tax", "VAT 1", "VAT 2", "VAT 3")
    for column, regularization in enumerate(LAMBDAS):
        top, bottom = axes[:, column]
        for i, (name, row) in enumerate(results["leaders"][str(regularization)].items()):
            mean, error = np.array(row["mean"]), np.array(row["standard_error"])
            (line,) = top.plot(share, mean, label=name)
            top.fill_between(share, mean - error, mean + error, color=line.get_color(), alpha=0.2)
            rates = np.array(row["rates"])
            places = np.arange(4) + 0.2 * (i - 1.5)
            bottom.bar(places, rates.mean(0), 0.2, yerr=rates.std(0, ddof=1) / len(SEEDS) ** 0.5, color=line.get_color())
        top.set(title=f"lambda {regularization}", xlabel="million environment steps", ylabel="leader's exact value")
        top.grid(alpha=0.25)
        bottom.set(ylabel="tax rates reached", xticks=range(4), xticklabels=names)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"grid": GRID, "budget": BUDGET, "seeds": len(SEEDS), "leaders": {}}
    for regularization in LAMBDAS:
        results["leaders"][str(regularization)] = compare(regularization)
    store("tax_design_leaders", results)
    plot(results).savefig(RESULTS / "tax_design_leaders.png", dpi=120)


if __name__ == "__main__":
    main()
