from __future__ import annotations

import csv
import errno
import io
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bocmdp_gym.errors import FolderError
from leaders import run_log
from leaders.run_log import CSVLog, EventsLog, print_record

RECORDS: list[dict[str, Any]] = [{"iteration": 0, "a": 0.5, "text": 'a,"b"'}, {"iteration": 5, "b": 1e-300, "a": 2}]


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_columns_come_in_the_order_of_their_first_row_whether_resumed_or_not(tmp_path: Path) -> None:
    log = CSVLog(tmp_path / "a.csv")
    for record in RECORDS:
        log.write(record)
    assert list(_rows(tmp_path / "a.csv")[0]) == ["iteration", "a", "text", "b"]
    assert _rows(tmp_path / "a.csv")[0]["text"] == 'a,"b"'
    assert float(_rows(tmp_path / "a.csv")[1]["b"]) == 1e-300
    resumed = CSVLog(tmp_path / "b.csv", RECORDS[:1])
    resumed.write(RECORDS[1])
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    log = EventsLog(tmp_path, RECORDS[:1])
    log.write(RECORDS[1])
    EventsLog(tmp_path, RECORDS[:1]).write(RECORDS[1])  # a resumed run's, instead
    assert len(list(tmp_path.iterdir())) == 1
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["iteration", "a", "b"]
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(0, 0.5), (5, 2.0)]


@pytest.mark.parametrize("kind", ["csv", "events"])
def test_a_log_that_was_removed_is_an_error_at_once(kind: str, tmp_path: Path) -> None:
    log: Any = CSVLog(tmp_path / "a.csv", RECORDS) if kind == "csv" else EventsLog(tmp_path, RECORDS)
    log.write(RECORDS[0])
    (path,) = tmp_path.iterdir()
    path.unlink()
    with pytest.raises(FolderError, match=f"cannot write {path}"):
        log.write(RECORDS[0])


@pytest.mark.parametrize("kind", ["csv", "events"])
def test_a_full_disk_is_named_and_leaves_no_half_row(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: Any = CSVLog(tmp_path / "a.csv", RECORDS) if kind == "csv" else EventsLog(tmp_path, RECORDS)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()

    class Full(io.FileIO):
        written = 0

        def write(self, content: Any) -> int:
            self.written += 1
            if self.written > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(memoryview(content)[:3])

    monkeypatch.setattr(run_log, "open", lambda path, mode, buffering: Full(path, "r+"), raising=False)
    with pytest.raises(FolderError, match="No space left on device"):
        log.write(RECORDS[1])
    assert path.read_bytes() == before


def test_the_screen_shows_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    print_record({"iteration": 10_000, "context": 0, "leader_return": 0.123456, "seconds": 1e-7})
    assert capsys.readouterr().out.splitlines() == [
        "-------------------------",
        "| context       | 0     |",
        "| iteration     | 10000 |",
        "| leader_return | 0.123 |",
        "| seconds       | 1e-07 |",
        "-------------------------",
    ]
