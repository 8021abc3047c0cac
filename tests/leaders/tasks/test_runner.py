from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bocmdp_gym.errors import OptionError
from leaders.tasks import run_tasks
from tests.leaders.tasks.functions import SQUARES, TASKS, attempts, not_json, square


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
