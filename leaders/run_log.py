"""The logs of a run: progress.csv, TensorBoard's events, and the screen.

Every row of a file is on disk when its call ends, and a log that was removed, or a disk that is full, is an error then and
there: a file kept open would take rows in silence until the run ends.
"""

from __future__ import annotations

import csv
import io
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bocmdp_gym.files import write_atomically, writing

EVENTS = "events.out.tfevents"


class CSVLog:
    """A table, a row per record; columns come in the order they were first logged, and new ones last.

    Args:
        path: of the file.
        records: the first rows, which replace what the file holds.

    Raises:
        FolderError: the file cannot be written.
    """

    def __init__(self, path: Path, records: Iterable[Mapping[str, Any]] = ()):
        self._path, rows = path, list(records)
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        write_atomically(path, self._text([self._columns, *map(self._values, rows)]) if rows else "")

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            FolderError: the file was removed, or cannot be written.
        """
        new = [name for name in record if name not in self._columns]
        if new:
            with writing(self._path):
                _, *rows = [*csv.reader(io.StringIO(self._path.read_text()))] or [[]]
            self._columns += new
            padded = [row + [""] * (len(self._columns) - len(row)) for row in rows]
            write_atomically(self._path, self._text([self._columns, *padded]))
        _append(self._path, self._text([self._values(record)]).encode())

    def _values(self, record: Mapping[str, Any]) -> list[str]:
        return [str(record[name]) if name in record else "" for name in self._columns]

    @staticmethod
    def _text(rows: Iterable[list[str]]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()


class EventsLog:
    """TensorBoard's scalars: one per number of a record.

    Args:
        folder: where the file is; one of an earlier start is removed.
        records: the first ones.

    Raises:
        FolderError: the file cannot be written.
    """

    def __init__(self, folder: Path, records: Iterable[Mapping[str, Any]] = ()):
        from tensorboard.compat.proto import event_pb2, summary_pb2  # a second of imports that only logged runs need

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._path = folder / f"{EVENTS}.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        first = _record(self._event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        write_atomically(self._path, first + b"".join(map(self._encoded, records)))
        for old in folder.glob(f"{EVENTS}.*"):
            if old != self._path:
                with writing(old):
                    old.unlink(missing_ok=True)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a record.

        Raises:
            FolderError: the file was removed, or cannot be written.
        """
        _append(self._path, self._encoded(record))

    def _encoded(self, record: Mapping[str, Any]) -> bytes:
        numbers = {name: value for name, value in record.items() if isinstance(value, (int, float, np.number))}
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])
        event = self._event(wall_time=time.time(), step=int(record["iteration"]), summary=summary)
        return _record(event.SerializeToString())


def print_record(record: Mapping[str, Any]) -> None:
    """Show a record on the screen: a frame with a line per value, by name; progress bars stay below it."""
    values = {name: f"{value:.3g}" if isinstance(value, (float, np.floating)) else str(value) for name, value in record.items()}
    left, right = max(map(len, values)), max(map(len, values.values()))
    lines = [f"| {name:<{left}} | {values[name]:<{right}} |" for name in sorted(values)]
    rule = "-" * (left + right + 7)
    tqdm.write("\n".join([rule, *lines, rule]), file=sys.stdout)


def _record(data: bytes) -> bytes:
    """As TensorFlow frames it."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    framed = io.BytesIO()
    RecordWriter(framed).write(data)
    return framed.getvalue()


def _append(path: Path, content: bytes) -> None:
    """Add to a file that exists, all or nothing.

    Raises:
        FolderError: it does not exist any more, or cannot be written.
    """
    with writing(path), open(path, "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
