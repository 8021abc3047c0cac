from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import followers
import leaders
from bocmdp_gym import errors
from leaders.checkpoints import Checkpoints
from leaders.gradients import MonteCarloEstimator
from leaders.reproduce.mismatch import MismatchedSimulator
from leaders.updates import Update
from tests.problems import four_rooms, random_x, small_rooms


def _leader(simulator: Any, env_steps: int = 2000) -> leaders.Leader:
    return leaders.Leader(MismatchedSimulator(MonteCarloEstimator(env_steps), simulator), Update(0.5, max_gradient_norm=1.0))


def _run(leader: leaders.Leader, env: Any, iterations: int = 40, **options: Any) -> leaders.Result:
    follower = followers.SoftPolicyIteration(0.003)
    return leaders.optimize(env, leader, follower, iterations, seed=3, evaluate_every=10, **options)


def test_the_same_simulator_changes_nothing() -> None:
    plain = _run(leaders.HPGD(0.5, 2000), four_rooms())
    run = _run(_leader(four_rooms()), four_rooms())
    assert torch.equal(run.x, plain.x)
    assert run.env_steps == plain.env_steps
    np.testing.assert_array_equal(run.history["leader_return"], plain.history["leader_return"])


def test_trajectories_are_the_simulators_and_plans_the_environments() -> None:
    env, simulator = small_rooms(slip_probability=0.44), small_rooms(slip_probability=0.0)
    oracle = followers.TrajectoryOracle(env, followers.SoftPolicyIteration(0.01))
    elsewhere = followers.TrajectoryOracle(simulator, followers.SoftPolicyIteration(0.01))
    estimator = MismatchedSimulator(MonteCarloEstimator(200_000), simulator)
    estimator.bind(oracle)
    x = random_x(oracle.core.model.leader_dim, scale=1.0)
    estimate = estimator.estimate(oracle, x, 0, np.random.default_rng(0))
    table = oracle.respond(x, 0, np.random.default_rng(0)).table  # type: ignore[attr-defined]
    returns = {
        name: float(o.configure(x).policy_return(torch.from_numpy(np.stack([table] * 2)))[0].detach())
        for name, o in (("environment", oracle), ("simulator", elsewhere))
    }
    assert abs(returns["environment"] - returns["simulator"]) > 0.05
    assert estimate.leader_return == pytest.approx(returns["simulator"], abs=0.01)
    assert oracle.env_steps == estimate.env_steps >= 200_000


def test_the_leader_is_evaluated_in_the_environment() -> None:
    env = four_rooms()
    run = _run(_leader(four_rooms(slip_probability=0.33)), env, 20)
    model = run.oracle.model
    assert run.leader_return == pytest.approx(float(model.leader_return(run.x, 0.003)), abs=1e-8)  # type: ignore[union-attr]
    assert not torch.equal(run.x, _run(leaders.HPGD(0.5, 2000), env, 20).x)


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    simulator = four_rooms(slip_probability=0.33)
    straight = _run(_leader(simulator), four_rooms())

    def stop(progress: Any) -> None:
        if progress.iteration >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(_leader(simulator), four_rooms(), checkpoints=Checkpoints(tmp_path, every=15), callback=stop)
    resumed = _run(_leader(simulator), four_rooms(), checkpoints=Checkpoints(tmp_path, every=15), resume=True)
    assert torch.equal(straight.x, resumed.x)
    assert straight.env_steps == resumed.env_steps


def test_another_problem_is_no_simulator() -> None:
    with pytest.raises(errors.OptionError, match="leader parameter space"):
        _run(_leader(small_rooms()), four_rooms())
    with pytest.raises(errors.OptionError, match="context space"):
        _run(_leader(four_rooms(goals=[[1, 9]])), four_rooms())
    with pytest.raises(errors.OptionError, match="observation space"):
        _run(_leader(four_rooms(observation="coordinates")), four_rooms())
    estimator = MismatchedSimulator(MonteCarloEstimator(100), four_rooms())
    oracle = followers.TrajectoryOracle(four_rooms(), followers.SoftPolicyIteration(0.003))
    with pytest.raises(errors.OptionError, match="before bind"):
        estimator.estimate(oracle, torch.zeros(105), 0, np.random.default_rng(0))
