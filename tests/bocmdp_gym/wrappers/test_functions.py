from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from bocmdp_gym import errors
from bocmdp_gym.wrappers import LeaderReward
from bocmdp_gym.wrappers.functions import named_outcomes


class Cart(gym.Env[Any, Any]):
    """Counts its steps, in what it shows, pays and says."""

    observation_space, action_space = gym.spaces.Box(0.0, 1e3, (1,), np.float64), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._time = 0
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self._time += 1
        info = {"speed": self._time * 10, "force": np.array([1.0, action]), "name": "cart", "nothing": None}
        return np.full(1, float(self._time)), 0.5 * self._time, False, False, info


def plain(x: Tensor, observations: Any, actions: Any, context: Any) -> Tensor:
    return x[0] * observations[:, 0]


def wrapped(bonus: Any = plain, leader_reward: Any = plain, **options: Any) -> LeaderReward:
    return LeaderReward(Cart(), bonus, 1, leader_reward, 0.9, **options)


def test_functions_get_the_outcomes_that_they_name() -> None:
    def bonus(x: Tensor, observations: Any, actions: Any, context: Any, next_observations: Any) -> Tensor:
        return x[0] * (next_observations[:, 0] - observations[:, 0])

    def leader_reward(
        x: Tensor, observations: Any, actions: Any, context: Any, scale: float = 2.0, *, infos: Any, rewards: Any
    ) -> Any:
        return scale * infos["speed"] + infos["force"][:, 1] + rewards

    env = wrapped(bonus, leader_reward, info_keys=["speed", "force"])
    env.set_leader([3.0])
    env.reset(seed=0)
    env.step(0)
    _, reward, *_, info = env.step(1)
    assert reward == 0.5 * 2 + 3.0  # what Cart pays in its second step, and the bonus
    assert info["leader_reward"] == 2.0 * 20 + 1.0 + 1.0
    assert set(env.model.outcomes) == {"next_observations", "rewards", "infos"}
    assert set(info["outcomes"]) == {"rewards", "infos"}


def test_a_random_number_generator_is_left_alone_by_the_probing() -> None:
    inner = Cart()
    inner.action_space.seed(5)
    first = copy.deepcopy(inner.action_space)
    LeaderReward(inner, lambda x, o, a, c, rewards: x[0] * rewards, 1, plain, 0.9)
    assert [inner.action_space.sample() for _ in range(10)] == [first.sample() for _ in range(10)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bonus": lambda x, o, a, c, next_observation: x[0] * a}, errors.OptionError, "Did you mean 'next_observations'"),
        ({"bonus": lambda x, o, a, c, info=None: x[0] * a}, errors.OptionError, "Did you mean 'infos'"),
        ({"leader_reward": lambda x, o, a, c, speed: a}, errors.OptionError, "leader_reward has a parameter 'speed' after its"),
        ({"bonus": lambda x, o, a, c, infos: x[0] * infos["speed"]}, errors.OptionError, "info_keys names none"),
        ({"info_keys": ["speed"]}, errors.OptionError, "no function has a parameter named infos"),
        ({"bonus": lambda x, o, a, c, infos: x[0] * a, "info_keys": ["sped"]}, errors.ModelError, "Did you mean 'speed'"),
        ({"bonus": lambda x, o, a, c, infos: x[0] * a, "info_keys": ["name"]}, errors.ModelError, "'cart'; expected a number"),
        (
            {"bonus": lambda x, o, a, c, infos: x[0] * a, "info_keys": ["nothing"]},
            errors.ModelError,
            "is None; expected a number",
        ),
        ({"bonus": lambda x, o, a, c, infos: x[0] * a, "info_keys": 3}, errors.OptionError, "info_keys is 3"),
        ({"bonus": lambda x, o, a, c, rewards: x[0] * rewards[0]}, errors.ModelError, r"context, rewards\) returned shape \(\)"),
        (
            {"bonus": lambda x, o, a, c, rewards: float(x[0].detach()) * rewards},
            errors.ModelError,
            "leaves torch|does not depend on x",
        ),
        ({"parameters": ["speed"]}, errors.OptionError, "has no attribute 'speed'"),
        ({"parameters": 2, "apply": lambda env, x: None}, errors.OptionError, "parameters are 2, and leader_space has 1"),
        ({"parameters": 1.5, "apply": lambda env, x: None}, errors.OptionError, "parameters is 1.5"),
        ({"apply": lambda env, x: None}, errors.OptionError, "apply is given without parameters"),
        ({"update": lambda env: None}, errors.OptionError, "update is given without parameters"),
        ({"log_transitions": lambda x, o, a, n, c: n[:, 0]}, errors.ModelError, "log_transitions does not depend on x"),
        ({"log_transitions": lambda x, o, a, n, c: x[0] / (n[:, 0] - 1)}, errors.ModelError, "log_transitions is nan"),
    ],
)
def test_bad_functions_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wrapped(**options)


def test_functions_without_a_signature_take_no_outcomes() -> None:
    assert named_outcomes("bonus", max, 4) == ()
    assert named_outcomes("bonus", lambda *points, **rest: 0.0, 4) == ()


def test_one_x_moves_the_reward_and_an_attribute() -> None:
    calls: list[float] = []

    def update(cartpole: Any) -> None:
        cartpole.polemass_length = cartpole.masspole * cartpole.length
        calls.append(cartpole.length)

    space = gym.spaces.Box(np.array([-9.0, 0.1]), np.array([9.0, 2.0]), dtype=np.float64)
    options: dict[str, Any] = {"parameters": ["length"], "update": update}
    env = LeaderReward(gym.make("CartPole-v1"), plain, space, plain, 0.9, **options)
    inner: Any = env.unwrapped
    np.testing.assert_array_equal(env.initial_leader(np.random.default_rng(0)), [0.0, 0.5])
    env.set_leader([2.0, 1.5])
    assert (inner.length, inner.polemass_length, calls[-1]) == (1.5, 1.5 * 0.1, 1.5)
    observation, _ = env.reset(seed=0, options={"leader": [3.0, 0.7]})
    assert inner.length == 0.7
    assert env.step(1)[4]["bonus"] == pytest.approx(3.0 * float(observation[0]))
    env.reset(seed=0)
    assert inner.length == 1.5
    assert env.model.frozen == ("x[1] (length)",)
    x = torch.tensor([2.0, 1.5], dtype=torch.float64, requires_grad=True)
    longer = LeaderReward(gym.make("CartPole-v1"), lambda x, o, a, c: x[0] * x[1] * a, space, plain, 0.9, **options)
    longer.model.rewards(x, np.zeros((2, 4)), np.ones(2), 0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 0.0]  # the length is held
    with_function = LeaderReward(
        gym.make("CartPole-v1"), plain, space, plain, 0.9, parameters=1, apply=lambda env, x: setattr(env, "length", float(x[0]))
    )
    with_function.set_leader([2.0, 1.2])
    assert with_function.unwrapped.length == 1.2  # type: ignore[attr-defined]
    assert with_function.model.frozen == ("x[1] (parameter 0)",)


def test_replayed_rewards_of_outcomes_are_not_relabelled() -> None:
    replay = pytest.importorskip("followers.sb3.replay")
    paid = wrapped(lambda x, o, a, c, rewards: x[0] * rewards)
    with pytest.raises(errors.UnsupportedError, match=r"take rewards, which buffers do not hold.*replay='drop'"):
        replay.check_relabelling(paid)
    space = gym.spaces.Box(0.1, 2.0, (2,), np.float64)
    moved = LeaderReward(gym.make("CartPole-v1"), plain, space, plain, 0.9, parameters=["length"])
    with pytest.raises(errors.UnsupportedError, match="belong to transitions that depend on x"):
        replay.check_relabelling(moved)
    replay.check_relabelling(wrapped())
