"""Checkpoints: a run can be killed at any moment and resumed as if nothing had happened.

A folder of checkpoints holds

iteration-*.safetensors  the state of the run, without its history: whole or not at all, the last few of them
history.blocks           the history, to which every checkpoint adds a block: what is written grows with the run, no faster
.lock                    who works in the folder

Each checkpoint says how much of the history it belongs to; what follows, of a run that was killed, is void. Every file has
checksums, and nothing is pickled (`bocmdp_gym.saved_state`).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import CheckpointError, DamagedError, FolderError, RunInterruptedError
from bocmdp_gym.files import owning, remove_scratch
from bocmdp_gym.options import check_count, check_folder, check_instance
from bocmdp_gym.saved_state import count_entry, decode, encode, entry, loading, read_state, write_state
from leaders.history import History
from leaders.identity import differences

#: Older checkpoints are removed once there are more than this.
KEEP = 3
HISTORY = "history.blocks"
_FIX = "delete it to continue from the one before"
#: Signals that ask a run to stop; one that is ignored (nohup, a shell's background jobs) stays so.
_STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Checkpoints(WithArguments):
    """The checkpoints of one run.

    Args:
        folder: where they live; made if absent.
        every: iterations between checkpoints; one is also written before the first iteration.
        fingerprint: settings that must be equal for a checkpoint to be resumed, as JSON-able values; those of the run itself
            (environment, leader, follower, seed, ...) are compared in any case.

    Raises:
        OptionError: ``every`` below 1.
    """

    def __init__(self, folder: Path | str, every: int = 500, fingerprint: dict[str, Any] | None = None):
        self.folder = check_folder("folder", folder)
        self.every = check_count("the number of iterations between checkpoints", every)
        if fingerprint is not None:
            check_instance("fingerprint", fingerprint, dict)
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint or {}, default=str))
        self.identity: dict[str, Any] = {}  # of the run, which `leaders.optimize` sets
        self.last: Path | None = None
        self.on_own: Callable[[], None] | None = None  # called before the folder is made: its run is known to work
        self.on_begin: Callable[[], None] | None = None  # called before the first checkpoint of a fresh run
        self._asked_to_stop: int | None = None
        self._written = _Written()

    def owned(self) -> AbstractContextManager[None]:
        """Own the folder, which is made if absent: a run does, from before it looks for checkpoints until it ends.

        Raises:
            FolderInUseError: another run does.
            FolderError: the folder cannot be written to.
        """
        if self.on_own is not None:
            self.on_own()
        return owning(self.folder, "the folder of checkpoints")

    def any(self) -> bool:
        """Whether the folder holds checkpoints."""
        return bool(self._paths())

    def begin(self) -> None:
        """Start a fresh run.

        Raises:
            CheckpointError: the folder holds an earlier run's checkpoints, which pruning and resuming would confuse with these.
        """
        if self.on_begin is not None:
            self.on_begin()
        if self.any():
            raise CheckpointError(
                f"{self.folder} holds the checkpoints of an earlier run, up to {self._paths()[-1].name}; resume it, empty the "
                "folder, or choose another."
            )
        remove_scratch(self.folder)
        self.last, self._written = None, _Written()

    def due(self, done: int) -> bool:
        """Whether to write one after ``done`` iterations."""
        return self._asked_to_stop is not None or done % self.every == 0

    def save(self, done: int, state: dict[str, Any], history: History | None = None) -> Path:
        """Write the checkpoint of a run that has done ``done`` iterations; prune old ones.

        Args:
            done: how many.
            state: of the run.
            history: of the run, of which only what is new is written.

        Raises:
            CheckpointError: it cannot be written (disk full, folder read-only); earlier checkpoints are untouched.
        """
        path = self.folder / f"iteration-{done:09d}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            written = self._written if history is None else self._append(history)
            said = {"fingerprint": self.fingerprint, "identity": self.identity}
            write_state(path, {"state": state, "history": written.state(), **said})
        except OSError as error:
            reason = error.__cause__ if isinstance(error, FolderError) and isinstance(error.__cause__, OSError) else error
            kept = f"the last good checkpoint is {self.last}" if self.last else "there is no earlier checkpoint"
            raise CheckpointError(f"cannot write the checkpoint {path}: {reason.strerror or reason}; {kept}.") from error
        self.last, self._written = path, written
        for old in self._paths()[:-KEEP]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> dict[str, Any] | None:
        """The state in the newest checkpoint, its history under "history"; None if there is none.

        Raises:
            CheckpointError: the newest is damaged, or of a run with other settings. It is never skipped silently.
        """
        remove_scratch(self.folder)
        newest = self._newest()
        if newest is None:
            return None
        fingerprint, identity, state, written = newest
        different = differences(fingerprint, self.fingerprint) or differences(identity, self.identity)
        if different:
            raise CheckpointError(
                f"{self.last} belongs to a run with other settings: {different}. Use another folder, or equal settings."
            )
        history = self._read(written)
        self._written = written
        return {**state, "history": history} if len(history) > 0 else state

    def peek(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Fingerprint and state of the newest checkpoint, of whatever run; nothing is written, so that run may be at work.

        Raises:
            CheckpointError: it is damaged.
        """
        newest = self._newest()
        if newest is None:
            return None
        fingerprint, _, state, written = newest
        return fingerprint, {**state, "history": self._read(written)}

    def _newest(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], _Written] | None:
        """The newest checkpoint: fingerprint, identity, state, and how much of the history it belongs to."""
        paths = self._paths()
        if not paths:
            return None
        self.last = paths[-1]
        try:
            content = read_state(self.last)
            with loading(str(self.last)):
                fingerprint, identity = entry(content, "fingerprint", dict), entry(content, "identity", dict)
                return fingerprint, identity, entry(content, "state", dict), _Written.of(entry(content, "history", dict))
        except CheckpointError as error:
            raise type(error)(f"{error} To mend it, {_FIX}.") from error

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("iteration-*.safetensors"))

    def _append(self, history: History) -> _Written:
        """Add the rows of the history that are not in its file yet, after those that are."""
        before = self._written
        if len(history) == before.rows:
            return before
        block = encode({"rows": before.rows, "before": before.digest, "columns": history.state(before.rows)})
        with open(self.folder / HISTORY, "r+b" if before.rows else "wb") as file:
            file.seek(before.size)
            file.truncate()  # of a killed run, or of one that was resumed from an earlier checkpoint
            file.write(len(block).to_bytes(8, "little"))
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return _Written(len(history), before.size + 8 + len(block), hashlib.sha256(block).hexdigest())

    def _read(self, written: _Written) -> History:
        """As much of the history as a checkpoint belongs to."""
        history, path = History(), self.folder / HISTORY
        if not written.rows:
            return history
        try:
            content = path.read_bytes()[: written.size]
        except OSError as error:
            raise DamagedError(f"cannot read {path}, the history of {self.last}: {error.strerror or error}.") from error
        position, digest = 0, ""
        try:
            while position < written.size:
                start = position + 8
                position = start + int.from_bytes(content[position:start], "little")
                block = content[start:position]
                found = decode(block, f"{path}, block of row {len(history)}")
                with loading(f"{path}, block of row {len(history)}"):
                    if (count_entry(found, "rows"), entry(found, "before", str)) != (len(history), digest):
                        raise DamagedError(f"{path}: blocks are missing at row {len(history)}.")
                    history.extend_from_state(entry(found, "columns", dict))
                digest = hashlib.sha256(block).hexdigest()
            if (position, len(history), digest) != (written.size, written.rows, written.digest):
                raise DamagedError(f"{path} ends at row {len(history)} of {written.rows}, or is of another run.")
        except DamagedError as error:
            raise DamagedError(f"{error} {self.last} needs it whole; start the run again in an empty folder.") from error
        return history

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Turn SIGTERM, SIGINT and SIGHUP into a checkpoint and a `RunInterruptedError` at the end of the running iteration.

        A second SIGINT is a `KeyboardInterrupt` at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def remember(signum: int, frame: FrameType | None) -> None:
            del frame
            if self._asked_to_stop == signum == signal.SIGINT:
                raise KeyboardInterrupt
            self._asked_to_stop = signum

        self._asked_to_stop = None
        ours = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, remember) for number in ours}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def stop_if_asked(self) -> None:
        """Raise `RunInterruptedError` if a signal came; call it after `save`."""
        if self._asked_to_stop is not None:
            name = signal.Signals(self._asked_to_stop).name
            raise RunInterruptedError(f"the run was asked to stop ({name}); resume it from {self.last}.", self._asked_to_stop)


class _Written:
    """How much of a history is on disk.

    Attributes:
        rows: iterations.
        size: bytes.
        digest: of the last block.
    """

    def __init__(self, rows: int = 0, size: int = 0, digest: str = ""):
        self.rows, self.size, self.digest = rows, size, digest

    def state(self) -> dict[str, Any]:
        """As a checkpoint has it."""
        return {"rows": self.rows, "size": self.size, "digest": self.digest}

    @classmethod
    def of(cls, state: dict[str, Any]) -> _Written:
        """From `state`."""
        return cls(count_entry(state, "rows"), count_entry(state, "size"), entry(state, "digest", str))
