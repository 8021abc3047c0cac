from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib.common.wrappers import ActionMasker

import leaders
from bocmdp_gym import TabularEnv, errors
from bocmdp_gym.tabular_env import TabularVectorEnv
from bocmdp_gym.wrappers import ActionMasks, LeaderReward
from followers import CallableFollower, SB3Follower, TrajectoryOracle
from tests.followers.problems import X, bandit
from tests.followers.sb3.quick import rng
from tests.problems import corridor

RECURRENT: dict[str, Any] = {
    "total_timesteps": 64,
    "n_steps": 32,
    "batch_size": 32,
    "n_epochs": 4,
    "policy_kwargs": {"lstm_hidden_size": 8, "net_arch": []},
}
MASKED: dict[str, Any] = {"total_timesteps": 64, "n_steps": 32, "batch_size": 32, "policy_kwargs": {"net_arch": [16]}}


class Recall(gym.Env[Any, Any]):
    """A bit is shown at the start, and nothing after; each of the three steps that follow pays 1 for naming it."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._bit, self._age = int(self.np_random.integers(2)), 0
        return np.array([2 * self._bit - 1], np.float32), {}

    def step(self, action: Any) -> Any:
        self._age += 1
        return np.zeros(1, np.float32), float(action == self._bit), self._age == 3, False, {}


class Closing(gym.Env[Any, Any]):
    """Action a is allowed unless it was the last one, which nothing but the mask shows; a forbidden one is an error."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, allow_nothing: bool = False):
        self.action_space = gym.spaces.Discrete(3)
        self._allow_nothing = allow_nothing

    def action_masks(self) -> Any:
        return (np.arange(3) != self._last) & (not self._allow_nothing)

    def _told(self) -> Any:
        return np.zeros(1, np.float32), {"action_mask": self.action_masks()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._last, self._age = int(self.np_random.integers(3)), 0
        return self._told()

    def step(self, action: Any) -> Any:
        assert self.action_masks()[action], "forbidden"
        self._last, self._age = int(action), self._age + 1
        observation, info = self._told()
        return observation, float(action == 2), self._age == 6, False, info


class Telling(gym.Wrapper[Any, Any, Any, Any]):
    """Hides the method, so that the info alone tells masks."""

    def get_wrapper_attr(self, name: str) -> Any:
        if name == "action_masks":
            raise AttributeError(name)
        return super().get_wrapper_attr(name)

    def has_wrapper_attr(self, name: str) -> bool:
        return name != "action_masks" and super().has_wrapper_attr(name)


def with_leader(env: gym.Env[Any, Any]) -> LeaderReward:
    def nothing(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return 0.0 * x[0] * torch.ones(len(actions), dtype=torch.float64)

    return LeaderReward(env, nothing, 1, nothing, discount=0.9)


def still(observation: Any) -> int:
    return 0


def recurrent(**options: Any) -> SB3Follower:
    return SB3Follower("RecurrentPPO", **{**RECURRENT, **options})


def masked(**options: Any) -> SB3Follower:
    return SB3Follower("MaskablePPO", **{**MASKED, **options})


# ------------------------------------------------------------------------------------------------------------- memory


def test_memory_lasts_for_an_episode() -> None:
    """Acting goes on from what was seen; `begin` and `restart` forget it, of those copies alone; the policy itself is frozen."""
    oracle = TrajectoryOracle(with_leader(Recall()), recurrent(policy_kwargs={"lstm_hidden_size": 8, "ortho_init": False}))
    policy: Any = oracle.respond([0.0], 0, rng(0))
    assert (policy.exposes_probabilities, policy.table) == (False, None)
    bits = np.array([[1.0], [-1.0], [1.0]], np.float32)
    nothing = np.zeros((3, 1), np.float32)

    def memory(actor: Any) -> Any:
        return np.concatenate(actor._memory)

    actor, other = policy.begin(oracle.env), policy.begin(oracle.env)
    actor.act_batch(bits, rng(0))
    first = memory(actor)
    assert (first[:, 0] != first[:, 1]).any()
    actor.act_batch(nothing, rng(0))
    went_on = memory(actor)
    assert (went_on[:, 0] != went_on[:, 1]).any()  # it remembers what it does not see any more
    actor.restart(np.array([False, True, False]))
    actor.act_batch(nothing, rng(0))
    other.act_batch(nothing, rng(0))
    np.testing.assert_allclose(memory(actor)[:, 1], memory(other)[:, 1], atol=1e-6)  # as in a fresh episode
    assert abs(memory(actor)[:, 0] - memory(other)[:, 0]).max() > 1e-4  # and the others went on
    assert policy._memory is None
    with pytest.raises(errors.OptionError, match="2 observations were shown to a policy that remembers the episodes of 3"):
        actor.act_batch(nothing[:2], rng(0))


@pytest.fixture(scope="module")
def without_chance() -> Any:
    """A recurrent policy that takes its likeliest action, and how it plays alone."""
    follower = recurrent(total_timesteps=320, learning_rate=0.02)
    oracle = TrajectoryOracle(with_leader(Recall()), follower)
    policy: Any = oracle.respond([0.0], 0, rng(0))
    predict = policy.network.predict
    policy.network.predict = lambda observations, **kept: predict(observations, deterministic=True, **kept)
    return policy, _played(oracle, policy)


def _played(oracle: TrajectoryOracle, policy: Any) -> dict[float, set[tuple[int, ...]]]:
    """The actions of whole episodes, by the bit that was shown."""
    batch = oracle.sample(policy, 120, rng(1))
    assert batch.n_episodes >= 40
    found: dict[float, set[tuple[int, ...]]] = {}
    for end, length in zip(batch.ends.tolist(), batch.lengths.tolist(), strict=True):
        found.setdefault(float(batch.observations[end - length, 0]), set()).add(tuple(batch.actions[end - length : end].tolist()))
    return found


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_copies_are_played_as_one_is(without_chance: Any, mode: str) -> None:
    """A policy without chance plays a game without chance: the same bits give the same actions, whoever samples."""
    policy, alone = without_chance
    assert {bit: len(found) for bit, found in alone.items()} == {-1.0: 1, 1.0: 1}  # nothing of the episode before
    assert alone[-1.0] != alone[1.0]
    envs = gym.vector.SyncVectorEnv([lambda: with_leader(Recall())] * 3, autoreset_mode=mode)
    assert _played(TrajectoryOracle(envs, CallableFollower(still)), policy) == alone


@pytest.mark.slow
def test_what_has_to_be_remembered_is_learnt() -> None:
    follower = recurrent(total_timesteps=12_000, n_steps=128, batch_size=128, n_envs=4, learning_rate=1e-2)
    oracle = TrajectoryOracle(with_leader(Recall()), follower)
    policy = oracle.respond([0.0], 0, rng(0))
    assert oracle.sample(policy, 600, rng(1)).rewards.mean() > 0.95  # without a memory: (1 + 1/2 + 1/2) / 3


# -------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    "make",
    [
        Closing,
        lambda: ActionMasker(Closing(), lambda env: env.unwrapped.action_masks()),
        lambda: ActionMasks(Telling(Closing())),
    ],
)
def test_nothing_forbidden_is_done(make: Any) -> None:
    """In training and in sampling, single and in copies: `Closing` would notice. And the mask is used: 2 whenever it may be."""
    oracle = TrajectoryOracle(with_leader(make()), masked(total_timesteps=256, learning_rate=2e-2, n_epochs=5))
    policy = oracle.respond([0.0], 0, rng(0))
    batch = oracle.sample(policy, 300, rng(1))
    assert batch.rewards.mean() > 0.4  # at best every other step
    for mode in ("SameStep", "NextStep", "Disabled"):
        envs = gym.vector.SyncVectorEnv([lambda: with_leader(make())] * 2, autoreset_mode=mode)
        copies = TrajectoryOracle(envs, CallableFollower(still))
        assert copies.sample(policy, 200, rng(1)).rewards.mean() > 0.4
    with pytest.raises(errors.UnsupportedError, match=r"let policy\.begin\(env\) act"):
        policy.act(np.zeros(1, np.float32), rng(0))


def test_copies_of_a_masked_environment_are_trained_on() -> None:
    for options in ({"n_envs": 2}, {"n_envs": 2, "make_env": lambda: with_leader(Closing())}):
        follower = masked(**options)
        TrajectoryOracle(with_leader(Closing()), follower).respond([0.0], 0, rng(0))
        assert follower.training_steps == 64
    table = ActionMasker(bandit(), lambda env: np.array([True, False]))
    follower = masked(n_envs=2)
    oracle = TrajectoryOracle(table, follower)
    policy = oracle.respond(X, 0, rng(0))
    assert set(oracle.sample(policy, 100, rng(0)).actions.tolist()) == {0}  # tables too, though no compiled copy says so


def test_masks_that_are_none_are_refused() -> None:
    with pytest.raises(errors.UnsupportedError, match=r"no layer of TabularEnv has a method action_masks\(\)"):
        TrajectoryOracle(bandit(), masked())
    closed = TrajectoryOracle(with_leader(Closing(allow_nothing=True)), masked())
    with pytest.raises(errors.ActionError, match="allows nothing"):
        closed.respond([0.0], 0, rng(0))
    short = ActionMasker(Closing(), lambda env: np.ones(2, np.bool_))
    with pytest.raises(errors.ActionError, match="each of 3 choices"):
        TrajectoryOracle(with_leader(short), masked()).respond([0.0], 0, rng(0))


# --------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("kind", [recurrent, masked])
def test_a_saved_follower_goes_on_bit_for_bit(kind: Any, tmp_path: Path) -> None:
    def run(oracle: TrajectoryOracle, responses: range) -> list[Any]:
        return [oracle.sample(oracle.respond([0.1 * k], 0, generator), 60, rng(k)).actions for k in responses]

    env = with_leader(Closing() if kind is masked else Recall())
    generator, oracle = rng(0), TrajectoryOracle(env, kind(learning_rate=0.02))
    straight = run(oracle, range(4))
    generator, follower = rng(0), kind(learning_rate=0.02)
    oracle = TrajectoryOracle(env, follower)
    first = run(oracle, range(2))
    follower.save(tmp_path)
    follower = kind(learning_rate=0.02)
    oracle = TrajectoryOracle(env, follower)
    follower.load(tmp_path)
    for mine, theirs in zip(first + run(oracle, range(2, 4)), straight, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("kind", [recurrent, masked])
def test_hypergradients_refuse_and_comparisons_take_what_is_no_markov_policy(kind: Any) -> None:
    env = with_leader(Closing() if kind is masked else Recall())
    oracle = TrajectoryOracle(env, kind())
    assert (oracle.follower.markov, oracle.follower.exposes_probabilities) == (False, False)
    for estimator in ("critic", "td"):
        with pytest.raises(errors.UnsupportedError, match=r"as that of a Markov policy\. Use FirstOrder or ZeroOrder"):
            leaders.optimize(env, leaders.HPGD(estimator=estimator, regularization=0.1), kind(), 1)
    for leader in (leaders.FirstOrder(0.1, env_steps=20), leaders.ZeroOrder(0.1, env_steps=20)):
        assert np.isfinite(leaders.optimize(env, leader, kind(), 1, seed=0).x.numpy()).all()


# ------------------------------------------------------------------------------------ masks of the states of a tabular model


def test_masks_of_states_make_a_table() -> None:
    """They are functions of the state, so the policy is Markov, tells its probabilities, and a hypergradient can weigh it."""
    env = TabularEnv(corridor(), horizon=20)
    follower = masked(learning_rate=1e-2, total_timesteps=256)
    oracle = TrajectoryOracle(env, follower)
    assert (follower.markov, follower.exposes_probabilities) == (True, None)
    for context in range(2):
        policy = oracle.respond(np.zeros(5), context, rng(0))
        assert policy.table is not None
        np.testing.assert_array_equal(policy.table > 0.0, env.model.mask.of(context))  # type: ignore[union-attr]
        np.testing.assert_allclose(policy.table.sum(-1), 1.0)
        assert oracle.compiled
        interpreted = TrajectoryOracle(env, CallableFollower(still), compiled=False)
        for sampler in (oracle, interpreted):
            batch = sampler.sample(policy, 200, rng(1))
            assert policy.table[batch.states, batch.actions].all()
    leader = leaders.HPGD(estimator="critic", regularization=0.1, env_steps=200)
    assert np.isfinite(leaders.optimize(env, leader, masked(), 1, seed=0).x.numpy()).all()


def test_the_table_is_the_networks_own_masked_distribution() -> None:
    env = TabularEnv(corridor(), horizon=20)
    follower = masked()
    policy = TrajectoryOracle(env, follower).respond(np.zeros(5), 1, rng(0))
    network: Any = next(iter(follower._learners.values())).model.policy
    seen, _ = network.obs_to_tensor(np.arange(5))
    with torch.no_grad():
        told = network.get_distribution(seen, action_masks=env.model.mask.of(1)).distribution.probs  # type: ignore[union-attr]
    np.testing.assert_allclose(policy.table, told.numpy(), atol=1e-6)


def test_masked_tables_are_trained_on_in_copies() -> None:
    env = TabularEnv(corridor(), horizon=20)
    follower = masked(n_envs=2)
    TrajectoryOracle(env, follower).respond(np.zeros(5), 0, rng(0))
    native = TabularVectorEnv(env, 2, "SameStep")
    oracle = TrajectoryOracle(native, masked())
    policy = oracle.respond(np.zeros(5), 0, rng(0))
    copies = TrajectoryOracle(native, CallableFollower(still), compiled=False)
    assert policy.table is not None
    assert copies.sample(policy, 100, rng(0)).n_steps >= 100  # copies that wait do nothing that does not exist


def test_algorithms_without_masks_are_refused() -> None:
    for name in ("PPO", "DQN"):
        with pytest.raises(errors.UnsupportedError, match=f"{name} would take actions that do not exist; use MaskablePPO"):
            TrajectoryOracle(TabularEnv(corridor(), horizon=20), SB3Follower(name, total_timesteps=2_000))
