from __future__ import annotations

import gymnasium as gym
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from tests.problems import four_rooms


def _leader() -> leaders.Leader:
    return leaders.ExactGradient(learning_rate=0.2, optimizer="Adam", max_gradient_norm=None)


def test_random_starts_find_the_best_known_optimum() -> None:
    """FACTS: 0.798 at (0.003, 3), where ascent from x_0 ends at 0.39."""
    env, follower = four_rooms(penalty_cost=3.0), followers.SoftPolicyIteration(0.003)
    found = leaders.multistart(env, _leader(), follower, 300, starts=10, rounds=2, contexts="all", progress=False)
    assert found.best.leader_return is not None
    assert found.best.leader_return >= 0.99 * 0.798
    returns = [start.leader_return for start in found.starts]
    assert returns == sorted(returns, reverse=True)
    assert len({round(r, 2) for r in returns}) > 1  # there really are several local optima
    assert {start.iterations for start in found.starts} == {300, 600}
    again = leaders.multistart(env, _leader(), follower, 300, starts=10, rounds=2, contexts="all", progress=False)
    assert torch.equal(found.best.x, again.best.x)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(errors.OptionError, match="keep"):
        leaders.multistart(four_rooms(), _leader(), followers.SoftPolicyIteration(0.003), keep=0.0)
    with pytest.raises(errors.NotConfigurableError):
        leaders.multistart(gym.make("CartPole-v1"), _leader(), followers.SoftPolicyIteration(0.003))
