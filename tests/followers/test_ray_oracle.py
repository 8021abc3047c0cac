from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bocmdp_gym.errors import OptionError, UnsupportedError, WorkerError
from followers import Follower, Policy, RayOracle, SB3Follower, Task, TrajectoryOracle
from followers.ray_cluster import RayCluster
from leaders import HPGD, optimize
from leaders.checkpoints import Checkpoints
from tests.followers.problems import bandit


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    pytest.importorskip("ray")
    cluster = RayCluster(workers=2)
    yield cluster
    cluster.close()


def ppo() -> SB3Follower:
    return SB3Follower("PPO", 64, n_steps=32, batch_size=32, n_epochs=1)


class Fragile(Follower):
    """Answers uniformly, and kills its process in context 1."""

    def respond(self, task: Task, rng: np.random.Generator) -> Policy:
        if task.context == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.leader[0] > 10:
            raise OptionError("x is too large")
        return task.tabular_policy(np.full((2, 2), 0.5))


def test_runs_are_those_of_the_serial_oracle(cluster: RayCluster, tmp_path: Path) -> None:
    """Equal bits for a neural follower, also where the run was interrupted."""
    leader = partial(HPGD, 0.5, 100, regularization=0.5)
    options: dict[str, Any] = {"seed": 3, "contexts": "all", "evaluate_every": 1, "x0": [0.5, -0.5]}
    serial = optimize(bandit(), leader(), ppo(), 4, **options)
    options |= {"oracle": partial(RayOracle, workers=2)}
    whole = optimize(bandit(), leader(), ppo(), 4, checkpoints=Checkpoints(tmp_path, every=2), **options)
    whole.oracle.close()
    (tmp_path / "iteration-000000004.safetensors").unlink()
    resumed = optimize(bandit(), leader(), ppo(), 4, checkpoints=Checkpoints(tmp_path, every=2), resume=True, **options)
    resumed.oracle.close()
    assert serial.x.tolist() != serial.x0.tolist()
    for run in (whole, resumed):
        assert run.x.tolist() == serial.x.tolist()
        assert run.env_steps == serial.env_steps
        assert run.oracle.training_steps == serial.oracle.training_steps == 4 * 2 * 64
        for name in ("sampled_return", "gradient_norm", "leader_return", "follower_training_steps", "follower_delta"):
            np.testing.assert_array_equal(run.history[name], serial.history[name])


def test_answers_must_be_those_asked_for(cluster: RayCluster) -> None:
    x = np.array([1.0, -1.0])
    serial = TrajectoryOracle(bandit(), ppo())
    with RayOracle(bandit(), ppo()) as oracle:
        contexts, seeds = [1, 0, 1], [4, 5, 6]
        oracle.respond_ahead(x, contexts, [np.random.default_rng(seed) for seed in seeds])
        for context, seed in zip(contexts, seeds, strict=True):
            rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
            there, here = oracle.respond(x, context, rng), serial.respond(x, context, other)
            np.testing.assert_array_equal(there.table, here.table)  # type: ignore[attr-defined]
            assert rng.bit_generator.state == other.bit_generator.state
            assert oracle.last_response is there
        oracle.respond_ahead(x, [0], [np.random.default_rng(0)])
        with pytest.raises(OptionError, match="asked for ahead"):
            oracle.respond(x, 0, np.random.default_rng(1))
        oracle.respond_ahead(x, [0], [np.random.default_rng(0)])
        with pytest.raises(OptionError, match="asked for ahead"):
            oracle.respond(2 * x, 0, np.random.default_rng(0))
        with pytest.raises(OptionError, match="with 1 workers, and this one has 2"):
            oracle.follower.load_state({"workers": {0: {}}})


def test_a_dead_worker_and_a_follower_s_error_are_named(cluster: RayCluster) -> None:
    rng = np.random.default_rng(0)
    with RayOracle(bandit(), Fragile(), workers=1) as oracle:
        assert oracle.respond(np.zeros(2), 0, rng).table.tolist() == [[0.5, 0.5]] * 2  # type: ignore[attr-defined]
        with pytest.raises(OptionError, match="x is too large"):
            oracle.respond(np.full(2, 11.0), 0, rng)
        with pytest.raises(WorkerError, match="died in context 1"):
            oracle.respond(np.zeros(2), 1, rng)


def test_what_cannot_work_is_refused_before_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from bocmdp_gym.wrappers import ObserveContext

    with pytest.raises(UnsupportedError, match="shared=False"):
        RayOracle(ObserveContext(bandit()), SB3Follower("PPO", 64, shared=True))
    with pytest.raises(OptionError, match="workers is 0"):
        RayOracle(bandit(), ppo(), workers=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'bocmdp-gym\[distributed\]'"):
        RayOracle(bandit(), ppo())
