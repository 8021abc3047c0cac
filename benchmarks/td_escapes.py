"""Why `HPGD(estimator="td")` leaves the local optima of Four-Rooms in which exact ascent stops: its mean, or its noise?

``python -m benchmarks.td_escapes`` stores ``results/td_escapes.json`` and a plot. Exact ascent from x_0 gives a local optimum.
There, x held fixed until the tables have settled, many estimates give per context

    bias = mean of the estimates - dF_xi/dx,        noise = root mean square distance of an estimate from that mean,

as they are and clipped to the length that an update clips them to. Then ascent starts again from that optimum, with

- the estimates themselves;
- the exact gradient plus their noise: the difference of two independent estimates over sqrt(2) has no mean and their covariance;
- their mean without their noise: the average of `COPIES` independent estimators, each with tables of its own;
- estimates with the true Qbar in place of the learnt: the noise of the path and the bias of the time limit, nothing learnt;
- the exact gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import followers
import leaders
from benchmarks.common import RESULTS, store
from benchmarks.td import SETTING, environment, stored
from bocmdp_gym import TabularBOCMDP, configurable
from leaders.gradients import Estimate, ExactEstimator, Loss, PolicyEstimator, TDEstimator
from leaders.gradients.exact import leader_values
from leaders.gradients.td import new_tables
from leaders.updates import Update

CELLS = ((0.001, 1.0), (0.003, 3.0))
ENV_STEPS = 100
EXACT_STEPS, EXACT_RATE = 3_000, 1.0
ITERATIONS, SEEDS, EVERY = 5_000, (0, 1, 2), 20
COPIES, THIN = 16, 5  # of estimators; of stored points
SETTLE, ESTIMATES = 1_000, 4_000
#: More than this above the optimum of exact ascent is another basin.
MARGIN = 0.05


class _Combined(PolicyEstimator):
    """Base class: several estimators at the same policy."""

    needs_model = True

    def __init__(self, *parts: PolicyEstimator | ExactEstimator):
        super().__init__()
        self._parts = parts

    def bind(self, oracle: followers.TrajectoryOracle, loss: Loss | None = None) -> None:
        super().bind(oracle, loss)
        for part in self._parts:
            part.bind(oracle, loss)

    def _estimates(self, *arguments: Any) -> list[Tensor]:
        oracle, policy, x, context, rng = arguments
        return [
            part.estimate(oracle, x, context, rng).gradient
            if isinstance(part, ExactEstimator)
            else part.estimate_policy(oracle, policy, x, context, rng).gradient
            for part in self._parts
        ]


class Mean(_Combined):
    """The average of independent estimators."""

    def __init__(self) -> None:
        super().__init__(*(TDEstimator(ENV_STEPS, SETTING["td_rate"]) for _ in range(COPIES)))

    def estimate_policy(self, *arguments: Any) -> Estimate:
        return Estimate(torch.stack(self._estimates(*arguments)).mean(0), np.nan)


class ExactWithNoise(_Combined):
    """The exact gradient, and the noise of an estimator."""

    def __init__(self) -> None:
        super().__init__(ExactEstimator(), *(TDEstimator(ENV_STEPS, SETTING["td_rate"]) for _ in range(2)))

    def estimate_policy(self, *arguments: Any) -> Estimate:
        exact, one, other = self._estimates(*arguments)
        return Estimate(exact + (one - other) / 2**0.5, np.nan)


class KnownValues(TDEstimator):
    """Qbar is the true one, and nothing is learnt."""

    needs_model = True

    def __init__(self) -> None:
        super().__init__(ENV_STEPS, 1e-300)

    def estimate_policy(self, *arguments: Any) -> Estimate:
        oracle, policy, x, context, _ = arguments
        model, table = oracle.model, policy.table
        q = leader_values(oracle.configure(x).arrays(context), table).q
        known = new_tables(model.n_states, model.n_actions)._replace(q=q)
        self._tables = {context: known}
        return super().estimate_policy(*arguments)


VARIANTS: dict[str, Callable[[], Any]] = {
    "td": lambda: TDEstimator(ENV_STEPS, SETTING["td_rate"]),
    "exact gradient + noise of td": ExactWithNoise,
    "mean of td, noise averaged out": Mean,
    "td with the true Q": KnownValues,
    "exact gradient": ExactEstimator,
}


def clipped(gradient: Tensor) -> Tensor:
    """No longer than an update takes it."""
    return gradient / max(1.0, float(gradient.norm()))


def local_optimum(cell: tuple[float, float]) -> tuple[Tensor, float]:
    """Where exact ascent from x_0 ends."""
    env, follower = environment(penalty_cost=cell[1]), followers.SoftPolicyIteration(cell[0])
    found = leaders.optimize(env, leaders.ExactGradient(EXACT_RATE), follower, EXACT_STEPS, contexts="all", progress=False)
    assert found.leader_return is not None
    return found.x, found.leader_return


def statistics(cell: tuple[float, float], x: Tensor, estimator: PolicyEstimator) -> list[dict[str, float]]:
    """Per context, the mean and the noise of the estimates at x."""
    env = environment(penalty_cost=cell[1])
    oracle, rng = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(cell[0])), np.random.default_rng(0)
    exact_estimator, rows = ExactEstimator(), []
    exact_estimator.bind(oracle)
    estimator.bind(oracle)
    model = configurable(env).model
    assert isinstance(model, TabularBOCMDP)
    for context in range(model.n_contexts):
        exact = exact_estimator.estimate(oracle, x, context, rng).gradient
        draws = [estimator.estimate(oracle, x, context, rng).gradient for _ in range(SETTLE + ESTIMATES)][SETTLE:]
        row = {"gradient": float(exact.norm())}
        for name, own, truth in (("", draws, exact), ("clipped ", [clipped(g) for g in draws], clipped(exact))):
            stacked = torch.stack(own)
            mean, spread = stacked.mean(0), float(stacked.var(0).sum())
            batches = stacked.reshape(20, -1, len(x)).mean(1)  # successive estimates share their tables
            row |= {
                f"{name}bias": float((mean - truth).norm()),
                f"{name}chance": float((batches.var(0).sum() / 20) ** 0.5),
                f"{name}noise": spread**0.5,
                f"{name}mean": float(mean.norm()),
                f"{name}cosine": float(torch.cosine_similarity(mean, truth, dim=0)),
            }
        rows.append(row)
    return rows


def ascent(cell: tuple[float, float], x: Tensor, estimator: Any, seed: int) -> list[float]:
    """Exact leader's returns along a run that starts in x."""
    leader = leaders.Leader(estimator, Update(SETTING["learning_rate"], max_gradient_norm=1.0))
    env, follower = environment(penalty_cost=cell[1]), followers.SoftPolicyIteration(cell[0])
    found = leaders.optimize(env, leader, follower, ITERATIONS, x0=x, seed=seed, evaluate_every=EVERY, progress=False)
    returns = found.history["leader_return"]
    return [float(value) for value in returns[np.isfinite(returns)]]


def picture(cells: dict[str, Any]) -> Figure:
    """Mean exact return along the runs, per cell and variant."""
    figure = Figure(figsize=(6.0 * len(cells), 4.2), layout="constrained")
    for ax, (name, found) in zip(figure.subplots(1, len(cells), squeeze=False)[0], cells.items(), strict=True):
        for variant, run in found["runs"].items():
            curve = np.mean(run["curves"], 0)
            ax.plot(THIN * EVERY * np.arange(len(curve)), curve, label=variant)
        ax.set(title=name, xlabel="iterations after the local optimum of exact ascent", ylabel="leader's return")
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    settings = {**SETTING, "env_steps": ENV_STEPS, "iterations": ITERATIONS, "seeds": SEEDS, "copies": COPIES,
                "settle": SETTLE, "estimates": ESTIMATES}  # fmt: skip
    results = stored("td_escapes", settings)
    for cell in CELLS:
        name = "lambda {}, beta {:g}".format(*cell)
        x, value = local_optimum(cell)
        found = results["cells"].setdefault(name, {"exact ascent": value, "statistics": {}, "runs": {}})
        for variant in ("td", "td with the true Q"):
            if variant not in found["statistics"]:
                found["statistics"][variant] = statistics(cell, x, VARIANTS[variant]())
                store("td_escapes", results)
        for variant, make in VARIANTS.items():
            if variant not in found["runs"]:
                curves = [ascent(cell, x, make(), seed) for seed in SEEDS]
                values = [float(np.mean(curve[-len(curve) // 10 :])) for curve in curves]
                found["runs"][variant] = {
                    "values": values,
                    "escaped": int(sum(one > value + MARGIN for one in values)),
                    "curves": [[round(one, 5) for one in curve[::THIN]] for curve in curves],
                }
                store("td_escapes", results)
    picture(results["cells"]).savefig(RESULTS / "td_escapes.png", dpi=130)


if __name__ == "__main__":
    main()
