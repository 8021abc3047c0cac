r"""BuildingControl: the best known x, and leaders from trajectories beside the published figures.

HPGD with the critic meets the exact linear-quadratic follower. Values are linear in 1, s and the products of s, which the model
says (`bocmdp_gym.BOCMDP.value_features`); a second row has networks of two layers of 64 in their place. `STEPS` steps in an
iteration, from 50 copies of the environment; Adam, at a rate that falls to 0 on a cosine, from x = 0. The rate was looked for
among 0.3 and 0.5 with seed 100, which is not reported.

F is exact: the model's, without the bound on states and the horizon. Published (BC-HG, 2025; 2,000 iterations of 10,000 steps,
means over their seeds): BC-HG -196.7, a naive gradient -211.7, HPGD with TD -237.8, HPGD with Monte-Carlo -261.8.

PPO answers x = 0: what the leader and the follower earn of it, entropy left out, by 200 episodes, beside the exact follower's.

``python -m benchmarks.building_control`` writes ``results/building_control.json``; ``--optima`` prints what the quasi-Newton
ascent finds from 30 starts, and nothing else.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy.optimize import minimize

import followers
import leaders
from benchmarks.common import store
from bocmdp_gym.envs import BuildingControl

LAMBDA = 0.1
SEEDS, FEWER = (1, 2, 3), (1, 2)
ITERATIONS, STEPS, RATE = 100, 2_000, 0.5
PUBLISHED = {"BC-HG": -196.7, "naive": -211.7, "HPGD (TD)": -237.8, "HPGD (Monte-Carlo)": -261.8}
WORKERS = 3
TRAINING = {"PPO": 100_000}
LEARNERS: dict[str, dict[str, Any]] = {
    "PPO": {"n_steps": 200, "batch_size": 400, "learning_rate": 1e-3, "ent_coef": 0.0, "normalize": "both"},
}


def copies(**options: Any) -> Any:
    """Fifty copies of the environment."""
    name = "bocmdp/BuildingControl-v0"
    return gym.make_vec(name, 50, vectorization_mode="vector_entry_point", autoreset_mode="SameStep", **options)


def optima(starts: int = 30) -> dict[str, Any]:
    """The best x by quasi-Newton ascent on exact gradients, from random starts."""
    env, rng = BuildingControl(), np.random.default_rng(0)
    space = env.leader_space

    def loss(x: Any) -> tuple[float, Any]:
        z = torch.tensor(x, requires_grad=True)
        value = env.model.leader_return(z, LAMBDA)
        (gradient,) = torch.autograd.grad(value, z)
        return -value.item(), -gradient.numpy()

    bounds, options = list(zip(space.low, space.high, strict=True)), {"maxiter": 500, "ftol": 1e-15, "gtol": 1e-8}
    points = rng.uniform(-4.0, 4.0, (starts, len(space.low)))
    found = [minimize(loss, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for x in points]
    best = min(found, key=lambda one: float(one.fun))
    values = [-float(one.fun) for one in found]
    return {"best": max(values), "least": min(values), "starts": starts, "x": best.x.round(6).tolist()}


def lead(seed: int, **options: Any) -> dict[str, Any]:
    """One run of HPGD."""
    began = process_time()
    leader = leaders.HPGD(
        RATE, STEPS, "critic", optimizer="Adam", max_gradient_norm=None, schedule="cosine", regularization=LAMBDA, **options
    )
    follower = followers.LinearQuadratic(LAMBDA)
    result = leaders.optimize(copies(), leader, follower, ITERATIONS, seed=seed, evaluate_every=10, progress=False)
    return {
        "seed": seed,
        "leader_return": result.leader_return,
        "env_steps": result.env_steps,
        "cpu_seconds": process_time() - began,
        "x": result.x.tolist(),
    }


def row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds."""
    returns = np.array([run["leader_return"] for run in runs])
    return {
        "leader": name,
        "seeds": len(runs),
        "leader_return": float(returns.mean()),
        "standard_error": float(returns.std(ddof=1) / len(runs) ** 0.5),
        "env_steps": float(np.mean([run["env_steps"] for run in runs])),
        "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
    }


def answer(name: str, follower: followers.Follower) -> dict[str, Any]:
    """What leader and follower earn of an answer at x = 0."""
    began, rng = process_time(), np.random.default_rng(0)
    oracle = followers.TrajectoryOracle(copies(action_bound=30.0), follower)
    policy = oracle.respond(np.zeros(8), 0, rng)
    batch = oracle.sample(policy, 20_000, rng)
    returns = {"leader_return": batch.discounted_returns(0.9, leader=True), "follower_return": batch.discounted_returns(0.9)}
    found: dict[str, Any] = {"follower": name, "training_steps": follower.training_steps, "episodes": batch.n_episodes}
    for what, values in returns.items():
        found[what], found[f"{what}_error"] = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    return found | {"cpu_seconds": process_time() - began}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optima", action="store_true", help="print the optima, and nothing else")
    args = parser.parse_args(arguments)
    if args.optima:
        print(optima())
        return
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("fork")) as pool:
        best = pool.submit(optima)
        model = [pool.submit(lead, seed) for seed in SEEDS]
        networks = [pool.submit(lead, seed, hidden=(64, 64)) for seed in FEWER]
        learners = {name: followers.SB3Follower(name, TRAINING[name], **options) for name, options in LEARNERS.items()}
        answered = [pool.submit(answer, name, one) for name, one in learners.items()]
        answered.insert(0, pool.submit(answer, "exact", followers.LinearQuadratic(LAMBDA)))
    runs = {
        "HPGD, the model's features": [one.result() for one in model],
        "HPGD, networks": [one.result() for one in networks],
    }
    start = float(BuildingControl().model.leader_return(np.zeros(8), LAMBDA))
    rows = [row(name, own) for name, own in runs.items()]
    settings = {"lambda": LAMBDA, "iterations": ITERATIONS, "env_steps": STEPS, "learning_rate": RATE, "learners": LEARNERS}
    found = {
        "start": start,
        "optimum": best.result(),
        "rows": rows,
        "answers": [one.result() for one in answered],
        "published": PUBLISHED,
    }
    store("building_control", {"settings": settings, **found, "runs": runs})


if __name__ == "__main__":
    main()
