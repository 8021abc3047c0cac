from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

import followers
from bocmdp_gym import TabularBOCMDP, errors
from followers import SoftQLearning, StepSize, TrajectoryOracle
from tests.problems import random_model, random_x, small_rooms


def _start(follower: SoftQLearning, env: Any, x: Any, seed: int = 0, q: Any = None, context: int = 0) -> Any:
    return follower._begin(TrajectoryOracle(env, follower).task(x, context), np.random.default_rng(seed), q)


def one_step_problem() -> TabularBOCMDP:
    """One state, two actions that pay 1 and 2 and end the episode."""
    return TabularBOCMDP(
        reward=np.array([[[1.0, 2.0]]]),
        leader_reward=np.zeros((1, 1, 2)),
        transition=np.ones((1, 1, 2, 1)),
        initial=np.ones(1),
        termination=np.ones((1, 1)),
        leader_dim=1,
        discount=0.9,
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("options", [{"sampling": "pairs"}, {"behaviour": "uniform"}, {"behaviour": "softmax"}], ids=str)
def test_it_reaches_the_exact_policy_on_random_models(seed: int, options: dict[str, str]) -> None:
    model, x, lam = random_model(seed, contexts=1, states=5, discount=0.8), random_x(5, seed), 0.5
    follower = SoftQLearning(lam, tolerance=5e-3 / lam, **options)  # type: ignore[arg-type]
    policy = TrajectoryOracle(model, follower).respond(x, 0, np.random.default_rng(seed))
    measured = followers.suboptimality(model, policy, x, lam)  # type: ignore[arg-type]
    assert measured.delta <= follower.policy_gap(policy.metrics["follower_residual"], 0.8)  # type: ignore[attr-defined]
    assert measured.delta <= 0.02


@pytest.mark.parametrize("context", [0, 1])
def test_it_reaches_the_exact_policy_on_small_rooms(context: int) -> None:
    env, x, lam = small_rooms(), np.random.default_rng(0).standard_normal(21), 0.1
    follower = SoftQLearning(lam, tolerance=5e-3 / lam, exploration=0.3)
    policy = TrajectoryOracle(env, follower).respond(x, context, np.random.default_rng(0))
    measured = followers.suboptimality(env.unwrapped.model, policy, x, lam)  # type: ignore[attr-defined, arg-type]
    assert measured.delta <= min(0.02, follower.policy_gap(policy.metrics["follower_residual"], 0.9))  # type: ignore[attr-defined]


def test_small_lambda_keeps_its_weights_in_range() -> None:
    """lambda = 1e-3 and values around 1: exponents of a thousand, which the kernel's reference must follow."""
    env, x, lam = small_rooms(), np.zeros(21), 1e-3
    follower = SoftQLearning(lam, iterations=2_000_000, sampling="pairs", step_size=StepSize.visits(40.0))
    policy = TrajectoryOracle(env, follower).respond(x, 0, np.random.default_rng(0))
    measured = followers.suboptimality(env.unwrapped.model, policy, x, lam)  # type: ignore[attr-defined, arg-type]
    assert measured.value_gap < 1e-3
    run = _start(follower, env, x, q=np.linspace(-3.0, 3.0, 80).reshape(20, 4))
    run.advance(100_000)
    np.testing.assert_allclose(run.policy().table, softmax(run.q / lam, -1), atol=1e-9)


@pytest.mark.parametrize(
    ("rule", "remaining"),
    [
        (StepSize.constant(0.25), lambda n: 0.75**n),
        (StepSize.visits(2.0, 4.0), lambda n: np.prod([1 - 2 / (4 + i) for i in range(n)])),
    ],
)
def test_steps_follow_their_rule(rule: StepSize, remaining: Any) -> None:
    """Without a future, Q(a) = r(a) (1 - prod (1 - alpha_i))."""
    run = _start(SoftQLearning(0.1, iterations=1, behaviour="uniform", step_size=rule), one_step_problem(), [0.0])
    run.advance(12)
    n = run.counts[0]
    assert n.sum() == 12
    np.testing.assert_allclose(run.q[0], [1.0 - remaining(n[0]), 2.0 * (1.0 - remaining(n[1]))], rtol=1e-12)


def test_harmonic_steps_count_all_updates() -> None:
    behaviour = [[1.0, 0.0]]
    rule = StepSize.harmonic(2.0, 4.0)
    run = _start(
        SoftQLearning(0.1, iterations=1, behaviour=behaviour, exploration=0.0, step_size=rule), one_step_problem(), [0.0]
    )
    run.advance(5)
    run.advance(5)
    np.testing.assert_allclose(run.q[0], [1.0 - np.prod([1 - 2 / (4 + t) for t in range(10)]), 0.0], rtol=1e-12)


def _frequencies(**options: Any) -> Any:
    """Draws of a run that starts at a given Q and hardly moves it: (counts, Q)."""
    q = np.random.default_rng(3).standard_normal((5, 3))
    model = random_model(0, contexts=1, states=5, discount=0.8)
    run = _start(SoftQLearning(0.5, iterations=1, step_size=1e-300, **options), model, random_x(5), q=q)
    run.advance(400_000)
    return run.counts, q


@pytest.mark.parametrize("exploration", [0.0, 0.3, 1.0])
def test_actions_are_drawn_from_the_behaviour_policy(exploration: float) -> None:
    """Within 4.5 standard errors in each of 15 pairs."""
    table = np.random.default_rng(4).dirichlet(np.ones(3), 5)
    for behaviour in ("softmax", "uniform", table):
        counts, q = _frequencies(behaviour=behaviour, exploration=exploration)
        base = {"softmax": softmax(q / 0.5, -1), "uniform": np.full((5, 3), 1 / 3)}.get(str(behaviour), table)
        expected = exploration / 3 + (1 - exploration) * base
        visits = counts.sum(-1, keepdims=True)
        error = np.sqrt(expected * (1 - expected) / visits)
        assert (np.abs(counts / visits - expected) <= 4.5 * error).all()


def test_pairs_are_drawn_uniformly() -> None:
    counts, _ = _frequencies(sampling="pairs")
    assert (np.abs(counts / 400_000 - 1 / 15) <= 4.5 * np.sqrt(1 / 15 / 400_000)).all()


def test_a_trajectory_visits_states_as_the_model_says() -> None:
    """State frequencies against the stationary distribution of the chain with restarts, within 1%."""
    model, x = random_model(0, contexts=1, states=5, discount=0.8), random_x(5)
    run = _start(SoftQLearning(0.5, iterations=1, step_size=1e-300, behaviour="uniform"), model, x)
    run.advance(2_000_000)
    mdps = model.configure(x)
    q, p = mdps.termination[0].detach().numpy(), mdps.transition.values[0].detach().numpy()
    chain = ((1 - q)[..., None] * p + q[..., None] * mdps.initial[0].detach().numpy()).mean(1)
    stationary = np.linalg.matrix_power(chain, 200)[0]
    np.testing.assert_allclose(run.counts.sum(-1) / 2_000_000, stationary, rtol=0.01)


def test_tables_may_differ_by_context() -> None:
    model, x = random_model(0, contexts=2, states=5), random_x(5)
    tables = np.zeros((2, 5, 3))
    tables[0, :, 0] = tables[1, :, 2] = 1.0
    follower = SoftQLearning(0.5, iterations=1, behaviour=tables, exploration=0.0)
    for context, action in ((0, 0), (1, 2)):
        run = _start(follower, model, x, context=context)
        run.advance(100)
        assert run.counts[:, action].sum() == 100


def test_bad_settings_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="Did you mean 'softmax'"):
        SoftQLearning(0.1, iterations=5, behaviour="sofmax")
    with pytest.raises(errors.OptionError, match="Did you mean 'pairs'"):
        SoftQLearning(0.1, iterations=5, sampling="pair")
    with pytest.raises(errors.OptionError, match=r"exploration is -0\.1"):
        SoftQLearning(0.1, iterations=5, exploration=-0.1)
    with pytest.raises(errors.OptionError, match=r"first step size is 1\.2; expected at most 1"):
        SoftQLearning(0.1, iterations=5, step_size=1.2)
    with pytest.raises(errors.OptionError, match="first step size is 5"):
        SoftQLearning(0.1, iterations=5, step_size=StepSize.harmonic(5.0, 1.0))
    with pytest.raises(errors.OptionError, match="rows that sum to 1"):
        SoftQLearning(0.1, iterations=5, behaviour=np.ones((2, 2)))
    with pytest.raises(errors.OptionError, match="rows that sum to 1"):
        SoftQLearning(0.1, iterations=5, behaviour=np.array([0.5, 0.5]))
    with pytest.raises(errors.OptionError, match="check_every is 0"):
        SoftQLearning(0.1, iterations=5, check_every=0)
    model = random_model(0, contexts=2, states=5)
    wide = SoftQLearning(0.1, iterations=5, behaviour=np.full((5, 2), 0.5))
    with pytest.raises(errors.OptionError, match=r"shape \(5, 2\); expected \(5, 3\)"):
        TrajectoryOracle(model, wide).respond(random_x(5), 0, np.random.default_rng(0))
    short = SoftQLearning(0.1, iterations=5, behaviour=np.full((1, 5, 3), 1 / 3))
    with pytest.raises(errors.OptionError, match="for each context"):
        TrajectoryOracle(model, short).respond(random_x(5), 1, np.random.default_rng(0))


def test_discount_one_needs_a_step_size() -> None:
    walk = random_model(1, contexts=1, states=5, discount=1.0, leader_discount=1.0)
    x, rng = random_x(5, 1), np.random.default_rng(0)
    with pytest.raises(errors.DiscountError, match="no default step size"):
        TrajectoryOracle(walk, SoftQLearning(0.5, iterations=5)).respond(x, 0, rng)
    follower = SoftQLearning(0.5, iterations=2_000_000, step_size=StepSize.visits(30.0))
    policy = TrajectoryOracle(walk, follower).respond(x, 0, rng)
    assert followers.suboptimality(walk, policy, x, 0.5).delta < 0.03  # type: ignore[arg-type]


def test_it_is_a_follower() -> None:
    followers.check_follower(SoftQLearning(0.2, tolerance=0.025))
    followers.check_follower(SoftQLearning(0.2, iterations=300_000, sampling="pairs"))
