from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import bocmdp_gym
import followers
import leaders
from bocmdp_gym import Hooks, TabularEnv, configurable, errors
from bocmdp_gym.hooks import Adapted, context_observed
from bocmdp_gym.registration import ENVIRONMENTS
from bocmdp_gym.wrappers import ContextWrapper, LeaderReward, ObserveContext
from tests.problems import four_rooms

IDS = [entry.id for entry in ENVIRONMENTS]


class Foreign(gym.Env[Any, Any]):
    """Satisfies the protocol, and derives from none of the library's classes: pays x for action 1, one step long."""

    observation_space = gym.spaces.Discrete(1)
    action_space = gym.spaces.Discrete(2)
    leader_space = gym.spaces.Box(-2.0, 3.0, (1,), np.float64)
    context_space = gym.spaces.Discrete(2)
    discount = leader_discount = 0.9

    def __init__(self) -> None:
        self.x, self.fixed, self.leader, self.context = np.zeros(1), None, np.zeros(1), 0

    def set_leader(self, x: Any) -> None:
        self.x = self.leader = bocmdp_gym.validation.check_leader(x, self.leader_space)

    def set_context(self, context: Any) -> None:
        self.fixed = context if context is None else bocmdp_gym.validation.check_context(context, self.context_space)

    def sample_context(self, rng: np.random.Generator) -> int:
        return int(rng.integers(2))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        given = options or {}
        if set(given) - {"leader", "context"}:
            raise errors.OptionError(f"unknown options {given}")
        self.leader = np.asarray(given.get("leader", self.x))
        drawn = self.sample_context(self.np_random) if self.fixed is None else self.fixed
        self.context = given.get("context", drawn)
        return 0, {"context": self.context}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        info = {"leader_reward": float(action), "context": self.context}
        return 0, float(self.leader[0]) * action, True, False, info


def test_an_environment_of_another_family_works_with_the_defaults() -> None:
    env = gym.wrappers.TimeLimit(Foreign(), 5)
    bocmdp_gym.check_configurable_env(env)
    core = configurable(env)
    assert isinstance(core, Adapted)
    assert core.layer is env.unwrapped
    assert core.model is core.horizon is core.result_name is core.context_probabilities is None
    assert core.benchmark() is None
    assert core.constraints() == []
    assert core.initial_leader(np.random.default_rng(0)).tolist() == [0.0]
    follower = followers.CallableFollower(lambda observation: 1)
    oracle = followers.TrajectoryOracle(env, follower)
    assert oracle.horizon == 5
    leader = leaders.ZeroOrder(0.1, env_steps=5)
    result = leaders.optimize(env, leader, follower, 2, seed=0, progress=False)
    assert np.isfinite(result.x.numpy()).all()


def test_own_members_come_before_the_defaults() -> None:
    class Richer(Foreign):
        horizon = 7

        def initial_leader(self, rng: np.random.Generator) -> Any:
            return np.ones(1)

    core = configurable(Richer())
    assert core.horizon == 7
    assert core.initial_leader(np.random.default_rng(0)).tolist() == [1.0]
    core.set_context(1)
    assert core.layer.fixed == 1
    core.x = np.full(1, 0.5)
    assert core.layer.x.tolist() == [0.5]
    for twin in (copy.deepcopy(core), pickle.loads(pickle.dumps(configurable(Foreign())))):  # noqa: S301 - our own bytes
        assert twin.leader_space == Foreign.leader_space


@pytest.mark.parametrize("hook", ["observe", "states_of", "neighbours", "joint_action"])
def test_what_is_not_there_is_named(hook: str) -> None:
    with pytest.raises(errors.UnsupportedError, match=rf"Foreign has no {hook}\("):
        getattr(configurable(Foreign()), hook)(0)


def test_an_undeclared_hook_is_found_by_the_check() -> None:
    class Undeclared(Foreign):
        def neighbours(self, observation: Any) -> Any:
            return np.zeros((1, 1), dtype=np.int64), np.ones((1, 1))

    with pytest.raises(errors.CheckError, match="neighbours must be declared"):
        bocmdp_gym.check_configurable_env(Undeclared())


@pytest.mark.parametrize(
    ("env_id", "options", "pieces"),
    [
        ("FourRooms", {}, 104),
        ("MetaRL", {}, 41 * 4),
        ("PrincipalAgent", {"instance": "grid", "bonus_on": "state"}, 18),
        ("PrincipalAgent", {"instance": "grid", "budget_on": "paid"}, 18 * 4),
        ("PrincipalAgent", {}, 0),
        ("RoadTolls", {"network": "braess", "tollable": [1, 3]}, 2),
        ("RandomMDP", {}, 0),
    ],
)
def test_outlines_of_a_map_lie_apart(env_id: str, options: dict[str, Any], pieces: int) -> None:
    """Every component has one, and no two have their middle in the same place."""
    env = gym.make(f"bocmdp/{env_id}-v0", **options)
    bocmdp_gym.check_configurable_env(env)
    core = configurable(env)
    outlines = core.leader_outlines()
    if not pieces:
        assert outlines is None
        return
    assert len(outlines) == core.leader_space.shape[0]
    assert len(outlines) - pieces in (0, 1)  # a bar for what is not spent
    assert len({tuple(one.mean(0).round(6)) for one in outlines}) == len(outlines)


def test_outlines_that_are_not_those_of_x_are_found_by_the_check() -> None:
    class Drawn(Foreign):
        def leader_outlines(self) -> Any:
            return [np.zeros((3, 2)), np.zeros((3, 2))]

    with pytest.raises(errors.CheckError, match="leader_outlines"):
        bocmdp_gym.check_configurable_env(Drawn())


@pytest.mark.parametrize("env_id", IDS)
def test_hooks_have_one_signature(env_id: str) -> None:
    core = configurable(gym.make(env_id))
    assert isinstance(core, Hooks)
    assert core.layer is core
    hooks = ("initial_leader", "benchmark", "constraints", "leader_outlines", "result_figure")
    for hook in (*hooks, "observe", "states_of", "neighbours", "joint_action"):
        expected, found = (inspect.signature(getattr(kind, hook)).parameters for kind in (Hooks, type(core)))
        assert list(found) == list(expected), hook
        assert [p.default for p in found.values()] == [p.default for p in expected.values()], hook
    assert core.exposes_states == isinstance(core, TabularEnv)
    far = core.benchmark(regularization=1e9)
    assert far is None or far.regularization in (None, 1e9)


def test_shown_contexts_are_declared() -> None:
    def zero(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return 0.0 * x.sum() + 0.0 * observations[:, 0]

    hidden = ContextWrapper(gym.make("CartPole-v1"), [0.3, 0.9], names=["length"])
    assert not context_observed(hidden)
    assert context_observed(ObserveContext(hidden))
    assert context_observed(ObserveContext(LeaderReward(hidden, zero, 1, zero, 0.9)))
    assert not context_observed(four_rooms())


def test_a_wrapper_knows_the_limit_inside() -> None:
    def zero(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return 0.0 * x.sum() + 0.0 * observations.reshape(len(observations), -1)[:, 0]

    assert LeaderReward(gym.make("CartPole-v1"), zero, 1, zero, 0.9).horizon == 500
    assert LeaderReward(gym.make("CartPole-v1").unwrapped, zero, 1, zero, 0.9).horizon is None
    with pytest.warns(errors.FrozenLeaderWarning):
        assert LeaderReward(four_rooms(horizon=11), zero, 1, zero, 0.99).horizon == 11
