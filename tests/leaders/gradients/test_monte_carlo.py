from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import TabularBOCMDP, TabularEnv, errors
from bocmdp_gym.envs import TaxDesign
from leaders.gradients import Estimate, ExactEstimator, MonteCarloEstimator, monte_carlo_weights
from leaders.gradients.estimate import extrapolated_error
from leaders.gradients.monte_carlo import scored_weights
from tests.problems import four_rooms, random_model, random_x, relative_error

REWARDS = ("reward", "leader_reward")


def _errors(
    model: TabularBOCMDP, horizon: int | None, steps: int, repeats: int, *, bootstrap: bool = False, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean estimate, its standard error per coordinate, and the exact gradient (context 1)."""
    oracle = followers.TrajectoryOracle(TabularEnv(model, horizon=horizon), followers.SoftPolicyIteration(0.5))
    x, rng = random_x(model.leader_dim), np.random.default_rng(seed)
    exact, estimator = ExactEstimator(), MonteCarloEstimator(steps, bootstrap)
    exact.bind(oracle)
    estimator.bind(oracle)
    draws = torch.stack([estimator.estimate(oracle, x, 1, rng).gradient for _ in range(repeats)])
    truth = exact.estimate(oracle, x, 1, rng).gradient
    return draws.mean(0), draws.std(0) / repeats**0.5, truth


@pytest.mark.parametrize("leader_discount", [None, 0.8])
def test_bias_vanishes_without_a_time_limit(leader_discount: float | None) -> None:
    model = random_model(1, moving=REWARDS, leader_discount=leader_discount)
    mean, error, truth = _errors(model, None, 1_000_000, 20)
    assert float(error.max() / truth.abs().max()) < 0.01
    assert float(((mean - truth).abs() / error).max()) < 4.5


def test_a_time_limit_leaves_a_floor_that_bootstrapping_removes() -> None:
    model = random_model(2, moving=REWARDS, terminating=False, leader_discount=None)
    cut, error, truth = _errors(model, 8, 500_000, 20)
    assert float(((cut - truth).abs() / error).max()) > 20  # the planted fault is seen
    repaired, error, truth = _errors(model, 8, 500_000, 20, bootstrap=True)
    assert float(((repaired - truth).abs() / error).max()) < 4.5
    assert float(error.max() / truth.abs().max()) < 0.01


def test_bias_shrinks_with_the_batch() -> None:
    model = random_model(3, moving=REWARDS)
    sizes = []
    for steps, repeats in ((100, 4000), (10_000, 100)):
        mean, _, truth = _errors(model, None, steps, repeats)
        sizes.append(float((mean - truth).norm() / truth.norm()))
    assert sizes[0] > 5 * sizes[1]


def test_bootstrapping_changes_nothing_where_nothing_is_cut() -> None:
    model = random_model(4, moving=REWARDS)
    plain, *_ = _errors(model, None, 20_000, 2)
    bootstrapped, *_ = _errors(model, None, 20_000, 2, bootstrap=True)
    torch.testing.assert_close(plain, bootstrapped, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------- scores, discounts, standard errors

EVERYTHING = ("reward", "leader_reward", "transition", "initial", "termination")


def _model(moving: tuple[str, ...] = EVERYTHING, seed: int = 0, **options: Any) -> TabularBOCMDP:
    defaults: dict[str, Any] = {"states": 5, "dim": 4, "discount": 0.7, "leader_discount": 0.8, "moving": moving}
    return random_model(seed, **(defaults | options))


def _estimates(
    model: TabularBOCMDP, estimator: MonteCarloEstimator, horizon: int | None = None, compiled: bool | None = None
) -> tuple[Estimate, Estimate]:
    """A stochastic estimate in the last context, and the exact one."""
    oracle = followers.TrajectoryOracle(TabularEnv(model, horizon=horizon), followers.SoftPolicyIteration(1.0), compiled=compiled)
    exact = ExactEstimator()
    estimator.bind(oracle)
    exact.bind(oracle)
    x, context = random_x(model.leader_dim), model.n_contexts - 1
    rng = np.random.default_rng(0)
    return estimator.estimate(oracle, x, context, rng), exact.estimate(oracle, x, context, rng)


@pytest.mark.parametrize("part", EVERYTHING)
def test_each_term_alone(part: str) -> None:
    estimate, exact = _estimates(_model((part,)), MonteCarloEstimator(500_000, error_groups=40))
    assert estimate.standard_error is not None
    assert relative_error(estimate.gradient, exact.gradient) < 0.1
    assert float(((estimate.gradient - exact.gradient).abs() / estimate.standard_error).max()) < 4


@pytest.mark.parametrize("successors", [None, 3])
@pytest.mark.parametrize(("discount", "leader_discount"), [(0.7, 0.8), (0.8, 0.6)])
def test_everything_moves_and_the_leader_discounts_otherwise(
    discount: float, leader_discount: float, successors: int | None
) -> None:
    model = _model(discount=discount, leader_discount=leader_discount, successors=successors)
    estimate, exact = _estimates(model, MonteCarloEstimator(500_000))
    assert relative_error(estimate.gradient, exact.gradient) < 0.03
    assert estimate.leader_return == pytest.approx(exact.leader_return, abs=0.03)


@pytest.mark.parametrize("part", EVERYTHING[:4])
def test_a_time_limit_biases_unless_bootstrapped(part: str) -> None:
    model = _model((part,), terminating=False)
    cut, exact = _estimates(model, MonteCarloEstimator(500_000), horizon=6)
    bootstrapped, _ = _estimates(model, MonteCarloEstimator(500_000, bootstrap_truncated=True), horizon=6)
    assert relative_error(bootstrapped.gradient, exact.gradient) < 0.05
    if part != "initial":  # there the bias is small: it drops out of differences of values
        assert relative_error(cut.gradient, exact.gradient) > 0.15


def test_rewards_get_the_weights_of_the_fast_path() -> None:
    model = _model(("reward", "leader_reward", "transition"))
    oracle = followers.TrajectoryOracle(model, followers.SoftPolicyIteration(1.0))
    policy = oracle.respond(np.zeros(4), 0, np.random.default_rng(0))
    assert isinstance(policy, followers.TabularPolicy)
    batch = oracle.sample(policy, 2000, np.random.default_rng(0))
    mdps = oracle.configure(np.zeros(4))
    scored = scored_weights(batch, mdps, policy.table, 1.0)
    fast = MonteCarloEstimator(2000)
    fast.bind(followers.TrajectoryOracle(_model(("reward", "leader_reward")), followers.SoftPolicyIteration(1.0)))
    plain = fast._weights(batch, _model(("reward", "leader_reward")).configure(torch.zeros(4)), None)
    np.testing.assert_array_equal(scored.reward, plain.reward)
    np.testing.assert_array_equal(scored.leader_reward, plain.leader_reward)


def _claimed_over_true(problem: Any, estimator: MonteCarloEstimator, regularization: float, dim: int, repeats: int) -> Any:
    """Standard errors as reported, relative to the spread of repeated estimates: of the whole gradient, and each coordinate's."""
    oracle = followers.TrajectoryOracle(problem, followers.SoftPolicyIteration(regularization))
    estimator.bind(oracle)
    rng = np.random.default_rng(0)
    x = random_x(dim) if dim < 10 else torch.zeros(dim, dtype=torch.float64)
    estimates = [estimator.estimate(oracle, x, 0, rng) for _ in range(repeats)]
    spread = torch.stack([e.gradient for e in estimates]).std(0)
    reported = torch.stack([e.standard_error for e in estimates if e.standard_error is not None]).square().mean(0).sqrt()
    return float(reported.norm() / spread.norm()), (reported / spread)[spread > 1e-6 * spread.max()]


@pytest.mark.parametrize("groups", [4, 20])
def test_standard_errors_are_those_of_repeats(groups: int) -> None:
    whole, each = _claimed_over_true(_model(), MonteCarloEstimator(4000, error_groups=groups), 1.0, 4, 200)
    assert whole == pytest.approx(1.0, abs=0.2)
    torch.testing.assert_close(each, torch.ones_like(each), rtol=0.25, atol=0.0)


@pytest.mark.parametrize(
    ("regularization", "steps", "bootstrap"), [(0.01, 10_000, False), (0.1, 10_000, False), (0.01, 10_000, True)]
)
def test_standard_errors_hold_where_the_estimate_is_a_product_of_noises(
    regularization: float, steps: int, bootstrap: bool
) -> None:
    """Four-Rooms: 50 episodes, and the spread of groups claims 3 to 6 times the noise."""
    estimator = MonteCarloEstimator(steps, bootstrap, error_groups=10)
    whole, each = _claimed_over_true(four_rooms(), estimator, regularization, 105, 200)
    assert whole == pytest.approx(1.0, abs=0.3)
    assert float((each.log().abs() < np.log(1.5)).double().mean()) > 0.9


def test_standard_errors_of_few_episodes() -> None:
    model = _model(("reward", "leader_reward"))
    for steps in (2, 3, 5):
        estimate, _ = _estimates(model, MonteCarloEstimator(steps, error_groups=2), horizon=1)
        assert estimate.standard_error is not None
        assert bool(torch.isfinite(estimate.standard_error).all())
    endless = _model(("reward", "leader_reward"), terminating=False)
    one, _ = _estimates(endless, MonteCarloEstimator(50, error_groups=2), horizon=50)
    assert one.standard_error is None  # one episode


def test_errors_of_averages_and_of_products_of_averages() -> None:
    """theta = mean, theta = mean^k of standard normal numbers: variances 1/n and (2k - 1)!! / n^k."""
    rng, n = np.random.default_rng(0), 64
    for k, variance, tolerance in ((1, 1 / n, 0.1), (2, 2 / n**2, 0.3), (3, 15 / n**3, 0.45)):
        errors_squared = []
        for _ in range(400):
            values = torch.from_numpy(rng.normal(size=n))
            error = extrapolated_error(lambda chosen, v=values, k=k: v[chosen].mean().reshape(1) ** k, n, 30)
            assert error is not None
            errors_squared.append(float(error) ** 2)
        assert np.mean(errors_squared) ** 0.5 == pytest.approx(variance**0.5, rel=tolerance)
    assert extrapolated_error(lambda chosen: torch.zeros(1), 1, 3) is None
    assert float(extrapolated_error(lambda chosen: torch.zeros(1), 9, 3)) == 0.0  # type: ignore[arg-type]


def test_plain_gymnasium_stepping_gives_the_same_estimate_in_law() -> None:
    model = _model(("transition", "initial"))
    estimate, exact = _estimates(model, MonteCarloEstimator(20_000, error_groups=20), compiled=False)
    assert estimate.standard_error is not None
    assert float(((estimate.gradient - exact.gradient).abs() / estimate.standard_error).max()) < 4


class _Silent(followers.Follower):
    """A follower whose policy exposes no probabilities."""

    regularization = 1.0

    def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
        class Policy:
            leader, context = task.leader, task.context

            def act(self, observation: Any, rng: np.random.Generator) -> int:
                return int(rng.integers(3))

        return Policy()


def test_what_cannot_work_is_refused() -> None:
    rng = np.random.default_rng(0)
    estimator = MonteCarloEstimator(100)
    oracle = followers.TrajectoryOracle(_model(("transition",)), _Silent())
    estimator.bind(oracle)
    with pytest.raises(errors.UnsupportedError, match="needs action probabilities"):
        estimator.estimate(oracle, torch.zeros(4, dtype=torch.float64), 0, rng)
    oracle = followers.TrajectoryOracle(_model(("reward", "initial")), _Silent())
    estimator.bind(oracle)
    assert estimator.estimate(oracle, torch.zeros(4, dtype=torch.float64), 0, rng).env_steps >= 100
    with pytest.raises(errors.OptionError, match="env_steps is 0"):
        MonteCarloEstimator(0)
    with pytest.raises(errors.OptionError, match="error_groups is -1"):
        MonteCarloEstimator(10, error_groups=-1)


def _literal_weights(batch, n_s, n_a, gamma, gamma_leader, lam, bootstrap):  # type: ignore[no-untyped-def]
    """The module's formulas, in plain Python; with ``bootstrap`` a cut episode continues as the average visit there does."""
    visits = np.zeros((n_s, n_a))
    for s, a in zip(batch.states, batch.actions, strict=True):
        visits[s, a] += 1
    n = visits.sum(1)
    episodes = list(zip(batch.starts, batch.ends, batch.terminated, batch.final_states, strict=True))
    v, onward, q = np.zeros(n_s), np.zeros(n_s), np.zeros((n_s, n_a))
    for _ in range(200 if bootstrap else 1):
        returns = np.zeros((n_s, n_a))
        for begin, end, terminated, last in episodes:
            g = v[last] if bootstrap and not terminated else 0.0
            for t in reversed(range(begin, end)):
                g = batch.leader_rewards[t] + gamma_leader * g
                returns[batch.states[t], batch.actions[t]] += g
        q = np.divide(returns, visits, out=np.zeros_like(returns), where=visits > 0)
        v = np.divide(returns.sum(1), n, out=np.zeros(n_s), where=n > 0)
    for _ in range(200 if bootstrap else 1):
        w_rbar, ends = np.zeros((n_s, n_a)), np.zeros(n_s)
        for begin, end, terminated, last in episodes:
            mass = 1 / len(episodes)
            for t in range(begin, end):
                mass += onward[batch.states[t]] if bootstrap else 0.0
                w_rbar[batch.states[t], batch.actions[t]] += mass
                mass *= gamma_leader
            ends[last] += 0.0 if terminated else mass
        onward = np.divide(ends, n, out=np.zeros(n_s), where=n > 0)
    c = w_rbar * (q - v[:, None]) / lam
    kick = np.divide(c, visits, out=np.zeros_like(c), where=visits > 0)
    kick -= np.divide(c.sum(1), n, out=np.zeros(n_s), where=n > 0)[:, None]
    onward = np.zeros(n_s)
    for _ in range(200 if bootstrap else 1):
        w_r, ends = np.zeros((n_s, n_a)), np.zeros(n_s)
        for begin, end, terminated, last in episodes:
            e = 0.0
            for t in range(begin, end):
                s, a = batch.states[t], batch.actions[t]
                e = gamma * e + kick[s, a] + (onward[s] if bootstrap else 0.0)
                w_r[s, a] += e
            ends[last] += 0.0 if terminated else gamma * e
        onward = np.divide(ends, n, out=np.zeros(n_s), where=n > 0)
    return w_r, w_rbar


@pytest.mark.parametrize("bootstrap", [False, True])
def test_small_batches_agree_with_a_literal_reading(bootstrap: bool) -> None:
    model = random_model(5, states=5, moving=REWARDS, discount=0.9, leader_discount=0.8)
    oracle = followers.TrajectoryOracle(TabularEnv(model, horizon=6), followers.SoftPolicyIteration(0.5))
    rng = np.random.default_rng(0)
    batch = oracle.sample(oracle.respond(random_x(5), 0, rng), 60, rng)
    assert 0 < batch.terminated.sum() < batch.n_episodes
    weights = monte_carlo_weights(batch, 5, 3, 0.9, 0.8, 0.5, bootstrap)
    w_r, w_rbar = _literal_weights(batch, 5, 3, 0.9, 0.8, 0.5, bootstrap)
    np.testing.assert_allclose(weights.reward, w_r, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(weights.leader_reward, w_rbar, rtol=1e-7, atol=1e-9)


def test_environments_without_states_are_refused_before_anything_runs() -> None:
    """Tax design has a tabular model and continuous observations; the model itself can be played."""
    env, follower = TaxDesign(grid_size=11), followers.SoftPolicyIteration(0.3)
    with pytest.raises(errors.UnsupportedError, match=r"estimator=\"critic\".*TabularEnv"):
        leaders.optimize(env, leaders.HPGD(estimator="monte_carlo"), follower, 1)
    result = leaders.optimize(TabularEnv(env.model), leaders.HPGD(env_steps=2000), follower, 1)
    assert bool(torch.isfinite(result.x).all())


@pytest.mark.parametrize("part", ["reward", "transition", "initial"])
def test_a_constant_added_to_the_leaders_reward_changes_no_estimate(part: str) -> None:
    """Where nothing ends an episode but a time limit, and cut episodes continue."""
    gradients = []
    for constant in (0.0, 100.0):
        model = random_model(3, moving=(part,), terminating=False, discount=0.7, leader_discount=0.6)
        shifted = model.replace(leader_reward=model.part("leader_reward", random_x(5)) + constant)
        oracle = followers.TrajectoryOracle(TabularEnv(shifted, horizon=50), followers.SoftPolicyIteration(0.5))
        estimator = MonteCarloEstimator(2000, bootstrap_truncated=True)
        estimator.bind(oracle)
        gradients.append(estimator.estimate(oracle, random_x(5), 0, np.random.default_rng(0)).gradient)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)
