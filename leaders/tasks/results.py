"""The result of a task on disk: with the task it belongs to, and a checksum over both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bocmdp_gym.errors import DamagedError, FolderError, OptionError
from bocmdp_gym.files import write_atomically

#: The file with a task's result, in its folder.
RESULT = "result.json"


def write_result(folder: Path, task: Mapping[str, Any], result: Any) -> None:
    """Write a result.

    Raises:
        FolderError: it cannot be written.
    """
    record = {"task": task, "result": result}
    write_atomically(folder / RESULT, json.dumps(record | {"sha256": _checksum(record)}, indent=2) + "\n")


def read_result(folder: Path, task: Mapping[str, Any]) -> tuple[Any] | None:
    """The result of a task, alone in a tuple; None if there is none.

    Raises:
        DamagedError: what is there is no result, or not as it was written.
        OptionError: it is that of another task.
        FolderError: the file cannot be read.
    """
    path = folder / RESULT
    try:
        text = path.read_text()
        found = json.loads(text)
        record = {"task": found["task"], "result": found["result"]}
        if found["sha256"] != _checksum(record):
            raise DamagedError(f"{path} is damaged: its checksum does not match.")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FolderError(error.errno, f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is no result ({type(error).__name__}: {error}).") from error
    before, wanted = record["task"], json.loads(json.dumps(task))
    if before != wanted:
        old = before if isinstance(before, dict) else {}
        different = [name for name in sorted(old.keys() | wanted.keys()) if old.get(name) != wanted.get(name)]
        shown = "; ".join(f"{name} was {old.get(name)!r}, is {wanted.get(name)!r}" for name in different)
        raise OptionError(f"{path} is the result of another task: {shown}. Use another folder, or delete this one's.")
    return (record["result"],)


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
