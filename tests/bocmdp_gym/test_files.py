from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bocmdp_gym.errors import FolderError, FolderInUseError
from bocmdp_gym.files import LOCK, owning, remove_scratch, write_atomically


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "file"
    write_atomically(path, "before")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FolderError, match=r"cannot write .*file: No space left on device") as caught:
        write_atomically(path, "after")
    assert caught.value.errno == 28
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for name in ("file.12ab.tmp", "file.tmp", "other.tmp", "file"):
        (tmp_path / name).write_text("")
    remove_scratch(tmp_path, "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other.tmp"]


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    errors: list[BaseException] = []

    def second() -> None:
        try:
            with owning(folder, "the run folder"):
                pass
        except FolderInUseError as error:
            errors.append(error)

    with owning(folder, "the run folder"):
        second()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(errors) == 2
    assert f"the run folder {folder} is in use by process {os.getpid()} on " in str(errors[0])
    with owning(folder, "the run folder"):
        pass
    second()
    assert len(errors) == 2


def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from bocmdp_gym.files import owning
with owning(Path({str(tmp_path)!r}), "the folder"):
    print("owned", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"owned\n"
    with pytest.raises(FolderInUseError, match=f"process {process.pid} "), owning(tmp_path, "the folder"):
        pass
    threading.Timer(0.5, process.send_signal, [signal.SIGKILL]).start()
    began = time.monotonic()
    with owning(tmp_path, "the folder", wait=30.0):  # until it has died
        assert time.monotonic() - began < 20
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK).read_text()
    process.wait()
    process.stdout.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot write"), owning(tmp_path / "file", "the folder"):
        pass
    with pytest.raises(FolderError, match="cannot write"), owning(tmp_path / "file" / "below", "the folder"):
        pass
