from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import followers
import leaders
from bocmdp_gym import errors
from bocmdp_gym.saved_state import read_state, write_state
from leaders.checkpoints import HISTORY, KEEP, Checkpoints
from leaders.train import main
from tests.problems import four_rooms, random_model

STATE = {
    "x": torch.arange(3.0),
    "n": 3,
    "big": 2**100,
    "inner": {0: np.ones(2), "none": None},
    "empty": {},
    "f": np.float64(0.1),
    "a/b": {"c.d/e": 1},
}


class StopError(Exception):
    pass


def _leader(kind: str) -> leaders.Leader:
    if kind in ("monte_carlo", "pooled", "td", "geometric"):
        return leaders.HPGD(estimator=kind, **({"samples": 300} if kind == "geometric" else {"env_steps": 500}))
    if kind == "amd":
        return leaders.AMD(sweeps=5)
    if kind == "zero-order":
        return leaders.ZeroOrder(learning_rate=0.1)
    return leaders.ExactGradient(learning_rate=0.05, optimizer=kind, schedule="inverse-sqrt")


def test_states_survive_the_disk(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, fingerprint={"a": 1})
    checkpoints.save(7, STATE)
    state = Checkpoints(tmp_path, fingerprint={"a": 1}).latest()
    assert state is not None
    np.testing.assert_array_equal(state["x"], [0.0, 1.0, 2.0])
    assert (state["n"], state["big"], state["f"], state["inner"]["none"], state["empty"]) == (3, 2**100, 0.1, None, {})
    np.testing.assert_array_equal(state["inner"][0], [1.0, 1.0])
    assert state["a/b"] == {"c.d/e": 1}
    assert Checkpoints(tmp_path / "nothing").latest() is None


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for done in range(6):
        checkpoints.save(done, STATE)
    assert len(list(tmp_path.iterdir())) == KEEP
    assert checkpoints.last == tmp_path / "iteration-000000005.safetensors"


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit", "foreign", "text", "settings"])
def test_a_damaged_or_foreign_checkpoint_is_a_named_error(damage: str, tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save(1, STATE)
    content = path.read_bytes()
    fingerprint = None
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "bit":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "foreign":
        save_file({"x": np.zeros(3)}, path)
    elif damage == "text":
        path.write_text("not a checkpoint at all, but long enough to have a header")
    else:
        fingerprint = {"seed": 1}
    with pytest.raises(errors.CheckpointError, match="iteration-000000001"):
        Checkpoints(tmp_path, fingerprint=fingerprint).latest()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    model, leader, follower = random_model(1), leaders.ExactGradient(learning_rate=0.1), followers.SoftPolicyIteration(0.5)
    errors_seen = []

    def second(progress: leaders.Progress) -> None:
        try:
            leaders.optimize(model, leader, follower, 3, checkpoints=Checkpoints(tmp_path), resume=True)
        except errors.FolderInUseError as error:
            errors_seen.append(str(error))

    leaders.optimize(model, leader, follower, 3, checkpoints=Checkpoints(tmp_path), callback=second)
    assert errors_seen
    assert all(f"in use by process {os.getpid()}" in text for text in errors_seen)


def _made(folder: Path, iterations: int = 9, **options: Any) -> Checkpoints:
    model, leader, follower = random_model(1), leaders.ExactGradient(learning_rate=0.1), followers.SoftPolicyIteration(0.5)
    checkpoints = Checkpoints(folder, 3)
    leaders.optimize(model, leader, follower, iterations, checkpoints=checkpoints, **options)
    return checkpoints


def test_a_checkpoint_adds_to_the_history_and_rewrites_nothing(tmp_path: Path) -> None:
    sizes = []
    blocks = tmp_path / HISTORY
    _made(tmp_path, 60, callback=lambda progress: sizes.append(blocks.stat().st_size if blocks.exists() else 0), evaluate_every=3)
    growth = np.diff(sizes[1:-1])
    assert growth.min() > 0
    assert growth.max() < 1.1 * growth.min()
    files = sorted(tmp_path.glob("iteration-*"))
    assert files[-1].stat().st_size < 1.2 * files[0].stat().st_size


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "other run"])
def test_a_damaged_history_is_a_named_error(damage: str, tmp_path: Path) -> None:
    _made(tmp_path / "a")
    blocks = tmp_path / "a" / HISTORY
    content = blocks.read_bytes()
    if damage == "cut":
        blocks.write_bytes(content[:-1])
    elif damage == "bit":
        blocks.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    elif damage == "gone":
        blocks.unlink()
    else:
        _made(tmp_path / "b")
        blocks.write_bytes((tmp_path / "b" / HISTORY).read_bytes())
    with pytest.raises(errors.DamagedError, match=HISTORY):
        _made(tmp_path / "a", resume=True)


def test_an_earlier_checkpoint_and_rows_of_a_killed_run_are_no_damage(tmp_path: Path) -> None:
    whole = leaders.optimize(random_model(1), leaders.ExactGradient(learning_rate=0.1), followers.SoftPolicyIteration(0.5), 9)
    _made(tmp_path)
    (tmp_path / "iteration-000000009.safetensors").unlink()
    with open(tmp_path / HISTORY, "ab") as file:
        file.write(b"rows that were cut sh")
    resumed = leaders.optimize(
        random_model(1),
        leaders.ExactGradient(learning_rate=0.1),
        followers.SoftPolicyIteration(0.5),
        9,
        checkpoints=Checkpoints(tmp_path, 3),
        resume=True,
    )
    assert torch.equal(resumed.x, whole.x)
    np.testing.assert_array_equal(resumed.history["gradient_norm"], whole.history["gradient_norm"])
    again = Checkpoints(tmp_path, 3)
    again.identity = _made(tmp_path, resume=True).identity
    assert len(again.latest()["history"]) == 9  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("done", -5),
        ("done", 10),
        ("done", 8.0),
        ("done", None),
        ("x", np.zeros(3)),
        ("x", np.full(5, np.nan)),
        ("x", "0"),
        ("x0", [0.0]),
        ("rng", "{}"),
        ("rng", "no JSON"),
        ("kept", np.zeros(2)),
        ("env_steps", -1),
        ("seconds", float("inf")),
        ("update", {"done": -5}),
        ("update", 3),
        ("estimator", []),
        ("follower", None),
        ("evaluator", {"a": 1}),
    ],
)
def test_crafted_content_is_named(name: str, value: Any, tmp_path: Path) -> None:
    checkpoints = _made(tmp_path)
    path = tmp_path / "iteration-000000009.safetensors"
    content = read_state(path)
    for state in ({**content["state"], name: value}, {k: v for k, v in content["state"].items() if k != name}):
        write_state(path, {**content, "state": state})
        with pytest.raises(errors.DamagedError):
            _made(tmp_path, resume=True)
    write_state(path, {k: v for k, v in content.items() if k != "history"})
    with pytest.raises(errors.DamagedError, match="no entry 'history'"):
        checkpoints.latest()


def _arrays(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the arrays of a state are."""
    if isinstance(state, dict):
        return [found for key, part in state.items() for found in _arrays(part, (*path, key))]
    return [path] if isinstance(state, np.ndarray) else []


def _with(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    return value if not path else {**state, path[0]: _with(state[path[0]], path[1:], value)}


CRAFTED: dict[str, Callable[[], tuple[leaders.Leader, followers.Follower]]] = {
    "exact": lambda: (leaders.ExactGradient(0.1, optimizer="Adam"), followers.SoftPolicyIteration(0.5)),
    "momentum": lambda: (leaders.ZeroOrder(0.1, momentum=0.9), followers.LinearProgramming()),
    "amd": lambda: (leaders.AMD(0.1, sweeps=3), followers.SoftValueIteration(0.5, iterations=5)),
    "pooled": lambda: (leaders.HPGD(0.1, 30, estimator="pooled"), followers.SoftQLearning(0.5, iterations=50)),
    "td": lambda: (leaders.HPGD(0.1, 30, estimator="td"), followers.NaturalPolicyGradient(0.5, iterations=2)),
    "network": lambda: (
        leaders.HPGD(0.1, 300, estimator="critic", hidden=(4,), epochs=1, optimizer="NAdam"),
        followers.VanillaPolicyGradient(0.5, iterations=3),
    ),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_arrays_are_named(case: str, tmp_path: Path) -> None:
    """Every array in a checkpoint, with one more entry, with another number of axes, of text's type, or not finite."""

    def run(iterations: int | None = None, resume: bool = False) -> leaders.Result:
        leader, follower = CRAFTED[case]()
        constraints = [leaders.Constraint("c", np.ones((2, 3, 3)), 0.1)] if case == "exact" else []
        model = random_model(1, states=3, contexts=2, moving=("reward",))
        options: dict[str, Any] = {"seed": 0, "evaluate_every": 1, "contexts": "all", "constraints": constraints}
        options |= {"checkpoints": Checkpoints(tmp_path, 2), "callback": lambda p: p.iteration == iterations}
        return leaders.optimize(model, leader, follower, 6, resume=resume, **options)

    run(2)
    path = sorted(tmp_path.glob("*.safetensors"))[-1]
    content = read_state(path)
    places = _arrays(content["state"])
    if case == "network":  # one network's arrays stand for those of the others
        places = [place for place in places if "values" in place or "q" in place]
    assert any(place[0] in ("estimator", "follower", "evaluator", "update") for place in places)
    for place in places:
        array = content["state"]
        for key in place:
            array = array[key]
        other = array.astype(np.float64) if array.dtype.kind == "b" else array > 0
        crafted = [np.concatenate([array.reshape(-1), array.reshape(-1)[:1]]), array[None], other]
        if array.dtype.kind == "f":
            crafted.append(np.full_like(array, np.nan))
        for value in crafted:
            if place == ("kept",) and value.ndim == 1 and value.dtype.kind == "i":
                continue  # contexts, as many as there are
            write_state(path, {**content, "state": _with(content["state"], place, value)})
            with pytest.raises(errors.CheckpointError):
                run(resume=True)
    write_state(path, content)
    assert len(run(resume=True).history) == 6


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What started the tests may have had SIGINT ignored (a background job)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_is_not_waited_for(tmp_path: Path) -> None:
    def twice(progress: leaders.Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        _made(tmp_path, callback=twice)

    def once(progress: leaders.Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(errors.RunInterruptedError, match=r"\(SIGINT\); resume it from .*000001") as caught:
        _made(tmp_path / "other", callback=once)
    assert caught.value.signal == signal.SIGINT
    assert _made(tmp_path / "other", resume=True).last == tmp_path / "other" / "iteration-000000009.safetensors"


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        _made(tmp_path, callback=lambda progress: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


FOLLOWERS: dict[str, Callable[[], followers.Follower]] = {
    "exact": lambda: followers.SoftPolicyIteration(1e-3),
    "value iteration": lambda: followers.SoftValueIteration(1e-3, iterations=30),
    "q-learning": lambda: followers.SoftQLearning(1e-3, iterations=2000),
    "vanilla": lambda: followers.VanillaPolicyGradient(1e-3, iterations=200),
    "natural": lambda: followers.NaturalPolicyGradient(1e-3, iterations=3),
}


@pytest.mark.parametrize(
    ("kind", "follower"),
    [
        *((kind, "exact") for kind in ("monte_carlo", "pooled", "td", "geometric", "amd", "zero-order", "SGD", "Adam", "NAdam")),
        *(("monte_carlo", name) for name in FOLLOWERS if name != "exact"),
        ("pooled", "q-learning"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(kind: str, follower: str, tmp_path: Path) -> None:
    options = {"seed": 2, "evaluate_every": 10}
    whole = leaders.optimize(four_rooms(), _leader(kind), FOLLOWERS[follower](), 30, **options)

    def stop(progress: leaders.Progress) -> None:
        if progress.iteration >= 20:
            raise StopError

    with pytest.raises(StopError):
        leaders.optimize(
            four_rooms(), _leader(kind), FOLLOWERS[follower](), 30, **options, checkpoints=Checkpoints(tmp_path, 7), callback=stop
        )
    resumed = leaders.optimize(
        four_rooms(), _leader(kind), FOLLOWERS[follower](), 30, **options, checkpoints=Checkpoints(tmp_path, 7), resume=True
    )
    assert torch.equal(whole.x, resumed.x)
    assert torch.equal(whole.x_random, resumed.x_random)
    assert whole.env_steps == resumed.env_steps
    assert whole.leader_return == resumed.leader_return
    for column in set(whole.history.columns) - {"seconds"}:
        np.testing.assert_array_equal(whole.history[column], resumed.history[column])


def test_runs_that_would_be_confused_are_refused(tmp_path: Path) -> None:
    model, follower = random_model(1), followers.SoftPolicyIteration(0.5)

    def run(leader: leaders.Leader, iterations: int = 10, seed: int = 0, resume: bool = False) -> leaders.Result:
        checkpoints = Checkpoints(tmp_path, 5)
        return leaders.optimize(model, leader, follower, iterations, seed=seed, checkpoints=checkpoints, resume=resume)

    first = run(leaders.ExactGradient(learning_rate=0.1))
    with pytest.raises(errors.CheckpointError, match="earlier run"):
        run(leaders.ExactGradient(learning_rate=0.1))
    for change, message in (
        (lambda: run(leaders.AMD(learning_rate=0.1), resume=True), "estimator"),
        (lambda: run(leaders.ExactGradient(learning_rate=0.1, optimizer="Adam"), resume=True), "optimizer"),
        (lambda: run(leaders.ExactGradient(learning_rate=0.1), seed=1, resume=True), "seed"),
        (lambda: run(leaders.ExactGradient(learning_rate=0.1), iterations=20, resume=True), "iterations"),
    ):
        with pytest.raises(errors.CheckpointError, match=message):
            change()
    assert torch.equal(run(leaders.ExactGradient(learning_rate=0.1), resume=True).x, first.x)


def test_overwrite_keeps_the_old_run_until_the_new_settings_work(tmp_path: Path) -> None:
    command = [
        "random-mdp",
        "--n-states",
        "5",
        "--iterations",
        "3",
        "--leader",
        "exact",
        "--regularization",
        "0.5",
        "--no-progress",
    ]
    out = ["--out", str(tmp_path / "run")]
    assert main([*command, *out]) == 0
    before = (tmp_path / "run" / "summary.json").read_text()
    assert main([*command, *out, "--overwrite", "--evaluate-every", "0"]) == 2
    assert (tmp_path / "run" / "summary.json").read_text() == before
    assert main([*command, *out, "--overwrite", "--seed", "1"]) == 0
    assert (tmp_path / "run" / "summary.json").read_text() != before


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    arguments = {"seed": 1, "checkpoints": Checkpoints(tmp_path, every=5)}
    model, leader, follower = random_model(1), leaders.ExactGradient(learning_rate=0.1), followers.SoftPolicyIteration(0.5)
    first = leaders.optimize(model, leader, follower, 10, **arguments)
    again = leaders.optimize(model, leader, follower, 10, **arguments, resume=True)
    assert torch.equal(first.x, again.x)


def test_a_run_that_its_callback_stops_is_saved_there(tmp_path: Path) -> None:
    model, leader, follower = random_model(1), leaders.ExactGradient(learning_rate=0.1), followers.SoftPolicyIteration(0.5)
    whole = leaders.optimize(model, leader, follower, 10, evaluate_every=3)
    stopped = leaders.optimize(
        model, leader, follower, 10, evaluate_every=3, checkpoints=Checkpoints(tmp_path, 100), callback=lambda p: p.iteration == 3
    )
    assert (stopped.stopped, stopped.iterations) == ("callback", 4)
    assert (tmp_path / "iteration-000000004.safetensors").exists()
    resumed = leaders.optimize(model, leader, follower, 10, evaluate_every=3, checkpoints=Checkpoints(tmp_path, 100), resume=True)
    assert (resumed.stopped, resumed.iterations) == ("iterations", 10)
    assert torch.equal(resumed.x, whole.x)
    assert torch.equal(resumed.x_random, whole.x_random)


def test_a_full_disk_leaves_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    good = checkpoints.save(1, STATE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.CheckpointError, match=r"No space left on device; the last good checkpoint is .*000000001"):
        checkpoints.save(2, STATE)
    assert list(tmp_path.iterdir()) == [good]
    monkeypatch.undo()
    assert Checkpoints(tmp_path).latest() is not None


def test_a_folder_that_cannot_be_written_is_a_named_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(errors.CheckpointError, match="no earlier checkpoint"):
        Checkpoints(blocked / "checkpoints").save(1, STATE)
    with pytest.raises(errors.OptionError, match="at least 1"):
        Checkpoints(tmp_path, every=0)
    with pytest.raises(errors.OptionError, match="needs checkpoints"):
        leaders.optimize(random_model(1), leaders.ExactGradient(), followers.SoftPolicyIteration(0.5), 3, resume=True)


COMMAND = [
    "four-rooms",
    "--iterations",
    "400",
    "--env-steps",
    "300",
    "--checkpoint-every",
    "20",
    "--evaluate-every",
    "50",
    "--no-progress",
]


def _start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leaders.train", *COMMAND, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for_checkpoint(out: Path) -> None:
    for _ in range(1200):
        if list(out.glob("checkpoints/*.safetensors")):
            return
        time.sleep(0.05)
    raise TimeoutError


def _numbers(out: Path) -> tuple[object, ...]:
    summary = json.loads((out / "summary.json").read_text())
    rows = list(csv.DictReader((out / "progress.csv").read_text().splitlines()))
    for row in rows:
        del row["seconds"]
    return summary["x"], summary["x_random"], summary["env_steps"], rows


def test_kill_and_sigterm_leave_no_trace(tmp_path: Path) -> None:
    assert main([*COMMAND, "--out", str(tmp_path / "whole")]) == 0
    for name, number in (("killed", signal.SIGKILL), ("asked", signal.SIGTERM)):
        out = tmp_path / name
        process = _start(out)
        _wait_for_checkpoint(out)
        time.sleep(0.03)
        process.send_signal(number)
        code = process.wait(timeout=60)
        if not (out / "summary.json").exists():  # it was not faster than the signal
            assert code == (-signal.SIGKILL if number == signal.SIGKILL else 143)
        assert main([*COMMAND, "--out", str(out), "--resume"]) == 0
        assert _numbers(out) == _numbers(tmp_path / "whole")


def test_resume_refuses_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["four-rooms", "--iterations", "5", "--env-steps", "200", "--no-progress", "--out", str(tmp_path / "run")]
    assert main([*command, "--resume"]) == 0  # nothing there yet: said, and started
    assert "no checkpoint there" in capsys.readouterr().err
    assert main([*command, "--resume", "--penalty-cost", "3"]) == 2
    assert "penalty_cost was 1.0, is 3.0" in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_random_kills(tmp_path: Path) -> None:
    assert main([*COMMAND, "--out", str(tmp_path / "whole")]) == 0
    rng = np.random.default_rng(0)
    for i in range(20):
        out = tmp_path / str(i)
        process = _start(out)
        time.sleep(float(rng.uniform(0.5, 6.0)))
        process.kill()
        process.wait(timeout=60)
        assert main([*COMMAND, "--out", str(out), "--resume"]) == 0
        assert _numbers(out) == _numbers(tmp_path / "whole")
