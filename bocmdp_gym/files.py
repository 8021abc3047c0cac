"""Files that are written whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bocmdp_gym.errors import FolderError, FolderInUseError

#: The name of a folder's lock. The file stays when its owner ends: what counts is the lock on it, not that it is there.
LOCK = ".lock"
_SCRATCH = ".tmp"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; its folder is made if absent.

    The content goes to a file beside ``path``, which is then renamed: whoever reads ``path``, even after a crash, finds what was
    there before or all of ``content``. A process that is killed on its way leaves a file NAME.*.tmp, for `remove_scratch`.

    Raises:
        FolderError: it cannot be written; ``path`` is untouched.
    """
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_SCRATCH}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(scratch, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


def remove_scratch(folder: Path, name: str = "") -> None:
    """Remove what killed writers of ``name`` (of any file, if it is empty) have left in a folder; its owner calls this.

    Raises:
        FolderError: a file cannot be removed.
    """
    for scratch in folder.glob(f"{name}*{_SCRATCH}"):
        with writing(scratch):
            scratch.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file where writing it fails.

    Raises:
        FolderError: for any `OSError` inside.
    """
    try:
        yield
    except FolderError:
        raise
    except OSError as error:
        raise FolderError(
            error.errno, f"cannot write {path}: {error.strerror or error}; free space, or choose another folder"
        ) from error


@contextmanager
def owning(folder: Path, what: str, *, wait: float = 0.0, name: str = LOCK) -> Iterator[None]:
    """Own a folder, which is made if absent: nobody else does, in this process or another, until the end of the block.

    The operating system holds the lock, so that of a process that died is gone. Where machines share a folder, their file
    system has to know locks, as NFS does.

    Args:
        folder: the folder.
        what: what it is, for messages.
        wait: seconds to wait for an owner that is about to end.
        name: of the lock, where a folder has several.

    Raises:
        FolderInUseError: it has an owner; the message says which process on which machine.
        FolderError: the folder cannot be made or written to.
    """
    path = folder / name
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=wait, poll_interval=0.05)
        except Timeout:
            raise FolderInUseError(
                f"{what} {folder} is in use by {_owner(path)}; wait for it to end, stop it, or choose another folder."
            ) from None
    try:
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(timespec="seconds")}
        with writing(path):
            path.write_text(json.dumps(record | {"command": " ".join(sys.argv)[:500]}) + "\n")
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    """Who wrote a lock file."""
    try:
        record = json.loads(path.read_text())
        return f"process {record['pid']} on {record['host']}, since {record['since']} ({record['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is about to write who it is
        return "another process"
