from __future__ import annotations

from typing import Any

import pytest
from stable_baselines3 import A2C, DQN

from bocmdp_gym import errors
from followers import SB3Follower, TrajectoryOracle
from tests.followers.problems import Point, bandit
from tests.followers.sb3.quick import QUICK, quick, respond


def test_any_class_is_an_algorithm() -> None:
    class MyDQN(DQN):
        pass

    follower = SB3Follower(MyDQN, **QUICK["DQN"])
    respond(follower)
    assert isinstance(follower._learners[0].model, MyDQN)
    assert SB3Follower(A2C, 10).algorithm is A2C


@pytest.mark.parametrize(
    ("algorithm", "env", "message"),
    [
        ("DQN", Point(), "DQN cannot take this environment"),
        ("SAC", bandit(), "SAC cannot take this environment"),
    ],
)
def test_an_algorithm_that_cannot_act_is_refused_before_anything_runs(algorithm: str, env: Any, message: str) -> None:
    with pytest.raises(errors.UnsupportedError, match=message):
        TrajectoryOracle(env, quick(algorithm))


def test_an_algorithms_own_refusal_comes_through() -> None:
    with pytest.raises(errors.OptionError, match="n_steps is 3"):
        TrajectoryOracle(bandit(), quick("SoftDQN", n_steps=3))


@pytest.mark.parametrize(
    ("algorithm", "options", "greedy"),
    [
        ("DQN", {}, True),
        ("DQN", {"softmax_temperature": 0.1}, False),
        ("QRDQN", {}, True),
        ("TD3", {}, True),
        ("DDPG", {}, True),
        ("SAC", {}, False),
        ("PPO", {}, False),
        ("SoftDQN", {"regularization": 0.1}, False),
    ],
)
def test_what_answers_with_the_best_action_alone_says_so(algorithm: str, options: dict[str, Any], greedy: bool) -> None:
    """So that no hypergradient takes its policy, whose probabilities are 0 and 1, for one that never reacts."""
    assert SB3Follower(algorithm, 1000, **options).greedy is greedy
