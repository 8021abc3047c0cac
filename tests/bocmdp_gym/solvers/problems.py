"""Problems that the solvers are tried on, and what they find there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.grids import grid_model
from bocmdp_gym.solvers import PolicySolver

LAMBDA = 0.01
Array = npt.NDArray[np.float64]


def garnet(states: int, branching: int = 3, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Successors with repetitions, probabilities, rewards, continuation of a random problem."""
    rng = np.random.default_rng(seed)
    succ = rng.integers(0, states, (states, 3, branching)).astype(np.int32)
    prob = rng.dirichlet(np.ones(branching), (states, 3))
    return succ, prob, rng.random((states, 3)), np.full((states, 3), 0.97)


def grid(side: int, discount: float = 0.99, *, shuffled: bool = False) -> tuple[Any, Any, Any, Any]:
    mdps = grid_model(side**2).configure(np.zeros(side**2)).arrays(0)
    succ, prob, reward = mdps.successors, mdps.probabilities, mdps.reward
    if shuffled:
        order = np.random.default_rng(1).permutation(side**2).astype(np.int32)
        succ, reward = np.ascontiguousarray(order[succ][np.argsort(order)]), reward[np.argsort(order)]
    return succ, prob, reward, np.full(reward.shape, discount)


def results(solver: PolicySolver, problem: Any, lam: float = LAMBDA) -> tuple[Array, Array, Array]:
    """V*, and a plain and a transposed solve with its policy."""
    _, prob, reward, g = problem
    v = np.zeros(len(reward))
    found = solver.policy_iteration(reward, g, prob, lam, v, 1e-8, 200)
    assert found.error <= 1e-8
    system = solver.factor(found.policy * g, prob)
    source = np.zeros(len(reward))
    source[len(reward) // 3] = 1.0
    return v, system.solve(reward[:, 0].copy()), system.solve_transposed(source)
