"""Time and memory of the exact hypergradient against the number of states and of contexts.

``python -m benchmarks.scaling`` stores ``results/scaling.json``, ``.csv`` and a plot; every size runs in a process of its own, so
that its peak memory is its own. The problem is `benchmarks.grids`: 4 actions, gamma 0.99, lambda 0.01, one toll per cell.

- *States*, 100 to 1,000,000: F and dF/dx by `model.leader_return(x, ...)` and ``backward()`` from a cold start (V = 0) on a model
  not solved before. The gradient is compared with finite differences in random directions (Richardson's extrapolation of central
  differences, solved to residuals of 1e-13 and started at V*).
- *States, P moving*: the same, moves from cell s slipping as x_s says.
- *Contexts*, 1 to 1,000 of 100 states: the same; *warm* starts at V* of an x nearby. Beside the grid, where rewards depend on x
  and the moves are shared, a random MDP in which all of r, rbar, P and mu do, and differ between contexts.

``seconds`` are wall time, ``processor_seconds`` what the process used: on a shared machine the second is the better measure.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import bocmdp_gym
from benchmarks.common import RESULTS, lu_seconds, store, store_table
from benchmarks.grids import REGULARIZATION, grid_model
from bocmdp_gym import TabularBOCMDP

STATES = (100, 1000, 10_000, 100_000, 1_000_000)
CONTEXTS = (1, 10, 100, 1000)
DIRECTIONS, STEP, PRECISE = 2, 1e-5, 1e-13
FAMILIES: dict[str, Callable[[int], TabularBOCMDP]] = {
    "grid": lambda contexts: grid_model(100, contexts),
    "random MDP": lambda contexts: _random_mdp(contexts),
}


def _random_mdp(contexts: int) -> TabularBOCMDP:
    env = gym.make("bocmdp/RandomMDP-v0", n_states=100, n_actions=4, n_contexts=contexts, branching=4, discount=0.99)
    model: TabularBOCMDP = bocmdp_gym.configurable(env).model
    return model


def gradient(model: TabularBOCMDP, x: torch.Tensor, **options: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """DF/dx ``(d,)``, and what F and its gradient took."""
    x = x.clone().requires_grad_()
    began, processor = perf_counter(), process_time()
    value = model.leader_return(x, REGULARIZATION, **options)
    forward, forward_processor = perf_counter() - began, process_time() - processor
    value.backward()
    assert x.grad is not None
    times = {"seconds": perf_counter() - began, "processor_seconds": process_time() - processor}
    return x.grad, {**times, "forward_seconds": forward, "forward_processor_seconds": forward_processor}


def peak_gigabytes() -> float:
    """Peak memory of this process, interpreter and libraries included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def measure_states(states: int, moving: bool) -> dict[str, Any]:
    """One row: time, memory and error of the gradient at one size, P moving with x or not."""
    small = grid_model(2500, moving=moving)  # compiles everything
    for solver in ("auto", "banded"):
        gradient(small.replace(solver=solver), torch.zeros(small.leader_dim, dtype=torch.float64))
    began = perf_counter()
    model = grid_model(states, moving=moving)
    row: dict[str, Any] = {"states": model.n_states, "build_seconds": perf_counter() - began}
    x = 0.3 * torch.randn(model.leader_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs = [gradient(model.replace(), x)[1] for _ in range(1 if states > 200_000 else 3)]
    row |= {key: min(run[key] for run in runs) for key in runs[0]}
    row["peak_gigabytes"] = peak_gigabytes()
    exact, _ = gradient(model, x, tolerance=PRECISE)
    start = model.solve(x, REGULARIZATION, tolerance=PRECISE).value
    errors = []
    for seed in range(DIRECTIONS):
        direction = torch.randn(len(x), generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
        slopes = [_slope(model, x, h * direction, start) / h for h in (STEP, 2 * STEP)]
        numeric = (4.0 * slopes[0] - slopes[1]) / 3.0
        errors.append(abs(float(exact @ direction) / numeric - 1.0))
    return {**row, "finite_difference_error": max(errors), "newton_steps": model.solve(x, REGULARIZATION).iterations}


def _slope(model: TabularBOCMDP, x: torch.Tensor, step: torch.Tensor, start: torch.Tensor) -> float:
    ahead, behind = (model.leader_return(z, REGULARIZATION, initial_value=start, tolerance=PRECISE) for z in (x + step, x - step))
    return float(ahead - behind) / 2.0


def measure_contexts(contexts: int, family: str) -> dict[str, Any]:
    """One row: the full-context gradient of a 100-state model, cold and warm."""
    gradient(FAMILIES[family](2), torch.zeros(FAMILIES[family](2).leader_dim, dtype=torch.float64))
    model = FAMILIES[family](contexts)
    x = 0.3 * torch.randn(model.leader_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nearby = x + 0.01 * torch.randn(model.leader_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = model.solve(nearby, REGULARIZATION).value
    row: dict[str, Any] = {"family": family, "contexts": contexts}
    for name, options in (("cold", {}), ("warm", {"initial_value": start})):
        runs = [gradient(model, x, **options)[1] for _ in range(5)]
        row |= {f"{name}_{key}": min(run[key] for run in runs) for key in ("seconds", "processor_seconds")}
    return {**row, "peak_gigabytes": peak_gigabytes()}


def _in_child(task: str, *arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scaling", task, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    return row


def main() -> None:
    lu = lu_seconds()
    by_states = [_in_child("states", states) for states in STATES]
    moving = [_in_child("moving", states) for states in STATES]
    by_contexts = [_in_child("contexts", contexts, family) for family in FAMILIES for contexts in CONTEXTS]
    large = [row for row in by_states if row["states"] >= 900]
    slopes = {
        key: float(np.polyfit(np.log([row["states"] for row in large]), np.log([row[key] for row in large]), 1)[0])
        for key in ("seconds", "processor_seconds")
    }
    store_table("scaling_states", by_states)
    store_table("scaling_moving", moving)
    store_table("scaling_contexts", by_contexts)
    store(
        "scaling", {"lu_microseconds": 1e6 * lu, "slopes": slopes, "states": by_states, "moving": moving, "contexts": by_contexts}
    )
    plot(by_states, by_contexts, slopes["processor_seconds"])


def plot(by_states: list[dict[str, Any]], by_contexts: list[dict[str, Any]], slope: float) -> None:
    """Time and memory against states, time against contexts."""
    from matplotlib.figure import Figure  # not in the processes whose memory is measured

    figure = Figure(figsize=(12.5, 4.0), layout="constrained")
    time, memory, contexts = figure.subplots(1, 3)
    states = [row["states"] for row in by_states]
    time.loglog(states, [row["seconds"] for row in by_states], "o-", label="wall time")
    time.loglog(states, [row["processor_seconds"] for row in by_states], "s--", label=f"processor time (slope {slope:.2f})")
    time.set(xlabel="states", ylabel="seconds", title="exact hypergradient, cold start")
    memory.loglog(states, [row["peak_gigabytes"] for row in by_states], "o-", color="#6a8f3c")
    memory.set(xlabel="states", ylabel="GB", title="peak memory of the process")
    for family in FAMILIES:
        rows = [row for row in by_contexts if row["family"] == family]
        for name, style in (("cold", "o-"), ("warm", "s--")):
            points = [row["contexts"] for row in rows], [row[f"{name}_seconds"] for row in rows]
            contexts.loglog(*points, style, label=f"{family}, {name}")
    contexts.set(xlabel="contexts", ylabel="seconds", title="all contexts of 100 states")
    for axes in (time, memory, contexts):
        axes.grid(alpha=0.25)
    for axes in (time, contexts):
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "scaling.png", dpi=130)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] in ("states", "moving"):
        print(json.dumps(measure_states(int(sys.argv[2]), sys.argv[1] == "moving")))
    else:
        print(json.dumps(measure_contexts(int(sys.argv[2]), sys.argv[3])))
