from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.monitor import Monitor

from bocmdp_gym import errors
from followers import SB3Follower, TrajectoryOracle
from tests.followers.problems import Point, X, bandit
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


class Schedules(BaseCallback):
    """Writes down the learning rate and the exploration of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[list[float]] = []
        self.exploration: list[list[float]] = []

    def _on_training_start(self) -> None:
        self.rates.append([])
        self.exploration.append([getattr(self.model, "exploration_rate", 0.0)])

    def _on_step(self) -> bool:
        self.rates[-1].append(self.model.lr_schedule(self.model._current_progress_remaining))
        self.exploration[-1].append(getattr(self.model, "exploration_rate", 0.0))
        return True


@pytest.mark.parametrize("algorithm", ["PPO", "A2C", "DQN", "QRDQN", "SAC", "SoftDQN", "TRPO"])
def test_schedules_run_over_every_response(algorithm: str) -> None:
    callback = Schedules()
    follower = quick(algorithm, learning_rate=lambda progress: 0.01 * progress, callback=callback)
    oracle = TrajectoryOracle(Point() if algorithm == "SAC" else bandit(), follower)
    generator = rng(0)
    for k in range(4):
        oracle.respond([0.1 * k] if algorithm == "SAC" else (k + 1) * X, 0, generator)
    assert callback.rates[0][0] > 0.009
    assert min(callback.rates[0]) >= 0.0
    for k in range(1, 4):
        np.testing.assert_allclose(callback.rates[k], callback.rates[0], atol=1e-15)
        np.testing.assert_allclose(callback.exploration[k][1:], callback.exploration[0][1:], atol=1e-15)
    if algorithm in ("DQN", "QRDQN"):
        assert callback.exploration[3][0] == 1.0
        assert callback.exploration[3][-1] == pytest.approx(0.05 if algorithm == "DQN" else 0.01)


def test_schedules_of_clipping_too() -> None:
    seen: list[float] = []

    def clip(progress: float) -> float:
        seen.append(progress)
        return 0.2 * progress + 0.01

    follower = quick("PPO", clip_range=clip, total_timesteps=96, n_steps=32)
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    for _ in range(3):
        oracle.respond(X, 0, generator)
    np.testing.assert_allclose(np.array(seen[-9:]).reshape(3, 3), [[2 / 3, 1 / 3, 0.0]] * 3, atol=1e-12)


@pytest.mark.parametrize("algorithm", ["PPO", "DQN", "SAC"])
def test_schedules_run_once_over_a_run_where_asked(algorithm: str) -> None:
    """Four responses of n steps, two learners: progress falls from 1 to 0 over 3 n steps of them all, and stays there."""
    callback = Schedules()
    length = 64 if algorithm == "PPO" else 60
    options: dict[str, Any] = {"learning_rate": lambda progress: 0.01 * progress, "schedule_timesteps": 3 * length}
    follower = quick(algorithm, callback=callback, **options)
    oracle = TrajectoryOracle(Point() if algorithm == "SAC" else bandit(), follower)
    generator = rng(0)
    for k in range(4):
        oracle.respond([0.1 * k] if algorithm == "SAC" else (k + 1) * X, k % 2, generator)
    begins = [rates[0] for rates in callback.rates]
    done = np.arange(4) * length + (1 if algorithm != "PPO" else 0)  # PPO looks at its schedule before a rollout
    np.testing.assert_allclose(begins, 0.01 * np.maximum(1.0 - done / (3 * length), 0.0), atol=0.01 / length)
    assert set(callback.rates[3]) == {0.0}
    if algorithm == "DQN":
        assert callback.exploration[0][0] == 1.0
        assert [row[0] for row in callback.exploration[1:]] == pytest.approx([0.05] * 3)  # after a tenth of the run


def test_a_rate_may_be_spent_in_a_run() -> None:
    respond(quick("PPO", learning_rate=lambda progress: 0.01 * progress, total_timesteps=32, schedule_timesteps=320))
    with pytest.raises(errors.OptionError, match="schedule_timesteps is 0"):
        quick("PPO", schedule_timesteps=0)


def test_after_forty_responses_a_learner_learns_as_in_the_first() -> None:
    """Forty responses where nothing is to be learnt, and then the reward appears.

    A schedule spent over all steps so far would leave 1/41 of the rate: P(best) is then .52, and .92 to .98 here (three seeds).
    """
    options: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 5, "policy_kwargs": {"net_arch": [16]}}
    options |= {"normalize_advantage": False, "ent_coef": 0.05}  # or what is noise at x = 0 would move the policy
    follower = SB3Follower("PPO", 128, learning_rate=lambda progress: 2e-2 * progress, **options)
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    for _ in range(40):
        oracle.respond(np.zeros(2), 0, generator)
    assert float(oracle.respond(X, 0, generator).table[:, 0].min()) > 0.8


def test_a_rollout_that_overshoots_has_no_negative_rate() -> None:
    callback = Schedules()
    rates: list[float] = []

    def rate(progress: float) -> float:
        rates.append(progress)
        return 0.01 * progress

    respond(quick("PPO", total_timesteps=40, n_steps=32, learning_rate=rate, callback=callback))
    assert min(rates) == 0.0


def test_a_rate_that_is_spent_before_the_only_update_is_refused() -> None:
    with pytest.raises(errors.OptionError, match="would learn nothing"):
        respond(quick("PPO", total_timesteps=32, n_steps=32, learning_rate=lambda progress: 0.01 * progress))
    respond(quick("PPO", total_timesteps=32, n_steps=32, learning_rate=lambda progress: 0.01))


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_a_response_that_was_cut_short_says_so() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls != 10

    follower = quick("DQN", callback=Stop())
    oracle = TrajectoryOracle(bandit(), follower)
    generator = rng(0)
    with pytest.warns(UserWarning, match="made 10 of 60 steps"):
        policy = oracle.respond(X, 0, generator)
    assert policy.metrics == {"follower_training_steps": 10.0, "follower_response_steps": 10.0}
    policy = oracle.respond(X, 0, generator)
    assert policy.metrics == {"follower_training_steps": 70.0}
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1.0)
    evaluation = EvalCallback(Monitor(bandit()), eval_freq=5, n_eval_episodes=1, callback_on_new_best=stop, verbose=0)
    with pytest.warns(UserWarning, match="made 5 of 60 steps"):
        respond(quick("DQN", callback=evaluation))
