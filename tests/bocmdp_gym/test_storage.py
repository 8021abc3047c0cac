"""Storage problems: the simulator against the model's functions, the grid against the continuous problem, known optima."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import chisquare, kstest, truncnorm

import bocmdp_gym
import leaders
from bocmdp_gym import errors
from bocmdp_gym.envs import Battery, Inventory
from bocmdp_gym.envs.storage_env import StorageEnv
from followers import InterpolatedPolicy, SoftPolicyIteration, TrajectoryOracle
from leaders.gradients.exact import leader_values
from tests.problems import F64, finite_difference, relative_error

X = {Inventory: np.array([1.7, 0.3, 0.8]), Battery: np.array([0.9, 2.2, 0.7])}
BOTH = pytest.mark.parametrize("kind", [Inventory, Battery])


def sample_points(env: StorageEnv, n: int = 40) -> tuple[Any, Any, Any]:
    """Observations, actions and observations that may follow."""
    rng, storage = np.random.default_rng(0), env.storage
    levels = torch.from_numpy(rng.uniform(storage.low, storage.high, (2, n)))
    periods = rng.integers(0, storage.n_periods, n)
    following = storage.observe(levels[1], (periods + 1) % storage.n_periods)
    return storage.observe(levels[0], periods).numpy(), rng.integers(0, storage.n_actions, n), following.numpy()


@BOTH
def test_environment_keeps_the_contract(kind: type[StorageEnv]) -> None:
    env = gym.make(f"bocmdp/{kind.__name__}-v0")
    bocmdp_gym.check_configurable_env(env)
    assert isinstance(bocmdp_gym.configurable(env), kind)
    env.reset(seed=0)
    seen, _, _, _, _ = env.step(0)
    assert env.observation_space.contains(seen)


@BOTH
def test_every_derivative_matches_finite_differences(kind: type[StorageEnv]) -> None:
    env, x = kind(grid_size=5), torch.tensor(X[kind])
    seen, actions, following = sample_points(env)
    noise = torch.from_numpy(np.random.default_rng(1).random((len(actions), 1)))
    model, storage = env.model, env.storage
    weights = torch.linspace(-1.0, 2.0, len(actions), dtype=F64)
    functions = [
        lambda z: model.rewards(z, seen, actions, 1) @ weights,
        lambda z: model.leader_rewards(z, seen, actions, 1) @ weights,
        lambda z: model.log_transitions(z, seen, actions, following, 1) @ weights,  # type: ignore[operator]
        lambda z: model.draw_transitions(z, seen, actions, noise, 1)[:, 0] @ weights,
        lambda z: model.leader_return(z, 0.1, tolerance=1e-13),
    ]
    for function in functions:
        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(z), z)
        assert float(gradient.norm()) > 0.0
        assert relative_error(gradient, finite_difference(function, x)) <= 1e-6
    assert storage.leader_space.contains(X[kind])


@BOTH
def test_density_integrates_to_one_and_draws_have_it(kind: type[StorageEnv]) -> None:
    """Kolmogorov-Smirnov at level 0.001 for 20,000 draws of the model and 2,000 of the simulator; fixed seeds."""
    env, x = kind(), torch.tensor(X[kind])
    storage, rng = env.storage, np.random.default_rng(0)
    for level, action in ((storage.low, 0), (0.4 * storage.high, storage.n_actions - 1), (storage.high, 1)):
        seen = storage.observe(torch.tensor([level], dtype=F64), 0).numpy()
        mean = float(storage.outcome(x, torch.tensor(level, dtype=F64), *(torch.tensor(i) for i in (0, action, 2))).mean)

        def density(value: float, seen: Any = seen, action: int = action) -> float:
            following = storage.observe(torch.tensor([value], dtype=F64), 1 % storage.n_periods).numpy()
            logs = env.model.log_transitions(x, seen, np.array([action]), following, 2)
            assert logs is not None
            return float(torch.exp(logs))

        assert quad(density, storage.low, storage.high, points=[mean])[0] == pytest.approx(1.0, abs=1e-6)
        bounds = (np.array([storage.low, storage.high]) - mean) / storage.noise_std
        law = truncnorm(*bounds, loc=mean, scale=storage.noise_std)
        noise = torch.from_numpy(rng.random((20_000, 1)))
        drawn = env.model.draw_transitions(x, np.tile(seen, (20_000, 1)), np.full(20_000, action), noise, 2)
        assert kstest(drawn[:, 0].numpy(), law.cdf).pvalue > 1e-3
        env.set_leader(x)
        simulated = []
        env.reset(seed=3)
        for _ in range(500):
            env.reset(options={"state": level, "context": 2})
            simulated.append(env.step(action)[0][0])
        assert kstest(simulated, law.cdf).pvalue > 1e-3


@BOTH
def test_simulator_pays_what_the_model_says(kind: type[StorageEnv]) -> None:
    env = kind(grid_size=11, horizon=9)
    env.reset(seed=0, options={"leader": X[kind], "context": 1})
    seen, _ = env.reset(seed=0, options={"leader": X[kind], "context": 1})
    for step in range(9):
        action = env.action_space.sample()
        at = torch.tensor(X[kind]), seen[None], np.array([action]), 1
        seen, reward, terminated, truncated, info = env.step(action)
        assert reward == pytest.approx(float(env.model.rewards(*at)), rel=1e-12)
        assert info["leader_reward"] == pytest.approx(float(env.model.leader_rewards(*at)), rel=1e-12)
        assert (terminated, truncated) == (False, step == 8)
        assert int(env.storage.read(seen)[1]) == (step + 1) % env.storage.n_periods


@BOTH
def test_simulator_agrees_with_the_grid(kind: type[StorageEnv]) -> None:
    """Next levels, and first ones, rounded to the grid, against the model's rows; chi-square at level 0.001, 20,000 copies."""
    size, n = 21, 20_000
    envs: Any = gym.make_vec(f"bocmdp/{kind.__name__}-v0", n, vectorization_mode="vector_entry_point", grid_size=size)
    envs.set_leader(X[kind])
    envs.set_context(1)
    model, storage = envs.env.model, envs.env.storage
    mdps, spacing = model.configure(X[kind]), model.grid[1] - model.grid[0]
    first, _ = envs.reset(seed=0)
    envs.reset(options={"state": (float(model.grid[8]), storage.n_periods - 1)})
    following = envs.step(np.full(n, 3))[0]
    state = (storage.n_periods - 1) * size + 8
    rows = mdps.arrays(1).stored_probabilities.reshape(model.n_states, model.n_actions, -1)[state, 3], mdps.initial[0].numpy()
    for seen, row in zip((following, first), rows, strict=True):
        assert row[size:].sum() == pytest.approx(0.0)  # the day begins again
        counts = np.bincount(np.rint((seen[:, 0] - storage.low) / spacing).astype(int), minlength=size)
        often = row[:size] * n >= 10
        expected = row[:size][often] / row[:size][often].sum() * counts[often].sum()
        assert chisquare(counts[often], expected).pvalue > 1e-3


@BOTH
def test_model_takes_observations_or_grid_states(kind: type[StorageEnv]) -> None:
    env, x = kind(grid_size=7), torch.tensor(X[kind])
    storage, model = env.storage, env.model
    states = np.array([0, 3, model.n_states - 1])
    actions = np.array([0, 2, 4])
    shown = storage.observe(torch.from_numpy(model.grid[states % 7]), states // 7).numpy()
    for function in (model.rewards, model.leader_rewards):
        torch.testing.assert_close(function(x, shown, actions, 1), function(x, states, actions, 1))
    rows = model.configure(x).arrays(0).stored_probabilities.reshape(model.n_states, model.n_actions, -1)[states, actions]
    logs = model.log_transitions(x, states, actions, rows.argmax(-1), 0)
    assert logs is not None
    np.testing.assert_allclose(logs.exp().numpy(), rows.max(-1))
    near, weights = env.neighbours(shown)
    np.testing.assert_array_equal(near[np.arange(3), weights.argmax(-1)], states)
    np.testing.assert_allclose(weights.max(-1), 1.0)


@BOTH
def test_values_converge_in_the_grid_size(kind: type[StorageEnv]) -> None:
    """Each halving of the spacing divides the errors of value and gradient by about 4; above 2.5 is asked."""
    values, gradients = [], []
    for size in (11, 21, 41, 121):
        z = torch.tensor(X[kind]).requires_grad_()
        value = kind(grid_size=size).model.leader_return(z, 0.1)
        (gradient,) = torch.autograd.grad(value, z)
        values.append(float(value.detach()))
        gradients.append(gradient.numpy())
    errors_of_value = np.abs(np.array(values[:-1]) - values[-1])
    errors_of_gradient = np.linalg.norm(np.array(gradients[:-1]) - gradients[-1], axis=-1)
    for error in (errors_of_value, errors_of_gradient):
        assert (error[:-1] / error[1:] > 2.5).all()
    assert errors_of_value[-1] <= 2e-3 * abs(values[-1])


@BOTH
def test_a_table_plays_the_continuous_simulator(kind: type[StorageEnv]) -> None:
    """Sampled leader return against the model's, within 4 standard errors and 0.5% for the grid."""
    env: Any = gym.make_vec(f"bocmdp/{kind.__name__}-v0", 50, vectorization_mode="vector_entry_point")
    oracle, rng = TrajectoryOracle(env, SoftPolicyIteration(0.1)), np.random.default_rng(0)
    policy = oracle.respond(X[kind], 1, rng)
    assert isinstance(policy, InterpolatedPolicy)
    returns = oracle.sample(policy, 20_000, rng).discounted_returns(0.9, leader=True)
    exact = leader_values(oracle.configure(X[kind]).arrays(1), policy.table).leader_return
    assert abs(returns.mean() - exact) <= 4 * returns.std() / np.sqrt(len(returns)) + 0.005 * abs(exact)


@BOTH
def test_critic_finds_the_exact_gradient(kind: type[StorageEnv]) -> None:
    env: Any = gym.make_vec(f"bocmdp/{kind.__name__}-v0", 20, vectorization_mode="vector_entry_point")
    oracle = TrajectoryOracle(env, SoftPolicyIteration(0.1))
    estimate = leaders.HPGD(estimator="critic", env_steps=4_000).estimate(oracle, X[kind], 1, np.random.default_rng(0))
    exact = leaders.ExactGradient().estimate(oracle, X[kind], 1, np.random.default_rng(0))
    assert relative_error(estimate, exact) < 0.15


@BOTH
@pytest.mark.parametrize("regularization", [0.05, 0.1, 0.2])
def test_best_known_value_is_attained_and_stationary(kind: type[StorageEnv], regularization: float) -> None:
    env = kind()
    benchmark = env.benchmark(regularization)
    assert benchmark is not None
    assert benchmark.x is not None
    x = torch.tensor(benchmark.x, requires_grad=True)
    value = env.model.leader_return(x, regularization)
    assert float(value.detach()) == pytest.approx(benchmark.value, abs=2e-6)
    (gradient,) = torch.autograd.grad(value, x)
    assert float(gradient.norm()) < 1e-4
    space = env.leader_space
    assert (np.minimum(benchmark.x - space.low, space.high - benchmark.x) > 0.1 * (space.high - space.low)).all()


@BOTH
def test_benchmark_is_of_the_default_problem(kind: type[StorageEnv]) -> None:
    env = kind()
    usual = env.benchmark()
    assert usual is not None
    assert usual.regularization == 0.1
    assert env.benchmark(0.15) is None
    assert kind(grid_size=11).benchmark() is None
    assert kind(discount=0.8).benchmark() is None


@BOTH
def test_a_search_from_random_starts_finds_one_optimum(kind: type[StorageEnv]) -> None:
    env = kind(grid_size=11)
    leader = leaders.ExactGradient(0.3, optimizer="Adam", schedule="cosine")
    found = leaders.multistart(
        env, leader, SoftPolicyIteration(0.1), 60, starts=3, rounds=1, scale=1.0, contexts="all", progress=False
    )
    status_quo = float(env.model.leader_return(torch.tensor(env.initial_leader(np.random.default_rng(0))), 0.1))
    values = [start.leader_return for start in found.starts]
    assert max(values) - min(values) < 0.01 * (max(values) - status_quo)
    benchmark = env.__class__().benchmark()
    assert benchmark is not None
    assert np.abs(found.best.x.numpy() - benchmark.x).max() < 0.1


@BOTH
@pytest.mark.parametrize("state", [99.0, float("nan"), "full", [0.5, 7], [0.5, 0.5], [0.1, 0, 0]])
def test_bad_start_states_are_named(kind: type[StorageEnv], state: Any) -> None:
    with pytest.raises(errors.StateError, match="expected a level in"):
        kind(grid_size=5).reset(options={"state": state})


@BOTH
@pytest.mark.parametrize("action", [5, -1, 0.5, [1, 2], "buy"])
def test_bad_actions_are_named(kind: type[StorageEnv], action: Any) -> None:
    env = kind(grid_size=5)
    env.reset(seed=0)
    with pytest.raises(errors.ActionError, match="expected an element of Discrete"):
        env.step(action)


@BOTH
def test_picture_follows_the_episode(kind: type[StorageEnv]) -> None:
    env = kind(grid_size=5, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(1)
    assert (before.shape, before.dtype) == ((360, 760, 3), np.uint8)
    assert not np.array_equal(before, env.render())
