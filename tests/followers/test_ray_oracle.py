from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bocmdp_gym.errors import (
    BOCMDPError,
    CheckpointError,
    LeaderParameterError,
    OptionError,
    UnsupportedError,
    WorkerError,
)
from followers import Follower, Policy, RayOracle, SB3Follower, SoftPolicyIteration, Task, TrajectoryOracle
from followers.ray_cluster import RayCluster
from leaders import HPGD, ExactGradient, optimize, optimize_many
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


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there is a cluster, whose threads would miss it too."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'bocmdp-gym\[distributed\]'"):
        RayOracle(bandit(), ppo())


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


def test_what_cannot_work_is_refused_before_workers_start() -> None:
    from bocmdp_gym.wrappers import ObserveContext

    with pytest.raises(UnsupportedError, match="shared=False"):
        RayOracle(ObserveContext(bandit()), SB3Follower("PPO", 64, shared=True))
    with pytest.raises(OptionError, match="workers is 0"):
        RayOracle(bandit(), ppo(), workers=0)


class Counted(TrajectoryOracle):
    """Remembers which of its kind are open."""

    open: ClassVar[set[int]] = set()

    def __init__(self, env: Any, follower: Follower):
        super().__init__(env, follower)
        self.open.add(id(self))

    def close(self) -> None:
        self.open.discard(id(self))


def test_an_oracle_is_closed_when_a_run_raises(tmp_path: Path) -> None:
    def fail(progress: Any) -> None:
        raise ZeroDivisionError

    leader, follower = partial(ExactGradient, 0.1), partial(SoftPolicyIteration, 0.5)
    for options in ({"callback": fail}, {"x0": [np.nan, 0.0]}, {"contexts": "some"}):
        for run in (optimize, optimize_many):
            with pytest.raises((ZeroDivisionError, BOCMDPError)):
                run(bandit(), leader(), follower(), 3, oracle=Counted, **options)
            assert Counted.open == set()
    checkpoints = Checkpoints(tmp_path)
    optimize(bandit(), leader(), follower(), 3, oracle=Counted, checkpoints=checkpoints).oracle.close()
    with pytest.raises(CheckpointError):
        optimize(bandit(), leader(), follower(), 3, oracle=Counted, checkpoints=checkpoints)
    assert Counted.open == set()
    result = optimize(bandit(), leader(), follower(), 3, oracle=Counted)
    assert Counted.open == {id(result.oracle)}
    result.oracle.close()


def test_workers_end_when_a_run_raises(cluster: RayCluster) -> None:
    made: list[RayOracle] = []

    def oracle(env: Any, follower: Follower) -> RayOracle:
        made.append(RayOracle(env, follower, workers=1))
        return made[-1]

    with pytest.raises(LeaderParameterError):
        optimize(bandit(), HPGD(0.5, 100, regularization=0.5), ppo(), 2, oracle=oracle, x0=[np.nan, 0.0])
    assert made[0]._remote._workers == []


def test_a_cluster_of_ours_listens_on_the_loopback_alone(cluster: RayCluster) -> None:
    def inodes(kind: str) -> set[str]:
        """Sockets that listen beyond the loopback."""
        lines = [line.split() for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
        return {line[9] for line in lines if line[3] == "0A" and line[1].split(":")[0] not in _LOOPBACK}

    if not Path("/proc/net/tcp").exists():
        pytest.skip("reads /proc")
    outside = inodes("tcp") | inodes("tcp6")
    for process in _ray_processes():
        for link in process.glob("fd/*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                assert target[8:-1] not in outside, (process / "cmdline").read_text()


#: 127.0.0.1, the same in IPv6, and ::1, as /proc writes them.
_LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def _ray_processes() -> list[Path]:
    """This process, and those that Ray started for it."""
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()
    found = [Path(f"/proc/{os.getpid()}")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if session in (process / "cmdline").read_text():
                found.append(process)
        except OSError:
            continue
    assert len(found) > 2
    return found
