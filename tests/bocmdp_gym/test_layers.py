from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.vector import SyncVectorEnv, VectorWrapper
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, EpisodicLifeEnv, MaxAndSkipEnv
from stable_baselines3.common.monitor import Monitor

import leaders
from bocmdp_gym import ConfigurableWrapper, TabularVectorEnv, configurable, errors
from bocmdp_gym.layers import check_steps, is_transparent, layers_of
from bocmdp_gym.wrappers import LeaderReward
from followers import CallableFollower, SB3Follower, TrajectoryOracle
from tests.followers.problems import CountSteps, bandit

GAMMA, STEPS = 0.9, 20


class Line(gym.Env[Any, Any]):
    """Episodes of 20 steps that all look and pay alike."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}
    observation_space = gym.spaces.Box(0.0, 2.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = STEPS
        return np.ones(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return np.ones(2, np.float32), 1.0, self.left == 0, False, {}

    def render(self) -> Any:
        return np.zeros((2, 2, 3), np.uint8)


def led(env: gym.Env[Any, Any]) -> LeaderReward:
    """The leader earns x in each step, so that F(x) = x (1 - gamma^n) / (1 - gamma) of episodes of n steps."""
    return LeaderReward(
        env, lambda x, o, actions, c: 0.001 * x[0] * actions, 1, lambda x, o, actions, c: x[0].expand(len(actions)), GAMMA
    )


def returned(steps: int) -> float:
    return (1 - GAMMA**steps) / (1 - GAMMA)


class Noops(gym.Wrapper[Any, Any, Any, Any]):
    """Does nothing for some steps of its reset, as NoopResetEnv does in Atari games."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.env.reset(seed=seed, options=options)
        for _ in range(4):
            observation, *_, info = self.env.step(0)
        return observation, info


class Silent(gym.Wrapper[Any, Any, Any, Any]):
    """Forgets what the inner infos say."""

    def step(self, action: Any) -> Any:
        *result, _ = self.env.step(action)
        return *result, {}


class Doubles(gym.Wrapper[Any, Any, Any, Any]):
    """Tells the leader of twice its reward."""

    def step(self, action: Any) -> Any:
        *result, info = self.env.step(action)
        return *result, {**info, "leader_reward": 2 * info["leader_reward"]} if "leader_reward" in info else info


class Waits(gym.Wrapper[Any, Any, Any, Any]):
    """Acts in every other step."""

    last: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.last = True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.last = None if self.last else self.env.step(action)
        return self.last or (np.ones(2, np.float32), 0.0, False, False, {"leader_reward": 0.0})


#: Wrappers that keep steps, whatever they do to observations, actions and rewards.
KEEPING: dict[str, Any] = {
    "NormalizeReward": wrappers.NormalizeReward,
    "TransformReward": lambda env: wrappers.TransformReward(env, lambda reward: -float(reward)),
    "ClipReward": lambda env: wrappers.ClipReward(env, 0.0, 0.5),
    "ClipRewardEnv": ClipRewardEnv,
    "NormalizeObservation": wrappers.NormalizeObservation,
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 2),
    "TimeAwareObservation": lambda env: wrappers.TimeAwareObservation(wrappers.TimeLimit(env, 50)),
    "AddRenderObservation": wrappers.AddRenderObservation,
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 2),
    "StickyAction": lambda env: wrappers.StickyAction(env, 0.5),
    "TransformAction": lambda env: wrappers.TransformAction(env, lambda action: 1 - action, env.action_space),
}
#: Wrappers whose steps are not those inside, with the steps of their episodes.
LOSING: dict[str, tuple[Any, int, str]] = {
    "MaxAndSkipEnv": (lambda env: MaxAndSkipEnv(env, 4), 5, "plays 4 steps of LeaderReward in one of its own"),
    "RepeatAction": (lambda env: wrappers.RepeatAction(env, 2), 10, "plays 2 steps of LeaderReward in one of its own"),
    "Noops": (Noops, 16, "plays 4 steps of LeaderReward in its reset"),
    "Waits": (Waits, 40, "plays 0 steps of LeaderReward in one of its own"),
}
#: A uniform agent, which does not answer to x, so that dF/dx is F(1).
AGENT = CallableFollower(lambda observation, rng: int(rng.integers(2)), probabilities=lambda observation: [0.5, 0.5])


def estimated(env: Any, leader: Any) -> float:
    """One estimate of dF/dx at x = 1."""
    oracle = TrajectoryOracle(env, AGENT)
    leader.bind(oracle)
    return float(leader.estimate(oracle, torch.ones(1, dtype=torch.float64), 0, np.random.default_rng(0)).gradient[0])


def check_sampled(env: Any, steps: int) -> None:
    """Whoever asks for the leader's return is told that of whole episodes."""
    rng = np.random.default_rng(0)
    oracle = TrajectoryOracle(env, AGENT)
    batch = oracle.sample(oracle.respond(np.ones(1), 0, rng), 50, rng)
    np.testing.assert_array_equal(batch.lengths, steps)
    np.testing.assert_allclose(batch.discounted_returns(GAMMA, leader=True), returned(steps))
    assert leaders.evaluate_policy(env, AGENT, [1.0], env_steps=50).leader_return.mean == pytest.approx(returned(steps))
    seat = leaders.LeaderEnv(env, AGENT, bounds=(0.0, 2.0), value="sampled", env_steps=50)
    assert seat.value([0.5]) == pytest.approx(0.5 * returned(steps))
    learner = SB3Follower("PPO", 32, n_steps=32, batch_size=32, n_epochs=1)
    learnt = leaders.evaluate_policy(env, learner, [1.0], env_steps=50)
    assert learnt.leader_return.mean == pytest.approx(returned(steps))


def check_inside(env: Any, steps: int) -> None:
    """All of that, and gradients of the model."""
    check_sampled(env, steps)
    one = leaders.HPGD(estimator="critic", env_steps=200, hidden=(), regularization=1.0).estimator
    assert estimated(env, one) == pytest.approx(returned(steps), rel=1e-3)  # but for what the agent might have done
    assert estimated(env, leaders.FirstOrder(env_steps=100).estimator) == pytest.approx(returned(steps), rel=1e-6)


@pytest.mark.parametrize("name", KEEPING)
def test_layers_that_keep_steps_may_be_anywhere(name: str) -> None:
    check_sampled(KEEPING[name](led(Line())), STEPS)
    check_inside(led(KEEPING[name](Line())), STEPS)
    for leader in (leaders.HPGD(estimator="critic", env_steps=50, regularization=1.0), leaders.FirstOrder(env_steps=50)):
        with pytest.raises(errors.UnsupportedError, match=rf"{name} around it may change .* put that wrapper inside"):
            estimated(KEEPING[name](led(Line())), leader.estimator)


@pytest.mark.parametrize("name", LOSING)
def test_layers_that_lose_steps_belong_inside(name: str) -> None:
    wrap, steps, said = LOSING[name]
    outside = wrap(led(Line()))
    for refused in (
        lambda: TrajectoryOracle(outside, AGENT),
        lambda: leaders.evaluate_policy(outside, AGENT, [1.0], env_steps=50),
        lambda: leaders.LeaderEnv(outside, AGENT, bounds=(0.0, 1.0), value="sampled"),
        lambda: leaders.optimize(outside, leaders.ZeroOrder(env_steps=50), SB3Follower("PPO", 32, n_steps=32), 1),
        lambda: TrajectoryOracle(SyncVectorEnv([lambda: led(Line()), lambda: wrap(led(Line()))]), AGENT),
        lambda: TrajectoryOracle(wrappers.TransformReward(outside, float), AGENT),
    ):
        with pytest.raises(errors.UnsupportedError, match=rf"{name} {said}.*Put it inside the leader's wrapper"):
            refused()
    check_inside(led(wrap(Line())), steps)  # what the message says


@pytest.mark.parametrize(("wrap", "said"), [(Silent, "hands on nothing"), (Doubles, "hands on 2.0 as")])
def test_what_the_leader_is_paid_is_left_alone(wrap: Any, said: str) -> None:
    env = led(Line())
    env.set_leader([1.0])
    with pytest.raises(errors.UnsupportedError, match=f"{wrap.__name__} {said}"):
        TrajectoryOracle(wrap(env), AGENT)
    check_sampled(led(wrap(Line())), STEPS)


def test_a_wrapper_of_ones_own_may_repeat() -> None:
    """What the message says where there is no leader's wrapper to go into."""

    class Twice(ConfigurableWrapper):
        def __init__(self, env: Any):
            super().__init__(env)
            core = configurable(env)
            self._setup_configuration(core.leader_space, core.context_space, core.discount)

        def _configured(self) -> None:
            self.env.set_leader(self.leader)  # type: ignore[attr-defined]

        def step(self, action: Any) -> Any:
            total = 0.0
            for _ in range(2):
                *result, info = self.env.step(action)
                total += info["leader_reward"]
            return *result, {**info, "leader_reward": total}

    with pytest.raises(errors.UnsupportedError, match="of your own around RepeatAction"):
        TrajectoryOracle(wrappers.RepeatAction(bandit(), 2), CallableFollower(lambda observation: 0))
    oracle, rng = TrajectoryOracle(Twice(bandit()), CallableFollower(lambda observation: 0)), np.random.default_rng(0)
    oracle.sample(oracle.respond(np.zeros(2), 0, rng), 20, rng)


def test_layers_around_copies_are_watched() -> None:
    class Quick(VectorWrapper):
        def step(self, actions: Any) -> Any:
            self.env.step(actions)
            return self.env.step(actions)

    class Slow(VectorWrapper):
        def step(self, actions: Any) -> Any:
            return self.env.step(actions)

    agent = CallableFollower(lambda observation: 0)
    for mode in ("NextStep", "SameStep", "Disabled"):
        envs = TabularVectorEnv(bandit(), 2, mode)
        if mode != "Disabled":  # its copies are not stepped beyond their ends
            with pytest.raises(errors.UnsupportedError, match="Quick plays 2 steps of TabularVectorEnv"):
                TrajectoryOracle(Quick(envs), agent)
        TrajectoryOracle(Slow(envs), agent)


def test_an_environment_is_left_as_it_was() -> None:
    class Whole(CountSteps):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot be copied")

    counted = CountSteps(bandit())
    counted.reset(seed=0)
    before = counted.unwrapped.np_random.bit_generator.state
    check_steps(Slow(counted), counted.unwrapped)
    assert counted.steps == 0
    assert counted.unwrapped.np_random.bit_generator.state == before
    whole = Whole(bandit())
    check_steps(whole, whole.unwrapped)
    assert whole.steps > 0  # it is played itself
    assert not any("step" in vars(layer) for layer in layers_of(whole))


class Slow(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        return self.env.step(action)


def test_environments_that_refuse_random_actions_speak_for_themselves() -> None:
    class Picky(Line):
        def step(self, action: Any) -> Any:
            raise RuntimeError("not this one")

    oracle, rng = TrajectoryOracle(Slow(led(Picky())), AGENT), np.random.default_rng(0)
    with pytest.raises(RuntimeError, match="not this one"):
        oracle.sample(oracle.respond(np.ones(1), 0, rng), 50, rng)


def test_watching_layers_are_known() -> None:
    for wrap in (Monitor, CountSteps, wrappers.RecordEpisodeStatistics, gym.Wrapper):
        assert is_transparent(wrap(bandit()))
    for changes in (Slow, EpisodicLifeEnv, MaxAndSkipEnv):
        assert not is_transparent(changes(led(Line())))
    assert [type(layer).__name__ for layer in layers_of(Slow(led(Line())))] == ["Slow", "LeaderReward", "Line"]
