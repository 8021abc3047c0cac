from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from bocmdp_gym import errors
from followers import TrajectoryOracle
from tests.followers.problems import X, bandit
from tests.followers.sb3.quick import quick, respond, rng


def test_warm_starts_go_on_with_one_log(tmp_path: Path) -> None:
    follower = quick("DQN", log_dir=tmp_path, log_interval=1)
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    for k in range(3):
        oracle.respond((k + 1) * X, 0, generator)
        oracle.respond((k + 1) * X, 1, generator)
    assert {key: learner.model.num_timesteps for key, learner in follower._learners.items()} == {0: 180, 1: 180}
    follower.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["context_0", "context_1"]
    for folder in tmp_path.iterdir():
        assert len(list(folder.glob("*.csv"))) == 1
        assert len(list(folder.glob("events.*"))) == 1
        with (folder / "progress.csv").open() as file:
            steps = [int(row["time/total_timesteps"]) for row in csv.DictReader(file)]
        assert steps == sorted(steps)
        assert len(set(steps)) == len(steps)
        assert steps[-1] > 120


def test_fresh_training_is_an_option_and_its_log_goes_on(tmp_path: Path) -> None:
    follower = quick("DQN", warm_start=False, log_dir=tmp_path, log_interval=1)
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    first = oracle.respond(X, 0, generator)
    model = follower._learners[None].model
    oracle.respond(X, 0, generator)
    assert follower._learners[None].model is not model
    assert follower._learners[None].model.num_timesteps == 60
    assert follower.training_steps == 120
    again = oracle.respond(X, 0, rng(0))  # the third depends on nothing that was before
    np.testing.assert_array_equal(first.table, again.table)
    follower.close()
    with (tmp_path / "context_0" / "progress.csv").open() as file:
        steps = [int(row["time/total_timesteps"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)
    assert steps[-1] > 120


def test_a_log_goes_on_after_loading(tmp_path: Path) -> None:
    follower = quick("DQN", log_dir=tmp_path / "log", log_interval=1)
    respond(follower)
    follower.save(tmp_path / "saved")
    follower.close()
    again = quick("DQN", log_dir=tmp_path / "log", log_interval=1)
    oracle = TrajectoryOracle(bandit(), again)
    again.load(tmp_path / "saved")
    oracle.respond(X, 0, rng(1))
    again.close()
    assert sorted(p.name for p in (tmp_path / "log" / "context_0").glob("*.csv")) == ["progress.csv", "progress_from_60.csv"]
    with (tmp_path / "log" / "context_0" / "progress_from_60.csv").open() as file:
        assert all(60 < int(row["time/total_timesteps"]) <= 120 for row in csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # in Stable-Baselines3's statistics
@pytest.mark.parametrize("algorithm", ["A2C", "DQN", "PPO", "QRDQN", "SoftDQN"])
def test_a_learner_that_diverges_is_stopped(algorithm: str) -> None:
    with pytest.raises(errors.ConvergenceError, match=f"{algorithm} diverged in context 0 by training step"):
        respond(quick(algorithm, total_timesteps=2000, learning_rate=1e30))


def test_divergence_is_noticed_at_the_next_update() -> None:
    follower = quick("DQN", total_timesteps=100_000, learning_rate=1e30)
    with pytest.raises(errors.ConvergenceError):
        respond(follower)
    assert follower._learners[0].model.num_timesteps < 100
