from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bocmdp_gym.errors import UnsupportedError
from leaders.tasks import run_tasks
from tests.leaders.tasks.functions import TASKS, attempts, square


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
