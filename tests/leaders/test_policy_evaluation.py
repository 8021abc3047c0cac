from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym.errors import LeaderParameterError, OptionError
from bocmdp_gym.wrappers import LeaderReward
from leaders.policy_evaluation import Interval, inequality_of
from tests.followers.sb3.quick import quick
from tests.leaders.test_evaluate import Draws


def rooms() -> Any:
    return gym.make("bocmdp/FourRooms-v0", slip_probability=0.44)


def test_on_a_table_samples_agree_with_exact_values() -> None:
    env, x = rooms(), np.zeros(105)
    follower = followers.SoftPolicyIteration(0.01)
    found = leaders.evaluate_policy(env, follower, x, env_steps=100_000, seed=3)
    exact = float(env.unwrapped.model.leader_return(x, 0.01))
    assert found.exact_leader_return == pytest.approx(exact, abs=1e-12)
    assert abs(found.leader_return.mean - exact) < 2.0 * found.leader_return.half_width
    assert not found.sampled
    values = [c.follower_value for c in found.contexts]
    assert found.follower_value == pytest.approx(np.dot(values, [c.probability for c in found.contexts]))
    exacts: Any = [c.exact_leader_return for c in found.contexts]
    assert found.objectives["Min()"] == pytest.approx(min(exacts))
    assert 200_000 <= found.env_steps < 210_000
    assert found.follower_training_steps == 0
    again = leaders.evaluate_policy(env, follower, x, env_steps=100_000, seed=3)
    assert again == found


@pytest.mark.parametrize("continuous", [True, False])
def test_outcomes_have_intervals_of_their_own(continuous: bool) -> None:
    """The number of an episode is its leader's return here, so the outcome must have the return's mean and interval."""
    follower = followers.CallableFollower(lambda observation: 0)
    asked: dict[str, Any] = {
        "paid": lambda batch: batch.leader_rewards,
        "ended": lambda batch: batch.terminated,
    }
    found = leaders.evaluate_policy(Draws(continuous), follower, [0.5], env_steps=8, contexts=5, outcomes=asked)
    assert found.outcomes["paid"] == found.leader_return
    assert found.outcomes["ended"] == Interval(1.0, 0.0)
    assert len(found.contexts) == (5 if continuous else 2)
    assert found.sampled is continuous
    assert bool(found.objectives) is not continuous
    assert found.contexts[0].outcomes["paid"].mean == found.contexts[0].leader_return


def test_learners_start_from_scratch() -> None:
    def bonus(x: Any, observations: Any, actions: Any, context: Any) -> Any:
        return x[0] * torch.as_tensor(actions).double()

    env = LeaderReward(gym.make("CartPole-v1"), bonus, 1, bonus, 0.9)
    follower = quick("PPO")
    first = leaders.evaluate_policy(env, follower, [0.5], env_steps=100)
    assert first.exact_leader_return is None
    steps = first.follower_training_steps
    assert steps == follower.training_steps > 0
    assert leaders.evaluate_policy(env, follower, [0.5], env_steps=100) == first


def test_bad_input_is_named() -> None:
    env, follower = Draws(False), followers.CallableFollower(lambda observation: 0)
    with pytest.raises(LeaderParameterError, match="shape"):
        leaders.evaluate_policy(env, follower, [0.5, 0.5], env_steps=8)
    with pytest.raises(OptionError, match="env_steps is 0"):
        leaders.evaluate_policy(env, follower, [0.5], env_steps=0)
    for bad in (lambda batch: 1.0, lambda batch: "crash", lambda batch: np.full(batch.n_episodes, np.nan)):
        with pytest.raises(OptionError, match="outcome 'crashes' returned"):
            leaders.evaluate_policy(env, follower, [0.5], env_steps=8, outcomes={"crashes": bad})


def test_inequality_of_values_and_outcomes_across_contexts() -> None:
    follower = followers.CallableFollower(lambda observation: 0)
    asked: dict[str, Any] = {"income": lambda batch: np.full(batch.n_episodes, 1.0 + 2.0 * batch.context)}
    found = leaders.evaluate_policy(Draws(False), follower, [0.5], env_steps=8, outcomes=asked)
    p = [c.probability for c in found.contexts]
    assert found.inequality("income") == (
        pytest.approx(p[0] * p[1] * 2.0 / (1.0 + 2.0 * p[1])),
        pytest.approx(1.0 - 3.0 ** p[1] / (1.0 + 2.0 * p[1])),
    )
    assert found.inequality("income", epsilon=0.0) == (pytest.approx(found.inequality("income")[0]), pytest.approx(0.0))  # type: ignore[index]
    values = found.inequality()
    assert (None if values is None else values.gini) == found.gini
    with pytest.raises(OptionError, match="unknown outcome 'incomes'"):
        found.inequality("incomes")
    with pytest.raises(OptionError, match="epsilon is -1"):
        found.inequality("income", epsilon=-1.0)


def test_negative_values_have_no_inequality() -> None:
    assert inequality_of([-1.0, 1.0], [0.5, 0.5]) is None
    assert inequality_of([0.0, 0.0], [0.5, 0.5]) is None
    assert inequality_of([float("nan"), 1.0], [0.5, 0.5]) is None
    assert inequality_of([0.0, 1.0], [0.5, 0.5]) == (pytest.approx(0.5), pytest.approx(1.0))
