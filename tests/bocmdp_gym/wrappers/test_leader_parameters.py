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
        with pytest.raises(errors.UnsupportedError, match=r"LeaderParameters(\.model| has none)"):
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


def everything_derived(env: Any) -> None:
    env.total_mass = env.masspole + env.masscart
    env.polemass_length = env.masspole * env.length


class Derived(gym.Wrapper[Any, Any, Any, Any]):
    """Checks, as the environment resets and at every step, that its physics are those of its attributes."""

    def _check(self) -> None:
        inner: Any = self.unwrapped
        assert inner.polemass_length == inner.masspole * inner.length
        assert inner.total_mass == inner.masspole + inner.masscart

    def reset(self, **options: Any) -> Any:
        self._check()
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self._check()
        return super().step(action)


@pytest.mark.parametrize(("inside", "outside"), [(True, True), (False, True), (True, False)])
def test_derived_attributes_are_those_of_the_episodes_context(inside: bool, outside: bool) -> None:
    """x sets the length, the context the mass, and both are in polemass_length; whichever layer recomputes it."""
    base = Derived(gym.make("CartPole-v1"))
    calls: list[str] = []

    def update(name: str) -> Any:
        return lambda env: (calls.append(name), everything_derived(env))

    contexts = ContextWrapper(base, [0.05, 0.5], names=["masspole"], update=update("context") if inside else None)
    env = LeaderParameters(contexts, ["length"], 0.1, 2.0, upright, 0.99, update=update("leader") if outside else None)
    inner: Any = env.unwrapped
    for context, length in ((0, 1.0), (1, 1.0), (0, 0.3), (1, 1.7)):
        env.set_leader([length])
        calls.clear()
        env.set_context(context)
        env.reset(seed=0)
        assert calls == ["context"] * inside + ["leader"] * outside  # each once, from inside out
        assert inner.polemass_length == (0.05, 0.5)[context] * length
        assert inner.total_mass == 1.0 + (0.05, 0.5)[context]
        env.step(0)
        env.set_leader([0.5])  # at once
        assert inner.polemass_length == (0.05, 0.5)[context] * 0.5
        env.step(0)
    calls.clear()
    env.reset(options={"leader": [0.9], "context": 1})
    assert inner.polemass_length == 0.5 * 0.9
    if inside:
        contexts.reset(options={"context": 0})  # the inner layer alone
        assert calls == ["context", *["leader"] * outside, "context"]


def test_the_first_episode_of_a_context_is_the_later_ones() -> None:
    contexts = ContextWrapper(gym.make("CartPole-v1"), [0.05, 0.5], names=["masspole"])
    env = LeaderParameters(contexts, ["length"], 0.1, 2.0, upright, 0.99, update=everything_derived)
    paths = []
    for context in (0, 1, 1, 0):
        env.reset(seed=0, options={"context": context, "leader": [1.0]})
        paths.append([env.step(1)[0] for _ in range(5)])
    np.testing.assert_array_equal(paths[1], paths[2])
    np.testing.assert_array_equal(paths[0], paths[3])
    assert (paths[0][-1] != paths[1][-1]).any()


def test_two_leaders_layers_settle_together() -> None:
    inside = LeaderParameters(Derived(gym.make("CartPole-v1")), ["masspole"], 0.01, 1.0, upright, 0.99)
    with pytest.warns(errors.FrozenLeaderWarning, match="LeaderParameters inside LeaderParameters has a leader parameter"):
        env = LeaderParameters(inside, ["length"], 0.1, 2.0, upright, 0.99, update=everything_derived)
    inside.set_leader([0.4])
    env.set_leader([1.5])
    env.reset(seed=0)
    assert env.unwrapped.polemass_length == 0.4 * 1.5  # type: ignore[attr-defined]


class Counting(gym.Env[Any, Any]):
    """Attributes of several kinds."""

    observation_space, action_space = gym.spaces.Box(0, 255, (2,), np.uint8), gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.poles, self.speed, self.big = 3, 1.5, np.int32(7)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.full(2, 250, np.uint8), {}

    def step(self, action: Any) -> Any:
        return np.full(2, 250, np.uint8), 0.0, False, False, {}


def test_whole_attributes_stay_whole() -> None:
    env = LeaderParameters(Counting(), ["poles", "speed", "big"], 0.0, 9.0, lambda x, o, a, c: x[0] * torch.ones(len(a)), 0.9)
    inner: Any = env.unwrapped
    env.set_leader([4.0, 2.0, 5.0])
    assert (inner.poles, inner.speed, inner.big) == (4, 2.0, 5)
    assert [type(value) for value in (inner.poles, inner.speed, inner.big)] == [int, float, int]
    env.reset(seed=0, options={"leader": [2.5, 2.5, 2.0]})
    assert [type(value) for value in (inner.poles, inner.speed, inner.big)] == [float, float, int]  # 2.5 poles: a float
    env.reset(seed=0)
    assert type(inner.poles) is int
    contexts = ContextWrapper(Counting(), [[2**60 + 1, 1], [3, 2]], names=["poles", "speed"])
    contexts.reset(options={"context": 0})
    assert contexts.unwrapped.poles == 2**60 + 1  # type: ignore[attr-defined]
    assert type(contexts.unwrapped.speed) is float  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------- items, and functions that apply x


class Engine(gym.Env[Any, Any]):
    """Attributes with items: an array, one of ints, a dictionary, and a vector of which only copies are seen."""

    observation_space, action_space = gym.spaces.Box(0.0, 1.0, (1,)), gym.spaces.Discrete(2)

    class _Option:
        __slots__ = ("gravity",)

        def __init__(self) -> None:
            self.gravity = np.array([0.0, 0.0, -9.81], dtype=np.float32)

    def __init__(self) -> None:
        self.model, self.opt = self, self._Option()
        self.body_mass, self.counts = np.array([0.0, 10.5]), np.array([[1, 2], [3, 4]])
        self.config = {"reward_speed": 20, "nested": {"limit": 0.5}}

    @property
    def wind(self) -> Any:
        return np.array([1.0, 2.0])

    @property
    def fixed(self) -> float:
        return 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, {}


def engine(names: Any, low: Any = -50.0, high: Any = 50.0, **options: Any) -> LeaderParameters:
    return LeaderParameters(Engine(), names, low, high, quiet, 0.9, **options)


def test_items_are_set_by_name() -> None:
    names = ["model.body_mass[1]", "opt.gravity[-1]", "config['reward_speed']", 'config["nested"]["limit"]', "counts[1, 0]"]
    env = engine(names)
    inner: Any = env.unwrapped
    np.testing.assert_allclose(env.initial_leader(np.random.default_rng(0)), [10.5, -9.81, 20.0, 0.5, 3.0], rtol=1e-6)
    env.set_leader([2.5, -3.3, 25.0, 0.25, 7.0])  # -3.3 is not a number of float32
    env.reset(seed=0)
    np.testing.assert_allclose(inner.body_mass, [0.0, 2.5])
    np.testing.assert_allclose(inner.opt.gravity, [0.0, 0.0, -3.3], rtol=1e-6)
    assert inner.config == {"reward_speed": 25, "nested": {"limit": 0.25}}
    assert type(inner.config["reward_speed"]) is int
    np.testing.assert_array_equal(inner.counts, [[1, 2], [7, 4]])
    inner.body_mass = np.array([1.0, 1.0])  # parts that are made anew are found again
    env.reset(seed=0)
    np.testing.assert_array_equal(inner.body_mass, [1.0, 2.5])
    contexts = ContextWrapper(Engine(), [1.0, 2.0], names=["body_mass[0]"])
    contexts.reset(options={"context": 1})
    assert contexts.unwrapped.body_mass[0] == 2.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("body_mass[5]", "no attribute 'body_mass.5.'. ndarray: index 5 is out of bounds"),
        ("body_mass", r"expected a number. Its items have names such as 'body_mass\[0\]'"),
        ("counts", r"such as 'counts\[0, 0\]'"),
        ("config", r"such as \"config\['reward_speed'\]\""),
        ("config['reward_sped']", "Did you mean 'reward_speed'"),
        ("opt.gravty[2]", "Did you mean 'gravity'"),
        ("opt.gravity[x]", "is no name of an attribute; expected e.g."),
        ("opt gravity", "is no name of an attribute"),
        ("f(1)", "is no name of an attribute"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name: str, message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        engine([name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wind[0]", r"'wind\[0\]' of Engine was set to 7.5 and is 1: it belongs to a copy"),
        ("fixed", "'fixed' of Engine cannot be set to 7.5"),
        ("counts[0, 0]", "cannot be set to 7.5: it is in an array of ints"),
    ],
)
def test_attributes_that_do_not_take_a_value_are_refused(name: str, message: str) -> None:
    env = engine([name])
    with pytest.raises(errors.UnsupportedError, match=message):
        env.set_leader([7.5])


def test_a_function_applies_x() -> None:
    def apply(env: Any, x: Any) -> None:
        env.body_mass[:] = x[0] * np.ones(2)
        env.config["reward_speed"] = float(x[1])

    env = engine(None, [1.0, 2.0], 10.0, apply=apply)
    np.testing.assert_array_equal(env.initial_leader(np.random.default_rng(0)), [5.5, 6.0])
    inner: Any = env.unwrapped
    env.set_leader([3.0, 4.0])
    np.testing.assert_array_equal(inner.body_mass, [3.0, 3.0])
    env.reset(options={"leader": [2.0, 5.0]})
    assert inner.config["reward_speed"] == 5.0
    bocmdp_gym.check_configurable_env(env)
    assert engine(None, [1.0], 10.0, apply=apply, initial_leader=[2.0]).leader == [2.0]
    for names, given in ((None, {}), (["fixed"], {"apply": apply})):
        with pytest.raises(errors.OptionError, match="expected either names of attributes, or names=None and apply="):
            engine(names, **given)


def test_the_leaders_reward_may_see_outcomes() -> None:
    def travelled(x: Any, observations: Any, actions: Any, context: Any, next_observations: Any) -> Any:
        return next_observations[:, 0] - observations[:, 0]

    env = cart_pole(leader_reward=travelled)
    env.set_leader([1.5, 5.0])
    observation, _ = env.reset(seed=0)
    following, *_, info = env.step(1)
    assert info["leader_reward"] == pytest.approx(float(following[0]) - float(observation[0]), abs=1e-12)
    assert "outcomes" not in info


# environments of others


def constant(x: Any, observations: Any, actions: Any, context: Any) -> Any:
    return x[0] * torch.ones(len(actions))


def test_mujoco() -> None:
    pytest.importorskip("mujoco")
    plain = gym.make("InvertedPendulum-v5")
    env = LeaderParameters(plain, ["model.body_mass[1]", "model.opt.gravity[2]"], [1.0, -20.0], [20.0, -1.0], constant, 0.99)
    inner: Any = env.unwrapped
    paths = []
    for gravity in (-9.81, -3.3):
        env.set_leader([5.0, gravity])
        env.reset(seed=0)
        paths.append([env.step(np.ones(1, np.float32))[0] for _ in range(3)])
        assert inner.model.opt.gravity[2] == gravity
    assert inner.model.body_mass[1] == 5.0
    assert (paths[0][-1] != paths[1][-1]).any()


def test_box2d() -> None:
    pytest.importorskip("Box2D")
    env = LeaderParameters(gym.make("LunarLander-v3"), ["gravity", "wind_power"], [-11.0, 0.0], [-1.0, 20.0], constant, 0.99)
    env.set_leader([-2.5, 7.0])
    env.reset(seed=0)
    inner: Any = env.unwrapped
    assert inner.world.gravity.y == -2.5
    copied = LeaderParameters(gym.make("LunarLander-v3"), ["world.gravity.y"], -11.0, -1.0, constant, 0.99)
    with pytest.raises(errors.UnsupportedError, match="belongs to a copy"):
        copied.set_leader([-2.5])


@pytest.mark.filterwarnings("ignore")
def test_highway() -> None:
    pytest.importorskip("highway_env")
    names = ['config["collision_reward"]', 'config["vehicles_count"]', 'config["reward_speed_range"][1]']
    env = LeaderParameters(gym.make("highway-v0"), names, [-5.0, 1.0, 21.0], [0.0, 60.0, 40.0], constant, 0.99)
    env.set_leader([-2.5, 7.0, 35.5])
    env.reset(seed=0)
    inner: Any = env.unwrapped
    assert len(inner.road.vehicles) == 8  # and the follower's own
    assert inner.config["collision_reward"] == -2.5
    assert inner.config["reward_speed_range"] == [20, 35.5]
