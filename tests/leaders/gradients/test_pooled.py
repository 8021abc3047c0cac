from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import FactoredTransitions, TabularBOCMDP, TabularEnv, configurable, errors
from leaders.gradients import ExactEstimator, MonteCarloEstimator, PooledEstimator
from leaders.gradients._transition_counts import TransitionCounts
from leaders.gradients.pooled import pooled_weights
from tests.problems import finite_difference, four_rooms, random_model, random_x, relative_error, small_rooms

REWARDS = ("reward", "leader_reward")
LAMBDA = 0.5


def _model(seed: int = 0, **options: Any) -> TabularBOCMDP:
    return random_model(seed, moving=REWARDS, **options)


def _factored() -> TabularBOCMDP:
    model = _model(3, states=6, actions=3)
    values = torch.softmax(torch.randn(1, 6, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64), -1)
    return model.replace(transition=FactoredTransitions(values, [0, 1, 0]))


def _oracle(env: Any, regularization: float = LAMBDA) -> followers.TrajectoryOracle:
    return followers.TrajectoryOracle(env, followers.SoftPolicyIteration(regularization))


def _exact(oracle: followers.TrajectoryOracle, x: torch.Tensor, context: int) -> torch.Tensor:
    estimator = ExactEstimator()
    estimator.bind(oracle)
    return estimator.estimate(oracle, x, context, np.random.default_rng(0)).gradient


def _perfect(model: TabularBOCMDP) -> TransitionCounts:
    """The counts of some 10^12 steps per pair that fall exactly as often as they should."""
    counts = TransitionCounts(model, share_contexts=False)
    mdps, many = model.configure(model.example), 1e12
    for context in range(model.n_contexts):
        arrays = mdps.arrays(context)
        counts.transitions[context] = np.rint(many * arrays.stored_probabilities)
        counts.visits[context] = many
        counts.endings[context] = np.rint(many * arrays.termination)
        counts.starts[context] = np.rint(many * arrays.initial)
    return counts


@pytest.mark.parametrize("make", [_model, lambda: _model(1, successors=4), lambda: _model(2, leader_discount=None), _factored])
def test_with_all_data_the_gradient_is_exact(make: Any) -> None:
    model = make()
    x, counts = random_x(model.leader_dim), _perfect(model)
    mdps = model.configure(x.clone().requires_grad_())
    returns = model.leader_return(x, LAMBDA, per_context=True)
    for context in range(model.n_contexts):
        policy = model.solve(x, LAMBDA).policy[context].numpy()
        weights, leader, seen = pooled_weights(mdps, context, counts, policy, LAMBDA)
        assert seen.all()
        assert relative_error(mdps.vjp(weights, context), _exact(_oracle(model), x, context)) < 1e-9
        assert leader.leader_return == pytest.approx(float(returns[context]), abs=1e-9)


def _sampled(model: TabularBOCMDP, env_steps: int, context: int, seed: int = 0) -> TransitionCounts:
    oracle, rng = _oracle(TabularEnv(model, horizon=6)), np.random.default_rng(seed)
    counts = TransitionCounts(model, share_contexts=False)
    counts.add(oracle.sample(oracle.respond(np.zeros(model.leader_dim), context, rng), env_steps, rng))
    return counts


def _empirical_model(model: TabularBOCMDP, counts: TransitionCounts, context: int) -> tuple[TabularBOCMDP, np.ndarray[Any, Any]]:
    """The model that was seen; acting in a pair never seen costs so much that nobody does."""
    arrays, seen = counts.empirical(model.configure(model.example).arrays(context), context)
    assert seen.any(-1).all()
    rows = arrays.stored_probabilities.copy()
    rows[rows.sum(-1) == 0.0, 0] = 1.0  # never acted in, or always ended
    never = torch.from_numpy(np.where(seen, 0.0, -1e3))
    return model.replace(
        reward=lambda x: model.part("reward", x)[context : context + 1] + never,
        leader_reward=lambda x: model.part("leader_reward", x)[context : context + 1],
        transition=rows[None],
        initial=arrays.initial,
        termination=arrays.termination[None],
        context_probabilities=None,
    ), seen


@pytest.mark.parametrize(("env_steps", "complete"), [(40, False), (50_000, True)])
def test_the_gradient_is_that_of_the_empirical_model(env_steps: int, complete: bool) -> None:
    model, context = _model(4, states=5, contexts=2), 1
    counts = _sampled(model, env_steps, context)
    found, seen = _empirical_model(model, counts, context)
    assert bool(seen.all()) == complete
    x = random_x(model.leader_dim)
    policy = found.solve(x, LAMBDA).policy[0].numpy()
    mdps = model.configure(x.clone().requires_grad_())
    weights, leader, _ = pooled_weights(mdps, context, counts, policy, LAMBDA)
    differences = finite_difference(lambda z: found.leader_return(z, LAMBDA), x)
    torch.testing.assert_close(mdps.vjp(weights, context), differences, rtol=1e-6, atol=1e-8)
    assert leader.leader_return == pytest.approx(float(found.leader_return(x, LAMBDA)), abs=1e-9)


def test_unseen_actions_are_left_to_the_others() -> None:
    model, context = _model(4, states=5, contexts=2), 1
    counts, x = _sampled(model, 40, context), random_x(5)
    mdps = model.configure(x)
    policy = model.solve(x, LAMBDA).policy[context].numpy()
    weights, leader, seen = pooled_weights(mdps, context, counts, policy, LAMBDA)
    assert weights.reward is not None
    assert weights.leader_reward is not None
    assert (weights.reward[~seen] == 0.0).all()
    np.testing.assert_allclose(weights.leader_reward.sum(-1), leader.visitation)
    counts.visits[context, 2], counts.endings[context, 2], counts.transitions[context, 2] = 0, 0, 0
    weights, leader, seen = pooled_weights(mdps, context, counts, policy, LAMBDA)
    assert leader.value[2] == 0.0  # a state nobody acted in
    assert np.isfinite(weights.reward).all()


def _errors(env: Any, env_steps: int, estimates: int, repeats: int, context: int = 1) -> np.ndarray[Any, Any]:
    """Relative error of the last of ``estimates`` estimates, at as many different x, in each of ``repeats`` runs."""
    oracle, rng = _oracle(env), np.random.default_rng(7)
    points = [random_x(oracle.core.model.leader_dim, seed) for seed in reversed(range(estimates))]
    truth, found = _exact(oracle, points[-1], context), []
    estimator = PooledEstimator(env_steps)
    for _ in range(repeats):
        estimator.bind(oracle)
        for x in points:
            estimate = estimator.estimate(oracle, x, context, rng)
        found.append(relative_error(estimate.gradient, truth))
    return np.array(found)


def test_the_error_falls_with_all_steps_so_far() -> None:
    env = TabularEnv(_model(5), horizon=None)
    once, more = _errors(env, 1000, 1, 60), _errors(env, 100_000, 1, 60)
    spread = np.hypot(once.std() / once.mean(), more.std() / more.mean()) / 60**0.5
    assert abs(np.log(once.mean() / more.mean() / 10)) < 4 * spread + 0.1  # 1/sqrt(n); 0.1: terms of higher order at n = 1,000
    many = _errors(env, 1000, 100, 60)
    spread = np.hypot(many.std() / many.mean(), more.std() / more.mean()) / 60**0.5
    assert abs(np.log(many.mean() / more.mean())) < 4 * spread + 0.1  # 100 times 1,000 steps tell what 100,000 do
    assert more.mean() < 0.02


def test_a_time_limit_leaves_no_bias() -> None:
    env = TabularEnv(_model(2, terminating=False, leader_discount=None), horizon=8)
    assert _errors(env, 500_000, 1, 3).max() < 0.02
    oracle, x = _oracle(env), random_x(5, 0)
    plain = MonteCarloEstimator(500_000)
    plain.bind(oracle)
    assert relative_error(plain.estimate(oracle, x, 1, np.random.default_rng(0)).gradient, _exact(oracle, x, 1)) > 0.2


@pytest.mark.parametrize("compiled", [True, False])
def test_counts_are_those_of_the_trajectories(compiled: bool) -> None:
    env = small_rooms(horizon=30)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(0.05), compiled=compiled)
    model, rng = configurable(env).model, np.random.default_rng(0)
    counts = TransitionCounts(model, share_contexts=False)
    expected = np.zeros((2, model.n_states, model.n_actions, model.n_states), dtype=np.int64)
    endings, starts = np.zeros((2, model.n_states, model.n_actions)), np.zeros((2, model.n_states))
    n_steps, cut = 0, 0
    for context in (0, 1, 1):
        batch = oracle.sample(oracle.respond(np.zeros(model.leader_dim), context, rng), 2000, rng)
        counts.add(batch)
        n_steps += batch.n_steps
        cut += int((~batch.terminated).sum())
        for e in range(batch.n_episodes):
            episode = batch.episodes(np.array([e]))
            states = [*episode.states.tolist(), int(episode.final_states[0])]  # type: ignore[union-attr, index]
            starts[context, states[0]] += 1
            for i, action in enumerate(episode.actions):
                if i == episode.n_steps - 1 and episode.terminated[0]:
                    endings[context, states[i], action] += 1
                else:
                    expected[context, states[i], action, states[i + 1]] += 1
    assert cut > 0
    assert counts.visits.sum() == n_steps
    np.testing.assert_array_equal(counts.endings, endings)
    np.testing.assert_array_equal(counts.starts, starts)
    np.testing.assert_array_equal(counts.visits, expected.sum(-1) + endings)
    successors = np.broadcast_to(model.part("transition", None).successors(), counts.transitions.shape)
    dense = np.zeros_like(expected)
    for index in np.ndindex(*successors.shape):
        dense[(*index[:3], int(successors[index]))] += counts.transitions[index]
    np.testing.assert_array_equal(dense, expected)


def test_contexts_share_what_the_model_shares() -> None:
    env = four_rooms()
    oracle, x, rng = _oracle(env, 0.005), torch.zeros(105), np.random.default_rng(0)
    estimator = PooledEstimator(2000, share_contexts=True)
    estimator.bind(oracle)
    first = estimator.estimate(oracle, x, 0, rng).metrics["seen_pairs"]
    assert estimator.estimate(oracle, x, 1, rng).metrics["seen_pairs"] > first
    counts = estimator.state()
    assert counts["transitions"].shape == (1, 104, 4, 4)
    assert counts["starts"].shape == (1, 104)
    assert counts["visits"].shape == (2, 104, 4)  # goals, where episodes end, are the contexts' own
    for _ in range(300):
        error = relative_error(estimator.estimate(oracle, x, 1, rng).gradient, _exact(oracle, x, 1))
    assert error < 0.1
    with pytest.raises(errors.OptionError, match="transitions of their own"):
        PooledEstimator(100, share_contexts=True).bind(_oracle(_model()))


def test_a_policy_known_from_its_trajectories_alone() -> None:
    class Silent(followers.SoftPolicyIteration):
        """Exposes no probabilities."""

        def respond(self, task: followers.Task, rng: np.random.Generator) -> Any:
            policy = super().respond(task, rng)

            class Acting:
                leader, context = policy.leader, policy.context

                def act(self, observation: Any, rng: np.random.Generator) -> int:
                    return policy.act(observation, rng)

            return Acting()

    env, x, rng = TabularEnv(_model(6, states=4)), random_x(5), np.random.default_rng(0)
    oracle = followers.TrajectoryOracle(env, Silent(LAMBDA))
    truth = _exact(oracle, x, 0)
    estimator, found = PooledEstimator(4000), []
    estimator.bind(oracle)
    for _ in range(5):
        found.append(relative_error(estimator.estimate(oracle, x, 0, rng).gradient, truth))
    assert max(found) < 0.3
    counts = TransitionCounts(configurable(env).model, share_contexts=False)
    old = oracle.sample(oracle.respond(x, 0, rng), 200, rng)
    counts.add(old)
    new = oracle.sample(oracle.respond(-x, 0, rng), 1, rng)
    counts.add(new)
    observed, everything = counts.observed(new), counts.visits[0]
    for state in range(4):
        assert new.states is not None
        visits = np.bincount(new.actions[new.states == state], minlength=3)
        visits = visits if visits.any() else everything[state]
        np.testing.assert_allclose(observed[state], visits / visits.sum())


@pytest.mark.parametrize("moving", ["transition", "initial", "termination"])
def test_dynamics_that_depend_on_x_are_refused(moving: str) -> None:
    model = random_model(0, moving=(*REWARDS, moving))
    with pytest.raises(errors.UnsupportedError, match=rf"here {moving} is a function of x.*monte_carlo"):
        leaders.optimize(model, leaders.HPGD(estimator="pooled"), followers.SoftPolicyIteration(LAMBDA), 1)


def test_what_cannot_be_pooled_is_refused() -> None:
    endless = _model(0, leader_discount=1.0)
    with pytest.raises(errors.DiscountError, match="below 1"):
        PooledEstimator(100).bind(_oracle(endless.replace(termination=np.full((1, 9), 0.5))))
    with pytest.raises(errors.OptionError, match="env_steps"):
        PooledEstimator(0)
    with pytest.raises(errors.OptionError, match="estimator='pooled'"):
        leaders.HPGD(share_contexts=True)
    oracle, rng = _oracle(_model()), np.random.default_rng(0)
    with pytest.raises(errors.OptionError, match="before bind"):
        PooledEstimator(100).estimate(oracle, torch.zeros(5), 0, rng)
    with pytest.raises(errors.UnsupportedError, match="ExactGradient for losses"):
        PooledEstimator(100).bind(oracle, lambda x, policy, context: x.sum())
    estimator = PooledEstimator(100)
    estimator.bind(_oracle(_model(contexts=2)))
    saved = estimator.state()
    estimator.bind(oracle)
    with pytest.raises(errors.DamagedError, match="same share_contexts"):
        estimator.load_state(saved)


def test_an_environment_that_moves_otherwise_is_noticed() -> None:
    class Jumping(gym.Wrapper):
        """Every third step leads to the first cell, and it says that it only watches."""

        transparent = True
        count = 0

        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            self.count += 1
            if self.count % 3 == 0:
                self.unwrapped._state = 0
            return (observation, *rest)

    oracle = followers.TrajectoryOracle(Jumping(small_rooms()), followers.SoftPolicyIteration(0.05), compiled=False)
    estimator = PooledEstimator(200)
    estimator.bind(oracle)
    x = torch.zeros(oracle.core.model.leader_dim)
    with pytest.raises(errors.UnsupportedError, match=r"no successor in its model.*monte_carlo"):
        estimator.estimate(oracle, x, 0, np.random.default_rng(0))


def test_a_run_starts_from_nothing_and_equal_seeds_are_equal() -> None:
    leader, follower = leaders.HPGD(0.5, 300, "pooled", share_contexts=True), followers.SoftPolicyIteration(0.003)
    runs = [leaders.optimize(four_rooms(), leader, follower, 20, seed=seed, evaluate_every=5) for seed in (4, 4, 5)]
    assert torch.equal(runs[0].x, runs[1].x)
    assert runs[0].env_steps == runs[1].env_steps
    assert not torch.equal(runs[0].x, runs[2].x)
    assert (np.diff(runs[0].history["seen_pairs"][runs[0].history["context"] == 0]) >= 0).all()


def test_hundreds_of_steps_are_enough_to_climb() -> None:
    env = small_rooms()
    leader = leaders.HPGD(0.5, 300, "pooled")
    result = leaders.optimize(env, leader, followers.SoftPolicyIteration(0.05), 150, seed=0, evaluate_every=149)
    exact = leaders.optimize(env, leaders.ExactGradient(0.5), followers.SoftPolicyIteration(0.05), 150, seed=0)
    start = float(result.history["leader_return"][0])
    assert exact.leader_return is not None
    assert result.leader_return is not None
    assert result.leader_return - start > 0.8 * (exact.leader_return - start) > 0.0
