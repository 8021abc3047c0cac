from __future__ import annotations

from copy import deepcopy
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeObservation
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

import followers
from bocmdp_gym import errors
from bocmdp_gym.wrappers import LeaderReward
from followers import TrajectoryOracle
from followers.sb3.views import counted_from_zero, from_zero, to_zero
from leaders.gradients.critic import CriticEstimator
from tests.followers.problems import Point, bandit
from tests.followers.sb3.quick import quick, respond, rng

#: Observations far from 0 and from one another: a network that is shown them as they are acts as if they were all alike.
PLACES = np.array([[1000.0], [1004.0]], np.float32)


class Places(gym.Env[Any, Any]):
    """Two places, of which one is shown; the action that is its index pays 1."""

    def __init__(
        self, space: gym.Space[Any] | None = None, actions: gym.Space[Any] | None = None, show: Any = None, paying: Any = None
    ):
        self.observation_space = gym.spaces.Box(0.0, 2000.0, (1,), np.float32) if space is None else space
        self.action_space = gym.spaces.Discrete(2) if actions is None else actions
        self._show = show or (lambda place: PLACES[place])
        self._paying = paying or (lambda place: place)
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._place, self._age = int(self.np_random.integers(2)), 0
        return self._show(self._place), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        reward = float(np.all(action == self._paying(self._place)))
        self._place, self._age = int(self.np_random.integers(2)), self._age + 1
        return self._show(self._place), reward, False, self._age == 10, {}


def with_leader(env: gym.Env[Any, Any]) -> LeaderReward:
    def nothing(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return 0.0 * x[0] * torch.ones(len(actions), dtype=torch.float64)

    return LeaderReward(env, nothing, 1, nothing, discount=0.5)


def normalised(makers: list[Any]) -> VecNormalize:
    return VecNormalize(DummyVecEnv(makers), norm_reward=False)


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_a_policy_acts_on_the_scale_it_was_trained_on(algorithm: str) -> None:
    settings: dict[str, Any] = {"total_timesteps": 1500, "learning_rate": 5e-3, "vec_env_class": normalised}
    settings |= {"n_steps": 128} if algorithm == "PPO" else {"learning_starts": 100, "target_update_interval": 100}
    follower = quick(algorithm, **settings)
    oracle = TrajectoryOracle(with_leader(Places()), follower)
    policy = oracle.respond([0.0], 0, rng(0))
    for place in range(2):
        assert policy.probabilities(PLACES[place])[place] > 0.9
    np.testing.assert_allclose(policy.probabilities_batch(PLACES), [policy.probabilities(p) for p in PLACES], atol=1e-6)
    assert oracle.sample(policy, 200, rng(1)).rewards.mean() > 0.9
    model: Any = follower._learners[0].model
    shown = model.get_vec_normalize_env().normalize_obs(PLACES)
    np.testing.assert_allclose(shown.mean(), 0.0, atol=0.2)
    np.testing.assert_array_equal(policy.view.observe(PLACES), shown)
    before = policy.probabilities(PLACES[0])
    oracle.respond([0.0], 0, rng(1))
    np.testing.assert_array_equal(policy.probabilities(PLACES[0]), before)  # the statistics of then
    for twin in (deepcopy(policy), cloudpickle.loads(cloudpickle.dumps(policy))):
        np.testing.assert_array_equal(deepcopy(twin).probabilities(PLACES[0]), before)


def test_parts_of_dictionaries_are_normalised_where_asked() -> None:
    space = gym.spaces.Dict({"far": gym.spaces.Box(0.0, 2000.0, (1,), np.float32), "which": gym.spaces.Discrete(2, start=5)})
    env = with_leader(Places(space, show=lambda place: {"far": PLACES[place], "which": np.int64(5)}))
    follower = quick(
        "DQN",
        total_timesteps=1500,
        learning_rate=5e-3,
        learning_starts=100,
        target_update_interval=100,
        vec_env_class=lambda makers: VecNormalize(DummyVecEnv(makers), norm_reward=False, norm_obs_keys=["far"]),
    )
    policy = TrajectoryOracle(env, follower).respond([0.0], 0, rng(0))
    for place in range(2):
        assert policy.probabilities({"far": PLACES[place], "which": np.int64(5)})[place] == 1.0


def test_each_learner_has_statistics_of_its_own() -> None:
    follower = quick("PPO", vec_env_class=normalised)
    oracle = TrajectoryOracle(Point(), follower)
    generator = rng(0)
    oracle.respond([0.5], 0, generator)
    first = follower._learners[0].statistics
    assert first is not None
    before = first.state()
    oracle.respond([0.5], 1, generator)
    np.testing.assert_equal(first.state(), before)
    assert before["observations.count"] == pytest.approx(64 + 1, abs=1e-3)
    oracle.respond([0.5], 0, generator)
    assert first.state()["observations.count"] > before["observations.count"]


def test_statistics_are_saved_and_continued(tmp_path: Any) -> None:
    def follower() -> Any:
        return quick("PPO", vec_env_class=normalised)

    one, other = follower(), follower()
    oracle, again = TrajectoryOracle(with_leader(Places()), one), TrajectoryOracle(with_leader(Places()), other)
    oracle.respond([0.0], 0, rng(0))
    one.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    policies = [o.respond([0.0], 0, rng(1)) for o in (oracle, again)]
    np.testing.assert_array_equal(*[p.probabilities_batch(PLACES) for p in policies])
    plain = quick("PPO")
    TrajectoryOracle(with_leader(Places()), plain).respond([0.0], 0, rng(0))
    plain.save(tmp_path / "plain")
    third = follower()
    oracle = TrajectoryOracle(with_leader(Places()), third)
    third.load(tmp_path / "plain")
    with pytest.raises(errors.OptionError, match="no normalisation statistics"):
        oracle.respond([0.0], 0, rng(1))


def test_what_would_act_on_another_scale_is_refused() -> None:
    stacked = quick("PPO", vec_env_class=lambda makers: VecFrameStack(DummyVecEnv(makers), 4))
    with pytest.raises(errors.UnsupportedError, match="VecFrameStack"):
        respond(stacked, Point(), [0.5])
    rescaled = followers.SACFollower(0.1, 60, learning_starts=20, vec_env_class=lambda makers: VecNormalize(DummyVecEnv(makers)))
    with pytest.raises(errors.UnsupportedError, match="norm_reward=False"):
        respond(rescaled, Point(), [0.5])
    inside = quick("PPO", make_env=lambda: with_leader(NormalizeObservation(Places())))
    with pytest.raises(errors.OptionError, match=r"NormalizeObservation|observation_space"):
        respond(inside, with_leader(Places()), [0.0])
    with pytest.raises(errors.UnsupportedError, match="statistics of its own in each environment"):
        respond(inside, with_leader(NormalizeObservation(Places())), [0.0])
    with pytest.raises(errors.UnsupportedError, match="statistics of its own in each copy"):
        respond(quick("PPO", n_envs=2), with_leader(NormalizeObservation(Places())), [0.0])
    frozen = with_leader(NormalizeObservation(Places()))
    frozen.env.update_running_mean = False  # type: ignore[attr-defined]
    respond(quick("PPO", n_envs=2), frozen, [0.0])
    with pytest.raises(errors.OptionError, match=r"discount 0\.7, and the oracle's has 0\.5"):
        respond(quick("PPO", make_env=lambda: bandit(0.7)))
    with pytest.raises(errors.OptionError, match="make_env returned 3"):
        respond(quick("PPO", make_env=lambda: 3))  # type: ignore[arg-type, return-value]


SPACES: dict[str, Any] = {
    "discrete": (gym.spaces.Discrete(2, start=1), lambda place: np.int64(place + 1)),
    "negative": (gym.spaces.Discrete(2, start=-7), lambda place: np.int64(place - 7)),
    "multi": (gym.spaces.MultiDiscrete([2, 3], start=[5, -1]), lambda place: np.array([place + 5, place])),
    "rows": (
        gym.spaces.MultiDiscrete([[2, 3], [3, 2]], start=[[5, -1], [0, 2]]),
        lambda place: np.array([[place + 5, place], [1, 3 - place]]),
    ),
    "bits": (gym.spaces.MultiBinary((2, 2)), lambda place: np.array([[place, 1 - place], [1, 0]], np.int8)),
    "dict": (
        gym.spaces.Dict({"where": gym.spaces.Discrete(2, start=3), "what": gym.spaces.Box(-1, 1, (1,), np.float32)}),
        lambda place: {"where": np.int64(place + 3), "what": np.zeros(1, np.float32)},
    ),
}


TWINS: dict[str, Any] = {  # the same spaces, counted from 0
    "discrete": (gym.spaces.Discrete(2), np.int64),
    "negative": (gym.spaces.Discrete(2), np.int64),
    "multi": (gym.spaces.MultiDiscrete([2, 3]), lambda place: np.array([place, place + 1])),
    "rows": (gym.spaces.MultiDiscrete([2, 3, 3, 2]), lambda place: np.array([place, place + 1, 1, 1 - place])),
    "bits": (gym.spaces.MultiBinary(4), lambda place: np.array([place, 1 - place, 1, 0], np.int8)),
    "dict": (
        gym.spaces.Dict({"where": gym.spaces.Discrete(2), "what": gym.spaces.Box(-1, 1, (1,), np.float32)}),
        lambda place: {"where": np.int64(place), "what": np.zeros(1, np.float32)},
    ),
}


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
@pytest.mark.parametrize("shown", list(SPACES))
def test_spaces_may_start_anywhere(shown: str, algorithm: str, n_envs: int) -> None:
    """Learnt, answered and played as in the same problem counted from 0."""
    policies, batches = [], []
    for (space, show), start in ((SPACES[shown], 1), (TWINS[shown], 0)):
        actions = gym.spaces.Discrete(3, start=start)
        env = with_leader(Places(space, actions, show, lambda place, start=start: place + start))
        oracle = TrajectoryOracle(env, quick(algorithm, total_timesteps=300, learning_rate=5e-3, n_envs=n_envs))
        policies.append(oracle.respond([0.0], 0, rng(0)))
        batches.append(oracle.sample(policies[-1], 100, rng(1)))
    for place in range(2):
        mine, twin = SPACES[shown][1](place), TWINS[shown][1](place)
        np.testing.assert_array_equal(policies[0].probabilities(mine), policies[1].probabilities(twin))
        assert policies[0].act(mine, rng(3)) == policies[1].act(twin, rng(3)) + 1
    np.testing.assert_array_equal(batches[0].actions, batches[1].actions + 1)
    np.testing.assert_array_equal(batches[0].rewards, batches[1].rewards)
    assert batches[0].rewards.sum() > 0


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_factors_of_actions_may_start_anywhere(algorithm: str, n_envs: int) -> None:
    policies, batches = [], []
    for start in ([4, -2], [0, 0]):
        actions = gym.spaces.MultiDiscrete([2, 3], start=start)
        show, paying = lambda p: np.full(1, p, np.float32), lambda p, start=start: np.array([start[0] + p, start[1]])
        oracle = TrajectoryOracle(
            with_leader(Places(actions=actions, show=show, paying=paying)), quick(algorithm, n_envs=n_envs, total_timesteps=300)
        )
        policies.append(oracle.respond([0.0], 0, rng(0)))
        batches.append(oracle.sample(policies[-1], 100, rng(1)))
    place = np.zeros(1, np.float32)
    assert policies[0].probabilities(place).shape == (2, 3)
    np.testing.assert_array_equal(*[p.probabilities(place) for p in policies])
    np.testing.assert_array_equal(batches[0].actions, batches[1].actions + np.array([4, -2]))
    np.testing.assert_array_equal(batches[0].rewards, batches[1].rewards)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_factors_of_actions_may_have_axes(algorithm: str, n_envs: int) -> None:
    """They are those of one row, the last axis fastest."""
    policies, batches = [], []
    for shape in ((2, 2), (4,)):
        actions = gym.spaces.MultiDiscrete(np.array([2, 3, 2, 2]).reshape(shape))
        show = lambda p: np.full(1, p, np.float32)  # noqa: E731
        paying = lambda p, shape=shape: np.array([p, 1, 0, 1]).reshape(shape)  # noqa: E731
        oracle = TrajectoryOracle(
            with_leader(Places(actions=actions, show=show, paying=paying)), quick(algorithm, n_envs=n_envs, total_timesteps=300)
        )
        policies.append(oracle.respond([0.0], 0, rng(0)))
        batches.append(oracle.sample(policies[-1], 100, rng(1)))
    np.testing.assert_array_equal(*[p.probabilities(np.zeros(1, np.float32)) for p in policies])
    assert batches[0].actions.shape == (batches[0].n_steps, 2, 2)
    np.testing.assert_array_equal(*[batch.actions.reshape(batch.n_steps, -1) for batch in batches])
    np.testing.assert_array_equal(batches[0].rewards, batches[1].rewards)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_bits_of_actions_may_have_axes(n_envs: int) -> None:
    batches = []
    for shape in ((2, 2), (4,)):
        paying = lambda p, shape=shape: np.array([p, 1, 0, 1]).reshape(shape)  # noqa: E731
        show = lambda p: np.full(1, p, np.float32)  # noqa: E731
        env = with_leader(Places(actions=gym.spaces.MultiBinary(list(shape)), show=show, paying=paying))
        oracle = TrajectoryOracle(env, quick("PPO", n_envs=n_envs, total_timesteps=300))
        batches.append(oracle.sample(oracle.respond([0.0], 0, rng(0)), 100, rng(1)))
    np.testing.assert_array_equal(*[batch.actions.reshape(batch.n_steps, -1) for batch in batches])


@pytest.mark.parametrize(
    ("algorithm", "options"), [("DQN", {"softmax_temperature": 0.05}), ("SoftDQN", {"regularization": 0.05})]
)
def test_q_learners_number_the_combinations_of_actions(algorithm: str, options: dict[str, Any]) -> None:
    """The one combination of six that pays is found, with its probability in its place, and buffers are relabelled by it."""
    seen: list[Any] = []

    def bonus(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        seen.append(torch.as_tensor(actions))
        return x[0] * (torch.as_tensor(actions)[:, 1] == 1).double()

    actions = gym.spaces.MultiDiscrete([2, 3], start=[4, -1])
    places = Places(actions=actions, show=lambda p: np.full(1, p, np.float32), paying=lambda p: np.array([4 + p, 1 - 2 * p]))
    settings: dict[str, Any] = {"total_timesteps": 2000, "learning_rate": 5e-3, "learning_starts": 200, "replay": "relabel"}
    follower = quick(algorithm, **settings, **options, target_update_interval=100, exploration_final_eps=0.2)
    oracle = TrajectoryOracle(LeaderReward(places, bonus, 1, bonus, discount=0.5), follower)
    policy = oracle.respond([0.0], 0, rng(0))
    for place, combination in enumerate([(0, 2), (1, 0)]):
        shown = np.full(1, place, np.float32)
        assert policy.probabilities(shown).shape == (2, 3)
        assert policy.probabilities(shown)[combination] > 0.9
        np.testing.assert_allclose(policy.probabilities_batch(shown[None])[0], policy.probabilities(shown), atol=1e-6)
        assert actions.contains(policy.act(shown, rng(1)))
    seen.clear()
    model: Any = follower._learners[0].model
    old, stored = model.replay_buffer.rewards[:2000, 0].copy(), model.replay_buffer.actions[:2000, 0, 0].copy()
    oracle.respond([3.0], 0, rng(1))
    np.testing.assert_array_equal(seen[0].numpy(), np.stack([4 + stored // 3, stored % 3 - 1], -1))
    np.testing.assert_allclose(model.replay_buffer.rewards[:2000, 0] - old, 3.0 * (stored % 3 == 2), atol=1e-6)


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_vector_environments_may_start_anywhere(mode: str) -> None:
    space, show = SPACES["dict"]
    make = lambda: with_leader(Places(space, gym.spaces.Discrete(3, start=1), show, lambda place: place + 1))  # noqa: E731
    envs = gym.vector.SyncVectorEnv([make] * 2, autoreset_mode=mode)
    follower = quick("DQN", total_timesteps=1500, learning_rate=5e-3, learning_starts=100, target_update_interval=100)
    policy = TrajectoryOracle(envs, follower).respond([0.0], 0, rng(0))
    for place in range(2):
        assert policy.probabilities(show(place))[place] == 1.0
    with pytest.raises(errors.OptionError, match="a vector environment is trained on as it is"):
        TrajectoryOracle(envs, quick("DQN", vec_env_class=normalised))


def test_the_critic_reads_actions_that_start_anywhere() -> None:
    """A bonus on action 1, the first: paying it more is worth what it is taken for."""
    actions = gym.spaces.Discrete(3, start=1)
    env = LeaderReward(
        Places(actions=actions, show=lambda p: np.full(1, p, np.float32)),
        lambda x, observations, actions, context: x[0] * (actions == 1),
        1,
        lambda x, observations, actions, context: 1.0 * (actions == 1).double(),
        discount=0.5,
    )
    follower = quick("PPO", total_timesteps=512, n_steps=64, learning_rate=5e-3)
    estimator = CriticEstimator(4000, regularization=1.0)
    oracle = TrajectoryOracle(env, follower)
    estimator.bind(oracle)
    estimate = estimator.estimate(oracle, torch.tensor([0.0], dtype=torch.float64), 0, rng(0))
    assert oracle.last_response is not None
    share = oracle.last_response.probabilities_batch(np.array([[0.0], [1.0]], np.float32))[:, 0]
    assert float(estimate.gradient[0]) == pytest.approx((2 * share * (1 - share)).mean(), abs=0.05)


def test_relabelling_knows_the_environments_own_indices() -> None:
    seen: list[Any] = []

    def bonus(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        seen.append((torch.as_tensor(observations), torch.as_tensor(actions)))
        return x[0] * (torch.as_tensor(actions) == 2) * torch.as_tensor(observations).double()

    space, show = SPACES["discrete"]
    env = LeaderReward(Places(space, gym.spaces.Discrete(2, start=1), show), bonus, 1, bonus, discount=0.5)
    follower = quick("DQN", replay="relabel")
    oracle = TrajectoryOracle(env, follower)
    generator = rng(0)
    oracle.respond([1.0], 0, generator)
    seen.clear()
    model: Any = follower._learners[0].model
    old = model.replay_buffer.rewards[:60, 0].copy()
    oracle.respond([3.0], 0, generator)
    observations, actions = seen[0]
    assert observations.shape == actions.shape == (60,)
    assert set(observations.tolist()) == set(actions.tolist()) == {1, 2}
    change = 2.0 * (actions == 2) * observations
    np.testing.assert_allclose(model.replay_buffer.rewards[:60, 0] - old, change, atol=1e-6)


def test_counting_from_zero_and_back() -> None:
    for space, show in SPACES.values():
        plain = counted_from_zero(space)
        for place in range(2):
            there = to_zero(space, show(place))
            assert plain.contains(there)
            assert gym.vector.utils.batch_space(space, 1).contains(
                gym.vector.utils.concatenate(space, [from_zero(space, there)], gym.vector.utils.create_empty_array(space, 1))
            )
    box = gym.spaces.Box(0, 1, (2,))
    assert counted_from_zero(box) is box


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Discrete(2)]),
        gym.spaces.Text(3),
        gym.spaces.Sequence(gym.spaces.Discrete(2)),
        gym.spaces.Dict({"a": gym.spaces.Tuple([gym.spaces.Discrete(2)])}),
        gym.spaces.Dict({"a": gym.spaces.Dict({"b": gym.spaces.Discrete(2)})}),
    ],
)
@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_observations_that_no_network_reads_are_refused_at_once(space: gym.Space[Any], algorithm: str) -> None:
    class Strange(Point):
        def __init__(self) -> None:
            super().__init__(discrete=True)
            self.observation_space = space
            self.action_space = gym.spaces.Discrete(2)

    with pytest.raises(errors.UnsupportedError, match="cannot read observations from"):
        TrajectoryOracle(Strange(), quick(algorithm))


def test_actions_that_no_network_takes_are_refused_at_once() -> None:
    class Strange(Point):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Discrete(2)])

    for algorithm in ("PPO", "DQN", "SAC"):
        with pytest.raises(errors.UnsupportedError, match="Tuple"):
            TrajectoryOracle(Strange(), quick(algorithm))
