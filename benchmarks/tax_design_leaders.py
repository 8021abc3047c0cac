r"""Tax design: HPGD and zero-order against ExactGradient on one budget of environment steps, and how good their gradients are.

All leaders play the companion on a grid of `GRID` assets (``TabularEnv(TaxDesign().model)``), whose exact leader's value and
gradient say at once how far they are. Nothing of it is told to HPGD's Monte-Carlo estimator but trajectories, the table of the
follower's policy and the derivatives of r, P and rbar. Every leader with samples may use `BUDGET` environment steps (the
published runs used six times as many, the follower's training apart); HPGD has two ways to spend them, a few long samples or
more and shorter ones. Zero-order takes two sampled returns per gradient. ExactGradient uses none; its curve is drawn
over the budget by its share of iterations. Everyone moves x by Adam, one drawn context per iteration, from x_0 ~ N(0, 1).

The quality of a gradient is measured at x = 0 and at `NEAR`, near the optimum, in context 0: cosine with the exact gradient, mean
relative error, and the relative error of the mean of the runs (bias). Four estimators are compared,

- Monte-Carlo, visit averages of the same trajectories as values;
- the same trajectories with the exact values Qbar, Vbar, V_lambda in their place: what remains is sampling noise;
- zero-order, both returns sampled;
- HPGD's critic on the continuous environment (10 copies), with networks for values.

``python -m benchmarks.tax_design_leaders`` stores ``results/tax_design_leaders.json`` and ``.png``.
"""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import followers
import leaders
from benchmarks.common import RESULTS, store
from bocmdp_gym import TabularEnv, Weights
from bocmdp_gym.envs import TaxDesign
from leaders import kernels
from leaders.gradients import CriticEstimator, Estimator, ExactEstimator, MonteCarloEstimator, ZeroOrderEstimator
from leaders.gradients.exact import leader_values

GRID = 41
LAMBDAS = (0.1, 0.2, 0.3)
BUDGET = 10_000_000
SEEDS = (0, 1, 2)
POINTS = 10
NEAR = (1.4, -1.0, -2.0, 0.0)
SIZES = (10_000, 100_000, 1_000_000)
CRITIC_STEPS = 12_000
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
    return leaders.ExactGradient(0.1, optimizer="Adam", max_gradient_norm=None)


#: Name, leader, iterations.
LEADERS: dict[str, tuple[Callable[[], leaders.Leader], int]] = {
    "ExactGradient": (_exact, 100),
    "HPGD, 20 x 500,000 steps": (_hpgd(500_000, 0.2), 20),
    "HPGD, 100 x 100,000 steps": (_hpgd(100_000, 0.1), 100),
    "zero-order, 100 x 2 x 50,000 steps": (_zero_order, 100),
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


# ---------------------------------------------------------------------------------------------- quality of the gradients


class ExactValuesEstimator(MonteCarloEstimator):
    """The Monte-Carlo estimator's trajectories, weighed with the exact Qbar, Vbar and V_lambda instead of visit averages."""

    def estimate_policy(self, oracle: Any, policy: Any, x: Tensor, context: Any, rng: np.random.Generator) -> Any:
        mdps, table = oracle.configure(x), policy.table
        arrays, model = mdps.arrays(context), mdps.model
        leader = leader_values(arrays, table)
        batch = oracle.sample(policy, self.env_steps, rng)
        s, a = batch.states, batch.actions
        following = np.append(s[1:], 0)
        following[batch.ends - 1] = batch.final_states
        advantage = leader.q[s, a] - leader.value[s]
        trace, power = kernels.traces(advantage / self._lambda, batch.ends, model.discount, model.leader_discount)
        score = model.discount * trace * policy.value[following] + model.leader_discount * power * leader.value[following]
        reward, leader_reward = np.zeros((2, *table.shape))
        np.add.at(reward, (s, a), trace / batch.n_episodes)
        np.add.at(leader_reward, (s, a), power / batch.n_episodes)
        transition = np.zeros(arrays.stored_probabilities.shape)
        np.add.at(transition, (s, arrays.rows[a], following), score / batch.n_episodes)
        stored = kernels.score_weights(arrays.stored_successors, arrays.stored_probabilities, transition)
        weights = Weights(reward=reward, leader_reward=leader_reward, transition=stored)
        return leaders.gradients.Estimate(mdps.vjp(weights, context), 0.0, batch.n_steps)


def quality(name: str, estimator: Estimator, env: Any, x: Tensor, regularization: float, runs: int) -> dict[str, Any]:
    """Errors of ``runs`` estimates at x in context 0."""
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(regularization))
    estimator.bind(oracle)
    reference = ExactEstimator()
    reference.bind(oracle)
    rng = np.random.default_rng(0)
    exact = reference.estimate(oracle, x, 0, rng).gradient
    before, began = oracle.env_steps, process_time()
    gradients = torch.stack([estimator.estimate(oracle, x, 0, rng).gradient for _ in range(runs)])
    seconds = (process_time() - began) / runs
    cosine = torch.nn.functional.cosine_similarity(gradients, exact[None], dim=-1)
    row = {
        "estimator": name,
        "lambda": regularization,
        "x": x.tolist(),
        "env_steps": (oracle.env_steps - before) // runs,
        "runs": runs,
        "cosine": float(cosine.mean()),
        "relative_error": float(((gradients - exact).norm(dim=-1) / exact.norm()).mean()),
        "bias": float((gradients.mean(0) - exact).norm() / exact.norm()),
        "exact": exact.tolist(),
        "mean": gradients.mean(0).tolist(),
        "cpu_seconds": seconds,
    }
    print({key: row[key] for key in ("estimator", "lambda", "env_steps", "cosine", "relative_error", "bias")}, flush=True)
    return row


def qualities(regularization: float) -> list[dict[str, Any]]:
    """All estimators, both points, one lambda."""
    rows = []
    for x in (torch.zeros(4, dtype=torch.float64), torch.tensor(NEAR, dtype=torch.float64)):
        for size in SIZES:
            zero_order = ZeroOrderEstimator(SMOOTHING, decay=False, exact=False, env_steps=size // 2)
            for name, estimator in (
                ("Monte-Carlo", MonteCarloEstimator(size)),
                ("with exact values", ExactValuesEstimator(size)),
                ("zero-order", zero_order),
            ):
                rows.append(quality(name, estimator, environment(), x, regularization, 10))
        copies = gym.make_vec("bocmdp/TaxDesign-v0", 10, vectorization_mode="vector_entry_point", grid_size=GRID)
        rows.append(quality("critic", CriticEstimator(CRITIC_STEPS), copies, x, regularization, 3))
    return rows


def plot(results: dict[str, Any]) -> Figure:
    """Values over the budget on top, errors of the gradients below."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    axes = figure.subplots(2, len(LAMBDAS))
    share = np.linspace(0, BUDGET / 1e6, POINTS + 1)
    for column, regularization in enumerate(LAMBDAS):
        ax = axes[0, column]
        for name, row in results["leaders"][str(regularization)].items():
            mean, error = np.array(row["mean"]), np.array(row["standard_error"])
            (line,) = ax.plot(share, mean, label=name)
            ax.fill_between(share, mean - error, mean + error, color=line.get_color(), alpha=0.2)
        ax.set(title=f"lambda {regularization}", xlabel="million environment steps", ylabel="leader's exact value")
        ax.grid(alpha=0.25)
        ax = axes[1, column]
        for name in ("Monte-Carlo", "with exact values", "zero-order", "critic"):
            for x, style in (([0.0] * 4, "o-"), (list(NEAR), "s--")):
                rows = [
                    r for r in results["gradients"] if r["estimator"] == name and r["lambda"] == regularization and r["x"] == x
                ]
                colour = f"C{('Monte-Carlo', 'with exact values', 'zero-order', 'critic').index(name)}"
                label = f"{name}, {'x = 0' if x == [0.0] * 4 else 'near the optimum'}"
                ax.loglog([r["env_steps"] for r in rows], [r["relative_error"] for r in rows], style, color=colour, label=label)
        ax.axhline(1.0, color="grey", linewidth=0.8)
        ax.set(xlabel="environment steps per gradient", ylabel="relative error of the gradient")
        ax.grid(alpha=0.25)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[1, 0].legend(frameon=False, fontsize=7)
    return figure


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"grid": GRID, "budget": BUDGET, "seeds": len(SEEDS), "leaders": {}, "gradients": []}
    for regularization in LAMBDAS:
        results["leaders"][str(regularization)] = compare(regularization)
    for regularization in LAMBDAS:
        results["gradients"] += qualities(regularization)
    store("tax_design_leaders", results)
    plot(results).savefig(RESULTS / "tax_design_leaders.png", dpi=120)


if __name__ == "__main__":
    main()
