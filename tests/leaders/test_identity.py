"""A resume of another problem is refused, and the error names what differs; the same problem, made anew, is not refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import TabularEnv
from bocmdp_gym.errors import CheckpointError
from bocmdp_gym.wrappers import LeaderReward
from leaders.checkpoints import Checkpoints
from leaders.identity import describe, differences
from leaders.updates import project_to_simplex
from tests.problems import four_rooms, random_model, small_model


class Scaled(gym.RewardWrapper):  # type: ignore[type-arg]
    """A wrapper that records nothing about itself."""

    def __init__(self, env: gym.Env[Any, Any], scale: float):
        super().__init__(env)
        self._scale = scale

    def reward(self, reward: Any) -> float:
        return float(reward) * self._scale


def pole(goal: float = 1.0, bonus: float = 1.0, steps: int = 50, discount: float = 0.9, scale: float | None = None) -> Any:
    env = gym.make("CartPole-v1", max_episode_steps=steps)
    if scale is not None:
        env = Scaled(env, scale)
    return LeaderReward(
        env,
        bonus=lambda x, observations, actions, context: bonus * x[0] * torch.exp(-((observations[:, 0] - x[1]) ** 2)),
        leader_space=2,
        leader_reward=lambda x, observations, actions, context: -((observations[:, 0] - goal) ** 2),
        discount=discount,
    )


def half(t: int, iterations: int) -> float:
    return 0.5


def agent(observation: Any) -> int:
    return 0


def _run(folder: Path, resume: bool = True, **changes: Any) -> leaders.Result:
    options: dict[str, Any] = {
        "env": lambda: random_model(1, states=4),
        "leader": lambda: leaders.ExactGradient(0.1),
        "follower": lambda: followers.SoftPolicyIteration(0.5),
        "iterations": 3,
        "x0": np.zeros(5),
    } | changes
    env, leader, follower = (options.pop(name)() for name in ("env", "leader", "follower"))
    return leaders.optimize(env, leader, follower, checkpoints=Checkpoints(folder, 2), resume=resume, **options)


def _hpgd(**options: Any) -> Callable[[], leaders.Leader]:
    return lambda: leaders.HPGD(0.1, 50, **options)


def _poles(**options: Any) -> dict[str, Any]:
    return {
        "env": lambda: pole(**options),
        "leader": lambda: leaders.HPGD(0.1, 60, regularization=0.5, estimator="critic"),
        "follower": lambda: followers.SB3Follower("PPO", 32, n_steps=32, batch_size=32, n_epochs=1),
        "iterations": 1,
        "x0": None,
    }


def _rooms(**options: Any) -> dict[str, Any]:
    return {"env": lambda: four_rooms(**options), "x0": None, "iterations": 1, "leader": lambda: leaders.ExactGradient(0.1)}


def _exact(**options: Any) -> dict[str, Any]:
    return {"leader": lambda: leaders.ExactGradient(**{"learning_rate": 0.1, **options})}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "penalty": (_rooms(), _rooms(penalty_cost=3.0), "penalty_cost was 1.0, is 3.0"),
    "slip": (_rooms(), _rooms(slip_probability=0.2), "slip_probability"),
    "goals": (_rooms(), _rooms(goals=((1, 9), (11, 1))), "goals"),
    "discount": (_rooms(), _rooms(discount=0.9), "discount"),
    "rewards": ({}, {"env": lambda: random_model(1, states=4, strength=0.4)}, "environment"),
    "one number": ({}, {"env": lambda: random_model(1, states=4, moving=("leader_reward", "transition", "initial"))}, "reward"),
    "actions that exist": (  # all of them being alike
        {"env": small_model, "x0": np.zeros(2)},
        {"env": lambda: small_model(action_mask=np.array([[True, False]] * 3)), "x0": np.zeros(2)},
        "environment",
    ),
    "model's discount": ({}, {"env": lambda: random_model(1, states=4, discount=0.8)}, "discount was 0.9, is 0.8"),
    "horizon": (
        {"env": lambda: TabularEnv(random_model(1, states=4))},
        {"env": lambda: TabularEnv(random_model(1, states=4), horizon=20)},
        "horizon was 200, is 20",
    ),
    "a function's constant": (_poles(), _poles(goal=2.0), "goal was 1.0, is 2.0"),
    "an enclosed number": (_poles(), _poles(bonus=2.0), "bonus.bonus was 1.0, is 2.0"),
    "time limit": (_poles(), _poles(steps=20), "50, is 20"),
    "a wrapper": (_poles(), _poles(scale=2.0), "Scaled"),
    "a wrapper's number": (_poles(scale=1.0), _poles(scale=2.0), "scale was 1.0, is 2.0"),
    "env_steps": ({"leader": _hpgd()}, {"leader": lambda: leaders.HPGD(0.1, 60)}, "env_steps was 50, is 60"),
    "estimator": ({"leader": _hpgd()}, {"leader": lambda: leaders.HPGD(0.1, estimator="geometric", samples=50)}, "estimator"),
    "estimator's option": ({"leader": _hpgd()}, {"leader": _hpgd(bootstrap_truncated=True)}, "bootstrap_truncated"),
    "clip": ({}, _exact(max_gradient_norm=2.0), "max_gradient_norm was 1.0, is 2.0"),
    "schedule": ({}, _exact(schedule="cosine"), "schedule was 'constant', is 'cosine'"),
    "schedule function": (_exact(schedule=half), _exact(schedule=lambda t, T: 0.25), "schedule"),
    "projection": ({}, _exact(projection=project_to_simplex), "projection"),
    "momentum": (_exact(momentum=0.1), _exact(momentum=0.2), "momentum was 0.1, is 0.2"),
    "optimizer": ({}, _exact(optimizer="Adam"), "optimizer was 'SGD', is 'Adam'"),
    "step size": ({}, _exact(learning_rate=0.2), "learning_rate was 0.1, is 0.2"),
    "follower's iterations": (
        {"leader": _hpgd(), "follower": lambda: followers.SoftValueIteration(0.5, iterations=3)},
        {"leader": _hpgd(), "follower": lambda: followers.SoftValueIteration(0.5, iterations=4)},
        "follower.iterations was 3, is 4",
    ),
    "follower": (
        {"leader": _hpgd()},
        {"leader": _hpgd(), "follower": lambda: followers.SoftValueIteration(0.5)},
        "follower.class",
    ),
    "agent": (
        {"leader": lambda: leaders.ZeroOrder(0.1, env_steps=20), "follower": lambda: followers.CallableFollower(agent)},
        {"leader": lambda: leaders.ZeroOrder(0.1, env_steps=20), "follower": lambda: followers.CallableFollower(lambda o: 1)},
        "agent",
    ),
    "lambda": ({}, {"follower": lambda: followers.SoftPolicyIteration(0.4)}, "regularization was 0.5, is 0.4"),
    "loss": ({}, {"loss": lambda x, policy, context: x.sum()}, "loss was None"),
    "constraints": (
        {"constraints": [leaders.Constraint("level", "follower", 1.0)]},
        {"constraints": [leaders.Constraint("level", "follower", 2.0)]},
        "constraints.0.at_least was 1.0, is 2.0",
    ),
    "constraint_penalty": ({}, {"constraint_penalty": 5.0}, "constraint_penalty was 50.0, is 5.0"),
    "contexts": ({}, {"contexts": "all"}, "contexts was 1, is 'all'"),
    "x0": ({}, {"x0": np.ones(5)}, r"x0.0 was 0.0, is 1.0"),
    "seed": ({}, {"seed": 1}, "seed was 0, is 1"),
    "generator": ({"seed": np.random.default_rng(0)}, {"seed": np.random.default_rng(1)}, "seed"),
    "iterations": ({}, {"iterations": 4}, "iterations was 3, is 4"),
    "evaluations": ({}, {"evaluate_every": 2}, "evaluate_every was 100, is 2"),
}


@pytest.mark.filterwarnings("ignore::bocmdp_gym.errors.CriticWarning")
@pytest.mark.parametrize("case", CASES)
def test_another_problem_is_refused_and_what_differs_is_named(case: str, tmp_path: Path) -> None:
    before, after, message = CASES[case]
    first = _run(tmp_path, resume=False, **before)
    with pytest.raises(CheckpointError, match=message):
        _run(tmp_path, **after)
    if case != "generator":  # which has moved on
        assert torch.equal(_run(tmp_path, **before).x, first.x)


def test_another_version_of_the_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path, resume=False)
    monkeypatch.setattr("leaders.run.__version__", "9.9")
    with pytest.raises(CheckpointError, match=r"library version was .*, is '9.9'"):
        _run(tmp_path)


def test_what_changes_no_number_is_no_difference(tmp_path: Path) -> None:
    def follower(folder: str) -> followers.SB3Follower:
        return followers.SB3Follower("PPO", 32, n_steps=32, log_dir=tmp_path / folder)

    assert differences(describe(follower("a")), describe(follower("b"))) == ""
    assert differences(describe(leaders.ExactGradient(1).update), describe(leaders.ExactGradient(1.0).update)) == ""


def test_values_are_told_apart() -> None:
    big = np.random.default_rng(0).normal(size=1000)
    other = big.copy()
    other[500] += 1e-3
    rounded = big * (1 + 1e-15)
    assert differences(describe(big), describe(rounded)) == ""
    assert differences(describe(big), describe(other)) != ""
    assert differences(describe(functools.partial(half, t=1)), describe(functools.partial(half, t=2))) != ""
    assert differences({"a": 1, "b": [1, 2]}, {"a": True, "b": [1, 3]}) == "a was 1, is True; b.1 was 2, is 3"
    assert differences({"a": float("nan")}, {"a": float("nan")}) == ""
