from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import bocmdp_gym
from bocmdp_gym import errors
from bocmdp_gym.wrappers import ContextWrapper, LeaderReward, ObserveContext
from tests.problems import four_rooms


def _led(env: gym.Env[Any, Any]) -> LeaderReward:
    def bonus(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0].expand(len(actions))

    return LeaderReward(env, bonus, 1, bonus, 0.9)


def _lengths(**options: Any) -> ContextWrapper:
    return ContextWrapper(gym.make("CartPole-v1"), [0.3, 0.5, 0.9], names=["length"], **options)


def test_finite_contexts_are_drawn_from_their_distribution() -> None:
    env = _lengths(probabilities=[0.5, 0.2, 0.3])
    env.reset(seed=0)
    drawn = []
    for _ in range(1000):
        _, info = env.reset()
        assert env.unwrapped.length == (0.3, 0.5, 0.9)[info["context"]]
        drawn.append(info["context"])
    shares = np.bincount(drawn) / 1000
    assert (np.abs(shares - [0.5, 0.2, 0.3]) < 4 * np.sqrt(0.25 / 1000)).all()
    assert env.step(0)[4]["context"] == drawn[-1]


def test_set_context_persists_and_options_do_not() -> None:
    env = _lengths()
    env.set_context(2)
    assert env.reset(seed=0)[1]["context"] == 2
    assert env.reset(options={"context": 0})[1]["context"] == 0
    assert env.reset()[1]["context"] == 2
    with pytest.raises(errors.ContextError, match=r"expected an integer in 0\.\.2"):
        env.set_context(3)
    with pytest.raises(errors.ContextError, match="out of range"):
        env.reset(options={"context": -1})


def test_sampled_contexts() -> None:
    space = gym.spaces.Box(0.2, 1.0, (1,), np.float64)
    env = ObserveContext(
        ContextWrapper(gym.make("CartPole-v1"), space=space, sample=lambda rng: rng.uniform(0.2, 1.0, 1), names=["length"])
    )
    observation, info = env.reset(seed=0)
    assert observation.shape == (5,)
    assert observation.dtype == np.float64  # the context's
    assert env.unwrapped.length == info["context"][0] == float(observation[-1])
    assert env.observation_space.contains(observation)
    assert env.reset()[1]["context"] != info["context"]
    led = _led(env)
    bocmdp_gym.check_configurable_env(led)
    assert led.context_space == space
    led.set_context([0.4])
    led.reset(seed=1)
    assert env.unwrapped.length == 0.4


@pytest.mark.parametrize("observed", [False, True])
def test_checkers(observed: bool) -> None:
    for env in (_lengths(), ContextWrapper(gym.make("FrozenLake-v1"), ["a", "b"])):
        led = _led(ObserveContext(env) if observed else env)
        bocmdp_gym.check_configurable_env(led)
        sb3_check_env(led, warn=True)


def test_what_the_follower_sees() -> None:
    hidden, seen = _lengths(), ObserveContext(_lengths())
    assert hidden.observation_space.shape == (4,)
    assert seen.observation_space.shape == (7,)
    observation, _ = seen.reset(seed=0, options={"context": 1})
    np.testing.assert_array_equal(observation[4:], [0.0, 1.0, 0.0])
    tables = ObserveContext(ContextWrapper(gym.make("FrozenLake-v1"), ["a", "b"]))
    observation, _ = tables.reset(seed=0, options={"context": 1})
    np.testing.assert_array_equal(observation, [1.0] + [0.0] * 15 + [0.0, 1.0])
    np.testing.assert_array_equal(tables.step(1)[0][-2:], [0.0, 1.0])


def test_the_old_spelling_shows_the_same() -> None:
    with pytest.warns(FutureWarning, match=r"use ObserveContext\(ContextWrapper"):
        old = _lengths(observed=True)
    new = ObserveContext(_lengths())
    assert old.observation_space == new.observation_space
    np.testing.assert_array_equal(old.reset(seed=0)[0], new.reset(seed=0)[0])
    np.testing.assert_array_equal(old.step(0)[0], new.step(0)[0])


def test_apply_is_called_before_each_reset() -> None:
    calls: list[Any] = []
    env = ContextWrapper(gym.make("CartPole-v1"), ["light", "heavy"], apply=lambda inner, value: calls.append((inner, value)))
    env.reset(seed=0, options={"context": 1})
    env.reset(options={"context": 0})
    assert calls == [(env.unwrapped, "heavy"), (env.unwrapped, "light")]


def test_equal_seeds_draw_equal_contexts() -> None:
    first, second = _lengths(), _lengths()
    draws = []
    for env in (first, second):
        env.reset(seed=5)
        draws.append([env.reset()[1]["context"] for _ in range(30)])
    assert draws[0] == draws[1]


def test_spec_remakes_it() -> None:
    env = ObserveContext(_lengths())
    again = gym.make(env.spec)
    assert again.observation_space == env.observation_space


def test_bad_arguments_are_refused() -> None:
    inner, space = gym.make("CartPole-v1"), gym.spaces.Box(0.0, 1.0, (1,), np.float64)

    def draw(rng: Any) -> Any:
        return rng.random(1)

    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, errors.OptionError, "either contexts"),
        ({"contexts": [1], "space": space, "sample": draw}, errors.OptionError, "either contexts"),
        ({"space": space}, errors.OptionError, "space= and sample= together"),
        ({"contexts": []}, errors.OptionError, "contexts is empty"),
        ({"contexts": [1, 2], "probabilities": [0.5, 0.6]}, errors.ContextError, "not a distribution"),
        ({"contexts": [1, 2], "probabilities": [1.0]}, errors.ContextError, "shape"),
        ({"space": space, "sample": draw, "probabilities": [1.0]}, errors.OptionError, "finitely many"),
        ({"contexts": [[1, 2]], "names": ["length"]}, errors.OptionError, "one per name"),
        ({"contexts": [1.0], "names": ["lenght"]}, errors.OptionError, "Did you mean 'length'"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            ContextWrapper(inner, **options)
    with pytest.raises(errors.ContextError, match=r"sample\(rng\) drew outside its space"):
        ContextWrapper(inner, space=space, sample=lambda rng: np.array([2.0]))
    draws = iter([np.array([0.5]), np.array([2.0])])
    later = ContextWrapper(inner, space=space, sample=lambda rng: next(draws))
    with pytest.raises(errors.ContextError, match=r"sample\(rng\) drew outside its space"):
        later.reset()


def test_contexts_go_inside() -> None:
    for env in (four_rooms(), _led(gym.make("CartPole-v1")), _lengths()):
        with pytest.raises(errors.UnsupportedError, match="put ContextWrapper inside"):
            ContextWrapper(env, [0, 1])


@pytest.mark.parametrize("wrap", [_led, lambda env: ContextWrapper(env, [0.3, 0.9], names=["length"])])
def test_a_layer_draws_apart_from_its_environment(wrap: Any) -> None:
    def draws() -> Any:
        env.reset(seed=3)
        return (env._rng if isinstance(env, ContextWrapper) else env._wrapper_rng).random(1000)

    env = wrap(gym.make("CartPole-v1"))
    first = draws()
    assert not np.isin(first, np.random.default_rng(3).random(2000)).any()
    np.testing.assert_array_equal(draws(), first)


class Whole(gym.Env[Any, Any]):
    """Observations are integers of a given type."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, dtype: Any):
        self.observation_space = gym.spaces.Box(0, 100, (2,), dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.full(2, 99, self.observation_space.dtype), {}

    def step(self, action: Any) -> Any:
        return np.full(2, 99, self.observation_space.dtype), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("inner", "context", "outer"),
    [
        (np.int64, np.float64, np.float64),
        (np.int32, np.float32, np.float64),
        (np.uint8, np.float32, np.float32),
        (np.uint8, np.int64, np.float64),
        (np.float16, np.float64, np.float64),
        (np.float32, np.float32, np.float32),
    ],
)
def test_a_context_is_shown_as_it_is(inner: Any, context: Any, outer: Any) -> None:
    value = np.array([0.25 if np.dtype(context).kind == "f" else 300], context)
    space = gym.spaces.Box(-500, 500, (1,), context)
    env = ObserveContext(ContextWrapper(Whole(inner), space=space, sample=lambda rng: value))
    shown, _ = env.reset(seed=0)
    assert shown.dtype == env.observation_space.dtype == outer
    assert env.observation_space.contains(shown)
    np.testing.assert_array_equal(shown, [99, 99, value[0]])
    np.testing.assert_array_equal(env.step(0)[0], [99, 99, value[0]])
    observed = ObserveContext(_led(ContextWrapper(Whole(inner), space=space, sample=lambda rng: value)))
    shown, _ = observed.reset(seed=0)
    assert shown.dtype == observed.observation_space.dtype
    np.testing.assert_array_equal(shown, [99, 99, value[0]])


def test_wide_integers_are_not_rounded() -> None:
    class Wide(Whole):
        def __init__(self) -> None:
            super().__init__(np.int64)
            self.observation_space = gym.spaces.Box(0, 2**40, (2,), np.int64)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return np.array([2**25 + 1, 0]), {}

    env = ObserveContext(_led(ContextWrapper(Wide(), [1.0, 2.0])))
    assert env.reset(seed=0)[0][0] == 2**25 + 1
