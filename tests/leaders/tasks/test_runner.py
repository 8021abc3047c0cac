from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bocmdp_gym.errors import FolderError, FolderInUseError, OptionError, RunInterruptedError
from bocmdp_gym.files import owning
from leaders.tasks import run_tasks
from leaders.tasks.attempts import TASK_LOCK
from tests.leaders.tasks.functions import SQUARES, TASKS, attempts, not_json, square, stop


def test_results_come_in_the_order_of_the_tasks_and_are_kept(tmp_path: Path) -> None:
    outcomes = run_tasks(TASKS, square, tmp_path, backend="serial", progress=False)
    assert outcomes.results == SQUARES
    assert list(outcomes.results) == list(TASKS)
    assert outcomes.ran == list(TASKS)
    stored = json.loads((tmp_path / "square-3" / "result.json").read_text())
    assert (stored["task"], stored["result"]) == ({"number": 3}, {"square": 9})
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
    repaired = run_tasks({"square-2": tasks["square-2"] | {"fail": False}}, square, tmp_path, backend="serial", progress=False)
    assert repaired.results == {"square-2": {"square": 4}}
    assert not (tmp_path / "square-2" / "error.txt").exists()


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ({"../a": {}}, {}, "cannot name a folder"),
        ({"a": {"x": object()}}, {}, "not JSON"),
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


def test_a_result_that_is_no_json_is_a_failure(tmp_path: Path) -> None:
    outcomes = run_tasks({"a": {}}, not_json, tmp_path, backend="serial", retries=0, progress=False)
    assert "not JSON serializable" in outcomes.failures["a"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"[1, 2]",
        lambda content: b'{"task": {"number": 2}, "result": {"square": 5}}',
        lambda content: content.replace(b'"square": 4', b'"square": 5'),
        lambda content: content + content,
        lambda content: b"\xff\xfe",
    ],
)
def test_a_damaged_result_is_run_again_and_said(damage: Any, tmp_path: Path) -> None:
    tasks = {"a": {"number": 2}, "b": {"number": 3}}
    run_tasks(tasks, square, tmp_path, backend="serial", progress=False)
    path = tmp_path / "a" / "result.json"
    path.write_bytes(damage(path.read_bytes()))
    outcomes = run_tasks(tasks, square, tmp_path, backend="serial", progress=False)
    assert outcomes.results == {"a": {"square": 4}, "b": {"square": 9}}
    assert outcomes.ran == ["a"]
    assert list(outcomes.damaged) == ["a"]
    assert "is damaged" in outcomes.damaged["a"]
    assert attempts(tmp_path) == {"a": 2, "b": 1}
    assert run_tasks(tasks, square, tmp_path, backend="serial", progress=False).damaged == {}


def test_a_folder_of_tasks_has_one_owner(tmp_path: Path) -> None:
    with owning(tmp_path, "the folder of tasks"), pytest.raises(FolderInUseError, match=f"process {os.getpid()} on "):
        run_tasks(TASKS, square, tmp_path, backend="serial", progress=False)
    assert attempts(tmp_path) == {}


def test_a_task_has_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaders.tasks.attempts._PATIENCE", 0.2)
    with owning(tmp_path / "square-2", "the task's folder", name=TASK_LOCK):
        outcomes = run_tasks(TASKS, square, tmp_path, backend="serial", retries=0, progress=False)
    assert list(outcomes.failures) == ["square-2"]
    assert "FolderInUseError" in outcomes.failures["square-2"]
    assert "square-2" not in attempts(tmp_path)


def test_tables_are_written_while_the_folder_is_owned(tmp_path: Path) -> None:
    def finish(outcomes: Any) -> None:
        assert outcomes.results == SQUARES
        with pytest.raises(FolderInUseError), owning(tmp_path, "the folder"):
            pass

    run_tasks(TASKS, square, tmp_path, backend="serial", progress=False, finish=finish)


def test_a_run_that_is_asked_to_stop_stops_the_tasks_of_its_process(tmp_path: Path) -> None:
    with pytest.raises(RunInterruptedError, match="asked to stop"):
        run_tasks({"a": {}, "b": {}}, stop, tmp_path, backend="serial", progress=False)
    assert not (tmp_path / "b").exists()


def test_folders_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot write"):
        run_tasks(TASKS, square, tmp_path / "file", backend="serial", progress=False)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "square-0").write_text("")
    with pytest.raises(FolderError, match=r"cannot read .*square-0"):
        run_tasks(TASKS, square, tmp_path / "tasks", backend="serial", progress=False)
