"""The soft solve against quantecon's DiscreteDP, on the same sparse MDPs in the same run.

``python -m benchmarks.peers`` stores ``results/peers.json``, ``.csv`` and a plot. The two solve different equations: ours the
regularised one (lambda 0.01), quantecon the unregularised one, by value iteration, policy iteration and modified policy iteration
in its sparse state-action form. Both are held to the same accuracy of the value, a bound of 1e-6 on its error: quantecon's
epsilon is 2e-6, which bounds its error by the half, and ours, a bound on the policy's error, is 1e-6 / lambda. What each achieved
is stored, and so is our time at our own default, a bound of 1e-8 on the policy's error. Neither gets a starting value. Timed are
`model.solve(x)` of a model not solved before, which includes finding an order of the states, and `DiscreteDP.solve` without its
constructor. Compilation is not timed. Ours and theirs take turns, each three times running, so that caches hold what one needs
itself, and the shortest time counts; seconds of processor time are stored next to it, for they do not depend on what else the
machine does.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

import gymnasium as gym
import numpy as np
from quantecon.markov import DiscreteDP
from scipy.sparse import block_array, csr_array, csr_matrix, diags_array

import bocmdp_gym
from benchmarks.common import lu_seconds, plot_methods, store, store_table
from benchmarks.grids import REGULARIZATION, grid_model
from bocmdp_gym import TabularBOCMDP
from bocmdp_gym.soft_bellman import TOLERANCE

METHODS = ("value_iteration", "policy_iteration", "modified_policy_iteration")
#: Accepted bound on the error of the value.
ACCURACY = 1e-6
#: Runs of one method after another, before the next one's turn.
RUNNING = 3
#: A method this many times slower than the best one is not run at larger sizes.
GIVEN_UP = 3.0
PROBLEMS: dict[str, Callable[[int], TabularBOCMDP]] = {
    "random rewards": grid_model,
    "four rooms": lambda states: four_rooms(states),
}


def four_rooms(states: int) -> TabularBOCMDP:
    """Four-Rooms with cells divided until there are about so many."""
    scale = max(1, round((states / 104) ** 0.5))
    env = gym.make("bocmdp/FourRooms-v0", scale=scale, goals=[[1, 9]], penalty_budget=0.2 * scale**2)
    model: TabularBOCMDP = bocmdp_gym.configurable(env).model
    return model


def discrete_dp(model: TabularBOCMDP, x: Any) -> DiscreteDP:
    """The same MDP for quantecon; where episodes end, with one more state that is never left and pays nothing."""
    arrays = model.configure(x).arrays(0)
    n_states, n_actions, width = arrays.probabilities.shape
    rows = np.repeat(np.arange(n_states * n_actions), width)
    entries = (arrays.probabilities.reshape(-1), (rows, arrays.successors.reshape(-1)))
    kernel = csr_array(entries, shape=(n_states * n_actions, n_states))
    kernel.sum_duplicates()
    rewards = arrays.reward.reshape(-1)
    states, actions = np.repeat(np.arange(n_states), n_actions), np.tile(np.arange(n_actions), n_states)
    ends = arrays.termination.reshape(-1)
    if ends.any():
        kernel = block_array([[diags_array(1.0 - ends) @ kernel, csr_array(ends[:, None])], [None, np.ones((1, 1))]])
        rewards, states, actions = np.append(rewards, 0.0), np.append(states, n_states), np.append(actions, 0)
    return DiscreteDP(rewards, csr_matrix(kernel), model.discount, states, actions)


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, processor seconds, and what the call returned."""
    began, processor = perf_counter(), process_time()
    result = call()
    return perf_counter() - began, process_time() - processor, result


def compare(problem: str, states: int, methods: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """One row of the table."""
    model = PROBLEMS[problem](states)
    x = np.zeros(model.leader_dim)
    peer = discrete_dp(model, x)
    exact = peer.solve("policy_iteration", max_iter=1000).v if states <= 20_000 else None
    best: dict[str, tuple[float, float]] = {}
    solutions: dict[str, Any] = {}
    row: dict[str, Any] = {"problem": problem, "states": model.n_states, "lu_microseconds": 1e6 * lu_seconds()}

    def note(name: str, wall: float, processor: float) -> None:
        seen = best.get(name, (np.inf, np.inf))
        best[name] = (min(seen[0], wall), min(seen[1], processor))

    for _ in range(repeats):
        for name, tolerance in (("soft", ACCURACY / REGULARIZATION), ("default", TOLERANCE)):
            for _ in range(RUNNING):
                fresh = model.replace()
                wall, processor, result = timed(lambda m=fresh, t=tolerance: m.solve(x, REGULARIZATION, tolerance=t))
                note(name, wall, processor)
            solutions[name] = result
        for method in methods:
            for _ in range(RUNNING):
                wall, processor, result = timed(lambda m=method: peer.solve(m, epsilon=2.0 * ACCURACY, max_iter=100_000))
                note(method, wall, processor)
            if exact is not None:
                row[f"{method}_error"] = float(np.abs(result.v - exact).max())
    precise = model.solve(x, REGULARIZATION, tolerance=1e-13)
    row |= {
        "soft_residual": solutions["soft"].residual,
        "soft_newton_steps": solutions["soft"].iterations,
        **{f"{name}_error": float((solution.value - precise.value).abs().max()) for name, solution in solutions.items()},
    }
    for name in ("soft", "default", *METHODS):
        row[f"{name}_seconds"], row[f"{name}_processor_seconds"] = best.get(name, (None, None))
    fastest = min(methods, key=lambda name: best[name][0])
    row |= {
        "fastest_peer": fastest,
        "ratio": best["soft"][0] / best[fastest][0],
        "ratio_at_default": best["default"][0] / best[fastest][0],
        "processor_ratio": best["soft"][1] / min(best[name][1] for name in methods),
        "lu": best["soft"][0] / row["lu_microseconds"] * 1e6,
        "slow": [name for name in methods if best[name][0] > GIVEN_UP * best[fastest][0]],
    }
    return row


def main() -> None:
    rows = []
    for problem, make in PROBLEMS.items():
        warm_up = make(100)
        warm_up.replace(solver="krylov").solve(np.zeros(warm_up.leader_dim), REGULARIZATION)
        for method in METHODS:
            discrete_dp(warm_up, np.zeros(warm_up.leader_dim)).solve(method)
        methods = METHODS
        for states, repeats in ((1000, 9), (10_000, 5), (100_000, 3)):
            row = compare(problem, states, methods, repeats)
            slow = row.pop("slow")
            methods = tuple(name for name in methods if name not in slow)
            rows.append(row)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{key: row.get(key) for key in keys} for row in rows]
    store_table("peers", rows)
    store("peers", {"rows": rows})
    curves = {"soft_seconds": "soft solve, lambda = 0.01"}
    curves |= {f"{name}_seconds": f"DiscreteDP, {name.replace('_', ' ')}" for name in METHODS}
    plot_methods("peers", rows, list(PROBLEMS), curves, "soft_seconds", "seconds")


if __name__ == "__main__":
    main()
