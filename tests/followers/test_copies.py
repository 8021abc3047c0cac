"""Several episodes at once: the same draw as of one after the other, in environments that can be copied."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from bocmdp_gym import TabularBOCMDP, TabularEnv, configurable
from followers import CallableFollower, Policy, TabularPolicy, TrajectoryOracle
from followers.copies import can_be_copied, copied
from tests.followers.problems import CountSteps, Point, X, bandit
from tests.followers.test_rollout import Bonus


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Batched(TabularPolicy):
    """A table that is asked for many rows at once, and notes how many."""

    batched = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.asked: list[int] = []

    def act_batch(self, observations: Any, rng: np.random.Generator) -> Any:
        self.asked.append(len(observations))
        return super().act_batch(observations, rng)


class Still(Policy):
    """Asked for many rows at once, in `Point`."""

    batched = True
    leader, context = np.array([0.5]), 0

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        return np.zeros(1, np.float32)


def long_or_short() -> TabularEnv:
    """Half of the episodes end after one step that pays nothing; the others pay 1 in each of some ten steps more."""
    transition = np.zeros((1, 2, 1, 2))
    transition[..., 1] = 1.0
    model = TabularBOCMDP(
        reward=np.zeros((1, 2, 1)),
        leader_reward=np.array([[[0.0], [1.0]]]),
        transition=transition,
        initial=np.array([1.0, 0.0]),
        termination=np.array([[0.5, 0.1]]),
        leader_dim=1,
        discount=0.9,
    )
    return TabularEnv(model, horizon=None)


EXACT = 0.5 * 0.9 / (1 - 0.9 * 0.9)


def oracle_of(env: Any, copies: int = 32) -> TrajectoryOracle:
    return TrajectoryOracle(env, CallableFollower(lambda observation: 0), compiled=False, copies=copies)


@pytest.mark.parametrize("env_steps", [3, 40])
def test_long_episodes_are_kept_as_often_as_short_ones(env_steps: int) -> None:
    """Wald's identity: over samples, the sum of (return - its mean) over the episodes of a sample is 0 on average."""
    oracle, generator = oracle_of(long_or_short()), rng()
    policy = Batched(np.ones((2, 1)), [0.0], 0)
    sums = []
    for _ in range(400 if env_steps < 10 else 100):
        returns = oracle.sample(policy, env_steps, generator).discounted_returns(0.9, leader=True)
        sums.append((returns - EXACT).sum())
    assert abs(np.mean(sums)) < 4 * np.std(sums) / len(sums) ** 0.5
    assert max(policy.asked) > 1
    assert oracle.idle_steps > 0


def test_the_mean_return_is_the_exact_one() -> None:
    oracle, generator = oracle_of(long_or_short()), rng()
    policy = Batched(np.ones((2, 1)), [0.0], 0)
    returns = oracle.sample(policy, 20_000, generator).discounted_returns(0.9, leader=True)
    assert abs(returns.mean() - EXACT) < 4 * returns.std() / len(returns) ** 0.5
    assert np.mean(policy.asked) > 16


def test_samples_of_many_and_of_one_are_alike() -> None:
    """Lengths, episodes per sample, visits and ends have the same distributions, and budgets are kept alike."""
    policy = Batched(np.array([[0.3, 0.7], [0.6, 0.4]]), X, 0)
    found = []
    for copies in (1, 32):
        oracle, generator = oracle_of(bandit(), copies), rng(copies)
        batches = [oracle.sample(policy, 50, generator) for _ in range(80)]
        assert oracle.env_steps == sum(batch.n_steps for batch in batches)
        for batch in batches:
            assert batch.n_steps >= 50
            assert batch.n_steps - batch.lengths[-1] < 50  # only the last episode goes beyond the budget
            assert batch.states is not None
            np.testing.assert_array_equal(batch.states, batch.observations)
            np.testing.assert_array_equal(batch.rewards, np.where(batch.actions == 0, X[0], 0.0))
        found.append(batches)
    assert ks_2samp(*(np.concatenate([b.lengths for b in batches]) for batches in found)).pvalue > 1e-3
    assert ks_2samp(*([b.n_episodes for b in batches] for batches in found)).pvalue > 1e-3
    pairs = [sum(np.bincount(b.states * 2 + b.actions, minlength=4) for b in batches) for batches in found]
    assert chi2_contingency(pairs).pvalue > 1e-3
    ends = [[sum(int((b.terminated == t).sum()) for b in batches) for t in (True, False)] for batches in found]
    assert chi2_contingency(ends).pvalue > 1e-3


def test_every_step_is_counted_or_idle_and_equal_seeds_play_alike() -> None:
    oracle = oracle_of(Point())
    first = oracle.sample(Still(), 333, rng(1))
    assert (first.lengths == 5).all()
    assert first.n_steps == oracle.env_steps == 335
    assert oracle.idle_steps == 0  # all episodes have their known length
    oracle.sample(Still(), 100, rng(2))
    second = oracle_of(Point()).sample(Still(), 333, rng(1))
    np.testing.assert_array_equal(first.observations, second.observations)
    np.testing.assert_array_equal(first.leader_rewards, second.leader_rewards)
    assert len(np.unique(first.observations)) == 335  # no two copies draw the same


def test_starts_and_horizons_of_many() -> None:
    oracle = oracle_of(Point())
    start = [(0.25, np.ones(1, np.float32)), (-0.5, None), (0.75, None)]
    batch = oracle.sample(Still(), 100, rng(), start=start)
    assert batch.n_episodes == 3
    np.testing.assert_array_equal(batch.observations[batch.starts, 0], [0.25, -0.5, 0.75])
    np.testing.assert_array_equal(batch.actions[batch.starts, 0], [1.0, 0.0, 0.0])
    assert oracle.sample(Still(), 6, rng(), start=start).n_episodes == 2
    batch = oracle.sample(Still(), 100, rng(), horizon=3)
    assert (batch.lengths == 3).all()
    assert not batch.terminated.any()


def test_paired_episodes_are_played_one_by_one() -> None:
    oracle = oracle_of(bandit())
    policy = Batched(np.array([[0.3, 0.7], [0.6, 0.4]]), X, 0)
    one, two = (oracle.sample(policy, n, rng(1), paired=True) for n in (40, 200))
    assert policy.asked == []
    np.testing.assert_array_equal(one.states, two.states[: one.n_steps])  # type: ignore[index]


# ----------------------------------------------------------------------------------------------------- what can be copied


class Shared(Point):
    """Its copies meet in one random stream."""

    stream = np.random.default_rng(0)

    def _reset(self, state: Any | None) -> Any:
        type(self).stream = np.random.default_rng(self.np_random.integers(2**31))
        return super()._reset(state)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward + float(self.stream.random()), *rest


class Unseeded(Point):
    """Plays otherwise each time."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward + float(np.random.default_rng().random()), *rest


class Uncopyable(Point):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a simulator that runs elsewhere")


def test_what_can_be_copied() -> None:
    bonus = Bonus(gym.make("CartPole-v1"))
    for env in (Point(), bandit(), CountSteps(Point()), bonus, gym.make("bocmdp/TaxDesign-v0")):
        assert can_be_copied(env)
    watched = Bonus(gym.make("CartPole-v1", render_mode="rgb_array"))
    normalized = Bonus(gym.wrappers.NormalizeObservation(gym.make("CartPole-v1")))
    for env in (Shared(), Unseeded(), Uncopyable(), watched, normalized):
        assert not can_be_copied(env)


def test_an_environment_that_cannot_be_copied_is_played_alone() -> None:
    env = Unseeded()
    batch = oracle_of(env).sample(Still(), 50, rng())
    assert batch.n_steps == 50
    count = CountSteps(Point())
    oracle = oracle_of(count, copies=1)
    oracle.sample(Still(), 50, rng())
    assert count.steps == oracle.env_steps == 50


def test_a_copy_has_x_and_the_context_and_shares_the_model() -> None:
    env = bandit()
    env.set_leader(X)
    env.set_context(1)
    copy = configurable(copied(CountSteps(env)))
    assert copy is not env
    assert copy.model is env.model
    np.testing.assert_array_equal(copy.leader, X)
    copy.set_leader(-X)
    np.testing.assert_array_equal(env.leader, X)
    copy.reset(seed=0)
    env.reset(seed=0)
    assert [copy.step(0)[1], env.step(0)[1]] == [1.0, -1.0]
