"""A shop with one price and a buyer who takes the best action: refused or right."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.wrappers import LeaderReward

_DQN: dict[str, Any] = {
    "learning_rate": 3e-3,
    "learning_starts": 50,
    "buffer_size": 500,
    "target_update_interval": 50,
    "exploration_fraction": 0.5,
    "policy_kwargs": {"net_arch": [16]},
}
_SOFT = {name: _DQN[name] for name in ("learning_rate", "learning_starts", "buffer_size", "policy_kwargs")}


class _Shop(gym.Env[Any, Any]):
    """One good, worth 1 to who buys it."""

    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(action), True, False, {}


def _shop() -> LeaderReward:
    """The leader sets the price and is paid it."""
    return LeaderReward(
        _Shop(),
        bonus=lambda x, observations, actions, context: -x[0] * actions,
        leader_space=1,
        leader_reward=lambda x, observations, actions, context: x[0] * actions,
        discount=0.9,
        initial_leader=[0.5],
    )


def test_a_gradient_that_weighs_reactions_is_refused_for_who_only_takes_the_best() -> None:
    with pytest.raises(errors.UnsupportedError, match=r"never reacts to x. Use FirstOrder or ZeroOrder"):
        leaders.optimize(_shop(), leaders.HPGD(0.1, 200, "critic", regularization=0.1), followers.SB3Follower("DQN", 300), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leader", "follower", "price"),
    [
        (leaders.FirstOrder(0.05, weight=0.1, env_steps=100), followers.SB3Follower("DQN", 300, **_DQN), (0.85, 1.0)),
        (
            leaders.ZeroOrder(0.05, 0.1, decay=False, exact=False, env_steps=100),
            followers.SB3Follower("DQN", 300, **_DQN),
            (0.8, 1.0),
        ),
        (leaders.HPGD(0.1, 200, "critic"), followers.SoftDQNFollower(0.1, 300, **_SOFT), (0.7, 0.9)),
    ],
    ids=["FirstOrder", "ZeroOrder", "HPGD"],
)
def test_the_price_is_one_at_which_the_buyer_buys(leader: Any, follower: Any, price: tuple[float, float]) -> None:
    """The best price is 1 for who buys whatever is worth its price, and .80 for a soft buyer of lambda .1."""
    result = leaders.optimize(_shop(), leader, follower, 60, seed=0, progress=False)
    assert price[0] < float(result.x[0]) < price[1]
