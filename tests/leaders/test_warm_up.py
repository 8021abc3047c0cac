from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from followers.registry import FOLLOWERS
from leaders import train, warm_up
from leaders.settings import settings_from_values
from leaders.settings.run import LEADERS, hyphenated

ROOT = Path(__file__).parents[2]


def test_all_that_has_kernels_is_run() -> None:
    """Every leader, every estimator of hpgd, and every follower of our own that plans or learns a table."""
    runs = [settings_from_values(name, values) for name, values in warm_up.RUNS]
    assert {run.leader for run in runs} == set(LEADERS)
    estimators = {hyphenated(name) for name in LEADERS["hpgd"].kinds} - {"auto", "monte-carlo"}  # auto takes monte-carlo
    assert estimators <= {run.estimator for run in runs}
    tabular = {name for name, entry in FOLLOWERS.items() if ".sb3." not in entry.load().__module__} - {"linear-quadratic"}
    assert {run.follower for run in runs} == tabular


def test_it_says_what_was_compiled_and_where_it_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warm_up, "RUNS", warm_up.RUNS[:1])
    monkeypatch.setattr(warm_up, "MANY", ())
    done = warm_up.warm_up(progress=False)
    assert done.kernels == sum(sum(one.stats.cache_misses.values()) for one in warm_up.kernels().values())
    assert Path(done.folder).is_dir()
    assert train.main(["--warm-up", "--no-progress"]) == 0
    assert f" s; kept below {done.folder}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_is_left_to_compile(tmp_path: Path) -> None:
    """Into an empty folder: every kernel, but for those that only other kernels call; and training then compiles nothing."""
    script = (
        "import json\n"
        "from leaders.warm_up import kernels, warm_up\n"
        "done, found = warm_up(progress=False), kernels().values()\n"
        "inner = {name for kernel in found for name in kernel.py_func.__code__.co_names}\n"
        "missed = [one.__name__ for one in found if not one.signatures and one.__name__ not in inner]\n"
        "print(json.dumps([done.kernels, done.folder, len(found), missed]))\n"
    )
    folder = tmp_path / "kernels"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}

    def run(*words: str) -> str:
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout

    compiled, kept, known, missed = json.loads(run("-c", script))
    assert missed == []
    assert compiled >= known - 20  # without the inner ones
    assert Path(kept).is_relative_to(folder)
    files = set(folder.rglob("*.nbc"))
    assert len(files) == compiled
    assert json.loads(run("-c", script))[0] == 0
    run("-m", "leaders.train", "four-rooms", "--iterations", "20", "--no-progress", "--out", "run")
    run("-m", "leaders.evaluate", "run", "--env-steps", "500")
    assert set(folder.rglob("*.nbc")) == files
