from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.wrappers import ContextWrapper, LeaderParameters


def upright(x: Any, observations: Any, actions: Any, context: Any) -> Any:
    return -observations[:, 2].abs() - 0.01 * x[0]


def derived(env: Any) -> None:
    env.polemass_length = env.masspole * env.length


def cart_pole(**options: Any) -> LeaderParameters:
    arguments: dict[str, Any] = {"names": ["length", "gravity"], "low": [0.1, 1.0], "high": [2.0, 20.0]}
    return LeaderParameters(
        gym.make("CartPole-v1"), **{**arguments, "leader_reward": upright, "discount": 0.99, "update": derived, **options}
    )


def test_x_sets_the_attributes() -> None:
    env = cart_pole()
    np.testing.assert_array_equal(env.initial_leader(np.random.default_rng(0)), [0.5, 9.8])
    env.set_leader([1.5, 5.0])
    inner: Any = env.unwrapped
    assert (inner.length, inner.gravity, inner.polemass_length) == (1.5, 5.0, 0.1 * 1.5)
    env.reset(seed=0, options={"leader": [0.2, 2.0]})
    assert (inner.length, inner.gravity) == (0.2, 2.0)
    observation, _ = env.reset(seed=0)
    assert (inner.length, inner.gravity) == (1.5, 5.0)
    *_, info = env.step(1)
    assert info["leader_reward"] == pytest.approx(-abs(float(observation[2])) - 0.015)
    assert info["context"] == 0
    assert float(env.step(0)[1]) == 1.0  # the follower's reward is the environment's own


def test_gravity_changes_how_the_pole_falls() -> None:
    falls = []
    for gravity in (2.0, 18.0):
        env = cart_pole()
        env.set_leader([0.5, gravity])
        env.reset(seed=0)
        steps = 0
        while not env.step(steps % 2)[2]:
            steps += 1
        falls.append(steps)
    assert falls[0] > falls[1]


def test_checkers() -> None:
    bocmdp_gym.check_configurable_env(cart_pole())
    inner = ContextWrapper(gym.make("CartPole-v1"), [5.0, 15.0], names=["force_mag"])
    env = LeaderParameters(inner, ["length"], 0.1, 2.0, upright, 0.99)
    bocmdp_gym.check_configurable_env(env)
    assert env.context_space == gym.spaces.Discrete(2)


def test_there_is_no_model_and_gradient_leaders_refuse() -> None:
    env = cart_pole()
    assert getattr(bocmdp_gym.configurable(env), "model", None) is None

    class Still(followers.Follower):
        def respond(self, task: Any, rng: Any) -> Any:
            raise NotImplementedError

    for leader in (leaders.ExactGradient(regularization=0.1), leaders.HPGD(regularization=0.1)):
        with pytest.raises(errors.UnsupportedError, match="LeaderParameters has none"):
            leaders.optimize(env, leader, Still(), 3)


class Stubborn(gym.Env[Any, Any]):
    """Its reset overwrites its speed."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.speed = 1.0
        self.name = "stubborn"
        self.is_fast = True

    def reset(self, **options: Any) -> Any:
        self.speed = 1.0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, dtype=np.float32), 0.0, False, False, {}


def quiet(x: Any, observations: Any, actions: Any, context: Any) -> Any:
    return torch.zeros(len(actions))


def test_an_attribute_that_reset_overwrites_is_reported() -> None:
    env = LeaderParameters(Stubborn(), ["speed"], 0.0, 5.0, quiet, 0.9)
    env.reset()
    env.set_leader([2.0])
    with pytest.raises(errors.UnsupportedError, match="changed attribute 'speed' from 2 to 1"):
        env.reset()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"names": ["lenght", "gravity"]}, errors.OptionError, "has no attribute 'lenght'. Did you mean 'length'"),
        ({"names": ["length", "unknown.gravity"]}, errors.OptionError, r"no attribute 'unknown\.gravity'"),
        ({"names": []}, errors.OptionError, r"names is \[\]"),
        ({"names": ["length", "action_space"]}, errors.OptionError, "expected a number"),
        ({"low": [0.1]}, errors.OptionError, r"low has shape \(1,\)"),
        ({"low": [3.0, 1.0]}, errors.OptionError, "expected low < high"),
        ({"leader_reward": lambda x, o, a, c: o}, errors.ModelError, "leader_reward"),
        ({"discount": 2.0}, errors.DiscountError, "2.0"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cart_pole(**options)


@pytest.mark.parametrize("name", ["name", "is_fast"])
def test_attributes_that_are_not_numbers_are_refused(name: str) -> None:
    with pytest.raises(errors.OptionError, match="expected a number"):
        LeaderParameters(Stubborn(), [name], 0.0, 1.0, quiet, 0.9)


def test_x_outside_its_bounds_is_refused() -> None:
    with pytest.raises(errors.LeaderParameterError, match="outside"):
        cart_pole().set_leader([5.0, 5.0])
    with pytest.raises(errors.UnsupportedError, match="rewards it cannot reach"):
        LeaderParameters(gym.make_vec("CartPole-v1", 2), ["length"], 0.1, 2.0, upright, 0.9)  # type: ignore[arg-type]
