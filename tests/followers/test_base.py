from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import followers
import leaders
from bocmdp_gym import errors
from followers import RayOracle, StepSize, TrajectoryOracle
from tests.followers.problems import Point, bandit

FOLLOWERS: list[followers.Follower] = [
    followers.SoftPolicyIteration(0.001),
    followers.SoftPolicyIteration(0.1, 1e-8, discount=0.5),
    followers.SoftValueIteration(0.1, iterations=5),
    followers.SoftQLearning(0.1, iterations=5, behaviour=np.full((2, 2), 0.5), step_size=StepSize.visits(3.0)),
    followers.VanillaPolicyGradient(0.1, tolerance=0.1, baseline=False),
    followers.NaturalPolicyGradient(0.1, rollouts=3, iterations=2),
    followers.LinearProgramming(),
    followers.CallableFollower(max, regularization=0.1),
    followers.SB3Follower("PPO", 64, n_steps=64, policy_kwargs={"net_arch": [3]}),
    followers.SoftDQNFollower(0.1, 64, learning_starts=8, warm_start=False),
    followers.SACFollower(0.1, 200, learning_starts=8),
]


@pytest.mark.parametrize("follower", FOLLOWERS, ids=lambda follower: type(follower).__name__)
def test_reprs_can_be_pasted_back(follower: followers.Follower) -> None:
    again = eval(repr(follower), {name: getattr(followers, name) for name in followers.__all__} | {"max": max})
    assert type(again) is type(follower)
    assert repr(again) == repr(follower)
    assert again.regularization == follower.regularization


@pytest.mark.parametrize("follower", FOLLOWERS, ids=lambda follower: type(follower).__name__)
def test_misspelt_options_are_refused(follower: followers.Follower) -> None:
    wrong, right = ("resett", "reset") if isinstance(follower, followers.CallableFollower) else ("discuont", "discount")
    with pytest.raises(errors.UnknownOptionError, match=f"Did you mean '{right}'"):
        type(follower)(**follower._given_arguments, **{wrong: None})


@pytest.mark.parametrize("oracle", [TrajectoryOracle, RayOracle])
@pytest.mark.parametrize(
    ("follower", "message"),
    [
        (followers.SoftPolicyIteration, r"is the class SoftPolicyIteration; expected an instance"),
        (leaders.ExactGradient(), "of type ExactGradient; .* arguments are in the wrong order"),
        (lambda observation: 0, r"CallableFollower\(agent\)"),
        (bandit(), "wrong order"),
        (None, "expected a followers.Follower"),
    ],
)
def test_what_is_no_follower_is_refused(oracle: Any, follower: Any, message: str) -> None:
    with pytest.raises(errors.OptionError, match=message):
        oracle(bandit(), follower)


@pytest.mark.parametrize("oracle", [TrajectoryOracle, RayOracle])
def test_environments_are_checked_before_anything_runs(oracle: Any) -> None:
    """Under `RayOracle` before any worker starts: the same hook is asked."""
    with pytest.raises(errors.UnsupportedError, match="SoftPolicyIteration plans with a tabular model, and Point has none"):
        oracle(Point(), followers.SoftPolicyIteration(0.1))
    with pytest.raises(errors.DiscountError, match="SoftPolicyIteration was given discount"):
        oracle(bandit(), followers.SoftPolicyIteration(0.1, discount=0.9))
    with pytest.raises(errors.UnsupportedError, match="estimate_steps"):
        oracle(Point(), followers.CallableFollower(lambda observation: 0, estimate_steps=5))


def test_followers_declare_what_they_offer() -> None:
    for follower in FOLLOWERS:
        planning = isinstance(follower, (followers.SoftPolicyIteration, followers.LinearProgramming, followers.IterativeFollower))
        assert follower.plans == planning
        assert follower.exposes_probabilities in ((True,) if planning else (True, False, None))
        assert follower.iterative == isinstance(follower, followers.IterativeFollower)
        assert not follower.shared
    ppo = followers.SB3Follower("PPO", 64)
    assert ppo.exposes_probabilities is None
    ppo.bind(Point(), Point())
    assert ppo.exposes_probabilities is False


def test_steps_are_counted_by_the_oracle_alone() -> None:
    oracle = TrajectoryOracle(bandit(), followers.SoftPolicyIteration(0.1))
    oracle.count_steps(5)
    assert oracle.env_steps == 5
    oracle.restore(3)
    assert oracle.env_steps == 3
    with pytest.raises(AttributeError):
        oracle.env_steps = 7  # type: ignore[misc]
    with pytest.raises(errors.OptionError, match="env_steps is -1"):
        oracle.count_steps(-1)


def test_environments_without_copies_of_a_kind_are_refused() -> None:
    with pytest.raises(errors.NotConfigurableError):
        TrajectoryOracle(gym.make("CartPole-v1"), followers.CallableFollower(lambda observation: 0))
