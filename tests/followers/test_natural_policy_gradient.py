from __future__ import annotations

import numpy as np
import pytest
import torch

import followers
from bocmdp_gym import errors
from followers import StepSize, TrajectoryOracle
from followers.natural_policy_gradient import SampledNaturalPolicyGradientSolve
from tests.problems import F64, four_rooms, random_model, random_x, small_rooms


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("step_size", [0.2, 1.0])
def test_it_reaches_the_exact_policy_on_random_models(seed: int, step_size: float) -> None:
    model, x, lam = random_model(seed), random_x(5, seed), 0.05
    follower = followers.NaturalPolicyGradient(lam, tolerance=1e-9, step_size=step_size)
    oracle = TrajectoryOracle(model, follower)
    for context in range(model.n_contexts):
        policy = oracle.respond(x, context, np.random.default_rng(0))
        scale = max(1.0, float(np.abs(policy.value).max()))  # type: ignore[attr-defined]
        measured = followers.suboptimality(model, policy, x, lam)  # type: ignore[arg-type]
        assert measured.delta <= follower.policy_gap(1e-9 * scale, model.discount)


@pytest.mark.parametrize("regularization", [1e-3, 0.1])
def test_it_reaches_the_exact_policy_on_four_rooms(regularization: float) -> None:
    env = four_rooms()
    model = env.unwrapped.model  # type: ignore[attr-defined]
    x = 3.0 * np.random.default_rng(0).standard_normal(105)
    follower = followers.NaturalPolicyGradient(regularization, tolerance=1e-9)
    policy = TrajectoryOracle(env, follower).respond(x, 1, np.random.default_rng(0))
    scale = max(1.0, float(policy.value.max()))  # type: ignore[attr-defined]
    measured = followers.suboptimality(model, policy, x, regularization)  # type: ignore[arg-type]
    assert measured.delta <= follower.policy_gap(1e-9 * scale, 0.99)


def test_a_step_is_the_update_of_proposition_e7() -> None:
    model, x, lam, c = random_model(3, contexts=1), random_x(5, 3), 0.3, 0.4
    eta = c * (1 - model.discount) / lam
    follower = followers.NaturalPolicyGradient(lam, iterations=1, step_size=c)
    run = follower.start(TrajectoryOracle(model, follower).task(x, 0), np.random.default_rng(0))
    mdps = model.configure(x)
    pi = torch.full((1, 9, 3), 1 / 3, dtype=F64)
    for _ in range(4):
        entropy = -torch.xlogy(pi, pi).sum(-1)
        k = pi * mdps.continuation
        value = torch.linalg.solve(
            torch.eye(9, dtype=F64) - mdps.transition.policy_matrix(k), (pi * mdps.reward).sum(-1) + lam * entropy
        )
        q = mdps.reward + mdps.continuation * mdps.transition.expectation(value)
        new = pi ** (1 - eta * lam / (1 - model.discount)) * torch.exp(eta * q / (1 - model.discount))
        pi = new / new.sum(-1, keepdim=True)
        run.advance(1)
        np.testing.assert_allclose(run.policy().table, pi[0].detach(), atol=1e-12)


def test_the_error_falls_at_least_at_the_rate_of_proposition_e7() -> None:
    model, x, lam, c = random_model(4, contexts=1, terminating=False), random_x(5, 4), 0.1, 0.3
    optimum = model.solve(x, lam, tolerance=1e-12).q[0].detach().numpy()
    follower = followers.NaturalPolicyGradient(lam, iterations=1, step_size=c)
    run = follower.start(TrajectoryOracle(model, follower).task(x, 0), np.random.default_rng(0))
    logs = np.log(model.solve(x, lam).policy[0].detach().numpy())
    q_zero = run.values.q  # type: ignore[attr-defined]
    bound = np.abs(optimum - q_zero).max() + 2 * lam * (1 - c) * np.abs(logs - np.log(1 / 3)).max()
    rate = 1 - c * (1 - model.discount)  # 1 - eta lambda
    for t in range(40):
        run.advance(1)
        assert np.abs(run.values.q - optimum).max() <= bound * model.discount * rate**t + 1e-10  # type: ignore[attr-defined]


def test_the_largest_step_is_soft_policy_iteration() -> None:
    model, x = random_model(5, contexts=1), random_x(5, 5)
    follower = followers.NaturalPolicyGradient(0.1, step_size=1.0)
    policy = TrajectoryOracle(model, follower).respond(x, 0, np.random.default_rng(0))
    assert policy.metrics["follower_iterations"] <= 8  # type: ignore[attr-defined]


def test_sampled_action_values_are_unbiased() -> None:
    """Within 4.5 standard errors in each of 27 pairs."""
    model, x, lam = random_model(6, contexts=1, discount=0.8), random_x(5, 6), 0.3
    follower = followers.NaturalPolicyGradient(lam, iterations=1, rollouts=1000)
    theta = np.random.default_rng(0).standard_normal((9, 3))
    run = follower._begin(TrajectoryOracle(model, follower).task(x, 0), np.random.default_rng(1), theta)
    assert isinstance(run, SampledNaturalPolicyGradientSolve)
    estimates = np.array([run._estimate() for _ in range(100)])
    error = estimates.std(0) / 10.0
    assert (np.abs(estimates.mean(0) - run.values.q) <= 4.5 * error).all()
    assert (error < 0.02 * np.abs(run.values.q).max()).all()


@pytest.mark.parametrize("seed", range(20))
def test_sampled_steps_reach_the_exact_policy_on_random_models(seed: int) -> None:
    model, x, lam = random_model(seed, contexts=1, states=5, discount=0.8), random_x(5, seed), 0.5
    steps = StepSize.harmonic(2.0, 2.0)
    follower = followers.NaturalPolicyGradient(lam, tolerance=3e-3 / lam, rollouts=200, step_size=steps)
    policy = TrajectoryOracle(model, follower).respond(x, 0, np.random.default_rng(seed))
    measured = followers.suboptimality(model, policy, x, lam)  # type: ignore[arg-type]
    assert measured.delta <= follower.policy_gap(policy.metrics["follower_residual"], 0.8)  # type: ignore[attr-defined]
    assert measured.delta <= 0.02


def test_sampled_steps_reach_the_exact_policy_on_small_rooms() -> None:
    env, x, lam = small_rooms(), np.random.default_rng(0).standard_normal(21), 0.1
    follower = followers.NaturalPolicyGradient(lam, tolerance=2e-3 / lam, rollouts=200, step_size=StepSize.harmonic(2.0, 2.0))
    policy = TrajectoryOracle(env, follower).respond(x, 0, np.random.default_rng(0))
    measured = followers.suboptimality(env.unwrapped.model, policy, x, lam)  # type: ignore[attr-defined, arg-type]
    assert measured.delta <= min(0.02, follower.policy_gap(policy.metrics["follower_residual"], 0.9))  # type: ignore[attr-defined]


def test_discount_one_is_for_exact_steps_only() -> None:
    walk = random_model(1, contexts=1, discount=1.0, leader_discount=1.0)
    x, rng = random_x(5, 1), np.random.default_rng(0)
    policy = TrajectoryOracle(walk, followers.NaturalPolicyGradient(0.2)).respond(x, 0, rng)
    assert followers.suboptimality(walk, policy, x, 0.2).delta < 1e-6  # type: ignore[arg-type]
    with pytest.raises(errors.DiscountError, match=r"Geo\(1 - sqrt\(gamma\)\)"):
        TrajectoryOracle(walk, followers.NaturalPolicyGradient(0.2, iterations=5, rollouts=5)).respond(x, 0, rng)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(errors.OptionError, match=r"first step size is 1\.5; expected at most 1"):
        followers.NaturalPolicyGradient(0.1, step_size=1.5)
    with pytest.raises(errors.OptionError, match="finite number above 0"):
        followers.NaturalPolicyGradient(0.1, step_size=0.0)
    with pytest.raises(errors.OptionError, match="by visits"):
        followers.NaturalPolicyGradient(0.1, step_size=StepSize.visits(2.0))
    with pytest.raises(errors.OptionError, match="rollouts is 0"):
        followers.NaturalPolicyGradient(0.1, rollouts=0, iterations=5)
    with pytest.raises(errors.OptionError, match="check_every is 0"):
        followers.NaturalPolicyGradient(0.1, check_every=0)


def test_it_is_a_follower() -> None:
    followers.check_follower(followers.NaturalPolicyGradient(0.1))
    steps = StepSize.harmonic(2.0, 2.0)
    followers.check_follower(followers.NaturalPolicyGradient(0.2, iterations=300, rollouts=100, step_size=steps))
