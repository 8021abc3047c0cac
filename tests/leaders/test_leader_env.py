from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import followers
import leaders
from bocmdp_gym import TabularEnv, errors
from tests.problems import four_rooms, random_model


@pytest.mark.parametrize("mode", ["set", "step"])
@pytest.mark.parametrize("value", ["exact", "sampled"])
def test_checkers_accept_it(mode: str, value: str) -> None:
    env = leaders.LeaderEnv(
        random_model(1, moving=("reward", "leader_reward")),
        followers.SoftPolicyIteration(0.5),
        bounds=(-2.0, 2.0),
        mode=mode,  # type: ignore[arg-type]
        value=value,  # type: ignore[arg-type]
        env_steps=200,
    )
    check_env(env, skip_render_check=True)
    sb3_check_env(env)


def test_rewards_are_the_leaders_value() -> None:
    model = random_model(2)
    env = leaders.LeaderEnv(model, followers.SoftPolicyIteration(0.5), bounds=(-2.0, 4.0))
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step(np.full(5, 0.5))
    np.testing.assert_allclose(info["x"], 2.5)
    np.testing.assert_allclose(observation, 0.5)
    assert terminated
    assert reward == pytest.approx(float(model.leader_return(info["x"], 0.5)))
    assert env.follower_solves == model.n_contexts


def test_steps_move_x_within_the_bounds() -> None:
    env = leaders.LeaderEnv(
        random_model(2), followers.SoftPolicyIteration(0.5), bounds=(-1.0, 1.0), mode="step", step_size=0.4, horizon=3
    )
    env.reset(seed=0)
    positions, ends = [], []
    for _ in range(3):
        observation, _, terminated, truncated, _ = env.step(np.ones(5))
        positions.append(float(observation[0]))
        ends.append((terminated, truncated))
    np.testing.assert_allclose(positions, [0.4, 0.8, 1.0], rtol=1e-6)
    assert ends == [(False, False), (False, False), (False, True)]


def test_sampled_values_agree_with_exact_ones() -> None:
    model = random_model(3, moving=("reward", "leader_reward"), leader_discount=None)
    sampled = leaders.LeaderEnv(
        TabularEnv(model, horizon=None), followers.SoftPolicyIteration(0.5), bounds=(-1.0, 1.0), value="sampled", env_steps=20_000
    )
    sampled.reset(seed=0)
    values = [sampled.value(np.zeros(5)) for _ in range(60)]
    exact = float(model.leader_return(np.zeros(5), 0.5))
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / 60**0.5


def test_ppo_can_lead() -> None:
    model = random_model(4, moving=("reward", "leader_reward"))
    env = leaders.LeaderEnv(model, followers.SoftPolicyIteration(0.5), bounds=(-1.0, 1.0))
    ppo = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=5, learning_rate=3e-3, seed=0, device="cpu", gamma=0.0)
    ppo.learn(1500)
    action, _ = ppo.predict(env.reset()[0], deterministic=True)
    assert env.value(env.to_x(action)) > env.value(np.zeros(5)) + 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "not finite"),
        ({"bounds": (1.0, -1.0)}, "low >= high"),
        ({"bounds": (-1.0, 1.0), "mode": "sett"}, "Did you mean 'set'"),
        ({"bounds": (-1.0, 1.0), "value": "exakt"}, "Did you mean 'exact'"),
        ({"bounds": (-1.0, 1.0), "horizon": 0}, "positive"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        leaders.LeaderEnv(four_rooms(), followers.SoftPolicyIteration(0.01), **options)  # type: ignore[arg-type]


def test_bad_actions_are_refused() -> None:
    env = leaders.LeaderEnv(random_model(1), followers.SoftPolicyIteration(0.5), bounds=(-1.0, 1.0))
    env.reset(seed=0)
    for action in (np.zeros(4), np.full(5, np.nan)):
        with pytest.raises(errors.OptionError, match="action"):
            env.step(action)
