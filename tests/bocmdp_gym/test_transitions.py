"""Factored and sparse transitions against dense ones made of the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, diags_array, random_array
from scipy.stats import chisquare
from torch import Tensor

import bocmdp_gym
from bocmdp_gym import DenseTransitions, FactoredTransitions, SuccessorTransitions, TabularBOCMDP, errors, transitions
from bocmdp_gym.optimum import WarmSolver
from bocmdp_gym.sampling import simulate
from followers import (
    Follower,
    LinearProgramming,
    NaturalPolicyGradient,
    SoftPolicyIteration,
    SoftQLearning,
    SoftValueIteration,
    TrajectoryOracle,
    VanillaPolicyGradient,
)
from leaders import HPGD, ExactGradient
from leaders.gradients import AdaptiveModelDesignEstimator, GeometricEstimator, MonteCarloEstimator, MultilevelEstimator
from leaders.gradients.exact import exact_weights
from leaders.gradients.monte_carlo import scored_weights
from tests.problems import F64, finite_difference, random_x, relative_error

MOVES, ACTIONS, DIM = 4, 11, 3
LAMBDA = 0.2


def _pair(states: int, contexts: int, *, leader_discount: float = 0.8) -> tuple[TabularBOCMDP, TabularBOCMDP, Any]:
    """The same random problem twice: factored, and with every action's row written out."""
    g = torch.Generator().manual_seed(states)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    index = np.random.default_rng(0).integers(0, MOVES, ACTIONS)
    p0, p1 = normal(contexts, states, MOVES, states), 0.3 * normal(contexts, states, MOVES, states, DIM)
    r0, r1, l0, q = (
        normal(2, states, ACTIONS),
        normal(2, states, ACTIONS, DIM),
        normal(2, states, ACTIONS),
        normal(states, ACTIONS),
    )

    def factored(x: Tensor) -> Any:
        return FactoredTransitions(torch.softmax(p0 + p1 @ x, -1), index)

    def dense(x: Tensor) -> Any:
        return DenseTransitions(torch.softmax(p0 + p1 @ x, -1)[..., torch.from_numpy(index), :])

    parts: dict[str, Any] = {
        "reward": lambda x: r0 + r1 @ x,
        "leader_reward": lambda x: l0 * torch.cos(x[0]),
        "initial": torch.softmax(normal(states), -1),
        "termination": lambda x: 0.2 * torch.sigmoid(q + x[1]).unsqueeze(0),
        "leader_dim": DIM,
        "discount": 0.9,
        "leader_discount": leader_discount,
    }
    return TabularBOCMDP(transition=factored, **parts), TabularBOCMDP(transition=dense, **parts), index


@pytest.fixture(params=[(7, 1), (60, 2)], ids=["shared", "per-context"])
def models(request: pytest.FixtureRequest) -> tuple[TabularBOCMDP, TabularBOCMDP, Any]:
    return _pair(*request.param)


def test_operator_maps(models: Any) -> None:
    factored, dense, _ = models
    x = random_x(DIM)
    a, b = (m.configure(x).transition for m in (factored, dense))
    assert (a.n_states, a.n_actions) == (b.n_states, b.n_actions)
    v, w = torch.randn(5, 2, a.n_states, dtype=F64), torch.randn(5, 2, a.n_states, ACTIONS, dtype=F64)
    torch.testing.assert_close(a.expectation(v), b.expectation(v))
    torch.testing.assert_close(a.adjoint(w), b.adjoint(w))
    torch.testing.assert_close(a.policy_matrix(w), b.policy_matrix(w))
    values = a.values.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((w[0] * a.with_values(values).expectation(v[0])).sum(), values)
    outer = a.outer(w[0], v[0])
    torch.testing.assert_close(outer.sum(0, keepdim=True) if len(values) == 1 else outer, expected)


def test_structure_is_compared_with_the_index() -> None:
    values = torch.full((3, 2, 3), 1 / 3, dtype=F64)
    one, other = FactoredTransitions(values, [0, 1, 1]), FactoredTransitions(values, [0, 0, 1])
    assert one.same_structure(one.with_values(values.unsqueeze(0)))
    assert not one.same_structure(other)


def test_solution_and_derivatives(models: Any) -> None:
    factored, dense, _ = models
    x = random_x(DIM, seed=2)
    a, b = factored.solve(x, LAMBDA), dense.solve(x, LAMBDA)
    torch.testing.assert_close(a.value, b.value, atol=1e-10, rtol=0)
    torch.testing.assert_close(a.policy, b.policy, atol=1e-9, rtol=0)
    gradients = [torch.func.grad(lambda z, m=m: m.leader_return(z, LAMBDA, tolerance=1e-14))(x) for m in (factored, dense)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)
    numeric = finite_difference(lambda z: factored.leader_return(z, LAMBDA, tolerance=1e-14), x)
    assert relative_error(gradients[0], numeric) <= 1e-6
    batch = torch.stack([x, 0.5 * x])
    torch.testing.assert_close(factored.leader_return(batch, LAMBDA), dense.leader_return(batch, LAMBDA))


def test_exact_weights(models: Any) -> None:
    factored, dense, index = models
    x = random_x(DIM, seed=3)
    for context in range(2):
        results = []
        for model in (factored, dense):
            mdps = model.configure(x.clone().requires_grad_())
            weights, leader = exact_weights(mdps, context, WarmSolver().solve(mdps, context, LAMBDA), LAMBDA)
            results.append((weights, leader, mdps.vjp(weights, context)))
        (a, leader_a, gradient_a), (b, leader_b, gradient_b) = results
        assert a.transition is not None
        assert b.transition is not None
        summed = np.zeros_like(a.transition)
        for action, move in enumerate(index):
            summed[:, move] += b.transition[:, action]
        np.testing.assert_allclose(a.transition, summed, atol=1e-9)
        np.testing.assert_allclose(a.reward, b.reward, atol=1e-9)
        np.testing.assert_allclose(a.termination, b.termination, atol=1e-9)
        assert leader_a.leader_return == pytest.approx(leader_b.leader_return, abs=1e-10)
        torch.testing.assert_close(gradient_a, gradient_b, atol=1e-9, rtol=1e-9)


def test_log_transitions() -> None:
    factored, dense, _ = _pair(7, 1)
    rng, x = np.random.default_rng(0), random_x(DIM)
    s, a, following = rng.integers(0, 7, 50), rng.integers(0, ACTIONS, 50), rng.integers(0, 7, 50)
    logs = [m.log_transitions(x, s, a, following, 1) for m in (factored, dense)]
    torch.testing.assert_close(*logs)


@pytest.mark.parametrize("start", [None, [[3, 3]] * 200_000])
def test_compiled_sampling_agrees_with_the_dense_model(start: Any) -> None:
    """Chi-square over (action, next state) in the most visited state; level 0.001, fixed seed."""
    factored, dense, _ = _pair(7, 1)
    x = random_x(DIM)
    policy = dense.solve(x, 1.0).policy[0].numpy()
    arrays, expected = factored.configure(x).arrays(0), dense.configure(x).arrays(0)
    run = simulate(arrays, policy, 200_000, np.random.default_rng(0), horizon=1 if start else 50, starts=start)
    following = np.append(run.states[1:], -1)
    following[run.ends - 1] = run.final_states
    ended = np.zeros(len(run.states), dtype=bool)
    ended[run.ends[run.terminated] - 1] = True
    s = np.bincount(run.states).argmax()
    here = (run.states == s) & ~ended
    counts = np.zeros((ACTIONS, 7))
    np.add.at(counts, (run.actions[here], following[here]), 1)
    chosen = np.eye(ACTIONS)[3] if start else policy[s]
    joint = (chosen * (1.0 - expected.termination[s]))[:, None] * expected.probabilities[s]
    joint = joint / joint.sum() * counts.sum()
    seen = joint > 0
    assert counts[~seen].sum() == 0
    assert chisquare(counts[seen], joint[seen]).pvalue > 1e-3
    np.testing.assert_array_equal(run.rewards, expected.reward[run.states, run.actions])


def test_environments_step_by_the_index() -> None:
    """One copy and many: from a given state, the next states of one action follow its row; chi-square, level 0.001."""
    factored, dense, _ = _pair(7, 1)
    x, action = random_x(DIM), 3  # its move differs from its neighbours'
    row = dense.configure(x).arrays(0).probabilities[2, action]
    env = bocmdp_gym.TabularEnv(factored, horizon=1)
    env.set_leader(x.numpy())
    env.set_context(0)
    following = []
    for seed in range(5000):
        env.reset(seed=seed, options={"state": 2})
        state, _, terminated, *_ = env.step(action)
        if not terminated:
            following.append(state)
    assert chisquare(np.bincount(following, minlength=7), row * len(following)).pvalue > 1e-3
    envs = bocmdp_gym.TabularVectorEnv(env, 50_000, "Disabled")
    envs.reset(seed=0, options={"state": 2})
    states, _, terminated, *_ = envs.step(np.full(50_000, action))
    counts = np.bincount(states[~terminated], minlength=7)
    assert chisquare(counts, row * counts.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    "follower",
    [
        SoftValueIteration(LAMBDA),
        SoftValueIteration(LAMBDA, iterations=7),
        SoftQLearning(LAMBDA, iterations=3000),
        SoftQLearning(LAMBDA, iterations=3000, sampling="pairs"),
        VanillaPolicyGradient(LAMBDA, iterations=500),
        NaturalPolicyGradient(LAMBDA),
        LinearProgramming(),
    ],
    ids=lambda f: type(f).__name__,
)
def test_followers_answer_alike(follower: Follower) -> None:
    tables = []
    for model in _pair(7, 1)[:2]:
        policy = TrajectoryOracle(model, follower).respond(random_x(DIM), 0, np.random.default_rng(0))
        tables.append(policy.table)  # type: ignore[attr-defined]
    np.testing.assert_allclose(*tables, atol=1e-9)


def test_monte_carlo_weights_agree() -> None:
    """The same trajectories, weighed with either model: P, mu and q depend on x."""
    factored, dense, _ = _pair(7, 1)
    x, gradients = random_x(DIM), []
    oracle = TrajectoryOracle(dense, SoftPolicyIteration(LAMBDA))
    policy: Any = oracle.respond(x, 1, np.random.default_rng(0))
    batch = oracle.sample(policy, 2000, np.random.default_rng(1))
    for model in (factored, dense):
        mdps = model.configure(x.clone().requires_grad_())
        gradients.append(mdps.vjp(scored_weights(batch, mdps, policy.table, LAMBDA), 1))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_monte_carlo_estimates_are_right() -> None:
    """Within 4 standard errors of the exact gradient in every coordinate, long episodes."""
    factored, _, _ = _pair(7, 1)
    x, env = random_x(DIM), bocmdp_gym.TabularEnv(_pair(7, 1)[0], horizon=None)
    oracle = TrajectoryOracle(env, SoftPolicyIteration(LAMBDA))
    estimates = []
    for seed in range(30):
        estimates.append(HPGD(env_steps=20_000).estimate(oracle, x, 0, np.random.default_rng(seed)))
    stacked = torch.stack(estimates)
    exact = ExactGradient().estimate(TrajectoryOracle(factored, SoftPolicyIteration(LAMBDA)), x, 0, np.random.default_rng(0))
    error = stacked.std(0) / len(stacked) ** 0.5
    assert bool(((stacked.mean(0) - exact).abs() < 4 * error).all())


def test_what_needs_a_list_of_successors_is_refused_before_anything_runs() -> None:
    factored, _, _ = _pair(7, 1)
    with pytest.raises(errors.UnsupportedError, match=r"factored.*rollouts=None"):
        TrajectoryOracle(factored, NaturalPolicyGradient(LAMBDA, rollouts=3, tolerance=0.1))
    oracle = TrajectoryOracle(factored, SoftPolicyIteration(LAMBDA))
    for estimator, alternative in (
        (GeometricEstimator(), "monte_carlo"),
        (MultilevelEstimator(), "SoftQLearning"),
        (AdaptiveModelDesignEstimator(), "ExactGradient"),
    ):
        with pytest.raises(errors.UnsupportedError, match=alternative):
            estimator.bind(oracle)
    multilevel = TrajectoryOracle(factored, SoftQLearning(LAMBDA, iterations=10))
    with pytest.raises(errors.UnsupportedError, match="factored"):
        MultilevelEstimator().bind(multilevel)
    MultilevelEstimator(inner=MonteCarloEstimator(100)).bind(multilevel)


@pytest.mark.parametrize(
    ("values", "index", "message"),
    [
        (torch.full((3, 2, 4), 0.25, dtype=F64), [0, 1], "number of states"),
        (torch.full((3, 2, 3), 1 / 3, dtype=F64), [0, 2], "moves in 0..1"),
        (torch.full((3, 2, 3), 1 / 3, dtype=F64), [0, -1], "moves in 0..1"),
        (torch.full((3, 2, 3), 1 / 3, dtype=F64), [0.0, 0.5], "integers"),
        (torch.full((3, 2, 3), 1 / 3, dtype=F64), [], "integers"),
        (torch.full((3, 2, 3), 1 / 3, dtype=F64), [[0, 1]], "integers"),
    ],
)
def test_bad_factors_are_named(values: Tensor, index: Any, message: str) -> None:
    with pytest.raises(errors.ModelError, match=message):
        FactoredTransitions(values, index)


def test_bad_rows_are_named() -> None:
    values = torch.full((3, 2, 3), 1 / 3, dtype=F64)
    values[2, 1, 0] = 0.5
    with pytest.raises(errors.ModelError, match=r"sums to .* at state 2, move 1, context 0"):
        FactoredTransitions(values, [0, 1, 1]).validate()


def _sparse_pattern(states: int = 30, actions: int = 3) -> Any:
    """A random sparse kernel ``(S A, S)`` with rows of different lengths."""
    matrix = random_array((states * actions, states), density=0.1, rng=np.random.default_rng(0), format="csr")
    matrix = csr_array(matrix + csr_array((np.full(len(rows := np.arange(states * actions)), 0.1), (rows, rows % states))))
    matrix = csr_array(diags_array(1.0 / matrix.sum(1)) @ matrix)
    matrix.sum_duplicates()
    return matrix


def _sparse_model(transition: Any, **options: Any) -> TabularBOCMDP:
    rng = np.random.default_rng(1)
    return TabularBOCMDP(
        reward=rng.random((1, 30, 3)),
        leader_reward=rng.random((1, 30, 3)),
        transition=transition,
        initial=np.full(30, 1 / 30),
        leader_dim=DIM,
        discount=0.9,
        **options,
    )


def test_scipy_matrices_are_transitions() -> None:
    matrix = _sparse_pattern()
    dense = matrix.toarray().reshape(1, 30, 3, 30)
    expected = _sparse_model(dense).leader_return(np.zeros(DIM), LAMBDA)
    unsorted = csr_array((matrix.data[::-1], matrix.indices[::-1], matrix.indptr[-1] - matrix.indptr[::-1]), shape=matrix.shape)[
        ::-1
    ]
    for form in (matrix, matrix.tocoo(), unsorted, [csr_array(dense[0, :, a]) for a in range(3)]):
        model = _sparse_model(form)
        assert isinstance(model.configure(np.zeros(DIM)).transition, SuccessorTransitions)
        torch.testing.assert_close(model.leader_return(np.zeros(DIM), LAMBDA), expected, rtol=1e-10, atol=0)


def test_sparse_function_of_x_has_derivatives_with_respect_to_its_entries() -> None:
    """P(x) given by its stored numbers only, against the same function written out in full."""
    matrix = _sparse_pattern()
    pattern = SuccessorTransitions.from_sparse(matrix)
    rows = torch.from_numpy(np.repeat(np.arange(90), np.diff(matrix.indptr)))
    columns = torch.from_numpy(matrix.indices.astype(np.int64))
    direction = torch.randn(matrix.nnz, DIM, generator=torch.Generator().manual_seed(0), dtype=F64)

    def entries(x: Tensor) -> Tensor:
        weight = torch.from_numpy(matrix.data) * torch.exp(direction @ x)
        return weight / weight.new_zeros(90).index_add(0, rows, weight)[rows]

    def written_out(x: Tensor) -> Tensor:
        full = torch.zeros(90 * 30, dtype=F64).index_add(0, rows * 30 + columns, entries(x))
        return full.reshape(1, 30, 3, 30)

    x = random_x(DIM)
    sparse = _sparse_model(lambda z: pattern.with_entries(entries(z)), solver="krylov")
    dense = _sparse_model(written_out)
    gradients, hessians = [], []
    for model in (sparse, dense):

        def value(z: Tensor, m: TabularBOCMDP = model) -> Tensor:
            return m.leader_return(z, LAMBDA, tolerance=1e-13)

        z = x.clone().requires_grad_()
        value(z).backward()
        assert z.grad is not None
        gradients.append(z.grad)
        hessians.append(torch.func.jacrev(torch.func.jacrev(value))(x))
    assert relative_error(*gradients) <= 1e-9
    assert relative_error(*hessians) <= 1e-8
    mdps = sparse.configure(x.clone().requires_grad_())
    weights, _ = exact_weights(mdps, 0, WarmSolver(1e-13).solve(mdps, 0, LAMBDA), LAMBDA)
    assert weights.transition is not None
    assert weights.transition.shape == (30, 3, np.diff(matrix.indptr).max())
    assert relative_error(mdps.vjp(weights, 0), gradients[1]) <= 1e-8


def test_compiled_products_are_the_ordinary_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """P v and P^T w, their gradients and second derivatives, with batches and with contexts."""
    rng = np.random.default_rng(0)
    for contexts, lead in ((1, ()), (2, (3,))):
        succ = rng.integers(0, 20, (contexts, 20, 3, 2))
        values = torch.from_numpy(rng.random((*lead, contexts, 20, 3, 2))).requires_grad_()
        v, w = (torch.from_numpy(rng.random((5, 1, 2, 20, *tail)[2 - len(lead) :])).requires_grad_() for tail in ((), (3,)))
        operator = SuccessorTransitions(succ, values)
        results = []
        for size in (0, 10**9):
            monkeypatch.setattr(transitions, "COMPILED_SIZE", size)
            products = operator.expectation(v), operator.adjoint(w)
            total = (products[0] ** 3).sum() + (products[1] ** 3).sum()
            first = torch.autograd.grad(total, (values, v, w), create_graph=True)
            second = torch.autograd.grad(sum((g**2).sum() for g in first), (values, v, w))
            results.append((*products, *first, *second))
        for compiled, ordinary in zip(*results, strict=True):
            torch.testing.assert_close(compiled, ordinary)


def test_sparse_faults_are_named() -> None:
    matrix = _sparse_pattern()
    with pytest.raises(errors.ModelError, match=r"transition row sums to 0\.5 at state 2, action 1"):
        _sparse_model(csr_array(diags_array(np.where(np.arange(90) == 7, 0.5, 1.0)) @ matrix))
    with pytest.raises(errors.ModelError, match=r"transition matrix 0 has shape \(89, 30\)"):
        _sparse_model(csr_array(matrix[:89]))
    with pytest.raises(errors.ModelError, match="expected one scipy"):
        _sparse_model([matrix, matrix])
    pattern = SuccessorTransitions.from_sparse(matrix)
    with pytest.raises(errors.ModelError, match=f"2 entries were given; expected {matrix.nnz}"):
        pattern.with_entries(torch.ones(2, dtype=F64))
    twice = csr_array((np.full(4, 0.5), [1, 1, 0, 1], [0, 2, 4]), shape=(2, 2))
    with pytest.raises(errors.ModelError, match="unsorted or repeated column indices"):
        SuccessorTransitions.from_sparse(twice).with_entries(torch.ones(4, dtype=F64))


def test_a_pattern_that_moves_with_x_is_named() -> None:
    succ = np.zeros((30, 3, 1), dtype=np.int32)

    def transition(x: Tensor) -> SuccessorTransitions:
        return SuccessorTransitions(succ + int(x[0] > 0.5), torch.ones(30, 3, 1, dtype=F64))

    model = _sparse_model(transition)
    with pytest.raises(errors.ModelError, match="other successor states than at the first x; expected a fixed pattern"):
        model.leader_return(np.ones(DIM), LAMBDA)


def test_successors_out_of_range_are_refused() -> None:
    with pytest.raises(errors.ModelError, match=r"expected states in 0\.\.2"):
        SuccessorTransitions(np.full((3, 2, 1), 3), torch.ones(3, 2, 1, dtype=F64))
