"""The report of a sweep, from its tables and its runs' logs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from bocmdp_gym.errors import DamagedError
from bocmdp_gym.files import write_atomically
from leaders.report.page import embedded, figure_png, page
from leaders.run_folder import REPORT
from leaders.sweep_table import RUNS, mean_and_error
from leaders.tasks.attempts import ERROR

Array = npt.NDArray[np.float64]
Row = dict[str, str]
#: Settings whose curves are drawn in one panel, at most: those that end highest.
_CURVES = 8
#: Columns of runs.csv that are no settings in which settings differ.
_MEASURED = ("seed", "leader_return", "sampled_return", "env_steps", "seconds", "folder")


@dataclass(frozen=True)
class Curve:
    """The leader's return over iterations, over the seeds of one setting.

    Attributes:
        iterations: where it was evaluated in all runs, ``(T,)``.
        mean, error: over seeds, ``(T,)``; the error is NaN with one seed.
        exact: whether values are exact, not sampled.
    """

    iterations: Array
    mean: Array
    error: Array
    exact: bool


@dataclass(frozen=True)
class Setting:
    """A row of the table: its environment, the values of what differs, and its runs."""

    environment: str
    values: tuple[str, ...]
    runs: list[dict[str, Any]]
    curve: Curve | None

    @property
    def failed(self) -> int:
        """How many runs have no result."""
        return sum(not run["seconds"] for run in self.runs)

    def found(self, name: str) -> tuple[float | None, float | None]:
        """Mean and standard error of a measure over seeds."""
        return mean_and_error([float(run[name]) if run[name] else None for run in self.runs if run["seconds"]])


def write_sweep_report(folder: Path) -> Path:
    """Write the report of a sweep into its folder, from the tables there. Returns its path.

    Raises:
        DamagedError: a table is missing or damaged.
        FolderError: the report cannot be written.
    """
    names, settings = read_settings(folder)
    exact = any(setting.found("leader_return")[0] is not None for setting in settings)
    measure = "leader_return" if exact else "sampled_return"
    best: dict[str, Setting] = {}
    for setting in sorted(settings, key=lambda one: _or(one.found(measure)[0], -np.inf)):
        best[setting.environment] = setting
    figure = curves_figure(names, settings)
    text = page(
        "sweep.html",
        title=f"Sweep {folder.resolve().name}",
        names=names,
        settings=settings,
        n_runs=sum(len(setting.runs) for setting in settings),
        n_failed=sum(setting.failed for setting in settings),
        measures={"leader_return": "leader's return", "sampled_return": "sampled return"},
        measure=measure,
        best=best,
        curves=None if figure is None else embedded(figure_png(figure)),
        most=_CURVES,
        link=lambda run: quote(f"{run['folder']}/{REPORT}") if run["seconds"] else quote(f"{run['folder']}/{ERROR}"),
    )
    path = folder / REPORT
    write_atomically(path, text)
    return path


def read_settings(folder: Path) -> tuple[list[str], list[Setting]]:
    """What differs in a sweep, and its settings with their runs.

    Raises:
        DamagedError: a table is missing or damaged.
    """
    rows = _table(folder / RUNS)
    settings = [name for name in rows[0] if name not in _MEASURED]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in settings), []).append(row)
    differing = {name for name in settings if _differs(name, rows)} | {"environment", "leader"}
    names = [name for name in settings if name in differing]
    found = []
    for runs in groups.values():
        values = tuple(runs[0][name] for name in names)
        found.append(Setting(runs[0]["environment"], values, runs, _curve([folder / run["folder"] for run in runs])))
    return names, found


def _differs(name: str, rows: list[Row]) -> bool:
    """Whether a setting differs between runs in one environment; another may not have it at all."""
    return len({(row["environment"], row[name]) for row in rows}) > len({row["environment"] for row in rows})


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _table(path: Path) -> list[Row]:
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
    except (OSError, ValueError, csv.Error) as error:
        raise DamagedError(f"cannot read {path} ({error}); start the sweep again to have it written.") from error
    headings = rows[0] if rows and None not in rows[0].values() else {}
    missing = [name for name in ("environment", "leader", *_MEASURED) if name not in headings]
    if missing:
        raise DamagedError(f"{path} lacks {', '.join(missing)}; start the sweep again to have it written.")
    return rows


def _curve(folders: Sequence[Path]) -> Curve | None:
    """The curve of one setting, over the iterations that all its finished runs logged; None where nothing was."""
    logs = [log for log in map(_log, folders) if log]
    for name in ("leader_return", "sampled_return"):
        runs = [{int(row["iteration"]): float(row[name]) for row in log if row.get(name)} for log in logs]
        shared = sorted(set.intersection(*map(set, runs))) if runs else []
        if shared:
            values = np.array([[run[i] for i in shared] for run in runs])
            error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.full(len(shared), np.nan)
            return Curve(np.array(shared, dtype=np.float64), values.mean(0), error, name == "leader_return")
    return None


def _log(folder: Path) -> list[Row]:
    """A run's progress; nothing where it has none yet."""
    try:
        rows = list(csv.DictReader(io.StringIO((folder / "progress.csv").read_text())))
    except FileNotFoundError:
        return []
    return [row for row in rows if row.get("iteration")]


def curves_figure(names: Sequence[str], settings: Sequence[Setting]) -> Any:
    """A matplotlib figure: a panel per environment, a curve with a band of one standard error per setting; None without any."""
    from matplotlib.figure import Figure

    panels: dict[str, list[tuple[Setting, Curve]]] = {}
    for setting in settings:
        if setting.curve is not None:
            panels.setdefault(setting.environment, []).append((setting, setting.curve))
    if not panels:
        return None
    figure = Figure(figsize=(10, 4.2 * len(panels)), layout="constrained")
    for ax, (environment, members) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True):
        differing = [i for i, name in enumerate(names) if name != "environment" and len({m.values[i] for m, _ in members}) > 1]
        best = sorted(members, key=lambda member: -member[1].mean[-1])[:_CURVES]
        for setting, curve in best:
            label = ", ".join(f"{names[i]} {setting.values[i]}" for i in differing) or setting.values[names.index("leader")]
            (line,) = ax.plot(curve.iterations, curve.mean, linewidth=1.8, label=label)
            low, high = curve.mean - curve.error, curve.mean + curve.error
            ax.fill_between(curve.iterations, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
        exact = all(curve.exact for _, curve in best)
        ax.set(title=environment, ylabel="leader's return" + ("" if exact else " (sampled)"), xlabel="outer iteration")
        ax.grid(alpha=0.25)
        ax.legend(frameon=False, fontsize=8)
    return figure
