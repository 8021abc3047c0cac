"""What becomes of a run whose report cannot be written: all else is there, so it ends well, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bocmdp_gym.errors import BOCMDPError, ReportWarning
from leaders.run_folder import REPORT


@contextmanager
def at_the_end(folder: Path, module: str | None = None) -> Iterator[None]:
    """Write a report of what is stored already, so that a failure inside is a `ReportWarning` that says how to try again.

    Args:
        folder: of the run or the sweep.
        module: that it needs (``--module``).
    """
    try:
        yield
    except (BOCMDPError, OSError) as error:
        command = f"python -m leaders.report {folder}" + (f" --module {module}" if module else "")
        warnings.warn(
            f"{folder / REPORT} could not be written ({type(error).__name__}: {error}). All else is there; to write it later: "
            f"{command}",
            ReportWarning,
            stacklevel=3,
        )
