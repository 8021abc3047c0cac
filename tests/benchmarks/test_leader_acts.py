from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

import bocmdp_gym
import followers
from benchmarks.common import RESULTS
from benchmarks.leader_acts import LAMBDA, PUBLISHED, STEPS, first_steps_return


def test_the_first_steps_are_those_of_episodes() -> None:
    """Against 4,000 episodes of the simulator, within 4 standard errors; and all steps are the exact return."""
    env = gym.make("bocmdp/LeaderActs-v0", horizon=30)
    model = bocmdp_gym.configurable(env).model
    x = np.array([0.3, -0.2, 0.5, -0.5, 0.0, 0.1])
    oracle, rng = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(LAMBDA)), np.random.default_rng(0)
    batch = oracle.sample(oracle.respond(x, context=0, rng=rng), 4000 * 30, rng=rng)
    returns = batch.leader_rewards.reshape(-1, 30) @ 0.99 ** np.arange(30)
    error = returns.std() / len(returns) ** 0.5
    assert abs(first_steps_return(model, x, LAMBDA, 30) - returns.mean()) < 4 * error < 0.2
    assert first_steps_return(model, x, LAMBDA, 3000) == pytest.approx(float(model.leader_return(x, LAMBDA)), rel=1e-9)


def test_the_best_policy_known_beats_what_was_published() -> None:
    core = bocmdp_gym.configurable(gym.make("bocmdp/LeaderActs-v0"))
    best = first_steps_return(core.model, core.benchmark().x, LAMBDA, STEPS)
    assert best > 27.3 > PUBLISHED["BC-HG"][0]
    stored = json.loads((RESULTS / "leader_acts.json").read_text())["results"]["rows"][0]
    assert stored["best"]["first steps"] == pytest.approx(best, abs=1e-6)
    for leader in ("exact", "HPGD, td"):
        assert min(stored["runs"][leader]["first steps"]["values"]) > PUBLISHED["BC-HG"][0]
