"""The four methods for linear systems of a policy against each other, and large models against small ones."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmarks.grids import grid_model
from bocmdp_gym import SuccessorTransitions, TabularEnv, errors
from bocmdp_gym.mdps import ConfiguredMDPs
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.policy_solvers import (
    METHODS,
    BandedSolver,
    DenseSolver,
    FactoredSolver,
    KrylovSolver,
    PolicySolver,
    SparseLUSolver,
    policy_solver,
)
from followers import SoftPolicyIteration, TrajectoryOracle
from leaders import HPGD, ExactGradient, optimize
from leaders.gradients.exact import exact_weights
from tests.problems import F64, random_model, random_x, relative_error

LAMBDA = 0.01
Array = npt.NDArray[np.float64]


def _garnet(states: int, branching: int = 3, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    """Successors with repetitions, probabilities, rewards, continuation of a random problem."""
    rng = np.random.default_rng(seed)
    succ = rng.integers(0, states, (states, 3, branching)).astype(np.int32)
    prob = rng.dirichlet(np.ones(branching), (states, 3))
    return succ, prob, rng.random((states, 3)), np.full((states, 3), 0.97)


def _grid(side: int, discount: float = 0.99, *, shuffled: bool = False) -> tuple[Any, Any, Any, Any]:
    mdps = grid_model(side**2).configure(np.zeros(side**2)).arrays(0)
    succ, prob, reward = mdps.successors, mdps.probabilities, mdps.reward
    if shuffled:
        order = np.random.default_rng(1).permutation(side**2).astype(np.int32)
        succ, reward = np.ascontiguousarray(order[succ][np.argsort(order)]), reward[np.argsort(order)]
    return succ, prob, reward, np.full(reward.shape, discount)


def _results(solver: PolicySolver, problem: Any, lam: float = LAMBDA) -> tuple[Array, Array, Array]:
    """V*, and a plain and a transposed solve with its policy."""
    _, prob, reward, g = problem
    v = np.zeros(len(reward))
    found = solver.policy_iteration(reward, g, prob, lam, v, 1e-8, 200)
    assert found.error <= 1e-8
    solver.factor(found.policy * g, prob)
    source = np.zeros(len(reward))
    source[len(reward) // 3] = 1.0
    return v, solver.solve(reward[:, 0].copy()), solver.solve_transposed(source)


@pytest.mark.parametrize(
    "problem", [_garnet(40), _garnet(300), _grid(25), _grid(25, shuffled=True)], ids=["small", "garnet", "grid", "shuffled"]
)
def test_methods_agree(problem: Any) -> None:
    expected = _results(policy_solver(problem[0], method="dense"), problem)
    for method in set(METHODS) - {"dense"}:
        solver = policy_solver(problem[0], method=method)
        for got, want in zip(_results(solver, problem), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-8 * np.abs(want).max())


@pytest.mark.parametrize("discount", [0.9999, 0.999999])
def test_iteration_works_close_to_discount_one(discount: float) -> None:
    problem = _grid(25, discount)
    problem = (*problem[:2], -problem[2], problem[3])  # costs
    problem[3][-1] = 0.0  # and an end
    expected = _results(policy_solver(problem[0], method="sparse-lu"), problem)
    for got, want in zip(_results(policy_solver(problem[0], method="krylov"), problem), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8 * np.abs(want).max())


def test_choice_of_method() -> None:
    assert isinstance(policy_solver(_garnet(40)[0]), BandedSolver)
    assert isinstance(policy_solver(_garnet(150)[0]), DenseSolver)
    assert isinstance(policy_solver(_garnet(2000)[0]), KrylovSolver)
    assert isinstance(policy_solver(_grid(15)[0]), BandedSolver)
    assert isinstance(policy_solver(_grid(60)[0]), KrylovSolver)
    chain = np.clip(np.arange(5000)[:, None, None] + np.array([[[-1], [1]]]), 0, 4999).astype(np.int32).reshape(5000, 2, 1)
    assert isinstance(policy_solver(chain), BandedSolver)
    assert isinstance(policy_solver(np.tile(np.arange(700, dtype=np.int32), (700, 2, 1))), DenseSolver)
    factored = policy_solver(_garnet(2000)[0], np.array([0, 1, 2, 2]))
    assert isinstance(factored, FactoredSolver)
    assert isinstance(factored.inner, KrylovSolver)


def test_choice_can_be_overridden() -> None:
    model = grid_model(900, solver="sparse-lu")
    assert isinstance(model.configure(np.zeros(900)).arrays(0).solver, SparseLUSolver)
    other = model.replace(solver="krylov")
    x = random_x(900)
    assert isinstance(other.configure(x).arrays(0).solver, KrylovSolver)
    torch.testing.assert_close(*(m.leader_return(x, LAMBDA) for m in (model, other)), rtol=1e-9, atol=0)
    with pytest.raises(errors.OptionError, match="Did you mean 'krylov'"):
        grid_model(100, solver="krilov")


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


@pytest.mark.parametrize("method", METHODS)
def test_solved_transitions_can_be_copied(method: str) -> None:
    model = grid_model(100, solver=method)
    expected = model.leader_return(np.zeros(100), LAMBDA)
    transition = pickle.loads(pickle.dumps(copy.deepcopy(model.configure(np.zeros(100)).transition)))  # noqa: S301
    assert isinstance(transition.solver(0), type(policy_solver(transition.successors()[0], method=method)))
    assert model.replace(transition=transition).leader_return(np.zeros(100), LAMBDA) == expected


def test_an_iteration_that_fails_hands_over_to_lu() -> None:
    problem = _grid(30)
    succ = problem[0]
    solver = KrylovSolver(succ, np.arange(900), max_iterations=2)
    for got, want in zip(_results(solver, problem), _results(policy_solver(succ, method="dense"), problem), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-8 * np.abs(want).max())


def _factor_and_solve(solver: PolicySolver, k: Array, prob: Array, b: Array) -> None:
    solver.factor(k, prob)
    solver.solve(b)


def test_singular_systems_are_named() -> None:
    succ, weights = np.arange(5, dtype=np.int32).reshape(5, 1, 1), np.ones((5, 1))  # undiscounted, and nobody moves
    for method in ("krylov", "sparse-lu"):
        with pytest.raises(errors.ConvergenceError, match="factorisation of 5 states failed"):
            _factor_and_solve(policy_solver(succ, method=method), weights, np.ones((5, 1, 1)), np.ones(5))
