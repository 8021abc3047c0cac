from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leaders
from bocmdp_gym import errors
from bocmdp_gym.saved_state import decode, encode
from followers import TrajectoryOracle
from leaders.checkpoints import Checkpoints
from tests.followers.problems import Point, X, bandit
from tests.followers.sb3.quick import DISCRETE, QUICK, quick, respond, rng


@pytest.mark.parametrize(
    ("algorithm", "warm_start"),
    [*((name, True) for name in QUICK), ("DQN", False)],
)
def test_a_saved_follower_goes_on_bit_for_bit(algorithm: str, warm_start: bool, tmp_path: Path) -> None:
    continuous = algorithm not in DISCRETE

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
    straight, steps = run(range(5), generator), oracle.training_steps
    whole: Any = oracle.follower
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
    if warm_start:
        for key, learner in whole._learners.items():
            parameters = fresh._learners[key].model.policy.state_dict()
            assert all(torch.equal(value, parameters[name]) for name, value in learner.model.policy.state_dict().items())
    assert fresh.training_steps == steps >= 5 * QUICK[algorithm]["total_timesteps"]


@pytest.mark.parametrize("algorithm", ["DQN", "PPO"])
def test_a_killed_run_resumes_bit_for_bit(algorithm: str, tmp_path: Path) -> None:
    def run(resume: bool = False, callback: Any = None) -> leaders.Result:
        return leaders.optimize(
            bandit(),
            leaders.HPGD(env_steps=100, regularization=0.1),
            quick(algorithm, replay="relabel", **({"softmax_temperature": 0.1} if algorithm == "DQN" else {})),
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    follower, folder = quick("DQN", policy_kwargs={"net_arch": [3]}), tmp_path_factory.mktemp("saved")
    respond(follower)
    follower.save(folder)
    (path,) = folder.iterdir()
    return path.read_bytes()


def _load(content: bytes, folder: Path) -> Any:
    (folder / "follower.safetensors").write_bytes(content)
    follower = quick("DQN", policy_kwargs={"net_arch": [3]})
    oracle = TrajectoryOracle(bandit(), follower)
    follower.load(folder)
    return oracle.respond(X, 0, rng(0))


def test_every_damage_is_named(saved: bytes, tmp_path: Path) -> None:
    _load(saved, tmp_path)
    file = tmp_path / "follower.safetensors"
    follower = quick("DQN", policy_kwargs={"net_arch": [3]})
    lengths = [*range(0, len(saved), 97), len(saved) - 1]
    places = np.random.default_rng(0).integers(len(saved) * 8, size=200).tolist()
    for content in (*(saved[:length] for length in lengths), *(_flipped(saved, bit) for bit in places)):
        file.write_bytes(content)
        with pytest.raises(errors.DamagedError, match="follower"):
            follower.load(tmp_path)
    file.unlink()
    with pytest.raises(errors.CheckpointError, match="cannot read"):
        follower.load(tmp_path)
    assert follower.training_steps == 0


def _flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


CRAFTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "algorithm": lambda state: {**state, "algorithm": 3},
    "no algorithm": lambda state: _without(state, "algorithm"),
    "training steps": lambda state: {**state, "training_steps": -5},
    "training steps, a fraction": lambda state: {**state, "training_steps": 1.5},
    "log steps": lambda state: {**state, "log_steps": {"context_0": -1}},
    "log steps, a list": lambda state: {**state, "log_steps": []},
    "learners": lambda state: {**state, "learners": [1]},
    "a learner": lambda state: {**state, "learners": {0: 1}},
    "context": lambda state: _learner(state, context="0"),
    "leader": lambda state: _learner(state, leader=np.ones((2, 2))),
    "leader's numbers": lambda state: _learner(state, leader=np.array([np.nan, 0.0])),
    "no tensors": lambda state: {**state, "learners": {0: _without(state["learners"][0], "tensors")}},
    "a tensor": lambda state: _part(state, "tensors", "policy:q_net.q_net.0.weight", 1.0),
    "a scalar": lambda state: _part(state, "scalars", "x", "y"),
    "a counter": lambda state: _part(state, "counters", "num_timesteps", -1),
    "another counter": lambda state: _part(state, "counters", "policy", 1),
    "the buffer's position": lambda state: _part(state, "buffer", "pos", np.array(0.5)),
}


def _learner(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**state, "learners": {0: {**state["learners"][0], **changes}}}


def _part(state: dict[str, Any], part: str, name: str, value: Any) -> dict[str, Any]:
    return _learner(state, **{part: {**state["learners"][0][part], name: value}})


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_content_is_named(case: str, saved: bytes, tmp_path: Path) -> None:
    with pytest.raises(errors.DamagedError):
        _load(encode(CRAFTED[case](decode(saved, "saved"))), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pos", np.array(-5)),
        ("pos", np.array(10**9)),
        ("full", np.array(True)),
        ("rewards", np.ones((3, 1), np.float32)),
        ("rewards", None),
    ],
)
def test_a_buffer_that_does_not_fit_is_named(name: str, value: Any, saved: bytes, tmp_path: Path) -> None:
    state = decode(saved, "saved")
    crafted = _part(state, "buffer", name, value)
    if value is None:
        crafted = _learner(state, buffer=_without(state["learners"][0]["buffer"], name))
    with pytest.raises(errors.OptionError, match="does not fit DQN"):
        _load(encode(crafted), tmp_path)
