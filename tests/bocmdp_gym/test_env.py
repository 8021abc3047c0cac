from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

import bocmdp_gym
from bocmdp_gym import ConfigurableEnv, ConfigurableWrapper, check_configurable_env, configurable, errors
from bocmdp_gym.errors import CheckError
from tests.problems import four_rooms


class Thermostat(ConfigurableEnv):
    """A continuous context: the wanted temperature."""

    def __init__(self) -> None:
        self._setup_configuration(
            gym.spaces.Box(-1.0, 1.0, (1,), np.float64), gym.spaces.Box(10.0, 30.0, (1,), np.float64), discount=0.9
        )
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def sample_context(self, rng: np.random.Generator) -> Any:
        return rng.uniform(10.0, 30.0, 1)

    def _reset(self, state: Any | None) -> tuple[Any, dict[str, Any]]:
        self._temperature = np.array([20.0])
        return self._temperature.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._temperature = self._temperature + action + 0.1 * self.np_random.standard_normal(1)
        gap = float(abs(self._temperature - self.context)[0])
        info = {"leader_reward": -gap, "context": self.context}
        return self._temperature.copy(), -gap + float(self.leader[0]), False, False, info


class Bonus(ConfigurableWrapper):
    """A wrapper that pays x per step."""

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self._setup_configuration(gym.spaces.Box(-1.0, 1.0, (1,), np.float64), gym.spaces.Discrete(3), discount=0.9)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = {**info, "leader_reward": 1.0, "context": self.context}
        return observation, float(reward) + float(self.leader[0]), terminated, truncated, info


def test_continuous_contexts() -> None:
    env = Thermostat()
    check_configurable_env(env)
    env.set_context([12.0])
    _, info = env.reset(seed=0)
    assert info["context"] == 12.0
    with pytest.raises(errors.ContextError):
        env.set_context([50.0])


def test_a_wrapper_makes_an_environment_configurable() -> None:
    env = Bonus(gym.make("CartPole-v1"))
    check_configurable_env(env)
    assert bocmdp_gym.configurable(env) is env
    assert bocmdp_gym.configurable(gym.wrappers.TimeLimit(env, 5)) is env
    _, info = env.reset(seed=0, options={"leader": [0.5], "context": 2, "low": -0.01, "high": 0.01})
    assert info["context"] == 2
    assert env.step(0)[1] == 1.5


def test_the_outermost_configurable_layer_counts() -> None:
    inner = four_rooms()
    outer = Bonus(inner)
    assert bocmdp_gym.configurable(outer) is outer
    assert bocmdp_gym.configurable(inner) is inner.unwrapped


def test_what_is_not_configurable_is_refused() -> None:
    with pytest.raises(errors.NotConfigurableError, match="CartPole"):
        bocmdp_gym.configurable(gym.make("CartPole-v1"))
    with pytest.raises(errors.NotConfigurableError, match="call"):
        bocmdp_gym.configurable(gym.make_vec("bocmdp/FourRooms-v0", num_envs=2))  # type: ignore[arg-type]


def test_misspelt_options_and_bad_contexts() -> None:
    env = four_rooms()
    core = bocmdp_gym.configurable(env)
    env.reset(seed=0)
    with pytest.raises(errors.OptionError, match="Did you mean 'context'"):
        env.reset(options={"contxt": 1})
    for context in (2, -1, 0.5, "a", True):
        with pytest.raises(errors.ContextError, match=r"expected an integer in 0\.\.1"):
            core.set_context(context)
    with pytest.raises(errors.StateError):
        env.reset(options={"state": 104})
    with pytest.raises(errors.OptionError, match="action 4 is illegal"):
        env.unwrapped.step(4)
    for x in (np.zeros(104), np.full(105, np.inf), "x"):
        with pytest.raises(errors.LeaderParameterError):
            core.set_leader(x)


def test_x_may_be_a_tensor() -> None:
    env = configurable(four_rooms())
    x = torch.linspace(-1.0, 1.0, 105, dtype=torch.float64, requires_grad=True)
    env.set_leader(x)  # warnings fail: NumPy's own conversion warns of tensors
    assert np.array_equal(env.leader, x.detach().numpy())
    env.reset(seed=0, options={"leader": 2 * x})
    assert np.array_equal(env.leader, 2 * x.detach().numpy())


def test_x_takes_effect_within_an_episode() -> None:
    env = four_rooms()
    core = bocmdp_gym.configurable(env)
    env.reset(seed=0, options={"state": 30, "context": 0})
    core.set_context(0)
    heavy = np.zeros(105)
    heavy[core.state] = 20.0
    core.set_leader(heavy)
    assert env.step(0)[1] == pytest.approx(-0.2)


def _heavy() -> np.ndarray:
    """All penalty on the start: the first step of every episode costs 0.2."""
    x = np.zeros(105)
    x[bocmdp_gym.configurable(four_rooms()).start] = 40.0
    return x


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
@pytest.mark.parametrize("autoreset", ["NextStep", "SameStep", "Disabled"])
def test_x_and_context_persist_through_autoreset(mode: str, autoreset: str) -> None:
    options: dict[str, Any] = {"horizon": 3}
    if mode == "vector_entry_point":
        envs = gym.make_vec("bocmdp/FourRooms-v0", 3, vectorization_mode=mode, autoreset_mode=autoreset, **options)
    else:
        mode_kwargs = {"autoreset_mode": gym.vector.AutoresetMode(autoreset)}
        envs = gym.make_vec("bocmdp/FourRooms-v0", 3, vectorization_mode=mode, vector_kwargs=mode_kwargs, **options)
    try:
        envs.call("set_leader", _heavy())
        envs.call("set_context", 1)
        assert envs.call("leader_discount") == (0.99,) * 3
        _, info = envs.reset(seed=0)
        np.testing.assert_array_equal(info["context"], [1, 1, 1])
        first_rewards = []
        fresh = True
        for _ in range(12):
            _, rewards, terminations, truncations, info = envs.step(np.zeros(3, dtype=np.int64))
            if fresh:
                first_rewards.append(rewards)
            ended = terminations | truncations
            assert ended.all() == ended.any()
            fresh = bool(ended.all()) and autoreset == "SameStep"
            if autoreset == "NextStep" and not ended.any() and not rewards.any() and "leader_reward" not in info:
                fresh = True
            if ended.all() and autoreset == "Disabled":
                envs.reset(options={"reset_mask": ended})
                fresh = True
            if autoreset == "NextStep" and ended.all():
                _, rewards, *_ = envs.step(np.zeros(3, dtype=np.int64))
                np.testing.assert_array_equal(rewards, 0.0)
                fresh = True
            if "context" in info:
                assert set(np.asarray(info["context"])) <= {0, 1}
        assert len(first_rewards) >= 3
        np.testing.assert_allclose(np.array(first_rewards), -0.2, atol=1e-6)
    finally:
        envs.close()


def test_contexts_are_drawn_anew_in_native_copies() -> None:
    envs = gym.make_vec("bocmdp/FourRooms-v0", num_envs=400, vectorization_mode="vector_entry_point", horizon=2)
    _, info = envs.reset(seed=0)
    seen = [info["context"].mean()]
    for _ in range(9):
        *_, info = envs.step(np.zeros(400, dtype=np.int64))
        seen.append(info["context"].mean())
    assert len(set(seen)) > 2
    assert all(0.35 < mean < 0.65 for mean in seen)


@pytest.mark.parametrize("env_id", ["bocmdp/FourRooms-v0", "bocmdp/TaxDesign-v0"])
@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_a_context_set_while_episodes_run_holds_from_the_next_autoreset(env_id: str, vectorization: str) -> None:
    envs: Any = gym.make_vec(env_id, 3, vectorization_mode=vectorization, horizon=4)
    envs.call("set_context", 0)
    envs.reset(seed=0)
    envs.call("set_context", 1)
    zero = np.zeros_like(envs.action_space.sample())
    contexts = [envs.step(zero)[-1]["context"].tolist() for _ in range(7)]
    assert contexts == [[0] * 3] * 4 + [[1] * 3] * 3


def test_native_copies_agree_with_the_single_environment() -> None:
    """The same actions lead to the same distribution of states (chi-square, fixed seed)."""
    from scipy.stats import chi2_contingency

    core = bocmdp_gym.configurable(four_rooms())
    state = core.grid.index[3, 6]  # the doorway: walls above and below
    native = gym.make_vec("bocmdp/FourRooms-v0", num_envs=20_000, vectorization_mode="vector_entry_point", slip_probability=0.44)
    native.reset(seed=0, options={"state": state, "context": 0})
    many = native.step(np.ones(20_000, dtype=np.int64))[0]
    env = four_rooms().unwrapped
    env.reset(seed=0)
    one = []
    for _ in range(20_000):
        env.reset(options={"state": state, "context": 0})
        one.append(env.step(1)[0])
    table = np.stack([np.bincount(x, minlength=104) for x in (many, np.array(one))])
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] == 3
    assert chi2_contingency(table).pvalue > 1e-3


def test_native_environment_refuses_what_it_cannot_do() -> None:
    envs = gym.make_vec(
        "bocmdp/FourRooms-v0", num_envs=2, vectorization_mode="vector_entry_point", autoreset_mode="Disabled", horizon=1
    )
    with pytest.raises(errors.UnsupportedError, match="share x"):
        envs.reset(options={"leader": np.zeros(105)})
    with pytest.raises(errors.OptionError, match="Did you mean"):
        envs.reset(options={"contexts": 0})
    envs.reset(seed=0)
    with pytest.raises(errors.OptionError, match="actions must be 2 integers"):
        envs.step(np.array([0, 4]))
    envs.step(np.array([0, 1]))
    with pytest.raises(errors.OptionError, match="reset_mask"):
        envs.step(np.array([0, 1]))


def test_sb3_env_method_reaches_every_copy() -> None:
    envs = DummyVecEnv([lambda: four_rooms(horizon=3)] * 2)
    envs.env_method("set_leader", _heavy())
    envs.env_method("set_context", 1)
    envs.reset()
    rewards = []
    for _ in range(9):
        _, reward, _, infos = envs.step(np.zeros(2, dtype=np.int64))
        rewards.append(reward[0])
        assert all(info["context"] == 1 for info in infos)
    np.testing.assert_allclose(rewards[::3], -0.2, atol=1e-6)


def test_checks_find_broken_environments() -> None:
    class Forgetful(Thermostat):
        def _begin_episode(self, options: Any, rng: Any) -> Any:
            self._leader = np.zeros(1)
            return super()._begin_episode(options, rng)

    class Silent(Thermostat):
        def step(self, action: Any) -> Any:
            *rest, _ = super().step(action)
            return (*rest, {"context": self.context})

    class Moody(Thermostat):
        def _reset(self, state: Any | None) -> Any:
            self._temperature = 20.0 + np.random.default_rng().standard_normal(1)
            return self._temperature.copy(), {}

    class Wandering(Thermostat):
        def step(self, action: Any) -> Any:
            self._episode_context = self.sample_context(self.np_random)
            return super().step(action)

    for broken, rule in (
        (Forgetful, "persist"),
        (Silent, "leader_reward"),
        (Moody, "equal seeds"),
        (Wandering, "within an episode"),
    ):
        env = broken()
        env.initial_leader = lambda rng: np.array([0.25])  # type: ignore[method-assign]
        with pytest.raises(CheckError, match=rule):
            check_configurable_env(env)
