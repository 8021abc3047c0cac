"""The copies of tax design against the single environment and the model on a grid."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp

import followers
from bocmdp_gym import errors
from bocmdp_gym.envs import TaxDesign

X = np.array([0.5, -1.0, 0.3, 1.0])
ACTION = np.array([7, 3, 1, 4])


def _copies(n: int, mode: str = "NextStep", **options: Any) -> Any:
    envs: Any = gym.make_vec("bocmdp/TaxDesign-v0", n, vectorization_mode="vector_entry_point", autoreset_mode=mode, **options)
    envs.set_leader(X)
    return envs


def test_rewards_are_those_of_the_single_environment() -> None:
    envs, env = _copies(50), TaxDesign()
    env.set_leader(X)
    observations, infos = envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(5):
        actions, contexts = envs.action_space.sample(), infos["context"]
        following, rewards, _, _, infos = envs.step(actions)
        for i in range(50):
            env.reset(options={"state": observations[i], "context": contexts[i]})
            _, reward, _, _, info = env.step(actions[i])
            assert reward == pytest.approx(rewards[i], rel=1e-14)
            assert info["leader_reward"] == pytest.approx(infos["leader_reward"][i], rel=1e-14)
        observations = following


@pytest.mark.parametrize("state", [-98.0, 3.0, 95.0])
def test_transitions_and_starts_agree_with_the_single_environment(state: float) -> None:
    """Two-sample Kolmogorov-Smirnov tests, 4,000 draws of the single environment and 40,000 of the copies."""
    envs, env = _copies(40_000), TaxDesign()
    env.set_leader(X)
    rng, singles, starts = np.random.default_rng(0), [], []
    for _ in range(4000):
        starts.append(env.reset(seed=int(rng.integers(2**31)))[0].item())
        env.reset(options={"state": state})
        singles.append(env.step(ACTION)[0].item())
    first, infos = envs.reset(seed=0)
    assert ks_2samp(starts, first[:, 0]).pvalue > 1e-3
    assert chisquare(np.bincount(infos["context"])).pvalue > 1e-3
    envs.reset(options={"state": state})
    following = envs.step(np.tile(ACTION, (40_000, 1)))[0][:, 0]
    assert ks_2samp(singles, following).pvalue > 1e-3


def test_transitions_agree_with_the_models_kernel() -> None:
    envs = _copies(100_000, grid_size=41)
    model = envs.env.model
    envs.reset(seed=1, options={"state": float(model.grid[22])})
    following = envs.step(np.tile(ACTION, (100_000, 1)))[0][:, 0]
    arrays = model.configure(X).arrays(0)
    row = arrays.stored_probabilities[22, arrays.rows[int(model.joint_actions(ACTION[None])[0])]]
    spacing = model.grid[1] - model.grid[0]
    counts = np.bincount(np.rint((following - model.grid[0]) / spacing).astype(int), minlength=41)
    often = row * 100_000 >= 10
    assert chisquare(counts[often], row[often] / row[often].sum() * counts[often].sum()).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_autoreset(mode: str) -> None:
    envs = _copies(4, mode, horizon=3)
    envs.set_context(1)
    envs.reset(seed=0, options={"state": 90.0})
    action = np.tile(ACTION, (4, 1))
    for step in range(3):
        observations, _, terminations, truncations, infos = envs.step(action)
        assert truncations.all() == (step == 2)
        assert not terminations.any()
    if mode == "Disabled":
        with pytest.raises(errors.OptionError, match="autoreset is disabled"):
            envs.step(action)
        return
    if mode == "SameStep":
        assert infos["_final_info"].all()
        welfare = envs.env.economy.tables(X)[1][int(envs.env.model.joint_actions(ACTION[None])[0])]
        assert infos["final_info"]["leader_reward"] == pytest.approx(np.full(4, welfare))
        assert all(final > 20.0 for final in infos["final_obs"])
    else:
        assert (observations > 20.0).all()
        observations, rewards, _, _, infos = envs.step(action)
        assert not rewards.any()
        assert not infos["_leader_reward"].any()
    assert (np.abs(observations) < 12.0).all()  # N(0, 2) again
    assert (infos["context"] == 1).all()


def test_the_oracle_plays_the_copies() -> None:
    """Leader's returns on the copies are those on the single environment, within 4 standard errors."""
    follower = followers.SoftPolicyIteration(0.3)
    returns: list[list[float]] = []
    for env in (TaxDesign(grid_size=21, horizon=30), _copies(8, grid_size=21, horizon=30)):
        oracle = followers.TrajectoryOracle(env, follower)
        rng = np.random.default_rng(0)
        policy = oracle.respond(X, 0, rng)
        batch = oracle.sample(policy, 3000, rng)
        returns.append(batch.discounted_returns(0.9, leader=True).tolist())
    a, b = (np.array(r) for r in returns)
    assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)


@pytest.mark.parametrize("actions", [np.zeros((3, 4), int), np.full((2, 4), 5), np.zeros((2, 4)), np.full((2, 4), -1)])
def test_bad_actions_are_refused(actions: Any) -> None:
    envs = _copies(2)
    envs.reset(seed=0)
    with pytest.raises(errors.ActionError, match="actions must be 2 elements"):
        envs.step(actions)


def test_bad_states_and_early_steps_are_refused() -> None:
    envs = _copies(2)
    with pytest.raises(errors.ResetError, match="before reset"):
        envs.step(np.zeros((2, 4), int))
    with pytest.raises(errors.StateError, match="out of range"):
        envs.reset(options={"state": 101.0})


def test_pictures_of_every_copy() -> None:
    envs = gym.make_vec("bocmdp/TaxDesign-v0", 2, vectorization_mode="vector_entry_point", render_mode="rgb_array")
    envs.reset(seed=0)
    frames: Any = envs.render()
    assert len(frames) == 2
    assert frames[0].dtype == np.uint8
