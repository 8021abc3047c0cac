r"""Tax design: how good the gradients of HPGD and zero-order are.

At x = 0 and at `NEAR`, near the optimum, in context 0, of `RUNS` estimates: cosine with the exact gradient, mean error, absolute
and relative, and the error of their mean (the bias, as far as the noise lets it be seen). Compared are, on the companion with
`GRID` grid points,

- HPGD's Monte-Carlo estimator, whose values are visit averages of the same trajectories;
- the same with the exact Qbar, Vbar and V_lambda in their place, which leaves the noise of sampling and nothing else;
- HPGD's critic, by state;
- zero-order, two-point differences of sampled returns;

and HPGD's critic on the continuous environment (10 copies), with networks for values and next states drawn by the model; its
follower interpolates the exact answer on the environment's own grid, and the reference is exact on `FINE` points.

``python -m benchmarks.tax_design_gradients`` stores ``results/tax_design_gradients.json`` and ``.png``. ``--beside CHECKOUT``
also times the critic of another checkout of this repository at equal steps, in turns with this one's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import followers
from benchmarks.common import RESULTS, store
from benchmarks.tax_design_leaders import GRID, LAMBDAS, SMOOTHING, environment
from bocmdp_gym import Weights
from bocmdp_gym.envs import TaxDesign
from leaders.gradients import CriticEstimator, Estimate, Estimator, ExactEstimator, MonteCarloEstimator, ZeroOrderEstimator
from leaders.gradients._returns import score_weights, traces
from leaders.gradients.exact import leader_values

NEAR = (1.4, -1.0, -2.0, 0.0)
SIZES = (10_000, 100_000)
RUNS = 5
FINE = 161
COMPANION, CONTINUOUS = "critic, companion", "critic, continuous"
NAMES = ("Monte-Carlo", "with exact values", "zero-order", COMPANION, CONTINUOUS)
#: What `--beside` runs in either checkout: CPU seconds of the second estimate and later ones.
TIMED = """
import sys, time
import gymnasium as gym, numpy as np, torch
import bocmdp_gym, followers
from leaders.gradients import CriticEstimator
torch.set_num_threads(1)
steps, runs = map(int, sys.argv[1:])
env = gym.make_vec("bocmdp/TaxDesign-v0", 10, vectorization_mode="vector_entry_point")
oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(0.2))
estimator, rng, x = CriticEstimator(steps), np.random.default_rng(0), torch.zeros(4, dtype=torch.float64)
estimator.bind(oracle)
estimator.estimate(oracle, x, 0, rng)
began = time.process_time()
for _ in range(runs):
    estimator.estimate(oracle, x, 0, rng)
print((time.process_time() - began) / runs)
"""


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
        trace, power = traces(advantage / self._lambda, batch.ends, model.discount, model.leader_discount)
        score = model.discount * trace * policy.value[following] + model.leader_discount * power * leader.value[following]
        reward, leader_reward = np.zeros((2, *table.shape))
        np.add.at(reward, (s, a), trace / batch.n_episodes)
        np.add.at(leader_reward, (s, a), power / batch.n_episodes)
        transition = np.zeros(arrays.stored_probabilities.shape)
        np.add.at(transition, (s, arrays.rows[a], following), score / batch.n_episodes)
        stored = score_weights(arrays.stored_successors, arrays.stored_probabilities, transition)
        weights = Weights(reward=reward, leader_reward=leader_reward, transition=stored)
        return Estimate(mdps.vjp(weights, context), 0.0, batch.n_steps)


def exact_gradient(env: Any, x: Tensor, regularization: float) -> Tensor:
    """The exact gradient of an environment's model in context 0."""
    oracle, estimator = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(regularization)), ExactEstimator()
    estimator.bind(oracle)
    return estimator.estimate(oracle, x, 0, np.random.default_rng(0)).gradient


def quality(name: str, estimator: Estimator, env: Any, x: Tensor, regularization: float, exact: Tensor) -> dict[str, Any]:
    """Errors of `RUNS` estimates at x in context 0."""
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(regularization))
    estimator.bind(oracle)
    rng = np.random.default_rng(0)
    before, began = oracle.env_steps, process_time()
    gradients = torch.stack([estimator.estimate(oracle, x, 0, rng).gradient for _ in range(RUNS)])
    seconds = (process_time() - began) / RUNS
    cosine = torch.nn.functional.cosine_similarity(gradients, exact[None], dim=-1)
    errors = (gradients - exact).norm(dim=-1)
    row = {
        "estimator": name,
        "lambda": regularization,
        "x": x.tolist(),
        "env_steps": (oracle.env_steps - before) // RUNS,
        "runs": RUNS,
        "cosine": float(cosine.mean()),
        "error": float(errors.mean()),
        "standard_error": float(errors.std() / RUNS**0.5),
        "relative_error": float((errors / exact.norm()).mean()),
        "bias": float((gradients.mean(0) - exact).norm() / exact.norm()),
        "exact": exact.tolist(),
        "mean": gradients.mean(0).tolist(),
        "cpu_seconds": seconds,
    }
    print({key: row[key] for key in ("estimator", "lambda", "env_steps", "error", "relative_error", "cpu_seconds")}, flush=True)
    return row


def qualities(regularization: float) -> list[dict[str, Any]]:
    """All estimators, both points, one lambda."""
    rows = []
    for x in (torch.zeros(4, dtype=torch.float64), torch.tensor(NEAR, dtype=torch.float64)):
        coarse = exact_gradient(environment(), x, regularization)
        for size in SIZES:
            zero_order = ZeroOrderEstimator(SMOOTHING, decay=False, exact=False, env_steps=size // 2)
            for name, estimator in (
                ("Monte-Carlo", MonteCarloEstimator(size)),
                ("with exact values", ExactValuesEstimator(size)),
                (COMPANION, CriticEstimator(size)),
                ("zero-order", zero_order),
            ):
                rows.append(quality(name, estimator, environment(), x, regularization, coarse))
        fine = exact_gradient(TaxDesign(grid_size=FINE), x, regularization)
        for size in SIZES:
            copies = gym.make_vec("bocmdp/TaxDesign-v0", 10, vectorization_mode="vector_entry_point")
            rows.append(quality(CONTINUOUS, CriticEstimator(size), copies, x, regularization, fine))
    return rows


def beside(checkout: str) -> list[dict[str, float]]:
    """CPU seconds per estimate of the continuous critic here and in another checkout, in turns."""
    rows = []
    for size, runs in ((10_000, 3), (100_000, 1)):
        row: dict[str, float] = {"env_steps": size}
        for name, path in (("here", os.getcwd()), ("beside", checkout)):
            paths = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", TIMED, str(size), str(runs)]
            done = subprocess.run(command, env=paths, cwd=path, check=True, capture_output=True, text=True)
            row[name] = float(done.stdout)
        row["ratio"] = row["here"] / row["beside"]
        print(row, flush=True)
        rows.append(row)
    return rows


def plot(results: dict[str, Any]) -> Figure:
    """Errors of the gradients over the steps spent on them."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    axes = figure.subplots(1, len(LAMBDAS), sharey=True)
    for ax, regularization in zip(axes, LAMBDAS, strict=True):
        for i, name in enumerate(NAMES):
            for place, style in ((0.0, "o-"), (NEAR[0], "s--")):
                rows = [
                    row
                    for row in results["gradients"]
                    if (row["estimator"], row["lambda"], row["x"][0]) == (name, regularization, place)
                ]
                steps, mistakes = [row["env_steps"] for row in rows], [row["relative_error"] for row in rows]
                label = f"{name}, {'near the optimum' if place else 'x = 0'}"
                ax.loglog(steps, mistakes, style, color=f"C{i}", label=label)
        ax.axhline(1.0, color="grey", linewidth=0.8)
        ax.set(title=f"lambda {regularization}", xlabel="environment steps per gradient")
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("relative error of the gradient")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=5)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", metavar="CHECKOUT", help="another checkout, whose critic is timed too")
    checkout = parser.parse_args().beside
    torch.set_num_threads(1)
    results: dict[str, Any] = {"grid": GRID, "fine": FINE, "gradients": []}
    if checkout is not None:
        results["seconds"] = beside(checkout)
    for regularization in LAMBDAS:
        results["gradients"] += qualities(regularization)
    store("tax_design_gradients", results)
    plot(results).savefig(RESULTS / "tax_design_gradients.png", dpi=120)


if __name__ == "__main__":
    main()
