"""Memory that belongs to somebody else: buffers of environments and agents, arrays handed to models."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import sparse

import leaders
from bocmdp_gym import (
    FactoredTransitions,
    SuccessorTransitions,
    TabularBOCMDP,
    check_configurable_env,
    configurable,
    errors,
)
from bocmdp_gym.memory import owned
from bocmdp_gym.transitions import DenseTransitions
from bocmdp_gym.wrappers import ContextWrapper, LeaderReward
from followers import CallableFollower, SB3Follower, TrajectoryOracle
from followers.policies import TabularPolicy
from tests.followers.problems import Point
from tests.problems import F64, small_model

# --------------------------------------------------------------------------------------------- environments and agents


class Buffered(Point):
    """A `Point` that returns one array again and again; ``fresh`` returns copies, with the same numbers."""

    fresh = False

    def _observe(self) -> Any:
        self._buffer = getattr(self, "_buffer", np.zeros(1, np.float32))
        self._buffer[:] = self._position
        return self._buffer.copy() if self.fresh else self._buffer


class BufferedDict(Buffered):
    """The same in a dictionary, within a tuple."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        box = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = gym.spaces.Tuple((gym.spaces.Dict({"here": box}), gym.spaces.Discrete(2)))

    def _observe(self) -> Any:
        value = super()._observe()
        self._parts = getattr(self, "_parts", {})
        self._parts["here"] = value
        return ({"here": value} if self.fresh else self._parts, 1)


def _fresh(kind: type[Buffered]) -> type[Buffered]:
    return type(kind.__name__, (kind,), {"fresh": True})


def _follower() -> CallableFollower:
    return CallableFollower(lambda observation: np.array([0.25], np.float32), regularization=0.5)


def _sample(env: Any, steps: int = 40) -> Any:
    oracle, rng = TrajectoryOracle(env, _follower()), np.random.default_rng(0)
    return oracle.sample(oracle.respond([0.5], 0, rng), steps, rng)


@pytest.mark.parametrize("kind", [Buffered, BufferedDict])
def test_observations_in_one_buffer_are_kept_apart(kind: type[Buffered]) -> None:
    found, expected = _sample(kind()), _sample(_fresh(kind)())
    flat = [[_numbers(o) for o in batch.observations] for batch in (found, expected)]
    np.testing.assert_array_equal(*flat)
    np.testing.assert_array_equal(*([_numbers(o) for o in b.final_observations] for b in (found, expected)))
    np.testing.assert_allclose(np.ravel(flat[0]), found.leader_rewards, atol=1e-7)  # the leader is paid the position
    assert len(np.unique(flat[0])) > 30


def _numbers(observation: Any) -> Any:
    return observation[0]["here"] if isinstance(observation, tuple) else observation


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
@pytest.mark.parametrize("kind", [Buffered, BufferedDict])
def test_copies_in_one_buffer_are_kept_apart(kind: type[Buffered], mode: str, copy: bool) -> None:
    found, expected = (
        _sample(gym.vector.SyncVectorEnv([k] * 3, copy=c, autoreset_mode=mode)) for k, c in ((kind, copy), (_fresh(kind), True))
    )
    np.testing.assert_array_equal(*([_numbers(o) for o in b.observations] for b in (found, expected)))
    np.testing.assert_array_equal(*([_numbers(o) for o in b.final_observations] for b in (found, expected)))


def test_copies_that_overwrite_their_last_observation_are_noticed() -> None:
    fresh = gym.vector.SyncVectorEnv([_fresh(Buffered)] * 2, copy=False, autoreset_mode="SameStep")
    assert _sample(fresh).n_episodes > 4
    with pytest.raises(errors.ObservationError, match="returns one array again and again"):
        _sample(gym.vector.SyncVectorEnv([Buffered] * 2, autoreset_mode="SameStep"))


def test_actions_in_one_buffer_are_kept_apart() -> None:
    class Agent:
        action, count = np.zeros(1, np.float32), 0

        def predict(self, observation: Any) -> Any:
            self.count += 1
            self.action[:] = self.count / 100
            return self.action

    oracle, rng = TrajectoryOracle(Point(), CallableFollower(Agent())), np.random.default_rng(0)
    batch = oracle.sample(oracle.respond([0.5], 0, rng), 20, rng)
    assert len(np.unique(batch.actions)) == 20
    np.testing.assert_allclose(batch.rewards, -((batch.actions[:, 0] - 0.5) ** 2), rtol=1e-5)


def test_policies_may_write_into_what_they_see() -> None:
    def act(observation: Any) -> Any:
        observation *= 0.0
        return np.zeros(1, np.float32)

    oracle, rng = TrajectoryOracle(Point(), CallableFollower(act)), np.random.default_rng(0)
    batch = oracle.sample(oracle.respond([0.5], 0, rng), 20, rng)
    np.testing.assert_allclose(batch.observations[:, 0], batch.leader_rewards, atol=1e-7)


class _BufferedCart(gym.Wrapper[Any, Any, Any, Any]):
    """A cart-pole in one buffer."""

    transparent = True

    def __init__(self, env: Any, fresh: bool):
        super().__init__(env)
        self._array, self._fresh = np.zeros(4, np.float32), fresh

    def _put(self, observation: Any) -> Any:
        self._array[:] = observation
        return self._array.copy() if self._fresh else self._array

    def reset(self, **options: Any) -> Any:
        observation, info = super().reset(**options)
        return self._put(observation), info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (self._put(observation), *rest)


def _leader_env(fresh: bool) -> Any:
    return LeaderReward(
        _BufferedCart(gym.make("CartPole-v1", max_episode_steps=30), fresh),
        lambda x, o, a, c: x[0] * o[:, 2] + x[1] * a,
        2,
        lambda x, o, a, c: -o[:, 2].abs(),
        0.9,
    )


@pytest.mark.filterwarnings("ignore::bocmdp_gym.errors.CriticWarning")  # few steps
def test_gradients_are_those_of_fresh_observations() -> None:
    gradients = []
    for fresh in (False, True):
        oracle = TrajectoryOracle(
            _leader_env(fresh), CallableFollower(lambda o, rng: int(rng.random() < 0.5), regularization=1.0)
        )
        leader = leaders.HPGD(estimator="critic", env_steps=300)
        leader.estimator.bind(oracle)
        gradients.append(leader.estimate(oracle, torch.zeros(2, dtype=F64), 0, np.random.default_rng(0)))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert gradients[0].abs().max() > 0.0


def test_an_outer_layer_that_writes_into_observations_changes_no_reward() -> None:
    env = _leader_env(True)
    observation, _ = env.reset(seed=0)
    expected = -abs(float(observation[2]))
    observation[:] = 5.0
    assert env.step(0)[4]["leader_reward"] == pytest.approx(expected)


def test_agents_in_training_are_given_observations_of_their_own() -> None:
    def train(env: Any, context: Any, rng: np.random.Generator) -> Any:
        seen = [env.reset(seed=0)[0]]
        seen += [env.step(np.zeros(1, np.float32))[0] for _ in range(4)]
        assert len(np.unique(np.array(seen))) == 5
        return lambda observation: np.zeros(1, np.float32)

    def train_copies(envs: Any, context: Any, rng: np.random.Generator) -> Any:
        seen = [envs.reset(seed=0)[0]]
        seen += [envs.step(np.zeros((2, 1), np.float32))[0] for _ in range(4)]
        assert len(np.unique(np.array(seen))) == 10
        return lambda observation: np.zeros(1, np.float32)

    rng = np.random.default_rng(0)
    TrajectoryOracle(Buffered(), CallableFollower(train=train)).respond([0.5], 0, rng)
    copies = gym.vector.SyncVectorEnv([Buffered] * 2, copy=False)
    TrajectoryOracle(copies, CallableFollower(train=train_copies)).respond([0.5], 0, rng)


@pytest.mark.parametrize("copies", [False, True])
def test_neural_followers_learn_from_fresh_observations(copies: bool) -> None:
    def actions(kind: type[Buffered]) -> Any:
        mode = gym.vector.AutoresetMode.DISABLED
        env = gym.vector.SyncVectorEnv([kind] * 2, copy=kind.fresh, autoreset_mode=mode) if copies else kind()
        follower = SB3Follower("PPO", 64, n_steps=16, batch_size=16, n_epochs=2)
        oracle, rng = TrajectoryOracle(env, follower), np.random.default_rng(0)
        policy = oracle.respond([0.5], 0, rng)
        return [policy.act(np.array([s], np.float32), np.random.default_rng(1)) for s in (-0.5, 0.0, 0.5)]

    np.testing.assert_array_equal(actions(Buffered), actions(_fresh(Buffered)))


def test_the_check_finds_buffers() -> None:
    check_configurable_env(_fresh(Buffered)())
    with pytest.raises(errors.CheckError, match="step must return a new observation"):
        check_configurable_env(Buffered())
    with pytest.raises(errors.CheckError, match="step must return a new observation"):
        check_configurable_env(BufferedDict())

    class OnlyAtResets(Point):
        """A buffer of its own for the first observation of an episode and the last."""

        ends: Any = np.zeros(1, np.float32)

        def _observe(self) -> Any:
            if self._age not in (0, 5):
                return super()._observe()
            self.ends[:] = self._position
            return self.ends

    class Clipping(Point):
        def step(self, action: Any) -> Any:
            action *= 0.5
            return super().step(action)

    with pytest.raises(errors.CheckError, match="new observation"):
        check_configurable_env(OnlyAtResets())
    with pytest.raises(errors.CheckError, match="leave the action it is given alone"):
        check_configurable_env(Clipping())


# ------------------------------------------------------------------------------------------------------------ models


def _parts() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "reward": rng.standard_normal((2, 3, 2)),
        "leader_reward": rng.standard_normal((2, 3, 2)),
        "transition": rng.dirichlet(np.ones(3), (1, 3, 2)),
        "initial": rng.dirichlet(np.ones(3), 1),
        "termination": rng.uniform(0.1, 0.9, (1, 3, 2)),
        "context_probabilities": np.array([0.3, 0.7]),
    }


#: Another valid value of each part.
_OTHER = {name: np.roll(part, 1, 1 if part.ndim > 1 else 0) for name, part in _parts().items()}


def _model(parts: dict[str, Any]) -> TabularBOCMDP:
    return TabularBOCMDP(**parts, leader_dim=1, discount=0.9)


@pytest.mark.parametrize("kind", ["array", "tensor", "operator"])
@pytest.mark.parametrize("name", list(_OTHER))
def test_models_from_one_reused_array_do_not_answer_alike(name: str, kind: str) -> None:
    parts = _parts()
    buffer = parts[name].copy()
    given: Any = torch.from_numpy(buffer) if kind != "array" else buffer
    if kind == "operator" and name == "transition":
        given = DenseTransitions(given)

    values = (parts[name], _OTHER[name])
    expected = [float(_model(parts | {name: value}).leader_return([0.0], 0.5)) for value in values]
    assert expected[0] != expected[1]
    first = _model(parts | {name: given})
    buffer[:] = _OTHER[name]
    if kind == "operator" and name == "transition":
        given = DenseTransitions(torch.from_numpy(buffer))
    second = _model(parts | {name: given})
    buffer[:] = 0.0
    found = [float(model.leader_return([0.0], 0.5)) for model in (first, second)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    again = [float(model.replace(leader_discount=0.9).leader_return([0.0], 0.5)) for model in (first, second)]
    np.testing.assert_allclose(again, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["successors", "factored", "sparse", "sparse list"])
def test_operators_own_their_numbers(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(3), (1, 3, 2))
    succ, index = np.tile(np.arange(3, dtype=np.int32), (1, 3, 2, 1)), np.array([1, 0])
    matrices: Any = sparse.csr_array(values[0].reshape(6, 3))
    if kind == "sparse list":
        matrices = [sparse.csr_array(values[0, :, a]) for a in range(2)]

    def transition() -> Any:
        if kind == "successors":
            return SuccessorTransitions(succ, torch.from_numpy(values))
        return FactoredTransitions(torch.from_numpy(values), index) if kind == "factored" else matrices

    model = small_model(transition=transition(), reward=torch.arange(6.0, dtype=F64).reshape(1, 3, 2))
    before = model.solve([0.0, 0.0], 0.5).value
    values[:], succ[:], index[:] = 1 / 3, 0, 0
    for matrix in matrices if kind == "sparse list" else [matrices]:
        matrix.data[:] = 0.0
    torch.testing.assert_close(model.solve([0.0, 0.0], 0.5).value, before, rtol=0, atol=0)
    torch.testing.assert_close(model.replace(discount=0.9).solve([0.0, 0.0], 0.5).value, before)


def test_a_constant_that_carries_a_graph_keeps_it() -> None:
    reward = torch.ones(1, 3, 2, dtype=F64, requires_grad=True)
    model = small_model(reward=reward)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(model.solve([0.0, 0.0], 0.5).value.sum(), reward)
        assert float(gradient.sum()) == pytest.approx(30.0)  # three states, 1 / (1 - 0.9)


@pytest.mark.parametrize(
    ("env_id", "name", "value"),
    [
        ("bocmdp/TaxDesign-v0", "prices", np.array([1.0, 1.0, 1.0])),
        ("bocmdp/TaxDesign-v0", "tax_upper", np.array([1.0, 2.0, 2.0, 2.0])),
        ("bocmdp/PrincipalAgent-v0", "agent_probabilities", None),
        ("bocmdp/MetaRL-v0", "task_probabilities", None),
    ],
)
def test_environments_own_their_arguments(env_id: str, name: str, value: Any) -> None:
    if value is None:
        n = int(configurable(gym.make(env_id)).context_space.n)  # type: ignore[attr-defined]
        value = np.full(n, 1.0 / n)
    kind = type(configurable(gym.make(env_id)))
    env = kind(**{name: value})
    x = env.initial_leader(np.random.default_rng(0))
    before = float(env.model.leader_return(x, 0.5))
    value[:] = value[::-1] * np.linspace(0.5, 1.5, len(value))
    for one in (env, pickle.loads(pickle.dumps(env))):  # noqa: S301 - our own
        assert float(one.model.leader_return(x, 0.5)) == before


def test_contexts_and_policies_own_their_numbers() -> None:
    values = np.array([[1.0], [2.0]])
    env = ContextWrapper(gym.make("CartPole-v1"), values, names=["length"])
    values[:] = 9.0
    env.reset(seed=0, options={"context": 1})
    assert env.unwrapped.length == 2.0  # type: ignore[attr-defined]
    table = np.array([[0.25, 0.75]])
    policy = TabularPolicy(table, np.zeros(1), 0)
    table[:] = 0.5
    np.testing.assert_array_equal(policy.probabilities(0), [0.25, 0.75])


def test_owned_copies_arrays_within_containers() -> None:
    array, tensor = np.zeros(2), torch.zeros(2)
    value: Any = {"a": [array, (tensor, "text", 3)], "b": None}
    copy = owned(value)
    array[:], tensor[:] = 1.0, 1.0
    np.testing.assert_array_equal(copy["a"][0], np.zeros(2))
    assert float(copy["a"][1][0].sum()) == 0.0
    assert copy["a"][1][1:] == ("text", 3)
    graph = torch.ones(2, requires_grad=True) * 2
    assert owned(graph) is graph
