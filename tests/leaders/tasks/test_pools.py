from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leaders.tasks import run_tasks
from tests.leaders.tasks.functions import attempts, print_and_die, slow_square, threads


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
        "from tests.leaders.tasks.functions import wait_for_ever; from leaders.tasks import run_tasks\n"
        f"if __name__ == '__main__': run_tasks({{'a': {{}}}}, wait_for_ever, {str(tmp_path)!r}, workers=1, progress=False)"
    )
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
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
    pytest.fail("the worker was still running after 20 s")


def _start(tmp_path: Path, function: str, task: str) -> subprocess.Popen[bytes]:
    """A process that runs a task in a worker; what it started goes on when it is killed."""
    (tmp_path / "script.py").write_text(
        f"from tests.leaders.tasks.functions import {function}; from leaders.tasks import run_tasks\n"
        f"if __name__ == '__main__': run_tasks({{'a': {task}}}, {function}, {str(tmp_path)!r}, workers=1, progress=False)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen([sys.executable, tmp_path / "script.py"], env=environment, stderr=subprocess.DEVNULL)


def test_a_killed_parent_does_not_make_finished_tasks_run_again(tmp_path: Path) -> None:
    """The worker keeps what it found itself; a new start meanwhile waits for it, and takes it."""
    parent = _start(tmp_path, "slow_square", "{'number': 3, 'seconds': 4}")
    path = tmp_path / "a" / "pid"
    while not (path.exists() and path.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait(60)
    outcomes = run_tasks({"a": {"number": 3, "seconds": 4}}, slow_square, tmp_path, workers=1, progress=False)
    assert outcomes.results == {"a": {"square": 9}}
    assert attempts(tmp_path) == {"a": 1}


def test_a_log_survives_the_death_of_its_worker(tmp_path: Path) -> None:
    outcomes = run_tasks({"a": {}}, print_and_die, tmp_path, workers=1, retries=0, progress=False)
    assert outcomes.failures == {"a": "the worker died (SIGKILL)"}
    assert (tmp_path / "a" / "log.txt").read_text() == "the last words"


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False
