from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import followers
import leaders
from bocmdp_gym import TabularBOCMDP, errors
from followers import LinearProgramming, TrajectoryOracle
from tests.problems import four_rooms, overflowing_model, random_model, random_x, small_rooms

Array = npt.NDArray[np.float64]


def tied_model(seed: int, states: int = 4, actions: int = 3, terminating: bool = True) -> TabularBOCMDP:
    """Deterministic moves and follower rewards 0 or 1, so that many actions tie exactly; the leader's rewards differ."""
    rng = np.random.default_rng(seed)
    transition = np.zeros((1, states, actions, states))
    for s, a in np.ndindex(states, actions):
        transition[0, s, a, rng.integers(states)] = 1.0
    ends = (rng.random((1, states, actions)) < 0.2).astype(float) if terminating else None
    return TabularBOCMDP(
        reward=rng.integers(0, 2, (1, states, actions)).astype(float),
        leader_reward=rng.standard_normal((1, states, actions)),
        transition=transition,
        initial=rng.dirichlet(np.ones(states)),
        termination=ends,
        leader_dim=1,
        discount=0.5,
        leader_discount=0.9,
    )


def value_of(model: TabularBOCMDP, actions: Any, reward: str, discount: float) -> Array:
    """Values of a deterministic policy by a dense solve."""
    mdps = model.configure(np.zeros(model.leader_dim))
    s = np.arange(model.n_states)
    p = mdps.transition.values[0].numpy()[s, actions]
    going = 1.0 - mdps.termination[0].numpy()[s, actions]
    r = getattr(mdps, reward)[0].numpy()[s, actions]
    value: Array = np.linalg.solve(np.eye(len(s)) - discount * going[:, None] * p, r)
    return value


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("terminating", [False, True])
def test_ties_are_broken_in_the_leaders_favour(seed: int, terminating: bool) -> None:
    """Against all 81 deterministic policies: optimal for the follower, then best for the leader, both from every state."""
    model = tied_model(seed, terminating=terminating)
    policies = list(product(range(3), repeat=4))
    follower_values = np.array([value_of(model, np.array(p), "reward", 0.5) for p in policies])
    optimal = (follower_values >= follower_values.max(0) - 1e-9).all(-1)
    assert optimal.any()
    leader_values = np.array([value_of(model, np.array(p), "leader_reward", 0.9) for p in policies])
    best = leader_values[optimal].max(0)

    policy: Any = TrajectoryOracle(model, LinearProgramming()).respond([0.0], 0, np.random.default_rng(0))
    chosen = policy.table.argmax(-1)
    assert set(np.unique(policy.table)) <= {0.0, 1.0}
    np.testing.assert_allclose(policy.value, follower_values.max(0), atol=1e-9)
    np.testing.assert_allclose(value_of(model, chosen, "reward", 0.5), follower_values.max(0), atol=1e-9)
    np.testing.assert_allclose(value_of(model, chosen, "leader_reward", 0.9), best, atol=1e-9)
    assert policy.metrics["follower_residual"] <= 1e-9


def test_the_problems_do_tie() -> None:
    """Otherwise the test above would show nothing: favour matters in most of them."""
    differing = 0
    for seed in range(20):
        model = tied_model(seed)
        policies = list(product(range(3), repeat=4))
        values = np.array([value_of(model, np.array(p), "reward", 0.5) for p in policies])
        optimal = (values >= values.max(0) - 1e-9).all(-1)
        returns = [value_of(model, np.array(p), "leader_reward", 0.9)[0] for p, o in zip(policies, optimal, strict=True) if o]
        differing += max(returns) > min(returns) + 1e-6
    assert differing >= 10


@pytest.mark.parametrize("seed", range(20))
def test_it_reaches_the_exact_policy_on_random_models(seed: int) -> None:
    """Without ties the optimum is the limit of the regularised one."""
    model, x = random_model(seed), random_x(5, seed)
    oracle = TrajectoryOracle(model, LinearProgramming())
    limit = model.solve(x, 1e-3).policy.detach().numpy()
    for context in range(model.n_contexts):
        policy: Any = oracle.respond(x, context, np.random.default_rng(0))
        np.testing.assert_array_equal(policy.table.argmax(-1), limit[context].argmax(-1))


def test_it_reaches_the_exact_values_on_four_rooms() -> None:
    env = four_rooms()
    model = env.unwrapped.model  # type: ignore[attr-defined]
    x = 3.0 * np.random.default_rng(0).standard_normal(105)
    oracle = TrajectoryOracle(env, LinearProgramming())
    for context in (0, 1):
        policy: Any = oracle.respond(x, context, np.random.default_rng(0))
        soft = (
            model.solve(x, 1e-6).value[context].detach().numpy()
        )  # exceeds the plain value by at most lambda log A / (1 - gamma)
        assert (policy.value <= soft + 1e-9).all()
        assert (policy.value >= soft - 1e-6 * np.log(4) / 0.01).all()


def test_a_warm_start_saves_the_program_and_changes_nothing() -> None:
    env = small_rooms()
    x, rng = np.random.default_rng(0).standard_normal(21), np.random.default_rng(0)
    follower, cold = LinearProgramming(), LinearProgramming(warm_start=False)
    oracle, other = TrajectoryOracle(env, follower), TrajectoryOracle(env, cold)
    assert oracle.respond(x, 0, rng).metrics["follower_iterations"] > 0  # type: ignore[attr-defined]
    for step in (1e-9, 1e-3, 1.0):
        warm: Any = oracle.respond(x + step, 0, rng)
        fresh: Any = other.respond(x + step, 0, rng)
        np.testing.assert_allclose(warm.value, fresh.value, atol=1e-9)
        assert fresh.metrics["follower_iterations"] > 0
        if step == 1e-9:
            assert warm.metrics["follower_iterations"] == 0
    follower.reset()
    assert oracle.respond(x, 0, rng).metrics["follower_iterations"] > 0  # type: ignore[attr-defined]


def test_leaders_that_need_a_policy_which_moves_smoothly_refuse_it() -> None:
    env = small_rooms()
    assert LinearProgramming().regularization is None
    for regularization in (None, 0.05):
        with pytest.raises(errors.UnsupportedError, match=r"LinearProgramming answers with the best action alone.*FirstOrder"):
            leaders.optimize(env, leaders.HPGD(env_steps=500, regularization=regularization), LinearProgramming(), 2)
    leaders.optimize(env, leaders.FirstOrder(0.1, 0.01, exact=True), LinearProgramming(), 2)
    leaders.optimize(env, leaders.ZeroOrder(0.1), LinearProgramming(), 2)


def test_bad_settings_and_models_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="tolerance is -1"):
        LinearProgramming(tolerance=-1.0)
    with pytest.raises(errors.OptionError, match="max_iterations is 0"):
        LinearProgramming(max_iterations=0)
    with pytest.raises(errors.DiscountError, match="discount is 2"):
        LinearProgramming(discount=2.0)
    with pytest.raises(errors.DiscountError, match=r"given discount 0\.99, but FourRooms has 0\.9"):
        TrajectoryOracle(small_rooms(), LinearProgramming(discount=0.99))
    with pytest.raises(errors.ConvergenceError, match="ended without an optimum after"):
        TrajectoryOracle(four_rooms(), LinearProgramming(max_iterations=1)).respond(np.zeros(105), 0, np.random.default_rng(0))
    with pytest.raises(errors.ConvergenceError):
        TrajectoryOracle(overflowing_model(), LinearProgramming()).respond([1.0], 0, np.random.default_rng(0))
    with pytest.raises(errors.ModelError, match="reward is nan at state 0"):
        TrajectoryOracle(overflowing_model(), LinearProgramming()).respond([-1.0], 0, np.random.default_rng(0))


def test_it_is_a_follower() -> None:
    followers.check_follower(LinearProgramming())
