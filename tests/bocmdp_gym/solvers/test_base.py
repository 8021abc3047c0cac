"""Solvers against each other, and large models against small ones."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.grids import grid_model
from bocmdp_gym import SuccessorTransitions, TabularEnv, errors
from bocmdp_gym.mdps import ConfiguredMDPs
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.solvers import (
    METHODS,
    PolicySolver,
    policy_solver,
)
from followers import SoftPolicyIteration, TrajectoryOracle
from leaders import HPGD, ExactGradient, optimize
from leaders.gradients.exact import exact_weights
from tests.bocmdp_gym.solvers.problems import LAMBDA, Array, garnet, grid, results
from tests.problems import F64, random_model, random_x, relative_error


@pytest.mark.parametrize(
    "problem", [garnet(40), garnet(300), grid(25), grid(25, shuffled=True)], ids=["small", "garnet", "grid", "shuffled"]
)
def test_methods_agree(problem: Any) -> None:
    expected = results(policy_solver(problem[0], method="dense"), problem)
    for method in set(METHODS) - {"dense"}:
        solver = policy_solver(problem[0], method=method)
        for got, want in zip(results(solver, problem), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-8 * np.abs(want).max())


def test_hypergradient_agrees_between_methods_and_with_finite_differences() -> None:
    x = random_x(900)
    gradients = []
    for method in ("krylov", "banded"):
        model = grid_model(900, solver=method)
        z = x.clone().requires_grad_()
        model.leader_return(z, LAMBDA, tolerance=1e-13).backward()
        assert z.grad is not None
        gradients.append(z.grad)
    assert relative_error(*gradients) <= 1e-8
    direction = torch.randn(900, generator=torch.Generator().manual_seed(1), dtype=F64)

    def slope(h: float) -> float:
        ahead, behind = (model.leader_return(x + s * h * direction, LAMBDA, tolerance=1e-13) for s in (1, -1))
        return float(ahead - behind) / (2 * h)

    numeric = (4 * slope(1e-5) - slope(2e-5)) / 3
    assert float(gradients[0] @ direction) == pytest.approx(numeric, rel=1e-6)


def test_second_derivatives_through_the_iteration() -> None:
    models = [random_model(states=30, successors=3, discount=0.9).replace(solver=m) for m in ("krylov", "banded")]
    x = random_x(5)
    hessians = [torch.func.jacrev(torch.func.jacrev(lambda z, m=m: m.leader_return(z, 0.1, tolerance=1e-13)))(x) for m in models]
    assert relative_error(*hessians) <= 1e-8
    batch = torch.stack([x, 0.5 * x])
    torch.testing.assert_close(*(m.leader_return(batch, 0.1) for m in models), rtol=1e-9, atol=0)


def test_exact_weights_are_the_autograd_gradient() -> None:
    model = grid_model(2500)
    x = random_x(2500).requires_grad_()
    model.leader_return(x, LAMBDA, tolerance=1e-13).backward()
    mdps: ConfiguredMDPs = model.configure(x.detach().clone().requires_grad_())
    weights, _ = exact_weights(mdps, 0, WarmSolver(1e-13).solve(mdps, 0, LAMBDA), LAMBDA)
    assert x.grad is not None
    assert relative_error(mdps.vjp(weights, 0), x.grad) <= 1e-8


@pytest.mark.parametrize(
    "leader", [ExactGradient(learning_rate=1.0), HPGD(learning_rate=1.0, env_steps=2000)], ids=["exact", "hpgd"]
)
def test_leaders_run_on_a_large_model(leader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = grid_model(3600)
    monkeypatch.setattr(SuccessorTransitions, "policy_matrix", lambda *_: pytest.fail("a dense S x S array was made"))
    monkeypatch.setattr("bocmdp_gym.kernels.bellman.dense_system", lambda *_: pytest.fail("a dense S x S array was made"))
    env = TabularEnv(model, horizon=50)
    result = optimize(env, leader, SoftPolicyIteration(regularization=LAMBDA), 3, seed=0, progress=False)
    before, after = (float(model.leader_return(x, LAMBDA)) for x in (np.zeros(3600), result.x))
    assert after > before
    oracle = TrajectoryOracle(env, SoftPolicyIteration(regularization=LAMBDA))
    rng = np.random.default_rng(0)
    assert oracle.sample(oracle.respond(result.x, 0, rng), 500, rng).n_steps >= 500


def test_equal_problems_have_equal_bits() -> None:
    first, second = (grid_model(2500).leader_return(random_x(2500), LAMBDA) for _ in range(2))
    assert bool(first == second)


@pytest.mark.parametrize("index", [None, np.array([2, 0, 1, 1])], ids=["listed", "factored"])
@pytest.mark.parametrize("method", METHODS)
def test_systems_of_one_solver_stand_side_by_side(method: str, index: Any) -> None:
    succ, prob, _, g = garnet(300)
    solver, b = policy_solver(succ, index, method), np.arange(300.0)
    weights = [share * np.full((300, solver.rows.size), 1.0 / solver.rows.size) for share in (0.5, 0.9 * g[0, 0])]
    alone = [(solver.factor(k, prob).solve(b), solver.factor(k, prob).solve_transposed(b)) for k in weights]
    together = [solver.factor(k, prob) for k in weights]
    for system, (plain, transposed) in zip(together, alone, strict=True):
        np.testing.assert_array_equal(system.solve(b), plain)
        np.testing.assert_array_equal(system.solve_transposed(b), transposed)
    again = solver.factor(weights[0], prob, together[1])  # in the memory of one that is not needed any more
    np.testing.assert_array_equal(again.solve_transposed(b), alone[0][1])


@pytest.mark.parametrize("method", METHODS)
def test_solved_transitions_can_be_copied(method: str) -> None:
    model = grid_model(100, solver=method)
    expected = model.leader_return(np.zeros(100), LAMBDA)
    transition = pickle.loads(pickle.dumps(copy.deepcopy(model.configure(np.zeros(100)).transition)))  # noqa: S301
    assert isinstance(transition.solver(0), type(policy_solver(transition.successors()[0], method=method)))
    assert model.replace(transition=transition).leader_return(np.zeros(100), LAMBDA) == expected


def _factor_and_solve(solver: PolicySolver, k: Array, prob: Array, b: Array) -> None:
    solver.factor(k, prob).solve(b)


def test_singular_systems_are_named() -> None:
    succ, weights = np.arange(5, dtype=np.int32).reshape(5, 1, 1), np.ones((5, 1))  # undiscounted, and nobody moves
    for method in ("krylov", "sparse-lu"):
        with pytest.raises(errors.ConvergenceError, match="factorisation of 5 states failed"):
            _factor_and_solve(policy_solver(succ, method=method), weights, np.ones((5, 1, 1)), np.ones(5))
