from __future__ import annotations

import csv
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bocmdp_gym.errors import BOCMDPError, OptionError
from bocmdp_gym.files import owning
from leaders import optimize
from leaders.settings import RunSettings, commands, settings_from_values
from leaders.sweep import Sweep, main, read_plan, sweep
from leaders.sweep_tasks import run_task, task_of

ROOMS = "xxxxxx\nx    x\nx xx x\nx    x\nxxxxxx\n"
SMALL: dict[str, Any] = {
    "start": [1, 1],
    "goals": [[3, 4]],
    "waypoint": [3, 1],
    "horizon": 30,
    "iterations": 40,
    "evaluate_every": 20,
}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    layout = tmp_path / "rooms.txt"
    layout.write_text(ROOMS)
    return SMALL | {"layout": f"@{layout}"}


@pytest.mark.slow
def test_a_sweep_of_ray_workers_survives_the_death_of_one(
    tmp_path: Path, settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """20 runs on a local cluster of 2 workers, one of which is killed: the serial results; a second start runs nothing."""
    pytest.importorskip("ray")
    cases = [{"leader": "hpgd", "env_steps": 300}, {"leader": "exact"}]
    plan = Sweep(seeds=range(5), settings=settings, cases=cases, grid={"regularization": [0.05, 0.1]})
    options: dict[str, Any] = {"backend": "ray", "workers": 2, "progress": False}
    killed: list[int] = []
    killer = threading.Thread(target=_kill_a_worker, args=(tmp_path / "out", 6, killed))
    killer.start()
    outcomes = sweep(plan, tmp_path / "out", **options)
    killer.join()
    assert killed
    assert outcomes.retried >= 1
    assert not outcomes.failures
    assert len(outcomes.results) == len(outcomes.ran) == 20
    for run in plan.runs():
        serial = optimize(
            run.make_env(), run.make_leader(), run.make_follower(), run.iterations, seed=run.seed, evaluate_every=20
        )
        key, _ = task_of(run)
        assert json.loads((tmp_path / "out" / key / "summary.json").read_text())["x"] == serial.x.tolist()
        assert outcomes.results[key]["leader_return"] == serial.leader_return
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")}
    again = sweep(plan, tmp_path / "out", **options)
    assert again.ran == []
    assert again.results == outcomes.results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")} == times
    assert capfd.readouterr() == ("", "")


def _kill_a_worker(out: Path, after: int, killed: list[int]) -> None:
    """Once ``after`` runs are finished, SIGKILL the first process found at work on another (it holds the run's log open)."""
    deadline, finished = time.monotonic() + 600, 0
    while finished < 20 and time.monotonic() < deadline:
        time.sleep(0.002)
        finished = len(list(out.glob("*/result.json")))
        if finished >= after:
            for pid, log in _open_logs(out):
                if pid != os.getpid() and (log.parent / "checkpoints").exists() and not (log.parent / "summary.json").exists():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return


def _open_logs(out: Path) -> Iterator[tuple[int, Path]]:
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = Path(os.readlink(link))
        except OSError:
            continue
        if target.name == "log.txt" and out in target.parents:
            yield int(link.parts[2]), target


def test_the_tables_tell_mean_and_standard_error(tmp_path: Path, settings: dict[str, Any]) -> None:
    plan = Sweep(leaders=["exact"], seeds=[3, 5], settings=settings | {"iterations": 5}, grid={"regularization": [0.05, 0.1]})
    outcomes = sweep(plan, tmp_path / "out", backend="serial", progress=False)
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    runs = list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert [row["regularization"] for row in rows] == ["0.05", "0.1"]
    assert [(run["regularization"], run["seed"]) for run in runs] == [("0.05", "3"), ("0.05", "5"), ("0.1", "3"), ("0.1", "5")]
    assert [float(run["leader_return"]) for run in runs] == [r["leader_return"] for r in outcomes.results.values()]
    for i, row in enumerate(rows):
        found = [float(run["leader_return"]) for run in runs[2 * i : 2 * i + 2]]
        assert float(row["leader_return_mean"]) == pytest.approx(np.mean(found), rel=1e-14)
        assert float(row["leader_return_standard_error"]) == pytest.approx(abs(found[0] - found[1]) / 2, rel=1e-12)
        assert (row["runs"], row["failed"]) == ("2", "0")
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert lines[0].replace(" ", "").startswith("|environment|leader|regularization|runs|")
    assert len({len(line) for line in lines}) == 1


def test_a_larger_sweep_runs_only_what_is_new(tmp_path: Path, settings: dict[str, Any]) -> None:
    options: dict[str, Any] = {"backend": "serial", "progress": False}
    small = Sweep(leaders=["exact"], seeds=[0], settings=settings | {"iterations": 3})
    first = sweep(small, tmp_path, **options)
    larger = Sweep(leaders=["exact"], seeds=[0, 1], settings=settings | {"iterations": 3}, grid={"learning_rate": [None, 0.1]})
    second = sweep(larger, tmp_path, **options)
    assert len(second.results) == 4
    assert len(second.ran) == 3
    assert not set(first.ran) & set(second.ran)


def test_an_interrupted_run_resumes_and_a_finished_one_is_read(tmp_path: Path, settings: dict[str, Any]) -> None:
    plan = Sweep(settings=settings | {"env_steps": 300, "checkpoint_every": 10})
    key, task = task_of(plan.runs()[0])
    whole = run_task(task, tmp_path / "whole")
    folder = tmp_path / key
    run_task(task, folder)
    for path in folder.glob("checkpoints/*-000000040.*"):
        path.unlink()
    (folder / "summary.json").unlink()
    resumed = run_task(task, folder)
    assert resumed | {"seconds": 0} == whole | {"seconds": 0}
    x = [json.loads((f / "summary.json").read_text())["x"] for f in (folder, tmp_path / "whole")]
    assert x[0] == x[1]
    before = (folder / "summary.json").stat().st_mtime_ns
    outcomes = sweep(plan, tmp_path, backend="serial", progress=False)
    assert outcomes.results[key] == resumed
    assert (folder / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(OptionError, match="other settings"):
        run_task(task | {"seed": 1}, folder)


@pytest.mark.parametrize("environment", [name for name in commands() if name != "custom"])
def test_every_environment_s_settings_survive_a_task(environment: str) -> None:
    for values in ({}, {"contexts": 3, "learning_rate": 1, "layout": "xxx" if environment == "four-rooms" else None}):
        given = {name: value for name, value in values.items() if value is not None}
        settings = settings_from_values(environment, given)
        _, task = task_of(settings)
        assert task == json.loads(json.dumps(task))
        again = settings_from_values(task.pop("environment"), task)
        assert again == settings
        assert task_of(again) == task_of(settings)


def test_files_and_options_say_what_to_run(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "plan.json", tmp_path / "out"
    plan = {"leaders": ["exact"], "seeds": 2, "settings": settings | {"iterations": 9}, "grid": {"regularization": [1, 2]}}
    path.write_text(json.dumps(plan))
    options = ["--set", "iterations=2", "--grid", "regularization=0.5,0.1", "schedule=constant,cosine", "--backend", "serial"]
    assert main([str(path), *options, "--seeds", "1", "--out", str(out), "--no-progress"]) == 0
    assert "4 of 4 runs finished, 0 of them before" in capsys.readouterr().out
    toml = tmp_path / "plan.toml"
    text = f"leaders = ['exact']\nseeds = 1\n[settings]\niterations = 2\nlayout = '{settings['layout']}'\n"
    text += "".join(f"{name} = {settings[name]}\n" for name in ("start", "goals", "waypoint", "horizon", "evaluate_every"))
    toml.write_text(text + "[grid]\nregularization = [0.5, 0.1]\nschedule = ['constant', 'cosine']\n")
    assert main([str(toml), "--backend", "serial", "--out", str(out), "--no-progress"]) == 0
    assert "4 of 4 runs finished, 4 of them before" in capsys.readouterr().out
    assert len(list(csv.DictReader((out / "results.csv").read_text().splitlines()))) == 4


def test_failed_runs_are_listed(tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    plan = {"leaders": ["exact"], "settings": settings | {"iterations": 4}, "grid": {"learning_rate": [0.1, 1e308]}}
    path.write_text(json.dumps(plan))
    options = ["--backend", "serial", "--retries", "0", "--no-progress", "--out", str(tmp_path / "out")]
    assert main([str(path), *options, "--set", "max_gradient_norm=1e308"]) == 1
    text = capsys.readouterr().out
    assert "1 of 2 runs finished" in text
    assert "Failed:" in text


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"environments": ["four-room"]}, "Did you mean 'four-rooms'"),
        ({"environments": "four-rooms"}, "expected a list"),
        ({"environments": ["custom"]}, "not complete"),
        ({"leaders": ["hpdg"]}, "Did you mean 'hpgd'"),
        ({"seeds": []}, "empty list"),
        ({"seeds": [-1]}, "a seed is -1"),
        ({"settings": {"iteration": 3}}, "Did you mean 'iterations'"),
        ({"settings": {"iterations": 3.5}}, "iterations is 3.5; expected int"),
        ({"settings": {"iterations": True}}, "iterations is True; expected int"),
        ({"settings": {"goals": [["a"]]}}, "goals is"),
        ({"settings": {"goals": [[1, 2, 3]]}}, "[row, column]"),
        ({"settings": {"contexts": "every"}}, "Known: all"),
        ({"settings": {"out": "x"}}, "leave it out"),
        ({"settings": {"regularization": -1.0}}, "regularization is -1"),
        ({"settings": {"goals": [[0, 0]]}}, "inside a wall"),
        ({"grid": {"regularization": 0.1}}, "expected a list"),
        ({"grid": {"seed": [1, 2]}, "seeds": [1]}, "'seed' twice"),
        ({"leaders": ["exact"], "grid": {"leader": ["hpgd"]}}, "'leader' twice"),
        ({"leaders": ["exact"], "settings": {"env_steps": 5}}, "env-steps is an option of"),
        ({"cases": [3]}, "expected names with values"),
        ({"settigs": {}}, "Did you mean 'settings'"),
        ([], "expected an object"),
    ],
)
def test_plans_that_cannot_work_are_refused(plan: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    assert main([str(path), "--out", str(tmp_path / "out"), "--no-progress"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.toml"], "cannot read the sweep"),
        (["--set", "iterations"], "NAME=VALUE"),
        (["--seeds", "0"], "seeds is 0"),
        (["--address", "auto"], "backend='ray'"),
    ],
)
def test_options_that_cannot_work_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options, "--no-progress"]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("seeds = ")
    assert main([str(path)]) == 2
    assert "is not TOML" in capsys.readouterr().err


def test_without_ray_the_extra_is_named(tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BOCMDPError, match=r"pip install 'bocmdp-gym\[distributed\]'"):
        sweep(Sweep(settings=settings), tmp_path / "out", backend="ray", progress=False)


def test_a_sweep_s_folder_has_one_owner(tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "plan.json", tmp_path / "out"
    path.write_text(json.dumps({"leaders": ["exact"], "settings": settings | {"iterations": 2}}))
    with owning(out, "the folder of tasks"):
        assert main([str(path), "--out", str(out), "--backend", "serial", "--no-progress"]) == 2
    assert f"in use by process {os.getpid()} on" in capsys.readouterr().err
    assert not list(out.glob("*/result.json"))
    (out / "results.csv.0123abcd.tmp").write_text("cut sho")
    assert main([str(path), "--out", str(out), "--backend", "serial", "--no-progress"]) == 0
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("file", ["history.npz", "summary.json", "iteration", "history.blocks"])
def test_a_damaged_run_is_made_again(file: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    _, task = task_of(Sweep(leaders=["exact"], settings=settings | {"iterations": 6, "checkpoint_every": 4}).runs()[0])
    first = run_task(task, tmp_path / "run")
    for path in (tmp_path / "run").rglob(f"{file}*"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + content[: len(content) // 3])
    if file not in ("history.npz", "summary.json"):
        (tmp_path / "run" / "summary.json").unlink()
    assert run_task(task, tmp_path / "run") | {"seconds": 0} == first | {"seconds": 0}


def test_other_versions_have_folders_of_their_own(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = Sweep(settings=settings).runs()
    before = task_of(run)[0]
    monkeypatch.setattr("leaders.sweep_tasks.__version__", "9.9")
    assert task_of(run)[0] != before


def test_the_parent_does_not_build_every_environment(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr(RunSettings, "make_env", lambda self: built.append(self.name))
    plan = Sweep(leaders=["exact"], settings=settings | {"iterations": 2}, grid={"slip_probability": [0.1, 0.2, 0.3]})
    outcomes = sweep(plan, tmp_path / "out", workers=2, progress=False)
    assert len(outcomes.results) == 3
    assert built == []


def test_environments_that_cannot_be_made_are_refused_before_anything_runs(tmp_path: Path, settings: dict[str, Any]) -> None:
    plan = Sweep(leaders=["exact"], settings=settings | {"iterations": 2}, grid={"penalty_cost": [1.0, -1.0]})
    with pytest.raises(BOCMDPError, match="penalty_cost"):
        sweep(plan, tmp_path / "out", workers=2, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "plan",
    [
        {"settings": {"module": "sent"}},
        {"cases": [{"module": "sent"}]},
        {"grid": {"module": ["sent"]}},
        {"environments": ["custom"], "settings": {"id": "sent:Roads-v0"}},
        {"environments": ["custom"], "grid": {"id": ["sent:Roads-v0"]}},
    ],
)
def test_nothing_that_a_plan_alone_names_is_imported(
    plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sent.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert main([str(tmp_path / "plan.json"), "--out", str(tmp_path / "out"), "--no-progress"]) == 2
    assert "name it yourself: --set module=sent" in capsys.readouterr().err


def test_counts_may_be_floats_without_a_fraction(tmp_path: Path) -> None:
    plan = Sweep(seeds=[np.int64(3), 5.0], settings={"iterations": 2.0})  # type: ignore[list-item]
    assert [(type(run.seed), run.seed, run.iterations) for run in plan.runs()] == [(int, 3, 2), (int, 5, 2)]
    path = tmp_path / "plan.toml"
    path.write_text("seeds = 2e0\n")
    assert read_plan(path)["seeds"] == [0, 1]
    path.write_text("seeds = 1.5\n")
    with pytest.raises(OptionError, match=r"seeds is 1\.5"):
        read_plan(path)
