"""The oracle's plain path: starts, copies in all autoreset modes, exact budgets, bad input."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.vector import TransformObservation
from scipy.stats import chi2_contingency, ks_2samp

import bocmdp_gym
from bocmdp_gym import ConfigurableWrapper, TabularVectorEnv, errors
from followers import CallableFollower, SoftPolicyIteration, TrajectoryOracle
from tests.followers.problems import CountSteps, Point, Unstartable, X, bandit
from tests.problems import four_rooms

MODES = ["NextStep", "SameStep", "Disabled"]
KINDS = ["native", "sync", "async"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def copies(kind: str, mode: str, n: int = 3, make: Any = bandit) -> Any:
    if kind == "native":
        return TabularVectorEnv(make(), n, mode)
    vector = gym.vector.SyncVectorEnv if kind == "sync" else gym.vector.AsyncVectorEnv
    return vector([make] * n, autoreset_mode=mode)


def exact_oracle(env: Any, compiled: bool | None = False) -> TrajectoryOracle:
    return TrajectoryOracle(env, SoftPolicyIteration(0.5), compiled=compiled)


def sample(env: Any, env_steps: int, seed: int = 0) -> tuple[TrajectoryOracle, Any]:
    oracle, generator = exact_oracle(env), rng(seed)
    return oracle, oracle.sample(oracle.respond(X, 1, generator), env_steps, generator)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_play_the_same_game_as_one(kind: str, mode: str) -> None:
    """Rewards, ends and transitions agree with those of a single environment, and no autoreset row is among them."""
    n = 400 if kind == "async" else 6000
    envs = copies(kind, mode)
    oracle, batch = sample(envs, n)
    _, single = sample(bandit(), 6000, seed=1)
    assert oracle.env_steps == batch.n_steps >= n
    np.testing.assert_array_equal(batch.rewards, np.where(batch.actions == 0, X[1], 0.0))
    np.testing.assert_array_equal(batch.leader_rewards, batch.states == 0)
    np.testing.assert_array_equal(batch.states, batch.observations)
    assert (batch.lengths <= 10).all()
    assert (batch.lengths[~batch.terminated] == 10).all()
    assert ks_2samp(batch.lengths, single.lengths).pvalue > 1e-3
    assert chi2_contingency([np.bincount(b.states * 2 + b.actions, minlength=4) for b in (batch, single)]).pvalue > 1e-3
    assert chi2_contingency([np.bincount(b.states[b.starts], minlength=2) for b in (batch, single)]).pvalue > 1e-3
    going_on = np.ones(batch.n_steps, dtype=bool)
    going_on[batch.ends[batch.terminated] - 1] = False
    kept = batch.next_observations[going_on] == batch.actions[going_on]
    assert abs(kept.mean() - 0.9) < 4 * np.sqrt(0.09 / going_on.sum())
    last = batch.ends - 1  # an episode that ends stays where it acted; one that is cut has moved on
    np.testing.assert_array_equal(batch.final_states[batch.terminated], batch.states[last[batch.terminated]])
    moved = batch.final_states[~batch.terminated] == batch.actions[last[~batch.terminated]]
    assert abs(moved.mean() - 0.9) < 4 * np.sqrt(0.09 / len(moved))
    envs.close()


@pytest.mark.parametrize("mode", MODES)
def test_steps_of_copies_are_counted_exactly(mode: str) -> None:
    """Every step the copies made is in the trajectories, or was made while others finished."""
    for n_steps in (1, 2, 7, 100):
        envs = gym.vector.SyncVectorEnv([lambda: CountSteps(bandit())] * 4, autoreset_mode=mode)
        oracle, batch = sample(envs, n_steps)
        made = sum(env.steps for env in envs.envs)  # type: ignore[attr-defined]
        assert made == oracle.env_steps + oracle.idle_steps
        assert oracle.env_steps == batch.n_steps >= n_steps
        assert batch.n_episodes <= n_steps  # no episode is begun that the budget has no step for
        assert batch.n_steps - n_steps < 4 * 10


@pytest.mark.parametrize("kind", ["native", "sync"])
def test_copies_are_deterministic_given_the_generator(kind: str) -> None:
    runs = [sample(copies(kind, "NextStep"), 200, seed)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].states, runs[1].states)
    np.testing.assert_array_equal(runs[0].ends, runs[1].ends)
    assert runs[0].n_steps != runs[2].n_steps or (runs[0].states != runs[2].states).any()
    oracle, generator = exact_oracle(copies(kind, "NextStep")), rng(0)
    policy = oracle.respond(X, 1, generator)
    oracle.sample(policy, 50, rng(9))  # what was played before does not matter
    np.testing.assert_array_equal(oracle.sample(policy, 200, generator).states, runs[0].states)


def test_copies_show_observations_as_they_are() -> None:
    envs = gym.make_vec(
        "bocmdp/FourRooms-v0",
        num_envs=3,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",
        observation="coordinates",
        horizon=20,
    )
    oracle, generator = exact_oracle(envs), rng(0)
    batch = oracle.sample(oracle.respond(np.zeros(105), 0, generator), 200, generator)
    assert batch.states is not None
    assert batch.final_states is not None
    np.testing.assert_array_equal(oracle.core.observe(batch.states), batch.observations)
    np.testing.assert_array_equal(oracle.core.observe(batch.final_states), batch.final_observations)


def test_a_table_is_sampled_by_the_compiled_path_for_copies_too() -> None:
    for kind in ("native", "sync"):
        oracle, generator = exact_oracle(copies(kind, "NextStep"), compiled=None), rng(0)
        assert oracle.compiled
        policy = oracle.respond(X, 1, generator)
        batch = oracle.sample(policy, 50, rng(1))
        reference = exact_oracle(bandit(), compiled=True).sample(policy, 50, rng(1))
        np.testing.assert_array_equal(batch.states, reference.states)
        batch = oracle.sample(policy, 50, rng(1), start=[(1, 0), (0, -1)])
        np.testing.assert_array_equal(batch.states[batch.starts], [1, 0])
        assert oracle.idle_steps == 0


def test_changed_copies_are_not_simulated_behind_their_back() -> None:
    envs = TransformObservation(copies("native", "NextStep"), lambda observations: 1 - observations)
    oracle = TrajectoryOracle(envs, CallableFollower(lambda observation: 0))
    assert not oracle.compiled
    generator = rng(0)
    batch = oracle.sample(oracle.respond(X, 1, generator), 50, generator)
    assert batch.states is None  # what the wrapper shows is not known to be a state


def test_copies_cannot_be_put_into_states_one_by_one() -> None:
    oracle, generator = exact_oracle(copies("native", "NextStep")), rng(0)
    policy = oracle.respond(X, 1, generator)
    with pytest.raises(errors.UnsupportedError, match="single environment"):
        oracle.sample(policy, 10, generator, start=[(0, 0)])


def test_x_and_context_reach_every_copy() -> None:
    envs = copies("sync", "NextStep")
    oracle, generator = exact_oracle(envs), rng(0)
    policies = [oracle.respond(x, context, generator) for x, context in ((X, 0), (2 * X, 1))]
    for policy, factor in zip(policies, (1.0, -2.0), strict=True):
        batch = oracle.sample(policy, 60, generator)
        assert set(batch.rewards) <= {factor, 0.0}
        assert [leader.tolist() for leader in envs.call("leader")] == [policy.leader.tolist()] * 3


# ------------------------------------------------------------------------------------------------------------ arbitrary starts


def still(observation: Any) -> Any:
    return np.zeros(1, np.float32)


def test_starts_of_other_than_tables() -> None:
    oracle = TrajectoryOracle(Point(), CallableFollower(still))
    generator = rng(0)
    policy = oracle.respond([0.5], 0, generator)
    start = [(0.25, np.ones(1, np.float32)), (-0.5, None)]
    batch = oracle.sample(policy, 100, generator, start=start)
    assert batch.n_episodes == 2
    np.testing.assert_array_equal(batch.observations[batch.starts, 0], [0.25, -0.5])
    np.testing.assert_array_equal(batch.actions[batch.starts, 0], [1.0, 0.0])
    assert batch.states is None
    for bad in (7, [], [(0.1, None, 3)], [0.5]):
        with pytest.raises(errors.StateError, match="expected pairs"):
            oracle.sample(policy, 100, generator, start=bad)  # type: ignore[arg-type]
    with pytest.raises(errors.ActionError, match="illegal"):
        oracle.sample(policy, 100, generator, start=[(0.1, np.full(1, 5.0, np.float32))])


def test_an_environment_without_states_to_be_put_into_refuses() -> None:
    oracle = TrajectoryOracle(Unstartable(), CallableFollower(still))
    policy = oracle.respond([0.5], 0, rng(0))
    with pytest.raises(errors.UnsupportedError, match="cannot be put into a state"):
        oracle.sample(policy, 10, rng(0), start=[(0.5, None)])


class Bonus(ConfigurableWrapper):
    """A configurable CartPole, which ignores what it is not asked."""

    def __init__(self, env: Any):
        super().__init__(env)
        self._setup_configuration(gym.spaces.Box(-1.0, 1.0, (1,), np.float64), gym.spaces.Discrete(1), 0.9)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "leader_reward": 0.0}


def test_a_wrapped_environment_that_would_ignore_the_state_refuses() -> None:
    """Gymnasium's environments take options={"state": ...} without a word, and start where they like."""
    oracle = TrajectoryOracle(Bonus(gym.make("CartPole-v1")), CallableFollower(lambda observation: 0))
    policy = oracle.respond([0.5], 0, rng(0))
    with pytest.raises(errors.UnsupportedError, match="accepts_state"):
        oracle.sample(policy, 10, rng(0), start=[(np.zeros(4), None)])
    assert oracle.sample(policy, 10, rng(0)).n_steps >= 10


@pytest.mark.parametrize("compiled", [True, False])
def test_starts_that_do_not_exist_are_refused(compiled: bool) -> None:
    oracle, generator = exact_oracle(bandit(), compiled), rng(0)
    policy = oracle.respond(X, 0, generator)
    for start in ([(2, 0)], [(0, 2)], [(0, 0, 0)]):
        with pytest.raises(errors.StateError):
            oracle.sample(policy, 10, generator, start=start)


# ------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("faulty_step", [0, 3, 8])
def test_an_observation_that_is_not_finite_is_refused_at_once(faulty_step: int) -> None:
    env = Point(faulty_step=faulty_step)
    oracle = TrajectoryOracle(env, CallableFollower(still))
    policy = oracle.respond([0.5], 0, rng(0))
    with pytest.raises(errors.ObservationError, match="expected finite numbers"):
        oracle.sample(policy, 50, rng(0))
    assert env.steps == faulty_step


def test_a_reward_that_is_not_finite_is_refused() -> None:
    class Broke(Point):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, terminated, truncated, {**info, "leader_reward": np.inf}

    oracle = TrajectoryOracle(Broke(), CallableFollower(still))
    policy = oracle.respond([0.5], 0, rng(0))
    with pytest.raises(errors.ObservationError, match="leader inf"):
        oracle.sample(policy, 50, rng(0))


def test_nan_in_one_copy_is_refused() -> None:
    envs = gym.vector.SyncVectorEnv([Point, lambda: Point(faulty_step=4)])
    oracle = TrajectoryOracle(envs, CallableFollower(still))
    policy = oracle.respond([0.5], 0, rng(0))
    with pytest.raises(errors.ObservationError, match="after step 3 of the copies"):
        oracle.sample(policy, 50, rng(0))


def test_unknown_vector_environments_are_refused() -> None:
    class Strange(gym.vector.VectorEnv[Any, Any, Any]):
        pass

    with pytest.raises(errors.NotConfigurableError, match="Strange does not show what its copies are"):
        exact_oracle(Strange())


def test_the_types_of_both_paths_agree() -> None:
    env = four_rooms(observation="index")
    follower = SoftPolicyIteration(0.01)
    fast, slow = (TrajectoryOracle(env, follower, compiled=compiled) for compiled in (True, False))
    policy = fast.respond(np.zeros(105), 0, rng(0))
    batches = [oracle.sample(policy, 300, rng(0)) for oracle in (fast, slow)]
    for name in ("observations", "rewards", "leader_rewards", "ends", "terminated", "states", "final_states"):
        assert getattr(batches[0], name).dtype == getattr(batches[1], name).dtype
    assert bocmdp_gym.configurable(env).observation_space.contains(batches[1].observations[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["native", "sync", "single", "compiled"])
def test_a_horizon_stops_episodes_and_starts_new_ones(kind: str, mode: str) -> None:
    """Episodes of at most 4 steps, of the same game: the first 4 steps of longer ones; every step is counted."""
    env = bandit() if kind in ("single", "compiled") else copies(kind, mode)
    oracle, generator = exact_oracle(env, compiled=kind == "compiled"), rng()
    policy = oracle.respond(X, 1, generator)
    batch = oracle.sample(policy, 4000, generator, horizon=4)
    whole = oracle.sample(policy, 4000, generator)
    assert batch.n_steps >= 4000
    assert oracle.env_steps == batch.n_steps + whole.n_steps
    assert (batch.lengths <= 4).all()
    assert (batch.lengths[~batch.terminated] == 4).all()
    assert whole.lengths.max() == 10
    assert ks_2samp(batch.lengths, np.minimum(whole.lengths, 4)).pvalue > 1e-3
    assert chi2_contingency([np.bincount(b.states[b.starts], minlength=2) for b in (batch, whole)]).pvalue > 1e-3
    first = whole.times < 4
    tables = [np.bincount(batch.states * 2 + batch.actions), np.bincount((whole.states * 2 + whole.actions)[first])]
    assert chi2_contingency(tables).pvalue > 1e-3
    inner = np.ones(batch.n_steps, dtype=bool)
    inner[batch.ends - 1] = ~batch.terminated
    assert abs((batch.next_observations[inner] == batch.actions[inner]).mean() - 0.9) < 4 * np.sqrt(0.09 / inner.sum())
    env.close()


def test_a_horizon_below_one_is_refused() -> None:
    oracle = exact_oracle(bandit())
    with pytest.raises(errors.OptionError, match="horizon is 0"):
        oracle.sample(oracle.respond(X, 1, rng()), 10, rng(), horizon=0)


@pytest.mark.parametrize("mode", MODES)
def test_no_action_is_asked_for_where_none_is_taken(mode: str) -> None:
    """Not in states where an episode ended, nor of copies that wait: as many as there are steps in the trajectories."""
    calls = []

    def agent(observation: Any, rng: np.random.Generator) -> int:
        calls.append(1)
        return int(rng.integers(2))

    envs = copies("sync", mode, n=4)
    oracle, generator = TrajectoryOracle(envs, CallableFollower(agent)), rng(0)
    policy = oracle.respond(X, 1, generator)
    for env_steps in (2, 60):
        calls.clear()
        batch = oracle.sample(policy, env_steps, generator)
        assert len(calls) == batch.n_steps
        np.testing.assert_array_equal(batch.rewards, np.where(batch.actions == 0, X[1], 0.0))
