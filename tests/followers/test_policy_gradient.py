from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import followers
from bocmdp_gym import errors
from followers import StepSize, TrajectoryOracle
from tests.problems import random_model, random_x, small_rooms


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("terminating", [False, True])
def test_the_gradient_is_unbiased(baseline: bool, terminating: bool) -> None:
    """Each of 15 entries within 4.5 standard errors of autograd's gradient of the regularised return; nothing is shared."""
    model = random_model(0, contexts=1, states=5, discount=0.8, terminating=terminating)
    x, lam = random_x(5), 0.4
    theta = torch.tensor(0.7 * np.random.default_rng(0).standard_normal((1, 5, 3)), requires_grad=True)
    (exact,) = torch.autograd.grad(model.configure(x).follower_return(torch.softmax(theta, -1), lam).sum(), theta)
    follower = followers.VanillaPolicyGradient(lam, iterations=1, step_size=1e-9, batch_size=2000, baseline=baseline)
    task = TrajectoryOracle(model, follower).task(x, 0)
    start = theta[0].detach().numpy()
    run: Any = follower._begin(task, np.random.default_rng(1), start)
    estimates = []
    for _ in range(101):
        before = run.logits
        run.advance(1)
        estimates.append((run.logits - before) / 1e-9)
    sample = np.array(estimates[1:])  # the baseline is 0 in the first
    error = sample.std(0) / 10.0
    assert (np.abs(sample.mean(0) - exact[0].numpy()) <= 4.5 * error + 1e-5).all()
    assert error.max() < 0.1 * float(exact.abs().max())


def test_the_baseline_lowers_the_variance() -> None:
    spread = {}
    for baseline in (False, True):
        follower = followers.VanillaPolicyGradient(0.3, iterations=1, step_size=1e-9, batch_size=100, baseline=baseline)
        run: Any = follower.start(TrajectoryOracle(small_rooms(), follower).task(np.zeros(21), 0), np.random.default_rng(1))
        run.advance(20)
        logits = []
        for _ in range(200):
            run.advance(1)
            logits.append(run.logits)
        spread[baseline] = np.diff(logits, axis=0).std(0).mean()
    assert spread[True] < 0.8 * spread[False]


@pytest.mark.parametrize("seed", range(20))
def test_it_reaches_the_exact_policy_on_random_models(seed: int) -> None:
    model, x, lam = random_model(seed, contexts=1, states=5, discount=0.8), random_x(5, seed), 0.5
    follower = followers.VanillaPolicyGradient(lam, tolerance=2e-3 / lam, step_size=StepSize.harmonic(1000.0, 10_000.0))
    policy = TrajectoryOracle(model, follower).respond(x, 0, np.random.default_rng(seed))
    measured = followers.suboptimality(model, policy, x, lam)  # type: ignore[arg-type]
    assert measured.delta <= follower.policy_gap(policy.metrics["follower_residual"], 0.8)  # type: ignore[attr-defined]
    assert measured.delta <= 0.1
    assert measured.value_gap <= policy.metrics["follower_residual"] / (1 - 0.8)  # type: ignore[attr-defined]


def test_it_reaches_the_exact_policy_on_small_rooms() -> None:
    env, x, lam = small_rooms(), np.zeros(21), 0.1
    follower = followers.VanillaPolicyGradient(
        lam, tolerance=2e-3 / lam, step_size=StepSize.harmonic(1000.0, 10_000.0), batch_size=4
    )
    policy = TrajectoryOracle(env, follower).respond(x, 0, np.random.default_rng(0))
    measured = followers.suboptimality(env.unwrapped.model, policy, x, lam)  # type: ignore[attr-defined, arg-type]
    assert measured.delta <= follower.policy_gap(policy.metrics["follower_residual"], 0.9)  # type: ignore[attr-defined]
    assert measured.delta <= 0.1
    assert measured.total_variation <= 0.05


def test_discount_one_is_refused() -> None:
    walk = random_model(1, contexts=1, discount=1.0, leader_discount=1.0)
    follower = followers.VanillaPolicyGradient(0.2, iterations=10)
    with pytest.raises(errors.DiscountError, match=r"Geo\(1 - gamma\)"):
        TrajectoryOracle(walk, follower).respond(random_x(5), 0, np.random.default_rng(0))


def test_steps_that_are_too_large_are_reported() -> None:
    model = random_model(0, contexts=1)
    follower = followers.VanillaPolicyGradient(0.2, iterations=1000, step_size=1e308)
    with pytest.raises(errors.ConvergenceError, match=r"at state \d in context 0; expected finite values. Take smaller steps"):
        TrajectoryOracle(model, follower).respond(random_x(5), 0, np.random.default_rng(0))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="batch_size is 0"):
        followers.VanillaPolicyGradient(0.1, iterations=5, batch_size=0)
    with pytest.raises(errors.OptionError, match="by visits"):
        followers.VanillaPolicyGradient(0.1, iterations=5, step_size=StepSize.visits(1.0))
    with pytest.raises(errors.OptionError, match="finite number above 0"):
        followers.VanillaPolicyGradient(0.1, iterations=5, step_size=-0.1)


def test_it_is_a_follower() -> None:
    follower = followers.VanillaPolicyGradient(0.5, iterations=300_000, step_size=StepSize.harmonic(1000.0, 10_000.0))
    followers.check_follower(follower, delta=0.15)
