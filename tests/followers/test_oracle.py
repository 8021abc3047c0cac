from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

import bocmdp_gym
import followers
from bocmdp_gym import TabularEnv, errors
from tests.problems import four_rooms, random_model, random_x, small_rooms


def _pair(env: object) -> list[followers.TrajectoryOracle]:
    follower = followers.SoftPolicyIteration(0.003)
    return [followers.TrajectoryOracle(env, follower, compiled=compiled) for compiled in (True, False)]  # type: ignore[arg-type]


@pytest.mark.parametrize("observation", ["index", "coordinates"])
def test_compiled_and_plain_paths_agree_in_distribution(observation: str) -> None:
    x = random_x(105, scale=1.0)
    batches = []
    for oracle in _pair(four_rooms(observation=observation, horizon=60)):
        rng = np.random.default_rng(5)
        batches.append(oracle.sample(oracle.respond(x, 1, rng), 60_000, rng))
    fast, plain = batches
    assert fast.states is not None
    assert plain.states is not None
    assert fast.observations.dtype == plain.observations.dtype
    assert fast.final_observations.shape[1:] == plain.final_observations.shape[1:]
    for batch in batches:
        assert batch.n_steps >= 60_000
        assert batch.n_steps - batch.lengths[-1] < 60_000  # only the last episode goes beyond the budget
        assert batch.ends[-1] == batch.n_steps
        assert (batch.lengths <= 60).all()
        assert (batch.lengths[~batch.terminated] == 60).all()
    pairs = [np.bincount(b.states * 4 + b.actions, minlength=416) for b in batches]
    often = (pairs[0] + pairs[1]) > 200
    # successive steps are correlated, so the test statistic is inflated: compare visits per episode instead
    assert chi2_contingency([p[often] / 8 for p in pairs]).pvalue > 1e-3
    assert ks_2samp(*(b.lengths for b in batches)).pvalue > 1e-3
    assert ks_2samp(*(b.discounted_returns(0.99, leader=True) for b in batches)).pvalue > 1e-3
    assert ks_2samp(*(b.discounted_returns(0.99) for b in batches)).pvalue > 1e-3


def test_the_comparison_sees_a_different_policy() -> None:
    oracle = followers.TrajectoryOracle(four_rooms(), followers.SoftPolicyIteration(0.003))
    other = followers.TrajectoryOracle(four_rooms(), followers.SoftPolicyIteration(0.005))
    x, rng = random_x(105), np.random.default_rng(0)
    lengths = [o.sample(o.respond(x, 1, rng), 60_000, rng).lengths for o in (oracle, other)]
    assert ks_2samp(*lengths).pvalue < 1e-6


def test_returns_agree_with_the_exact_value() -> None:
    model = random_model(3, terminating=True)
    x, rng = random_x(model.leader_dim), np.random.default_rng(0)
    oracle = followers.TrajectoryOracle(TabularEnv(model, horizon=None), followers.SoftPolicyIteration(0.3))
    exact = model.leader_return(x, 0.3, per_context=True)
    for context in range(model.n_contexts):
        returns = oracle.sample(oracle.respond(x, context, rng), 300_000, rng).discounted_returns(0.8, leader=True)
        error = returns.std() / len(returns) ** 0.5
        assert abs(returns.mean() - float(exact[context])) < 4 * error


def test_starts_are_played_in_turn() -> None:
    for oracle in _pair(four_rooms()):
        rng = np.random.default_rng(0)
        policy = oracle.respond(np.zeros(105), 0, rng)
        batch = oracle.sample(policy, 10_000, rng, start=[(17, 2), (50, -1), (3, 0)])
        assert batch.states is not None
        assert batch.n_episodes == 3
        np.testing.assert_array_equal(batch.states[batch.starts], [17, 50, 3])
        assert batch.actions[0] == 2
        assert batch.actions[batch.starts[2]] == 0
        assert oracle.sample(policy, 5, rng, start=[(17, 2)] * 50).n_episodes < 50
        with pytest.raises(errors.StateError):
            oracle.sample(policy, 10, rng, start=[(400, 0)])


def test_steps_are_counted() -> None:
    oracle = followers.TrajectoryOracle(four_rooms(), followers.SoftPolicyIteration(0.003))
    rng = np.random.default_rng(0)
    policy = oracle.respond(np.zeros(105), 0, rng)
    total = sum(oracle.sample(policy, n, rng).n_steps for n in (1, 100, 5000))
    assert oracle.env_steps == total
    with pytest.raises(errors.OptionError, match="at least 1"):
        oracle.sample(policy, 0, rng)


def test_a_policy_keeps_its_own_x() -> None:
    for oracle in _pair(four_rooms()):
        rng = np.random.default_rng(0)
        heavy = np.zeros(105)
        heavy[0] = 9.0
        first = oracle.respond(np.zeros(105), 0, rng)
        oracle.respond(heavy, 1, rng)
        batch = oracle.sample(first, 500, rng)
        np.testing.assert_array_equal(batch.leader, np.zeros(105))
        expected = bocmdp_gym.configurable(four_rooms()).model.configure(np.zeros(105)).arrays(0).reward
        np.testing.assert_allclose(batch.rewards, expected[batch.states, batch.actions])


def test_long_episodes_without_a_limit_outgrow_the_buffers() -> None:
    env = TabularEnv(_rarely_ending(), horizon=None)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(0.5))
    rng = np.random.default_rng(2)
    batch = oracle.sample(oracle.respond(np.zeros(1), 0, rng), 100, rng)
    assert batch.n_steps > 4096
    assert batch.terminated.all()
    assert batch.ends[-1] == batch.n_steps


def _rarely_ending() -> bocmdp_gym.TabularBOCMDP:
    return bocmdp_gym.TabularBOCMDP(
        reward=np.zeros((1, 2, 2)),
        leader_reward=np.ones((1, 2, 2)),
        transition=np.full((1, 2, 2, 2), 0.5),
        initial=np.array([1.0, 0.0]),
        termination=np.full((1, 2), 3e-5),
        discount=0.99,
        leader_dim=1,
    )


def test_a_changed_environment_is_not_simulated_behind_its_back() -> None:
    class Halved(gym.RewardWrapper):
        def reward(self, reward: float) -> float:  # type: ignore[override]
            return reward / 2

    acting, follower = followers.CallableFollower(lambda observation: 0), followers.SoftPolicyIteration(0.003)
    oracle = followers.TrajectoryOracle(Halved(four_rooms()), acting)
    assert not oracle.compiled
    rng = np.random.default_rng(0)
    plain = followers.TrajectoryOracle(four_rooms(), acting)
    halved, full = (o.sample(o.respond(np.zeros(105), 0, rng), 2000, np.random.default_rng(0)).rewards for o in (oracle, plain))
    np.testing.assert_array_equal(halved, full / 2)
    with pytest.raises(errors.UnsupportedError, match="compiled=False"):
        followers.TrajectoryOracle(Halved(four_rooms()), acting, compiled=True)
    with pytest.raises(errors.UnsupportedError, match="Halved around it may change"):
        followers.TrajectoryOracle(Halved(four_rooms()), follower)
    limited = followers.TrajectoryOracle(gym.wrappers.TimeLimit(four_rooms(), 7), follower)
    assert limited.sample(limited.respond(np.zeros(105), 0, rng), 500, rng).lengths.max() == 7


def test_what_cannot_be_an_oracle_is_refused() -> None:
    with pytest.raises(errors.NotConfigurableError, match="leader_space"):
        followers.TrajectoryOracle(gym.make("CartPole-v1"), followers.SoftPolicyIteration(0.003))
    oracle = followers.TrajectoryOracle(four_rooms(), followers.SoftPolicyIteration(0.003))
    with pytest.raises(errors.ContextError, match="out of range"):
        oracle.respond(np.zeros(105), 2, np.random.default_rng(0))
    with pytest.raises(errors.LeaderParameterError, match="shape"):
        oracle.respond(np.zeros(104), 0, np.random.default_rng(0))


def test_a_model_is_played_with_a_horizon() -> None:
    oracle = followers.TrajectoryOracle(random_model(1, terminating=False), followers.SoftPolicyIteration(0.5))
    rng = np.random.default_rng(0)
    batch = oracle.sample(oracle.respond(np.zeros(5), 0, rng), 1000, rng)
    assert (batch.lengths == 200).all()
    assert not batch.terminated.any()


@pytest.mark.parametrize("horizon", [60, None])
def test_paired_samples_draw_the_same_in_episodes_of_equal_number(horizon: int | None) -> None:
    """Two policies that differ in one state differ in the episodes that visit it, and in no other; each has its own mean."""
    model = random_model(2, contexts=1, states=30, actions=2, successors=2, moving=("reward",))
    oracle = followers.TrajectoryOracle(bocmdp_gym.TabularEnv(model, horizon=horizon), followers.SoftPolicyIteration(0.5))
    x = random_x(5)
    table = oracle.respond(x, 0, np.random.default_rng(0)).table
    assert table is not None
    other = table.copy()
    other[7] = other[7, ::-1]
    one, two = (
        oracle.sample(followers.TabularPolicy(t, x.numpy(), 0), 5000, np.random.default_rng(1), paired=True)
        for t in (table, other)
    )
    alike = 0
    for e in range(min(one.n_episodes, two.n_episodes)):
        first, second = one.episodes(np.array([e])), two.episodes(np.array([e]))
        assert first.states is not None
        assert second.states is not None
        if 7 not in first.states:
            np.testing.assert_array_equal(first.states, second.states)
            np.testing.assert_array_equal(first.actions, second.actions)
            alike += 1
    assert 0 < alike < one.n_episodes
    plain = oracle.sample(followers.TabularPolicy(table, x.numpy(), 0), 20_000, np.random.default_rng(2))
    paired = oracle.sample(followers.TabularPolicy(table, x.numpy(), 0), 20_000, np.random.default_rng(3), paired=True)
    found = [batch.discounted_returns(0.9) for batch in (plain, paired)]
    error = np.hypot(*(f.std() / len(f) ** 0.5 for f in found))
    assert abs(found[0].mean() - found[1].mean()) < 4 * error


def test_paired_episodes_of_plain_environments_too() -> None:
    oracle = followers.TrajectoryOracle(small_rooms(), followers.SoftPolicyIteration(0.5), compiled=False)
    policy = oracle.respond(random_x(21), 0, np.random.default_rng(0))
    one, two = (oracle.sample(policy, n, np.random.default_rng(1), paired=True) for n in (40, 200))
    for e in range(one.n_episodes):
        np.testing.assert_array_equal(one.episodes(np.array([e])).states, two.episodes(np.array([e])).states)
    with pytest.raises(errors.OptionError, match="leave start out"):
        oracle.sample(policy, 10, np.random.default_rng(0), start=[[0, -1]], paired=True)
