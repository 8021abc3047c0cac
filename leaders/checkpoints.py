"""Checkpoints: a run can be killed at any moment and resumed as if nothing had happened.

A checkpoint is one safetensors file: arrays as tensors, everything else as JSON in its metadata, with a checksum over both.
Nothing is pickled. Files are written whole or not at all, so a file under its final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from bocmdp_gym.arguments import WithArguments
from bocmdp_gym.errors import CheckpointError, RunInterruptedError
from bocmdp_gym.files import write_atomically
from bocmdp_gym.options import check_count, check_folder, check_instance

FORMAT = "bocmdp-gym checkpoint 1"
_SEPARATOR = "\x1f"  # no name of a part contains it
#: Older checkpoints are removed once there are more than this.
KEEP = 3


class Checkpoints(WithArguments):
    """The checkpoints of one run.

    Args:
        folder: where they live; made if absent.
        every: iterations between checkpoints; one is also written before the first iteration.
        fingerprint: settings that must be equal for a checkpoint to be resumed, as JSON-able values.

    Raises:
        OptionError: ``every`` below 1.
    """

    def __init__(self, folder: Path | str, every: int = 500, fingerprint: dict[str, Any] | None = None):
        self.folder = check_folder("folder", folder)
        self.every = check_count("the number of iterations between checkpoints", every)
        if fingerprint is not None:
            check_instance("fingerprint", fingerprint, dict)
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint or {}, default=str))
        self.last: Path | None = None
        self.on_begin: Callable[[], None] | None = None  # called once a fresh run's settings are known to work
        self._asked_to_stop = False

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

    def due(self, done: int) -> bool:
        """Whether to write one after ``done`` iterations."""
        return self._asked_to_stop or done % self.every == 0

    def save(self, done: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of a run that has done ``done`` iterations; prune old ones.

        Raises:
            CheckpointError: it cannot be written (disk full, folder read-only); earlier checkpoints are untouched.
        """
        path = self.folder / f"iteration-{done:09d}.safetensors"
        try:
            write_atomically(path, _encode(state, self.fingerprint))
        except OSError as error:
            kept = f"the last good checkpoint is {self.last}" if self.last else "there is no earlier checkpoint"
            raise CheckpointError(f"cannot write the checkpoint {path}: {error.strerror or error}; {kept}.") from error
        self.last = path
        for old in self._paths()[:-KEEP]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> dict[str, Any] | None:
        """The state in the newest checkpoint; None if there is none.

        Raises:
            CheckpointError: the newest is damaged, or of a run with other settings. It is never skipped silently.
        """
        paths = self._paths()
        if not paths:
            return None
        self.last = paths[-1]
        state, fingerprint = _decode(self.last)
        different = {k for k in self.fingerprint.keys() | fingerprint.keys() if self.fingerprint.get(k) != fingerprint.get(k)}
        if different:
            shown = "; ".join(f"{k} was {fingerprint.get(k)!r}, is {self.fingerprint.get(k)!r}" for k in sorted(different))
            raise CheckpointError(
                f"{self.last} belongs to a run with other settings: {shown}. Use another folder, or equal settings."
            )
        return state

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("iteration-*.safetensors"))

    @contextmanager
    def stop_on_sigterm(self) -> Iterator[None]:
        """Turn SIGTERM into a checkpoint and a `RunInterruptedError` at the end of the running iteration."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def remember(signum: int, frame: FrameType | None) -> None:
            del signum, frame
            self._asked_to_stop = True

        previous = signal.signal(signal.SIGTERM, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def stop_if_asked(self) -> None:
        """Raise `RunInterruptedError` if SIGTERM came; call it after `save`."""
        if self._asked_to_stop:
            raise RunInterruptedError(f"the run was asked to stop; resume it from {self.last}.")


def _encode(state: dict[str, Any], fingerprint: dict[str, Any]) -> bytes:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    plain: dict[str, Any] = {}
    _flatten(state, "", arrays, plain)
    text = json.dumps({"state": plain, "fingerprint": fingerprint})
    return to_bytes(arrays, {"format": FORMAT, "json": text, "sha256": _checksum(arrays, text)})


def _decode(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    fix = "delete it to continue from the one before"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}); {fix}.") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this library (format {metadata.get('format')!r}); {fix}.")
    if _checksum(arrays, metadata["json"]) != metadata.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its checksum does not match; {fix}.")
    content = json.loads(metadata["json"])
    return _unflatten(arrays, content["state"]), content["fingerprint"]


def _checksum(arrays: dict[str, np.ndarray[Any, Any]], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(str((arrays[name].dtype.str, arrays[name].shape)).encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _flatten(value: Any, name: str, arrays: dict[str, Any], plain: dict[str, Any]) -> None:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            kind = "i" if isinstance(key, (int, np.integer)) else "s"
            _flatten(part, f"{name}{_SEPARATOR}{kind}{key}" if name else f"{kind}{key}", arrays, plain)
    elif isinstance(value, torch.Tensor):
        arrays[name] = value.detach().cpu().numpy().copy()
    elif isinstance(value, np.ndarray):
        arrays[name] = np.array(value)
    elif isinstance(value, (np.integer, np.floating, np.bool_)):
        plain[name] = value.item()
    else:
        plain[name] = value


def _unflatten(arrays: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[Any, Any] = {}
    for name, value in (*arrays.items(), *plain.items()):
        keys = [int(part[1:]) if part[0] == "i" else part[1:] for part in name.split(_SEPARATOR)]
        inner = state
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
    return state
