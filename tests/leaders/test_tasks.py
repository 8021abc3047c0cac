from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bocmdp_gym.errors import OptionError, UnsupportedError
from leaders.tasks import run_tasks

TASKS = {f"square-{i}": {"number": i} for i in range(5)}
SQUARES = {f"square-{i}": {"square": i * i} for i in range(5)}


def square(task: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Squares a number; "die" kills its process the first so many times, "fail" raises."""
    with open(folder / "attempts", "a") as file:
        file.write("x")
    print("squaring", task["number"])
    if len((folder / "attempts").read_text()) <= task.get("die", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.get("fail"):
        raise ZeroDivisionError("one line\nand another")
    return {"square": task["number"] ** 2}


def wait_for_ever(task: Mapping[str, Any], folder: Path) -> None:
    """Ends only on SIGTERM, and saves its work then, as `leaders.train` does."""
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: asked.set())
    (folder / "pid").write_text(str(os.getpid()))
    while not asked.is_set():
        time.sleep(0.02)
    (folder / "saved").write_text("")
    raise InterruptedError("asked to stop")


def threads(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """How many threads its process uses."""
    import torch

    return {"torch": torch.get_num_threads(), "variable": os.environ["OMP_NUM_THREADS"]}


def attempts(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text()) for path in sorted(folder.glob("*/attempts"))}


def test_results_come_in_the_order_of_the_tasks_and_are_kept(tmp_path: Path) -> None:
    outcomes = run_tasks(TASKS, square, tmp_path, backend="serial", progress=False)
    assert outcomes.results == SQUARES
    assert list(outcomes.results) == list(TASKS)
    assert outcomes.ran == list(TASKS)
    stored = json.loads((tmp_path / "square-3" / "result.json").read_text())
    assert stored == {"task": {"number": 3}, "result": {"square": 9}}
    assert (tmp_path / "square-3" / "log.txt").read_text() == "squaring 3\n"
    again = run_tasks(dict(reversed(TASKS.items())), square, tmp_path, backend="serial", progress=False)
    assert again.results == SQUARES
    assert list(again.results) == list(reversed(TASKS))
    assert again.ran == []
    assert set(attempts(tmp_path).values()) == {1}


def test_dead_workers_are_replaced_and_failures_reported(tmp_path: Path) -> None:
    tasks = TASKS | {
        "square-1": {"number": 1, "die": 1},
        "square-2": {"number": 2, "fail": True},
        "square-4": {"number": 4, "die": 9},
    }
    outcomes = run_tasks(tasks, square, tmp_path, workers=2, retries=1, progress=False)
    assert list(outcomes.results) == ["square-0", "square-1", "square-3"]
    assert outcomes.results == {key: SQUARES[key] for key in outcomes.results}
    assert outcomes.failures == {
        "square-2": "ZeroDivisionError: one line",
        "square-4": "the worker died (SIGKILL)",
    }
    assert outcomes.retried == 3
    assert attempts(tmp_path) == {"square-0": 1, "square-1": 2, "square-2": 2, "square-3": 1, "square-4": 2}
    assert "in square" in (tmp_path / "square-2" / "error.txt").read_text()
    assert not (tmp_path / "square-1" / "error.txt").exists()
    mended = run_tasks({"square-2": tasks["square-2"] | {"fail": False}}, square, tmp_path, backend="serial", progress=False)
    assert mended.results == {"square-2": {"square": 4}}
    assert not (tmp_path / "square-2" / "error.txt").exists()


def test_ray_runs_the_same_tasks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    tasks = {"square-1": {"number": 1, "die": 1}, "square-2": {"number": 2, "fail": True}}
    outcomes = run_tasks(tasks, square, tmp_path, backend="ray", workers=2, retries=1, progress=False)
    assert outcomes.results == {"square-1": {"square": 1}}
    assert outcomes.failures == {"square-2": "ZeroDivisionError: one line"}
    assert outcomes.retried == 2
    assert attempts(tmp_path) == {"square-1": 2, "square-2": 2}
    assert capfd.readouterr() == ("", "")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'bocmdp-gym\[distributed\]'"):
        run_tasks(TASKS, square, tmp_path, backend="ray", progress=False)


def test_workers_use_one_thread(tmp_path: Path) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    outcomes = run_tasks({"a": {}}, threads, tmp_path, workers=1, progress=False)
    assert outcomes.results == {"a": {"torch": 1, "variable": "1"}}
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_process_that_started_it(tmp_path: Path, end: signal.Signals) -> None:
    """Ctrl-C reaches all processes of a terminal; kill -9 reaches one. The worker saves its work either way."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run in the background ignores it
        "from tests.leaders.test_tasks import wait_for_ever; from leaders.tasks import run_tasks\n"
        f"if __name__ == '__main__': run_tasks({{'a': {{}}}}, wait_for_ever, {str(tmp_path)!r}, workers=1, progress=False)"
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    path = tmp_path / "a" / "pid"
    while not (path.exists() and path.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    if end is signal.SIGINT:
        os.killpg(parent.pid, end)
    else:
        parent.kill()
    parent.wait(120)
    worker = int(path.read_text())
    for _ in range(400):
        if not _is_running(worker):
            assert (tmp_path / "a" / "saved").exists()
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on for 20 s")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ({"../a": {}}, {}, "cannot name a folder"),
        ({"a": {"x": object()}}, {}, "no JSON"),
        ({"a": {}}, {"backend": "rays"}, "Did you mean 'ray'"),
        ({"a": {}}, {"workers": 0}, "workers is 0"),
        ({"a": {}}, {"retries": -1}, "retries is -1"),
        ({"a": {}}, {"address": "auto"}, "backend='ray'"),
    ],
)
def test_bad_input_is_refused(tasks: Any, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        run_tasks(tasks, square, tmp_path, progress=False, **options)


def test_a_result_of_another_task_is_never_taken(tmp_path: Path) -> None:
    run_tasks({"a": {"number": 2}}, square, tmp_path, backend="serial", progress=False)
    with pytest.raises(OptionError, match="number was 2, is 3"):
        run_tasks({"a": {"number": 3}}, square, tmp_path, backend="serial", progress=False)
    (tmp_path / "a" / "result.json").write_text("{")
    with pytest.raises(OptionError, match="delete it"):
        run_tasks({"a": {"number": 2}}, square, tmp_path, backend="serial", progress=False)


def test_a_result_that_is_no_json_is_a_failure(tmp_path: Path) -> None:
    outcomes = run_tasks({"a": {}}, not_json, tmp_path, backend="serial", retries=0, progress=False)
    assert "not JSON serializable" in outcomes.failures["a"]


def not_json(task: Mapping[str, Any], folder: Path) -> Path:
    """Returns what JSON does not know."""
    return folder
