from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leaders
from bocmdp_gym import errors
from followers import TrajectoryOracle
from leaders.checkpoints import Checkpoints
from tests.followers.problems import Point, X, bandit
from tests.followers.sb3.quick import quick, respond, rng


@pytest.mark.parametrize(
    ("algorithm", "warm_start"),
    [*((name, True) for name in ("A2C", "DQN", "PPO", "QRDQN", "SAC", "SoftDQN", "TD3")), ("DQN", False)],
)
def test_a_saved_follower_goes_on_bit_for_bit(algorithm: str, warm_start: bool, tmp_path: Path) -> None:
    continuous = algorithm in ("SAC", "TD3")

    def run(responses: range, generator: np.random.Generator) -> list[Any]:
        answers = []
        for k in responses:
            x = [0.1 * k] if continuous else k * X
            policy = oracle.respond(x, k % 2, generator)
            answers.append(policy.act_batch(np.linspace(-1, 1, 9)[:, None], rng(0)) if continuous else policy.table)
        return answers

    options: dict[str, Any] = {"replay": "relabel", "warm_start": warm_start}
    oracle = TrajectoryOracle(Point() if continuous else bandit(), quick(algorithm, **options))
    generator = rng(0)
    straight = run(range(5), generator)
    oracle = TrajectoryOracle(Point() if continuous else bandit(), quick(algorithm, **options))
    generator = rng(0)
    run(range(3), generator)
    oracle.follower.save(tmp_path / "follower")  # type: ignore[attr-defined]
    assert not list(tmp_path.rglob("*.pkl"))
    fresh = quick(algorithm, **options)
    oracle = TrajectoryOracle(Point() if continuous else bandit(), fresh)
    fresh.load(tmp_path / "follower")
    for mine, theirs in zip(run(range(3, 5), generator), straight[3:], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert fresh.training_steps == 5 * (64 if algorithm == "PPO" else 60 if algorithm != "A2C" else 40)


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_a_killed_run_resumes_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    def run(resume: bool = False, callback: Any = None) -> leaders.Result:
        return leaders.optimize(
            bandit(),
            leaders.HPGD(env_steps=100, regularization=0.1),
            quick(algorithm, replay="relabel"),
            5,
            x0=X,
            evaluate_every=1,
            callback=callback,
            checkpoints=Checkpoints(tmp_path / "checkpoints", every=2) if resume or callback else None,
            resume=resume,
        )

    def die(progress: Any) -> None:
        if progress.iteration == 3:
            raise KeyboardInterrupt

    straight = run()
    with pytest.raises(KeyboardInterrupt):
        run(callback=die)
    resumed = run(resume=True)
    assert torch.equal(resumed.x, straight.x)
    for column in ("sampled_return", "follower_training_steps", "env_steps"):
        np.testing.assert_array_equal(resumed.history[column], straight.history[column])


def test_another_followers_save_is_refused(tmp_path: Path) -> None:
    follower = quick("DQN")
    respond(follower)
    follower.save(tmp_path)
    with pytest.raises(errors.OptionError, match="learners of DQN and this follower trains PPO"):
        quick("PPO").load(tmp_path)
    other = quick("DQN", policy_kwargs={"net_arch": [7]})
    oracle = TrajectoryOracle(bandit(), other)
    other.load(tmp_path)
    with pytest.raises(errors.OptionError, match="does not fit DQN"):
        oracle.respond(X, 0, rng(0))
