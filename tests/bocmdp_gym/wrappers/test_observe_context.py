from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence

import bocmdp_gym
import leaders
from bocmdp_gym import errors
from bocmdp_gym.envs.tax_design import TaxDesign
from bocmdp_gym.wrappers import ContextWrapper, LeaderReward, ObserveContext
from bocmdp_gym.wrappers.appended import Appended
from followers import SB3Follower, SoftPolicyIteration, TrajectoryOracle
from tests.problems import four_rooms, small_rooms


@pytest.mark.parametrize(("observation", "size"), [("index", 104 + 2), ("coordinates", 2 + 2)])
def test_the_context_is_appended(observation: str, size: int) -> None:
    env = ObserveContext(four_rooms(observation=observation))
    assert env.observation_space.shape == (size,)
    assert env.observation_space.dtype == np.float32
    for context in range(2):
        seen, _ = env.reset(seed=0, options={"context": context})
        assert env.observation_space.contains(seen)
        np.testing.assert_array_equal(seen[-2:], np.eye(2)[context])
        seen, *_ = env.step(0)
        np.testing.assert_array_equal(seen[-2:], np.eye(2)[context])
        np.testing.assert_array_equal(env.combine(env.unwrapped._observe_one(env.unwrapped.state), context), seen)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_it_is_an_environment_of_ours() -> None:
    env = ObserveContext(four_rooms())
    bocmdp_gym.check_configurable_env(env)
    check_env(env, skip_render_check=True)
    with pytest.raises(errors.NotConfigurableError):
        ObserveContext(gym.make("CartPole-v1"))


def test_exact_policies_are_played_through_it() -> None:
    """A table answers what the wrapper shows, on the compiled path and on the plain one."""
    oracles = [
        TrajectoryOracle(ObserveContext(four_rooms(horizon=30)), SoftPolicyIteration(0.01), compiled=c) for c in (True, False)
    ]
    for oracle in oracles:
        rng = np.random.default_rng(0)
        policy = oracle.respond(np.zeros(105), 1, rng)
        batch = oracle.sample(policy, 300, rng)
        assert batch.states is not None
        np.testing.assert_array_equal(batch.observations[:, :104].argmax(1), batch.states)
        assert (batch.observations[:, -1] == 1.0).all()
        np.testing.assert_array_equal(policy.probabilities(batch.observations[3]), policy.table[batch.states[3]])  # type: ignore[attr-defined]


# everywhere, and for every leader


def _pole(shown: str) -> gym.Env[Any, Any]:
    """A cart-pole, light or heavy, that is paid for pushing to the right in one context and to the left in the other."""

    def bonus(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * (actions == context).double() + 0.0 * observations[:, 0]

    def leader_reward(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        assert observations.shape[1] == (6 if shown == "inside" else 4)
        return (actions == 0).double() - 0.1 * x[0] ** 2

    env: gym.Env[Any, Any] = ContextWrapper(gym.make("CartPole-v1", max_episode_steps=20), [0.1, 0.9], names=["masspole"])
    env = LeaderReward(ObserveContext(env) if shown == "inside" else env, bonus, 1, leader_reward, 0.9)
    return ObserveContext(env) if shown == "outside" else env


def _rooms(shown: str) -> gym.Env[Any, Any]:
    return ObserveContext(small_rooms(horizon=20)) if shown == "outside" else small_rooms(horizon=20)


def _tax(shown: str) -> gym.Env[Any, Any]:
    env = TaxDesign(prices=(1.0,), preferences=((0.5,), (0.3,)), tax_upper=(1.0, 2.0), grid_size=11, horizon=20)
    return ObserveContext(env) if shown == "outside" else env


def _shared() -> SB3Follower:
    return SB3Follower("PPO", 64, n_steps=64, batch_size=64, n_epochs=1, shared=True)


@pytest.mark.parametrize("make", [_pole, _rooms, _tax])
def test_a_shared_learner_serves_every_leader(make: Any) -> None:
    """As its message says: wrap the environment in ObserveContext; there is nothing else to do, and nobody objects."""
    with pytest.raises(errors.UnsupportedError, match=r"wrap it in bocmdp_gym\.wrappers\.ObserveContext"):
        TrajectoryOracle(make("hidden"), _shared())
    sampling = (
        leaders.HPGD(0.1, estimator="critic", env_steps=1000 if make is _rooms else 100, regularization=0.1),
        leaders.FirstOrder(0.1, weight=0.1, env_steps=100),
        leaders.ZeroOrder(0.1, env_steps=60),
    )
    for shown in ("inside", "outside") if make is _pole else ("outside",):
        env = make(shown)
        bocmdp_gym.check_configurable_env(env)
        for leader in sampling:
            x = leaders.optimize(env, leader, _shared(), 1, progress=False).x
            assert np.isfinite(x.numpy()).all()
        space = bocmdp_gym.configurable(env).leader_space
        seat = leaders.LeaderEnv(env, _shared(), bounds=(-1.0, 1.0), value="sampled", env_steps=40)
        assert np.isfinite(seat.value(np.zeros(space.shape)))
        assert len(leaders.evaluate_policy(env, _shared(), np.zeros(space.shape), env_steps=40).contexts) == 2


def test_contexts_that_do_not_recur_need_a_shared_learner() -> None:
    """Each message leads to the next, and the last to a run."""
    space = gym.spaces.Box(0.2, 1.0, (1,), np.float64)
    pole = ContextWrapper(gym.make("CartPole-v1", max_episode_steps=20), space=space, sample=lambda rng: rng.uniform(0.2, 1.0, 1))

    def pay(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * actions

    env = LeaderReward(pole, pay, 1, pay, 0.9)
    settings: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "n_epochs": 1}
    with pytest.raises(errors.UnsupportedError, match=r"use shared=True with the context observed.* or warm_start=False"):
        TrajectoryOracle(env, SB3Follower("PPO", 64, **settings))
    with pytest.raises(errors.UnsupportedError, match=r"ObserveContext, or use a new learner each time \(warm_start=False\)"):
        TrajectoryOracle(env, _shared())
    leader = leaders.FirstOrder(0.1, weight=0.1, env_steps=60)
    leaders.optimize(ObserveContext(env), leader, _shared(), 1, progress=False)
    leaders.optimize(env, leader, SB3Follower("PPO", 64, warm_start=False, **settings), 1, progress=False)


@pytest.mark.parametrize("make", [_rooms, _tax])
def test_models_are_read_through_it(make: Any) -> None:
    """Exact leaders and estimators answer as without it, to the bit where they draw nothing."""
    follower = SoftPolicyIteration(0.1)
    found = {}
    for shown in ("hidden", "outside"):
        env, x0 = make(shown), np.full(bocmdp_gym.configurable(make(shown)).leader_space.shape, 0.1)
        exact = leaders.optimize(env, leaders.ExactGradient(0.1), follower, 2, x0=x0, progress=False).x.numpy()
        zero = leaders.ZeroOrder(0.1, exact=True)
        black = leaders.optimize(env, zero, follower, 2, x0=x0, progress=False, seed=0).x.numpy()
        seat = leaders.LeaderEnv(env, follower, bounds=(-1.0, 1.0)).value(x0)
        first = leaders.FirstOrder(0.1, weight=0.01, env_steps=200)
        sampled = leaders.optimize(env, first, follower, 1, x0=x0, progress=False, seed=0).x.numpy()
        found[shown] = (exact, black, seat, sampled)
    for hidden, outside in zip(found["hidden"], found["outside"], strict=True):
        np.testing.assert_array_equal(hidden, outside)


def test_a_critic_reads_the_model_through_it() -> None:
    """Draws of next assets are shown with the context, and the gradient is that without it, as values do not need to see it."""
    gradients = []
    x = torch.tensor([0.3, -0.2], dtype=torch.float64)
    for shown in ("hidden", "outside"):
        oracle = TrajectoryOracle(_tax(shown), SoftPolicyIteration(0.5))
        leader = leaders.HPGD(estimator="critic", env_steps=2000, hidden=())
        leader.estimator.bind(oracle)
        gradients.append(leader.estimate(oracle, x, 1, np.random.default_rng(0)))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.01, atol=0.0)  # but for the ridge of more features


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-2, 2, (2, 3), np.float32),
        gym.spaces.Discrete(4, start=2),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(3),
        gym.spaces.Dict({"a": gym.spaces.Discrete(2), "b": gym.spaces.Box(0, 255, (2,), np.uint8)}),
        gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Discrete(2)]),
    ],
)
def test_vectors_are_taken_apart(space: gym.Space[Any]) -> None:
    appended = Appended(space, gym.spaces.Discrete(3))
    space.seed(0)
    samples = [space.sample() for _ in range(5)]
    vectors = np.stack([appended.combine(sample, 1) for sample in samples])
    assert appended.space.contains(vectors[0])
    for sample, own in zip(samples, appended.split(vectors), strict=True):
        assert data_equivalence(own, sample) or np.array_equal(own, sample)
    one = appended.split(vectors[0])
    assert data_equivalence(one, samples[0]) or np.array_equal(one, samples[0])


def test_words_cannot_be_appended_to() -> None:
    class Words(gym.Env[Any, Any]):
        """As MiniGrid's environments: an image, and a mission."""

        observation_space = gym.spaces.Dict({"image": gym.spaces.Box(0, 9, (3,), np.uint8), "mission": gym.spaces.Text(9)})
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return {"image": np.zeros(3, np.uint8), "mission": "go"}, {}

        def step(self, action: Any) -> Any:
            return {"image": np.zeros(3, np.uint8), "mission": "go"}, 1.0, False, False, {}

    def pay(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * actions

    def led(env: Any) -> LeaderReward:
        return LeaderReward(env, pay, 1, pay, 0.9)

    said = r"cannot read observations from Dict.*observation\['mission'\] is of Text.*ImgObsWrapper"
    with pytest.raises(errors.UnsupportedError, match="ObserveContext " + said):
        ObserveContext(ContextWrapper(Words(), [0, 1]))
    with pytest.raises(errors.UnsupportedError, match="LeaderReward " + said):
        led(Words())
    numbers = gym.wrappers.FlattenObservation(gym.wrappers.FilterObservation(gym.wrappers.TimeLimit(Words(), 10), ["image"]))
    env = led(ObserveContext(ContextWrapper(numbers, [0, 1])))
    leaders.optimize(env, leaders.FirstOrder(env_steps=50), _shared(), 1, progress=False)


@pytest.mark.parametrize("numbers", ["ImgObsWrapper", "FlatObsWrapper"])
def test_missions_of_minigrid(numbers: str) -> None:
    minigrid = pytest.importorskip("minigrid.wrappers")

    def pay(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * (actions == 2).double()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grid = gym.make("MiniGrid-Empty-5x5-v0", max_steps=20)
        with pytest.raises(errors.UnsupportedError, match=rf"'mission'\] is of MissionSpace.*minigrid.wrappers.{numbers}"):
            LeaderReward(grid, pay, 1, pay, 0.9)
        env = LeaderReward(ObserveContext(ContextWrapper(getattr(minigrid, numbers)(grid), [0, 1])), pay, 1, pay, 0.9)
        leaders.optimize(env, leaders.FirstOrder(env_steps=60), _shared(), 1, progress=False)
