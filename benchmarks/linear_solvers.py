"""Which method solves the follower's problem fastest, by size and structure: the times behind the automatic choice.

``python -m benchmarks.linear_solvers`` stores ``results/linear_solvers.json``, ``.csv`` and a plot. Timed, in seconds of
processor time on one core, is soft policy iteration from V = 0 to the default tolerance with one plain and one transposed solve
after it (an exact gradient without the model's functions), by every method of `bocmdp_gym.solvers` that finishes in
reasonable time. The rival that needs no linear systems, modified soft policy iteration, does 20 Gauss-Seidel sweeps with the
policy at hand, forwards and backwards in turn, after each soft Bellman backup; it has no solves to close with.
"""

from __future__ import annotations

from time import process_time
from typing import Any

import numpy as np
from numba import njit

from benchmarks.common import lu_seconds, plot_methods, store, store_table
from benchmarks.grids import REGULARIZATION, grid_model
from bocmdp_gym.kernels import bellman
from bocmdp_gym.soft_bellman import MAX_ITERATIONS, TOLERANCE
from bocmdp_gym.solvers import METHODS, policy_solver

SIZES = (100, 256, 529, 1024, 2500, 10_000, 100_000)
SWEEPS = 20
#: A method that took longer than this is not run at larger sizes of the problem.
PATIENCE = 2.0


@njit(cache=True)  # type: ignore[untyped-decorator, unused-ignore]
def _gauss_seidel(succ: Any, prob: Any, k: Any, rhs: Any, v: Any, sweeps: int) -> None:
    n_s, n_a, n_k = prob.shape
    for sweep in range(sweeps):
        for i in range(n_s):
            s = i if sweep % 2 == 0 else n_s - 1 - i
            total, own = rhs[s], 1.0
            for a in range(n_a):
                for m in range(n_k):
                    weight = k[s, a] * prob[s, a, m]
                    if succ[s, a, m] == s:
                        own -= weight
                    else:
                        total += weight * v[succ[s, a, m]]
            v[s] = total / own


def modified_policy_iteration(problem: Any) -> tuple[float, int]:
    """Processor seconds, and backups."""
    succ, prob, reward, g = problem
    began = process_time()
    q, pi = np.empty_like(reward), np.empty_like(reward)
    v, rhs, v_new = np.zeros(len(reward)), np.empty(len(reward)), np.zeros(len(reward))
    backups, residual = 0, np.inf
    while residual > TOLERANCE * max(1.0, np.abs(v_new).max()):
        if backups:
            _gauss_seidel(succ, prob, pi * g, rhs, v, SWEEPS)
        backups += 1
        residual = bellman.soft_backup(reward, g, succ, prob, REGULARIZATION, v, q, pi, rhs, v_new)
    return process_time() - began, backups


def exact_gradient(problem: Any, method: str) -> tuple[float, int]:
    """Processor seconds, and Newton steps."""
    succ, prob, reward, g = problem
    began = process_time()
    solver = policy_solver(succ, method=method)
    found = solver.policy_iteration(reward, g, prob, REGULARIZATION, np.zeros(len(reward)), TOLERANCE, MAX_ITERATIONS)
    system = solver.factor(found.policy * g, prob)
    system.solve(reward[:, 0].copy())
    system.solve_transposed(np.full(len(reward), 1.0 / len(reward)))
    return process_time() - began, found.iterations


def grid(states: int) -> Any:
    """`benchmarks.grids`."""
    model = grid_model(states)
    arrays = model.configure(np.zeros(model.leader_dim)).arrays(0)
    return arrays.successors, arrays.probabilities, arrays.reward, arrays.continuation


def random_mdp(states: int) -> Any:
    """Four successors per action, drawn uniformly: no order of the states keeps factors sparse."""
    rng = np.random.default_rng(0)
    succ = rng.integers(0, states, (states, 4, 4)).astype(np.int32)
    return succ, rng.dirichlet(np.ones(4), (states, 4)), rng.random((states, 4)), np.full((states, 4), 0.99)


def main() -> None:
    rows: list[dict[str, Any]] = []
    for method in METHODS:  # compile
        exact_gradient(grid(100), method)
    modified_policy_iteration(grid(100))
    for name, make in (("grid", grid), ("random successors", random_mdp)):
        methods = [method for method in METHODS if method != "auto"] + ["modified policy iteration"]
        for states in SIZES:
            problem = make(states)
            row: dict[str, Any] = {"problem": name, "states": len(problem[2])}
            row["automatic"] = type(policy_solver(problem[0])).__name__
            for method in list(methods):
                best, repeats = (np.inf, 0), 0
                while repeats < 5 and (repeats == 0 or best[0] < 0.1):
                    if method in METHODS:
                        best = min(best, exact_gradient(problem, method))
                    else:
                        best = min(best, modified_policy_iteration(problem))
                    repeats += 1
                row[f"{method} seconds"], row[f"{method} steps"] = best
                if best[0] > PATIENCE / 10 and method != "krylov":  # the next size is up to ten times as large
                    methods.remove(method)
            rows.append(row)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{key: row.get(key) for key in keys} for row in rows]
    store_table("linear_solvers", rows)
    store("linear_solvers", {"lu_microseconds": 1e6 * lu_seconds(), "rows": rows})
    methods = ("krylov", "banded", "sparse-lu", "dense", "modified policy iteration")
    curves = {f"{method} seconds": method for method in methods}
    plot_methods("linear_solvers", rows, ("grid", "random successors"), curves, "krylov seconds", "processor seconds")


if __name__ == "__main__":
    main()
