"""What happens to a run folder from outside: other processes, full disks, removed files, signals."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bocmdp_gym.files import LOCK
from leaders import run_folder
from leaders.train import main

SMALL = ["random-mdp", "--n-states", "5", "--leader", "exact", "--regularization", "0.5", "--no-progress"]
SHORT = [*SMALL, "--iterations", "6", "--evaluate-every", "2", "--checkpoint-every", "4"]
LONG = [*SMALL, "--iterations", "1000000", "--evaluate-every", "1000", "--checkpoint-every", "500"]


def _default_signals() -> None:
    """Whatever started the tests may have some of them ignored (nohup, a background job)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "leaders.train", *LONG, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=_default_signals)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/iteration-*")) or not (out / "progress.csv").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def _end(process: subprocess.Popen[str]) -> str:
    process.kill()
    _, errors = process.communicate()
    return errors


def test_a_second_run_in_the_folder_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = _start(tmp_path / "run")
    try:
        for further in (["--resume"], ["--overwrite"], []):
            assert main([*LONG, "--out", str(tmp_path / "run"), *further]) == 2
            assert f"FolderInUseError: the run folder {tmp_path / 'run'} is in use by process {process.pid} on" in (
                capsys.readouterr().err
            )
        assert process.poll() is None
    finally:
        _end(process)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # with the lock file of a process that is dead
    assert main([*SHORT, "--out", str(tmp_path / "copy"), "--overwrite"]) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_leave_a_checkpoint(number: signal.Signals, status: int, tmp_path: Path) -> None:
    process = _start(tmp_path / "run")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"asked to stop ({number.name}); resume it from" in errors
    assert "Traceback" not in errors
    last = sorted((tmp_path / "run" / "checkpoints").glob("iteration-*"))[-1]
    assert last.name in errors


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([*SHORT, "--out", str(out)]) == 0
    scratch = [out / "summary.json.0123abcd.tmp", out / "a.png.tmp", out / "checkpoints" / "iteration-000000009.safetensors.tmp"]
    for path in (*scratch, out / "mine.tmp"):
        path.write_text("cut sho")
    assert main([*SHORT, "--out", str(out), "--resume"]) == 0
    assert not any(path.exists() for path in scratch)
    assert (out / "mine.tmp").exists()


def test_columns_keep_their_order_after_a_resume(tmp_path: Path) -> None:
    for name in ("whole", "resumed"):
        assert main([*SHORT, "--out", str(tmp_path / name)]) == 0
    os.remove(tmp_path / "resumed" / "summary.json")
    for path in (tmp_path / "resumed" / "checkpoints").glob("*-000000006.*"):
        path.unlink()
    assert main([*SHORT, "--out", str(tmp_path / "resumed"), "--resume"]) == 0
    tables = [list(csv.DictReader((tmp_path / name / "progress.csv").read_text().splitlines())) for name in ("whole", "resumed")]
    assert list(tables[0][0]) == list(tables[1][0])
    for table in tables:
        for row in table:
            del row["seconds"]
    assert tables[0] == tables[1]


def test_lost_logs_of_a_finished_run_are_written_again(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([*SMALL, "--iterations", "4", "--checkpoint-every", "4", "--out", str(out)]) == 0
    before = (out / "progress.csv").read_text()
    os.remove(out / "progress.csv")
    assert main([*SMALL, "--iterations", "4", "--checkpoint-every", "4", "--out", str(out), "--resume"]) == 0
    assert (out / "progress.csv").read_text() == before


@pytest.mark.parametrize("file", ["progress.csv", "events.out", "history.npz", "learning_curve.png", "summary.json", "folder"])
def test_what_cannot_be_written_is_named(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    if file == "folder":
        log = run_folder.RunFolder.log

        def remove(self: Any, record: dict[str, Any], history: Any) -> None:
            if record["iteration"] == 2:
                shutil.rmtree(out)
            log(self, record, history)

        monkeypatch.setattr(run_folder.RunFolder, "log", remove)
    else:
        replace = os.replace

        def full(source: Any, target: Any) -> None:
            if Path(target).name.startswith(file):
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", full)
    assert main([*SHORT, "--out", str(out)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("FolderError: cannot write ")
    assert ("No space left" if file != "folder" else "progress.csv") in errors
    assert errors.count("\n") == 1
    assert not (out / "summary.json").exists()
    monkeypatch.undo()
    assert main([*SHORT, "--out", str(out), "--resume"]) == 0
    assert len(list(csv.DictReader((out / "progress.csv").read_text().splitlines()))) == 4


@pytest.mark.parametrize("place", [".", "checkpoints", "progress.csv", "history.npz"])
def test_a_file_where_a_folder_should_be_and_the_other_way_round(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    if place == ".":
        out.write_text("")
    elif place == "checkpoints":
        out.mkdir()
        (out / place).write_text("")
    else:
        (out / place / "inside").mkdir(parents=True)
    assert main([*SHORT, "--out", str(out), "--resume"]) == 2
    errors = capsys.readouterr().err.splitlines()[-1]
    assert "Error: cannot write" in errors
    assert str(out) in errors


def test_overwriting_keeps_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([*SHORT, "--out", str(out)]) == 0
    before = (out / "checkpoints" / LOCK).stat().st_ino
    assert main([*SHORT, "--out", str(out), "--overwrite"]) == 0
    assert (out / "checkpoints" / LOCK).stat().st_ino == before


def test_the_text_of_a_layout_file_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = tmp_path / "rooms.txt"
    layout.write_text("xxxxxx\nx    x\nx xx x\nx    x\nxxxxxx\n")
    cells = ["--start", "1", "1", "--goals", "[[3, 4]]", "--waypoint", "3", "1", "--horizon", "30", "--regularization", "0.05"]
    command = ["four-rooms", "--layout", f"@{layout}", *cells, "--iterations", "2", "--leader", "exact", "--no-progress"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    layout.write_text("xxxxxx\nx    x\nx  x x\nx    x\nxxxxxx\n")
    assert main([*command, "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "layout was " in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["settings"]["layout"].count("xx x") == 1
