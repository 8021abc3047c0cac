"""Reports: what a run, or a sweep, found, on one page that can be opened, kept and sent: ``python -m leaders.report FOLDER``.

A report is one HTML file, ``report.html``, without scripts and with its pictures inside. Runs and sweeps write theirs at their
end; the command writes it again, also that of a run which is under way or was interrupted, from its newest checkpoint.
"""

from typing import TYPE_CHECKING

from bocmdp_gym.lazy import on_first_use

if TYPE_CHECKING:
    from leaders.report.failures import at_the_end
    from leaders.report.run_report import write_run_report
    from leaders.report.sweep_report import write_sweep_report
else:
    __getattr__, __dir__ = on_first_use(__name__)

__all__ = ["at_the_end", "write_run_report", "write_sweep_report"]
