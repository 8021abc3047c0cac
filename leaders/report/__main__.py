"""Write the report of a run or a sweep again: ``python -m leaders.report FOLDER``.

The folder is that of a run of ``leaders.train``, finished or not, or that of a sweep. The report is FOLDER/report.html.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bocmdp_gym.errors import BOCMDPError
from leaders.report.run_record import read_run
from leaders.report.run_report import write_run_report
from leaders.report.sweep_report import write_sweep_report
from leaders.settings.command_line import read
from leaders.sweep_table import RUNS


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Write the report of a run or a sweep again."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder of the run or the sweep."""
    module: str | None = None
    """The module of yours that the run needs; one that the run's summary alone names is never imported."""


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for a folder without a run or files that cannot be written."""
    chosen = read(ReportSettings, "leaders.report", __doc__, arguments)
    try:
        if (chosen.folder / RUNS).exists():
            path = write_sweep_report(chosen.folder)
        else:
            path = write_run_report(read_run(chosen.folder, chosen.module))
    except (BOCMDPError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
