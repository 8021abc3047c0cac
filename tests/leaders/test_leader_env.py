from __future__ import annotations

import cma
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.special import logsumexp, softmax
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import followers
import leaders
from bocmdp_gym import TabularEnv, errors
from bocmdp_gym.wrappers import LeaderParameters
from leaders.gradients.exact import policy_return
from tests.problems import four_rooms, random_model, small_rooms


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


def test_values_to_be_compared_begin_where_the_follower_stands() -> None:
    """It learns from value to value; at equal x, values asked for together are equal, and one that is asked alone goes on."""
    follower = followers.SoftQLearning(0.5, iterations=50)
    seat = leaders.LeaderEnv(random_model(2), follower, bounds=(-2.0, 2.0), value="sampled", env_steps=100)
    seat.reset(seed=0)
    x = np.ones(5)
    together = seat.values([x, -x, x])
    assert together[0] == together[2] != together[1]
    assert seat.value(x) != together[0]
    again = leaders.LeaderEnv(random_model(2), follower, bounds=(-2.0, 2.0), value="sampled", env_steps=100)
    again.reset(seed=0)
    assert again.values([x])[0] == together[0]
    states = [one.oracle.follower.state() for one in (seat, again)]
    assert states[0].keys() == states[1].keys()


def _seat() -> leaders.LeaderEnv:
    return leaders.LeaderEnv(small_rooms(), followers.SoftPolicyIteration(0.03), bounds=(-6.0, 6.0))


def test_ppo_leads_small_rooms() -> None:
    """From F = 0.19 at the start; the optimum of this lambda is 1.09."""
    env = _seat()
    noise = {"log_std_init": -1.0}
    ppo = PPO("MlpPolicy", env, 3e-3, n_steps=64, seed=0, device="cpu", gamma=0.0, policy_kwargs=noise)
    ppo.learn(2048)
    action, _ = ppo.predict(env.reset()[0], deterministic=True)
    assert env.value(env.to_x(action)) > env.value(np.zeros(21)) + 0.3


def test_cma_es_leads_small_rooms() -> None:
    env = _seat()

    def cost(position: np.ndarray) -> float:
        env.reset()
        return -env.step(position)[1]

    options = {"bounds": [-1, 1], "seed": 1, "maxfevals": 1500, "verbose": -9}
    best = cma.fmin(cost, np.zeros(21), 0.2, options)[0]
    assert env.value(env.to_x(best)) > env.value(np.zeros(21)) + 0.8
    assert env.follower_solves >= 2 * 1500


def test_exact_values_are_of_the_follower_there_is() -> None:
    """Five sweeps of soft value iteration are not the optimum; neither is the value."""
    model = random_model(2, discount=0.95, terminating=False)
    follower = followers.SoftValueIteration(0.5, iterations=5, warm_start=False)
    value = leaders.LeaderEnv(model, follower, bounds=(-2.0, 2.0)).value(np.ones(5))
    mdps, solved = model.configure(np.ones(5)), 0.0
    for context, probability in enumerate(model.context_probabilities):
        arrays, v = mdps.arrays(context), np.zeros(model.n_states)
        for _ in range(5):
            q = arrays.reward + arrays.continuation * arrays.expectation(v)
            v = 0.5 * logsumexp(q / 0.5, axis=-1)
        solved += probability * policy_return(arrays, softmax(q / 0.5, axis=-1))
    assert value == pytest.approx(solved, rel=1e-12)
    assert abs(value - float(model.leader_return(np.ones(5), 0.5))) > 1e-3


def test_followers_without_a_lambda_have_exact_values() -> None:
    env = leaders.LeaderEnv(small_rooms(), followers.LinearProgramming(), bounds=(-1.0, 1.0))
    assert np.isfinite(env.value(np.zeros(21)))


def test_policies_without_probabilities_are_refused() -> None:
    follower = followers.CallableFollower(lambda observation: 0)
    env = leaders.LeaderEnv(small_rooms(), follower, bounds=(-1.0, 1.0))
    with pytest.raises(errors.UnsupportedError, match="value='sampled'"):
        env.value(np.zeros(21))


def test_bounds_outside_the_leaders_space_are_refused() -> None:
    cart = LeaderParameters(
        gym.make("CartPole-v1"), ["length"], 0.1, 2.0, lambda x, observations, actions, context: observations[:, 2], 0.99
    )
    with pytest.raises(errors.OptionError, match="outside the leader_space"):
        leaders.LeaderEnv(cart, followers.CallableFollower(lambda observation: 0), bounds=(0.0, 2.0), value="sampled")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "not finite"),
        ({"bounds": (1.0, -1.0)}, "low >= high"),
        ({"bounds": (-1.0, 1.0), "mode": "sett"}, "Did you mean 'set'"),
        ({"bounds": (-1.0, 1.0), "value": "exakt"}, "Did you mean 'exact'"),
        ({"bounds": (-1.0, 1.0), "horizon": 0}, "horizon is 0"),
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
