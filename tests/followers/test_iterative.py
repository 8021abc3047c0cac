"""What all iterating followers have in common: budgets, tolerances, warm starts, continuing, divergence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import followers
from bocmdp_gym import errors
from followers import IterativeFollower, StepSize, TrajectoryOracle
from tests.problems import overflowing_model, random_model, random_x, small_rooms

Make = Callable[..., IterativeFollower]


def _sampled_npg(regularization: float, **options: Any) -> IterativeFollower:
    return followers.NaturalPolicyGradient(regularization, **{"rollouts": 5, "step_size": StepSize.harmonic(2, 2), **options})


def _gradient(regularization: float, **options: Any) -> IterativeFollower:
    return followers.VanillaPolicyGradient(regularization, **{"step_size": StepSize.harmonic(1000, 10_000), **options})


FOLLOWERS: dict[str, tuple[Make, int, float]] = {  # constructor, a budget, a tolerance within reach
    "soft value iteration": (followers.SoftValueIteration, 20, 1e-8),
    "soft Q-learning": (followers.SoftQLearning, 20_000, 0.2),
    "policy gradient": (_gradient, 5000, 0.08),
    "natural policy gradient": (followers.NaturalPolicyGradient, 10, 1e-8),
    "sampled natural policy gradient": (_sampled_npg, 10, 0.2),
}
parametrize = pytest.mark.parametrize(("make", "budget", "tolerance"), FOLLOWERS.values(), ids=FOLLOWERS.keys())
MODEL = random_model(0, contexts=2, states=5, discount=0.8)
X = random_x(5).numpy()


def _task(env: Any, x: Any, follower: followers.Follower, context: int = 0) -> followers.Task:
    return TrajectoryOracle(env, follower).task(x, context)


@parametrize
def test_a_budget_is_kept_and_a_tolerance_reached(make: Make, budget: int, tolerance: float) -> None:
    follower = make(0.5, iterations=budget)
    policy = TrajectoryOracle(MODEL, follower).respond(X, 1, np.random.default_rng(0))
    assert policy.metrics["follower_iterations"] == budget  # type: ignore[attr-defined]
    follower = make(0.5, tolerance=tolerance)
    policy = TrajectoryOracle(MODEL, follower).respond(X, 1, np.random.default_rng(0))
    assert 0.0 <= policy.metrics["follower_residual"] <= tolerance * 0.5  # type: ignore[attr-defined]


@parametrize
def test_a_solve_stops_and_continues_from_the_same_state(make: Make, budget: int, tolerance: float) -> None:
    follower = make(0.5, iterations=budget)
    task = _task(MODEL, X, follower)
    whole = follower.start(task, np.random.default_rng(1))
    whole.advance(3 * budget)
    parts = follower.start(task, np.random.default_rng(1))
    parts.advance(budget)
    early = parts.policy()
    kept = early.table.copy()
    parts.advance(2 * budget)
    np.testing.assert_array_equal(whole.policy().table, parts.policy().table)
    assert parts.iterations == 3 * budget
    assert early.metrics["follower_iterations"] == budget
    np.testing.assert_array_equal(early.table, kept)
    assert not np.array_equal(early.table, parts.policy().table)


@parametrize
def test_warm_starts_are_kept_per_context_and_forgotten(make: Make, budget: int, tolerance: float) -> None:
    follower = make(0.5, iterations=budget)
    oracle = TrajectoryOracle(MODEL, follower)

    def respond(context: int) -> Any:
        return oracle.respond(X, context, np.random.default_rng(2)).table  # type: ignore[attr-defined]

    cold = respond(0)
    other = respond(1)
    warm = respond(0)
    assert not np.array_equal(cold, warm)
    follower.reset()
    np.testing.assert_array_equal(respond(1), other)  # context 0 left no trace in context 1
    np.testing.assert_array_equal(respond(0), cold)
    always_cold = make(0.5, iterations=budget, warm_start=False)
    oracle = TrajectoryOracle(MODEL, always_cold)
    np.testing.assert_array_equal(respond(0), cold)
    np.testing.assert_array_equal(respond(0), cold)


@parametrize
def test_warm_starts_save_iterations(make: Make, budget: int, tolerance: float) -> None:
    oracle = TrajectoryOracle(MODEL, make(0.5, tolerance=tolerance))
    x, rng = X, np.random.default_rng(3)
    cold = oracle.respond(x, 0, rng).metrics["follower_iterations"]  # type: ignore[attr-defined]
    warm = oracle.respond(x + 1e-6, 0, rng).metrics["follower_iterations"]  # type: ignore[attr-defined]
    assert warm < cold


@parametrize
def test_values_that_are_not_finite_are_reported_at_once(make: Make, budget: int, tolerance: float) -> None:
    oracle = TrajectoryOracle(overflowing_model(), make(0.5, iterations=budget))
    rng = np.random.default_rng(0)
    oracle.respond([0.0], 0, rng)
    with pytest.raises(errors.ConvergenceError, match=r"met a value that is not finite .* in context 0"):
        oracle.respond([1.0], 0, rng)
    with pytest.raises(errors.ModelError, match="reward is nan at state 0, action 0, context 0"):
        oracle.respond([-1.0], 0, rng)


@parametrize
def test_a_tolerance_out_of_reach_is_an_error(make: Make, budget: int, tolerance: float) -> None:
    oracle = TrajectoryOracle(MODEL, make(0.5, tolerance=1e-15, max_iterations=3))
    with pytest.raises(errors.ConvergenceError, match="after 3 iterations in context 0"):
        oracle.respond(X, 0, np.random.default_rng(0))


@parametrize
def test_bad_settings_are_refused(make: Make, budget: int, tolerance: float) -> None:
    for zero in (0, -3, 1.5, True):
        with pytest.raises(errors.OptionError, match=r"iterations is .* expected an integer of at least 1"):
            make(0.5, iterations=zero)
        with pytest.raises(errors.OptionError, match="max_iterations is"):
            make(0.5, tolerance=0.1, max_iterations=zero)
    for bad in (0.0, -1.0, float("nan"), "tight"):
        with pytest.raises(errors.OptionError, match="tolerance is"):
            make(0.5, tolerance=bad)
    with pytest.raises(errors.OptionError, match="both of iterations and tolerance"):
        make(0.5, iterations=budget, tolerance=tolerance)
    with pytest.raises(errors.RegularizationError, match="regularization is 0"):
        make(0.0, iterations=budget)
    with pytest.raises(errors.DiscountError, match=r"discount is 1\.5"):
        make(0.5, iterations=budget, discount=1.5)
    follower = make(0.5, iterations=budget)
    with pytest.raises(errors.OptionError, match="iterations is 0"):
        follower.start(_task(MODEL, X, follower), np.random.default_rng(0)).advance(0)


@parametrize
def test_a_conflicting_discount_is_refused(make: Make, budget: int, tolerance: float) -> None:
    with pytest.raises(errors.DiscountError, match=r"given discount 0.99, but TabularEnv has 0.8"):
        TrajectoryOracle(MODEL, make(0.5, iterations=budget, discount=0.99))
    TrajectoryOracle(MODEL, make(0.5, iterations=budget, discount=0.8))


@pytest.mark.parametrize("make", [followers.SoftQLearning, followers.VanillaPolicyGradient, _sampled_npg])
def test_sampled_followers_must_be_told_when_to_stop(make: Make) -> None:
    with pytest.raises(errors.OptionError, match="neither of iterations and tolerance"):
        make(0.5)


@pytest.mark.parametrize("make", [followers.SoftValueIteration, followers.NaturalPolicyGradient])
def test_deterministic_followers_are_exact_by_default(make: Make) -> None:
    follower = make(0.1)
    policy = TrajectoryOracle(MODEL, follower).respond(X, 0, np.random.default_rng(0))
    assert followers.suboptimality(MODEL, policy, X, 0.1).delta < 1e-8  # type: ignore[arg-type]


def test_followers_that_plan_refuse_environments_without_a_model() -> None:
    env = small_rooms()
    oracle = TrajectoryOracle(env, followers.SoftValueIteration(0.1))
    oracle.core.model = None
    with pytest.raises(errors.UnsupportedError, match="plans with a tabular model"):
        TrajectoryOracle(env, followers.SoftValueIteration(0.1))
