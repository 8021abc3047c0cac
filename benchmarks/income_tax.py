"""`bocmdp/IncomeTax-v0`: what each objective makes of no taxes, the federal ones, Saez's, and the best rates found.

For each objective, the best found is that of `leaders.multistart` (`leaders.ExactGradient` with Adam from random rates, of which
a quarter goes on) and of a run that starts from Saez's rates. Beside its objective each schedule has equality, productivity and
welfare. Run it with ``python -m benchmarks.income_tax``; it is stored in ``benchmarks/results/income_tax.json`` and ``.png``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from matplotlib.figure import Figure

import bocmdp_gym
import followers
import leaders
from benchmarks.common import RESULTS, store
from bocmdp_gym.envs.income_tax_picture import draw_rates
from bocmdp_gym.income_tax import OBJECTIVES

LAMBDA = 0.01
STARTS, ITERATIONS = 12, 150


def row(core: Any, x: Any) -> dict[str, Any]:
    found = core.taxation(x)
    return {
        "value": float(core.population.leader_return(x, LAMBDA)),
        "rates": found.rates.tolist(),
        "rebate": found.rebate,
        "productivity": found.productivity,
        "Gini": found.gini,
        "welfare": found.welfare,
        "least utility": float(found.utilities.min()),
    }


def search(env: Any, saez: Any) -> tuple[Any, dict[str, Any]]:
    """The best rates found, and how."""
    leader = leaders.ExactGradient(learning_rate=0.03, optimizer="Adam", schedule="linear")
    follower = followers.SoftPolicyIteration(regularization=LAMBDA)
    many = leaders.multistart(env, leader, follower, ITERATIONS, starts=STARTS, rounds=2, scale=0.5, seed=0, progress=False)
    one = leaders.optimize(env, leader, follower, ITERATIONS, x0=saez, seed=0, evaluate_every=ITERATIONS, progress=False)
    assert one.leader_return is not None
    ends = [start.leader_return for start in many.starts]
    best = many.starts[0].x if ends[0] >= one.leader_return else one.x
    return best.numpy(), {"random starts": ends, "from Saez": one.leader_return}


def main() -> None:
    results: dict[str, Any] = {"lambda": LAMBDA, "objectives": {}}
    figure = Figure(figsize=(15.0, 3.8), layout="constrained")
    for axes, objective in zip(figure.subplots(1, len(OBJECTIVES), sharey=True), OBJECTIVES, strict=True):
        env = gym.make("bocmdp/IncomeTax-v0", objective=objective, regularization=LAMBDA)
        core = bocmdp_gym.configurable(env)
        schedules = {"free market": core.free_market(), "US federal, 2018": core.us_federal(), "Saez": core.saez()}
        best, how = search(env, schedules["Saez"])
        schedules["best found"] = best
        rows = {name: row(core, x) for name, x in schedules.items()}
        results["objectives"][objective] = {"schedules": rows, "search": how}
        draw_rates(axes, core.population, {name: x for name, x in schedules.items() if name != "free market"})
        axes.set_title(objective.replace("_", " "))
        axes.label_outer()
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(RESULTS / "income_tax.png", dpi=110)
    store("income_tax", results)


if __name__ == "__main__":
    main()
