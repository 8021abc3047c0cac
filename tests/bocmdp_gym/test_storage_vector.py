"""The copies of storage problems against the single environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp

from bocmdp_gym import errors
from bocmdp_gym.envs import Battery, Inventory
from bocmdp_gym.envs.storage_env import StorageEnv

BOTH = pytest.mark.parametrize("kind", [Inventory, Battery])


def _copies(kind: type[StorageEnv], n: int, mode: str = "NextStep", **options: Any) -> Any:
    name = f"bocmdp/{kind.__name__}-v0"
    return gym.make_vec(name, n, vectorization_mode="vector_entry_point", autoreset_mode=mode, **options)


@BOTH
def test_rewards_are_those_of_the_single_environment(kind: type[StorageEnv]) -> None:
    envs, env = _copies(kind, 20), kind()
    observations, infos = envs.reset(seed=0)
    envs.action_space.seed(0)
    for period in range(5):
        actions, contexts = envs.action_space.sample(), infos["context"]
        following, rewards, _, _, infos = envs.step(actions)
        for i in range(20):
            state = (observations[i, 0], period % env.storage.n_periods)
            seen, _ = env.reset(options={"state": state, "context": contexts[i]})
            np.testing.assert_array_equal(seen, observations[i])
            seen, reward, _, _, info = env.step(actions[i])
            np.testing.assert_array_equal(seen[1:], following[i, 1:])
            assert reward == pytest.approx(rewards[i], rel=1e-12)
            assert info["leader_reward"] == pytest.approx(infos["leader_reward"][i], rel=1e-12)
        observations = following


@BOTH
def test_starts_agree_with_the_single_environment(kind: type[StorageEnv]) -> None:
    """A two-sample Kolmogorov-Smirnov test, 1,000 resets and 20,000 copies; contexts by chi-square."""
    envs, env = _copies(kind, 20_000), kind()
    env.reset(seed=0)
    starts = [env.reset()[0][0] for _ in range(1000)]
    first, infos = envs.reset(seed=0)
    assert ks_2samp(starts, first[:, 0]).pvalue > 1e-3
    assert chisquare(np.bincount(infos["context"])).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_autoreset(mode: str) -> None:
    envs = _copies(Battery, 4, mode, horizon=3)
    envs.set_context(1)
    envs.reset(seed=0, options={"state": (1.0, 1)})
    rest = np.full(4, 2)
    for step in range(3):
        observations, _, terminations, truncations, infos = envs.step(rest)
        assert truncations.all() == (step == 2)
        assert not terminations.any()
    if mode == "Disabled":
        with pytest.raises(errors.OptionError, match="autoreset is disabled"):
            envs.step(rest)
        return
    if mode == "SameStep":
        assert infos["_final_info"].all()
        assert all(final[0] > 0.65 for final in infos["final_obs"])
        np.testing.assert_allclose([final[1:] for final in infos["final_obs"]], [[1.0, 0.0]] * 4, atol=1e-12)
    else:
        assert (observations[:, 0] > 0.65).all()
        observations, rewards, _, _, infos = envs.step(rest)
        assert not rewards.any()
        assert not infos["_leader_reward"].any()
    assert (observations[:, 0] < 0.9).all()
    np.testing.assert_allclose(observations[:, 1], 1.0)  # midnight again
    assert (infos["context"] == 1).all()


@BOTH
@pytest.mark.parametrize("actions", [np.zeros(3, int), np.full(2, 5), np.zeros(2), np.full(2, -1)])
def test_bad_actions_are_refused(kind: type[StorageEnv], actions: Any) -> None:
    envs = _copies(kind, 2)
    envs.reset(seed=0)
    with pytest.raises(errors.ActionError, match="actions must be 2 elements"):
        envs.step(actions)


@BOTH
def test_pictures_of_every_copy(kind: type[StorageEnv]) -> None:
    envs = _copies(kind, 2, render_mode="rgb_array")
    envs.reset(seed=0)
    frames: Any = envs.render()
    assert len(frames) == 2
    assert not np.array_equal(*frames)
