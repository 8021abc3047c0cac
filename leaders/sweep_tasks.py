"""The runs of a sweep as tasks: what each is called, how it is made or read, and whether its environment exists at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bocmdp_gym.errors import DamagedError, OptionError
from bocmdp_gym.files import writing
from bocmdp_gym.version import __version__
from leaders.run_folder import HISTORY, SUMMARY
from leaders.settings import RunSettings, settings_from_summary, settings_from_values
from leaders.tasks import Backend
from leaders.tasks.pools import one_thread, worker_context
from leaders.training import train

#: The mean of the sampled returns is taken over this share of the iterations, the last ones.
_LAST = 0.1


def check_environments(runs: Sequence[RunSettings], backend: Backend, workers: int | None = None) -> None:
    """Refuse environments that cannot be made: all different ones are made once, by worker processes if they are several.

    Raises:
        OptionError, LayoutError, ...: as the environment.
    """
    different = {json.dumps([s.env_id, s.env_options()], default=str): s for s in runs}
    tasks = [task_of(settings)[1] for settings in different.values()]
    if backend == "serial" or len(tasks) <= 1:
        for task in tasks:
            check_environment(task)
        return
    size = min(workers or os.cpu_count() or 1, len(tasks))
    context = worker_context(check_environment)
    with one_thread(), suppress(BrokenProcessPool), ProcessPoolExecutor(size, mp_context=context) as pool:
        # one that dies of it says no more here than it will when it is run
        list(pool.map(check_environment, tasks))


def check_environment(task: Mapping[str, Any]) -> None:
    """Make the environment of a task, and forget it.

    Raises:
        OptionError, LayoutError, ...: as the environment.
    """
    values = dict(task)
    settings_from_values(values.pop("environment"), values).make_env().close()


def task_of(settings: RunSettings) -> tuple[str, dict[str, Any]]:
    """The key and the task of a run: the same for equal settings and this version, whatever else a sweep holds."""
    task = json.loads(json.dumps(settings.fingerprint() | {"checkpoint_every": settings.checkpoint_every}, default=str))
    identity = {**settings.fingerprint(), "library version": __version__}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    return f"{settings.name}-{settings.leader}-{settings.seed}-{digest[:10]}", task


def run_task(task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One run in its folder; one that is finished there is only read, one that was interrupted or damaged continues."""
    values = dict(task)
    settings = replace(settings_from_values(values.pop("environment"), values), out=folder, resume=True, progress=False)
    try:
        return _found(settings, folder)
    except FileNotFoundError:
        pass
    except DamagedError as error:
        print(f"{error} The run is continued from its last checkpoint.")
        for name in (SUMMARY, HISTORY):
            with writing(folder / name):
                (folder / name).unlink(missing_ok=True)
    try:
        train(settings)
    except DamagedError as error:
        print(f"{error} The run is started again.")
        train(replace(settings, resume=False, overwrite=True))
    return _found(settings, folder)


def _found(settings: RunSettings, folder: Path) -> dict[str, Any]:
    """What a finished run found.

    Raises:
        FileNotFoundError: it is not finished.
        DamagedError: a file of it is damaged.
        OptionError: it is a run with other settings.
    """
    path = folder / SUMMARY
    text = path.read_bytes()
    try:
        summary = json.loads(text)
        found = {name: summary[name] for name in ("leader_return", "env_steps", "seconds")}
        with np.load(io.BytesIO((folder / HISTORY).read_bytes())) as history:
            sampled = history["sampled_return"][-max(1, round(_LAST * settings.iterations)) :]
        found["sampled_return"] = float(sampled.mean())
    except (ValueError, KeyError, TypeError, EOFError, OSError, BadZipFile, RecursionError) as error:
        raise DamagedError(f"{path} or {HISTORY} is damaged ({type(error).__name__}: {error}).") from error
    if settings_from_summary(summary, settings.module).fingerprint() != settings.fingerprint():
        raise OptionError(f"{path} is of a run with other settings; use another folder, or delete this one.")
    return found
