from __future__ import annotations

import numpy as np
import pytest

import followers
from followers import TrajectoryOracle
from tests.problems import brute_force_solution, four_rooms, random_model, random_x


@pytest.mark.parametrize("seed", range(20))
def test_it_reaches_the_exact_policy_on_random_models(seed: int) -> None:
    model, x, lam = random_model(seed), random_x(5, seed), 0.05
    follower = followers.SoftValueIteration(lam, tolerance=1e-9)
    oracle = TrajectoryOracle(model, follower)
    value = brute_force_solution(model, x, lam)
    for context in range(model.n_contexts):
        policy = oracle.respond(x, context, np.random.default_rng(0))
        assert isinstance(policy, followers.TabularPolicy)
        scale = max(1.0, float(value[context].abs().max()))
        promised = follower.policy_gap(1e-9 * scale, model.discount)
        assert followers.suboptimality(model, policy, x, lam).delta <= promised
        np.testing.assert_allclose(policy.value, value[context], rtol=0, atol=1e-9 * scale / (1 - model.discount))


@pytest.mark.parametrize("regularization", [1e-3, 0.1])
def test_it_reaches_the_exact_policy_on_four_rooms(regularization: float) -> None:
    env = four_rooms()
    model = env.unwrapped.model  # type: ignore[attr-defined]
    x = 3.0 * np.random.default_rng(0).standard_normal(105)
    follower = followers.SoftValueIteration(regularization, tolerance=1e-9)
    oracle = TrajectoryOracle(env, follower)
    for context in (0, 1):
        policy = oracle.respond(x, context, np.random.default_rng(0))
        scale = max(1.0, float(policy.value.max()))  # type: ignore[attr-defined]
        measured = followers.suboptimality(model, policy, x, regularization)  # type: ignore[arg-type]
        assert measured.delta <= follower.policy_gap(1e-9 * scale, 0.99)


def test_the_error_is_multiplied_by_the_discount_in_each_sweep() -> None:
    model = random_model(0, contexts=1, terminating=False)
    x, lam = random_x(5), 0.1
    follower = followers.SoftValueIteration(lam, iterations=1)
    run = follower.start(TrajectoryOracle(model, follower).task(x, 0), np.random.default_rng(0))
    errors = []
    value = brute_force_solution(model, x, lam)[0].numpy()
    for _ in range(60):
        run.advance(1)
        errors.append(np.abs(run.assess()[0] - value).max())
    ratios = np.array(errors[1:]) / np.array(errors[:-1])
    assert (ratios <= model.discount + 1e-9).all()
    assert ratios[-1] == pytest.approx(model.discount, abs=1e-3)  # P 1 = 1: no faster without termination


def test_it_serves_discount_one_where_every_episode_ends() -> None:
    walk = random_model(1, contexts=1, discount=1.0, leader_discount=1.0)
    x = random_x(5, 1)
    policy = TrajectoryOracle(walk, followers.SoftValueIteration(0.2)).respond(x, 0, np.random.default_rng(0))
    assert followers.suboptimality(walk, policy, x, 0.2).delta < 1e-6  # type: ignore[arg-type]


def test_it_is_a_follower() -> None:
    followers.check_follower(followers.SoftValueIteration(0.1))
    followers.check_follower(followers.SoftValueIteration(0.1, iterations=500))
