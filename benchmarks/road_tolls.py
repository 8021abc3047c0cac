"""`bocmdp/RoadTolls-v0`: known limits on Sioux Falls, cost over size, and tolls found by hypergradients and by black boxes.

- ``limits``: Sioux Falls without tolls as lambda falls, against the best known user equilibrium; under marginal-cost tolls,
  against the system optimum.
- ``cost``: seconds for an equilibrium and for a hypergradient, on Sioux Falls and on generated cities of up to 441 nodes; first
  equilibrium of a model (cold), then at other tolls (warm: from the equilibrium without tolls). One core.
- ``net_benefit``: L-BFGS on hypergradients of the net benefit, from no tolls and from random ones: relative distance to the value
  at marginal-cost tolls, which is the optimum.
- ``search``: travel time by tolls on ten links only, and revenue by tolls of at most ten minutes on all, from ten random starts:
  `leaders.ExactGradient` with Adam, 50 equilibria a start; beside it CMA-ES and `leaders.ZeroOrder` with as many equilibria as
  the ten starts took together.

Run all of them with ``python -m benchmarks.road_tolls``, or name some; each is stored in
``benchmarks/results/road_tolls_PART.json``. It needs the files of Sioux Falls (`bocmdp_gym.tntp`), and cma.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

import cma
import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import minimize

import bocmdp_gym
import followers
import leaders
from benchmarks.common import RESULTS, store
from bocmdp_gym import tntp
from bocmdp_gym.road_network import RoadNetwork, grid
from bocmdp_gym.traffic import RoadTraffic

LAMBDA = 1.0
LAMBDAS = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003]
SIZES = [4, 6, 8, 12, 16, 21]
STARTS, ITERATIONS = 10, 50


def limits() -> dict[str, Any]:
    model = RoadTraffic(tntp.sioux_falls())
    known = tntp.read_flows(tntp.sioux_falls_file("flow"), model.network)
    rows, start = [], None
    for regularization in LAMBDAS:
        found = model.traffic(np.zeros(76), regularization, start=start)
        start = found.equilibrium
        best = None
        if regularization >= 0.03:
            best = model.traffic(model.marginal_cost_tolls(regularization), regularization).travel_time
        rows.append(
            {
                "lambda": regularization,
                "travel time": found.travel_time,
                "Beckmann": found.beckmann,
                "largest relative difference of a flow": float(np.abs(found.flows / known - 1.0).max()),
                "travel time under marginal-cost tolls": best,
                "residual": found.equilibrium.residual,
            }
        )
    published = {"travel time": 7_480_225.3, "Beckmann": model.network.beckmann(known), "system optimum": 7_194_256.0}
    return {"rows": rows, "deterministic": published}


def seconds(network: RoadNetwork, repeats: int) -> dict[str, Any]:
    """Of one network; the median of ``repeats`` for what is warm."""
    began = perf_counter()
    model = RoadTraffic(network, "net_benefit")
    made = perf_counter()
    model.leader_return(np.zeros(network.n_links), LAMBDA)
    cold = perf_counter()
    rng, solves, gradients, steps = np.random.default_rng(0), [], [], []
    for _ in range(repeats):
        x = torch.tensor(rng.uniform(0.0, 3.0, network.n_links), requires_grad=True)
        first = perf_counter()
        value = model.leader_return(x, LAMBDA)
        solved = perf_counter()
        torch.autograd.grad(value, x)
        gradients.append(perf_counter() - first)
        solves.append(solved - first)
        steps.append(model.equilibrium(x.detach(), LAMBDA).iterations)
    return {
        "network": network.name,
        "nodes": network.n_nodes,
        "links": network.n_links,
        "classes": model.n_contexts,
        "construction": made - began,
        "cold": cold - made,
        "equilibrium": float(np.median(solves)),
        "equilibrium and gradient": float(np.median(gradients)),
        "Newton steps": float(np.median(steps)),
    }


def cost() -> dict[str, Any]:
    torch.set_num_threads(1)
    seconds(grid(2), 1)  # compiles
    rows = [seconds(tntp.sioux_falls(), 7), *(seconds(grid(size), 5 if size < 16 else 3) for size in SIZES)]
    unknowns = np.array([row["nodes"] * row["classes"] for row in rows[1:]])
    large = [row["equilibrium and gradient"] for row in rows[-4:]]
    slope = np.polyfit(np.log(unknowns[-4:]), np.log(large), 1)[0]
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for column in ("cold", "equilibrium", "equilibrium and gradient"):
        axes.loglog(unknowns, [row[column] for row in rows[1:]], "o-", label=column)
    axes.set(
        xlabel="nodes x destinations",
        ylabel="seconds, one core",
        title=f"cities: slope {slope:.2f} of the gradient, from {SIZES[-4]} x {SIZES[-4]} on",
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(RESULTS / "road_tolls_cost.png", dpi=130)
    return {"rows": rows, "slope": float(slope)}


def net_benefit() -> dict[str, Any]:
    model = RoadTraffic(tntp.sioux_falls(), "net_benefit")

    def loss(x: Any) -> tuple[float, Any]:
        point = torch.tensor(x, requires_grad=True)
        value = model.leader_return(point, LAMBDA)
        (gradient,) = torch.autograd.grad(value, point)
        return -float(value.detach()), -gradient.numpy()

    best, gradient = loss(model.marginal_cost_tolls(LAMBDA))
    rng, rows = np.random.default_rng(0), {}
    options = {"ftol": 1e-13, "gtol": 1e-9, "maxcor": 20, "maxiter": 120}
    for name, start in (("no tolls", np.zeros(76)), ("random up to 10 minutes", rng.uniform(0.0, 10.0, 76))):
        found = minimize(loss, start, jac=True, bounds=[(0.0, 60.0)] * 76, method="L-BFGS-B", options=options)
        rows[name] = {"value": -found.fun, "relative distance": (found.fun - best) / abs(best), "gradients": found.nfev}
    return {"at marginal-cost tolls": -best, "largest entry of the gradient there": float(np.abs(gradient).max()), "from": rows}


def problems() -> dict[str, dict[str, Any]]:
    """Keywords of the two searches."""
    model = RoadTraffic(tntp.sioux_falls())
    dearest = np.sort(np.argsort(-model.marginal_cost_tolls(LAMBDA))[:10])
    return {
        "travel time, ten links": {"tollable": dearest.tolist(), "toll_bounds": (0.0, 60.0), "objective": "travel_time"},
        "revenue, cap of 10 minutes": {"toll_bounds": (0.0, 10.0), "objective": "revenue"},
    }


def search() -> dict[str, Any]:
    results = {}
    for name, options in problems().items():
        env = gym.make("bocmdp/RoadTolls-v0", network="sioux-falls", **options)
        core, follower = bocmdp_gym.configurable(env), followers.SoftPolicyIteration(regularization=LAMBDA)
        low, high = core.population.toll_bounds
        d, rng = core.leader_space.shape[0], np.random.default_rng(0)
        ends, best_x, best = [], np.zeros(d), -np.inf
        began = perf_counter()
        for seed in range(STARTS):
            leader = leaders.ExactGradient(learning_rate=0.1 * high, optimizer="Adam", schedule="linear")
            start = rng.uniform(low, high, d)
            found = leaders.optimize(
                env, leader, follower, ITERATIONS, x0=start, seed=seed, evaluate_every=ITERATIONS, progress=False
            )
            assert found.leader_return is not None
            ends.append(found.leader_return)
            if found.leader_return > best:
                best, best_x = found.leader_return, found.x.numpy()
        exact_seconds = perf_counter() - began
        budget = STARTS * ITERATIONS
        zero = leaders.ZeroOrder(
            learning_rate=0.05 * high, optimizer="Adam", schedule="linear", smoothing=0.02 * high, decay=False, exact=True
        )
        sampled = leaders.optimize(
            env, zero, follower, budget // 2, x0=rng.uniform(low, high, d), seed=0, evaluate_every=budget, progress=False
        )
        results[name] = {
            "without tolls": float(core.population.leader_return(np.zeros(d), LAMBDA)),
            "hypergradient, ten starts": ends,
            "hypergradient, best": best,
            "CMA-ES": black_box(core.population, low, high, budget),
            "zero-order": sampled.leader_return,
            "equilibria": budget,
            "seconds, hypergradient": exact_seconds,
        }
        core.result_figure(best_x, None).savefig(RESULTS / f"road_tolls_{options['objective']}.png", dpi=80)
    return results


def black_box(model: RoadTraffic, low: float, high: float, budget: int) -> float:
    """The best value that CMA-ES finds with so many equilibria, from the middle of the box."""
    d, values = model.leader_dim, []
    options = {"bounds": [low, high], "maxfevals": budget, "seed": 1, "verbose": -9}
    evolution = cma.CMAEvolutionStrategy(np.full(d, 0.5 * (low + high)), 0.25 * (high - low), options)
    while not evolution.stop() and len(values) < budget:
        points = evolution.ask()
        found = [-float(model.leader_return(np.clip(point, low, high), LAMBDA)) for point in points]
        evolution.tell(points, found)
        values += found
    return -min(values[:budget])


PARTS = {"limits": limits, "cost": cost, "net_benefit": net_benefit, "search": search}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        store(f"road_tolls_{part}", PARTS[part]())


if __name__ == "__main__":
    main()
