"""`leaders.FirstOrder`: its error over the weight, and learners of Stable-Baselines3 against their own true response.

- ``weights``: relative error of the two-sided and the one-sided estimate with exact weights against the exact gradient, over the
  weight w, on three models: Four-Rooms of the paper (lambda 0.001), a random MDP in which x moves rewards, transitions and starts
  (lambda 0.1), and the companion of the tax design environment (lambda 0.2). Beside it, from samples on Four-Rooms: the root mean
  square error of one estimate of 10,000 steps, relative to the exact gradient's norm, and the Monte-Carlo estimator's.
- ``PPO``, ``DQN`` and ``"linear program"``: followers without a lambda, on a small Four-Rooms with random starts, where many
  routes compete. Their true response is measured by central differences of the leader's exact return from the policies they end
  with, h = 1 along five directions (the penalty of each of the four rooms, and of the marked cell), means over seeds, each
  response trained from scratch. Beside it is the mean over as many other seeds of what `FirstOrder` finds from 40,000 sampled
  steps and the two answers to r +- 0.03 rbar, projected on the same directions. Reported: both with standard errors, and the
  cosine between them.

Run all of them with ``python -m benchmarks.first_order``, or name some; each is stored in
``benchmarks/results/first_order_PART.json``. The plot of the first is ``benchmarks/results/first_order.png``.
"""

from __future__ import annotations

import sys
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
import followers
from benchmarks.common import RESULTS, store
from bocmdp_gym import TabularBOCMDP
from leaders.gradients import Estimator, ExactEstimator, FirstOrderEstimator, MonteCarloEstimator
from leaders.gradients.exact import policy_return

WEIGHTS = [float(w) for w in 10.0 ** np.arange(-6.0, 0.5, 0.5)]
SAMPLED_WEIGHTS = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
REPEATS, SAMPLED_STEPS = 200, 10_000
SMALL = ["xxxxxxx", "x  x  x", "x     x", "xx xx x", "x  x  x", "x     x", "xxxxxxx"]
MARKED = (4, 2)
WEIGHT, STEP, SAMPLES = 0.03, 1.0, 40_000
ALGORITHMS: dict[str, dict[str, Any]] = {
    "PPO": {
        "total_timesteps": 16_384,
        "n_envs": 8,
        "n_steps": 64,
        "batch_size": 128,
        "n_epochs": 6,
        "learning_rate": 3e-3,
        "ent_coef": 0.005,
    },
    "DQN": {
        "total_timesteps": 8_000,
        "learning_rate": 2e-3,
        "learning_starts": 500,
        "buffer_size": 8_000,
        "batch_size": 64,
        "target_update_interval": 250,
        "exploration_fraction": 0.5,
        "train_freq": 4,
    },
}
#: (context, seeds) of each algorithm.
RUNS = {"linear program": [(0, 1), (1, 1)], "PPO": [(1, 3)], "DQN": [(1, 5)]}


def problems() -> dict[str, tuple[TabularBOCMDP, float, torch.Tensor]]:
    """Models, each with a lambda and an x."""
    found = {}
    for name, env, regularization in (
        ("Four-Rooms", gym.make("bocmdp/FourRooms-v0", slip_probability=0.44), 0.001),
        ("random MDP", gym.make("bocmdp/RandomMDP-v0"), 0.1),
        ("tax design", gym.make("bocmdp/TaxDesign-v0"), 0.2),
    ):
        core = bocmdp_gym.configurable(env)
        found[name] = core.model, regularization, torch.tensor(core.initial_leader(np.random.default_rng(0)))
    return found


def gradient(oracle: followers.TrajectoryOracle, estimator: Estimator, x: torch.Tensor) -> torch.Tensor:
    """dF/dx over all contexts."""
    estimator.bind(oracle)
    rng, total = np.random.default_rng(0), torch.zeros_like(x)
    for context, probability in enumerate(oracle.core.context_probabilities):
        total += float(probability) * estimator.estimate(oracle, x, context, rng).gradient
    return total


def weights() -> dict[str, Any]:
    results: dict[str, Any] = {"weights": WEIGHTS, "models": {}}
    for name, (model, regularization, x) in problems().items():
        oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(regularization, tolerance=1e-14))
        exact = gradient(oracle, ExactEstimator(tolerance=1e-14), x)
        record: dict[str, Any] = {"regularization": regularization, "norm of the exact gradient": float(exact.norm())}
        for side, two_sided in (("two-sided", True), ("one-sided", False)):
            found = (gradient(oracle, FirstOrderEstimator(w, two_sided, exact=True), x) for w in WEIGHTS)
            record[side] = [float((one - exact).norm() / exact.norm()) for one in found]
        automatic = FirstOrderEstimator("auto", exact=True)
        error = float((gradient(oracle, automatic, x) - exact).norm() / exact.norm())
        record["automatic weight"] = {"weight": automatic.state()["weight"], "two-sided": error}
        results["models"][name] = record
    results["sampled, Four-Rooms"] = sampled()
    return results


def sampled() -> dict[str, Any]:
    """One estimate's error from samples, in each context of Four-Rooms."""
    model, regularization, x = problems()["Four-Rooms"]
    oracle = followers.TrajectoryOracle(
        gym.make("bocmdp/FourRooms-v0", slip_probability=0.44), followers.SoftPolicyIteration(regularization)
    )
    estimators: dict[str, Estimator] = {
        **{f"FirstOrder, w = {w:g}": FirstOrderEstimator(w, env_steps=SAMPLED_STEPS) for w in SAMPLED_WEIGHTS},
        "FirstOrder, automatic w": FirstOrderEstimator("auto", env_steps=SAMPLED_STEPS),
        "HPGD, monte_carlo": MonteCarloEstimator(SAMPLED_STEPS),
    }
    record: dict[str, Any] = {"steps": SAMPLED_STEPS, "repeats": REPEATS}
    for context in range(model.n_contexts):
        reference = ExactEstimator(tolerance=1e-14)
        reference.bind(oracle)
        exact = reference.estimate(oracle, x, context, np.random.default_rng(0)).gradient
        rows = {}
        for name, estimator in estimators.items():
            estimator.bind(oracle)
            rng = np.random.default_rng(1)
            estimator.estimate(oracle, x, context, rng)  # warms up
            began = process_time()
            draws = torch.stack([estimator.estimate(oracle, x, context, rng).gradient for _ in range(REPEATS)])
            seconds = (process_time() - began) / REPEATS
            cosines = torch.cosine_similarity(draws, exact[None])
            rows[name] = {
                "root mean square error": float((draws - exact).square().sum(-1).mean().sqrt() / exact.norm()),
                "median error": float((draws - exact).norm(dim=-1).median() / exact.norm()),
                "error of the mean": float((draws.mean(0) - exact).norm() / exact.norm()),
                "mean cosine": float(cosines.mean()),
                "CPU seconds": seconds,
                **({"weight": estimator.state()["weight"]} if isinstance(estimator, FirstOrderEstimator) else {}),
            }
        record[f"context {context}"] = rows
    return record


def small_env() -> gym.Env[Any, Any]:
    """A Four-Rooms of 20 cells with random starts, whose penalties are cheap for the leader and felt by the follower."""
    return gym.make(
        "bocmdp/FourRooms-v0",
        layout=SMALL,
        start=None,
        goals=[[1, 5], [5, 5]],
        waypoint=MARKED,
        slip_probability=0.2,
        discount=0.9,
        horizon=100,
        penalty_budget=1.0,
        penalty_cost=0.1,
    )


def directions() -> Any:
    """Unit vectors ``(5, d)``: the cells of each room, and the marked cell."""
    model = bocmdp_gym.configurable(small_env()).model
    cells = [(r, c) for r, row in enumerate(SMALL) for c, mark in enumerate(row) if mark == " "]
    rooms = np.array([2 * (r > 3) + (c > 3) for r, c in cells])
    rows = np.zeros((5, model.leader_dim))
    for room in range(4):
        rows[room, : len(cells)] = rooms == room
    rows[4, cells.index(MARKED)] = 1.0
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_follower(name: str) -> followers.Follower:
    """A follower that learns from scratch at every response."""
    if name == "linear program":
        return followers.LinearProgramming(warm_start=False)
    return followers.SB3Follower(name, warm_start=False, device="cpu", **ALGORITHMS[name])


def leader_return(name: str, x: Any, context: int, seed: int) -> float:
    """F_xi of the policy that a follower answers x with, exactly."""
    oracle = followers.TrajectoryOracle(small_env(), make_follower(name))
    table = oracle.tabulate(oracle.respond(x, context, np.random.default_rng(seed)))
    assert table is not None
    return policy_return(oracle.configure(x).arrays(context), table.table)


def response(name: str, context: int, seeds: int) -> dict[str, Any]:
    """Central differences beside `FirstOrder`, in one context."""
    rows = directions()
    x = np.zeros(rows.shape[1])
    began = process_time()
    differences = np.array(
        [
            [
                (leader_return(name, x + STEP * d, context, s) - leader_return(name, x - STEP * d, context, s)) / (2 * STEP)
                for d in rows
            ]
            for s in range(seeds)
        ]
    )
    middle = process_time()
    estimates, gains = [], []
    for seed in range(1000, 1000 + seeds):
        oracle = followers.TrajectoryOracle(small_env(), make_follower(name))
        estimator = FirstOrderEstimator(WEIGHT, env_steps=SAMPLES)
        estimator.bind(oracle)
        found = estimator.estimate(oracle, torch.tensor(x), context, np.random.default_rng(seed))
        estimates.append(rows @ found.gradient.numpy())
        gains.append(found.metrics["paid_gain"])
    end = process_time()
    first_order = np.array(estimates)
    truth, mean = differences.mean(0), first_order.mean(0)

    def cosine(one: Any, other: Any) -> float:
        return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))

    def error(values: Any) -> Any:
        return (values.std(0, ddof=1) / len(values) ** 0.5).tolist() if len(values) > 1 else None

    return {
        "context": context,
        "seeds": seeds,
        "central differences": truth.tolist(),
        "their standard errors": error(differences),
        "FirstOrder": mean.tolist(),
        "its standard errors": error(first_order),
        "cosine": cosine(truth, mean),
        "cosine of one seed's estimate, mean": float(np.mean([cosine(truth, one) for one in first_order])),
        "paid_gain": float(np.mean(gains)),
        "CPU seconds, differences and FirstOrder": [middle - began, end - middle],
    }


def learner(name: str) -> dict[str, Any]:
    """All that is run with one follower."""
    settings = {"weight": WEIGHT, "step": STEP, "sampled steps": SAMPLES, "follower": ALGORITHMS.get(name)}
    return {**settings, "contexts": [response(name, context, seeds) for context, seeds in RUNS[name]]}


def plot(results: dict[str, Any]) -> None:
    """The errors over the weight."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, record), colour in zip(results["models"].items(), ("#2668be", "#c4562b", "#1e8c46"), strict=True):
        label = f"{name}, lambda {record['regularization']:g}"
        axes.loglog(results["weights"], record["two-sided"], "o-", color=colour, label=label)
        axes.loglog(results["weights"], record["one-sided"], "s--", color=colour, alpha=0.5)
    axes.set(xlabel="weight w", ylabel="relative error", title="FirstOrder with exact weights (dashed: one-sided)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "first_order.png", dpi=130)


def main(arguments: list[str]) -> None:
    """The command line."""
    torch.set_num_threads(1)
    names = arguments or ["weights", *RUNS]
    if "weights" in names:
        found = weights()
        store("first_order_weights", found)
        plot(found)
    for name in RUNS:
        if name in names:
            store(f"first_order_{name.replace(' ', '_').lower()}", learner(name))


if __name__ == "__main__":
    main(sys.argv[1:])
