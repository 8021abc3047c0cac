"""The tables of a sweep: what was found per setting, as mean and standard error over seeds."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bocmdp_gym.files import write_atomically
from leaders.tasks import Outcomes

#: The files.
RUNS = "runs.csv"
TABLES = ("results.csv", "results.md", RUNS)
#: What a run reports, and its heading.
_MEASURED = {
    "leader_return": "leader's return",
    "sampled_return": "sampled return",
    "env_steps": "env steps",
    "seconds": "seconds",
}
#: Those whose spread over seeds is worth reading.
_RETURNS = ("leader_return", "sampled_return")
#: Settings that make runs of one setting different from each other.
_REPEATED = ("seed",)


def write_tables(tasks: Mapping[str, Mapping[str, Any]], outcomes: Outcomes, folder: Path) -> None:
    """Write results.csv and results.md, a row per setting, and runs.csv, a row per run (module docstring).

    Args:
        tasks: the settings of every run by key.
        outcomes: what became of them.
        folder: where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    varied = _varied(tasks)
    groups: dict[str, list[str]] = {}
    for key, task in tasks.items():
        groups.setdefault(json.dumps([task.get(name) for name in varied]), []).append(key)
    rows, lines = [], []
    for keys in groups.values():
        found = [outcomes.results[key] for key in keys if key in outcomes.results]
        named = {name: _text(tasks[keys[0]].get(name)) for name in varied}
        row: dict[str, Any] = named | {"runs": len(found), "failed": len(keys) - len(found)}
        shown = [*named.values(), f"{len(found)} of {len(keys)}"]
        for measure in _MEASURED:
            mean, error = mean_and_error([result[measure] for result in found])
            row |= {f"{measure}_mean": mean, f"{measure}_standard_error": error}
            shown.append(_plus_minus(mean, error if measure in _RETURNS else None))
        rows.append(row)
        lines.append(shown)
    write_atomically(folder / "results.csv", _csv(rows))
    headings = [*varied, "runs", *_MEASURED.values()]
    text = _markdown([headings, *lines])
    if outcomes.failures:
        text += "\nFailed:\n\n" + "".join(f"- {key}: {error}\n" for key, error in outcomes.failures.items())
    write_atomically(folder / "results.md", text)
    runs = []
    for key, task in tasks.items():
        result = outcomes.results.get(key, {})
        named = {name: _text(task.get(name)) for name in (*varied, *_REPEATED)}
        runs.append(named | {name: result.get(name) for name in _MEASURED} | {"folder": key})
    write_atomically(folder / RUNS, _csv(runs))


def mean_and_error(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard error; None where a value is missing, or where one value has no spread."""
    numbers = [v for v in values if v is not None]
    if not numbers or len(numbers) < len(values):
        return None, None
    error = float(np.std(numbers, ddof=1) / len(numbers) ** 0.5) if len(numbers) > 1 else None
    return float(np.mean(numbers)), error


def _varied(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the settings in which runs differ; environment and leader always."""
    names = dict.fromkeys(name for task in tasks.values() for name in task)
    differing = [name for name in names if len({json.dumps(task.get(name)) for task in tasks.values()}) > 1]
    return [name for name in names if name in ("environment", "leader", *differing) and name not in _REPEATED]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plus_minus(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.5g}" if error is None else f"{mean:.5g} ± {error:.2g}"


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rows) + "\n"
