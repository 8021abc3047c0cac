"""Reports: what a run, or a sweep, found, on one page that can be opened, kept and sent: ``python -m leaders.report FOLDER``.

A report is one HTML file, ``report.html``, without scripts and with its pictures inside. Runs and sweeps write theirs at their
end; the command writes it again, also that of a run which is under way or was interrupted, from its newest checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bocmdp_gym.errors import BOCMDPError, ReportWarning
from leaders.report.run_report import write_run_report
from leaders.report.sweep_report import write_sweep_report
from leaders.run_folder import REPORT

__all__ = ["at_the_end", "write_run_report", "write_sweep_report"]


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
