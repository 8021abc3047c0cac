from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import bocmdp_gym
from bocmdp_gym import TabularBOCMDP, errors


def test_frozen_lake_ends_on_arrival() -> None:
    model = TabularBOCMDP.from_gymnasium(gym.make("FrozenLake-v1"), leader_dim=1)
    value = model.solve([0.0], 0.1).value
    assert float(value[0, 0]) == pytest.approx(2.471, abs=5e-4)


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "Taxi-v4", "CliffWalking-v1"])
def test_published_tables_reproduce_the_environment(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    tables = bocmdp_gym.gymnasium_tables(env)
    tables.transition.validate()
    rng = np.random.default_rng(0)
    for _ in range(200):
        s, a = int(rng.integers(len(env.P))), int(rng.integers(len(env.P[0])))
        reward = sum(p * r for p, _, r, _ in env.P[s][a])
        done = sum(p for p, _, _, end in env.P[s][a] if end)
        assert float(tables.reward[0, s, a]) == pytest.approx(reward)
        assert float(tables.termination[0, s, a]) == pytest.approx(done)


def test_model_without_tables_is_refused() -> None:
    with pytest.raises(errors.UnsupportedError, match="publishes no tables"):
        TabularBOCMDP.from_gymnasium(gym.make("CartPole-v1"), leader_dim=1)


def test_gymnasium_tables_need_no_leader_dim() -> None:
    lake = gym.make("FrozenLake-v1")
    assert TabularBOCMDP.from_gymnasium(lake, reward=np.zeros((1, 16, 4))).leader_dim == 1
    assert TabularBOCMDP.from_gymnasium(lake, reward=lambda x: x.reshape(1, 1, 1)).leader_dim == 1
    space = gym.spaces.Box(-1.0, 1.0, (16,), np.float64)
    per_state = lambda x: x.reshape(1, 16, 1)  # noqa: E731
    assert TabularBOCMDP.from_gymnasium(lake, reward=per_state, leader_space=space).leader_dim == 16
    assert TabularBOCMDP.from_gymnasium(lake, reward=per_state, example=np.zeros(16)).leader_dim == 16
    with pytest.raises(errors.ModelError, match="Give leader_dim="):
        TabularBOCMDP.from_gymnasium(lake, reward=per_state)
