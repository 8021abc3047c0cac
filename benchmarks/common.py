"""What the benchmarks share: the yardstick, timing, and storing results."""

from __future__ import annotations

import csv
import json
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "scipy", "numba", "torch", "gymnasium", "stable-baselines3")


def best_of(call: Callable[[], Any], repeats: int = 7, inner: int = 1) -> float:
    """Seconds per call: the best of ``repeats`` means over ``inner`` calls, after one call to warm up."""
    call()
    best = float("inf")
    for _ in range(repeats):
        began = perf_counter()
        for _ in range(inner):
            call()
        best = min(best, (perf_counter() - began) / inner)
    return best


def lu_solve(states: int = 104) -> Callable[[], Any]:
    """The yardstick LU: one dense 104 x 104 float64 ``numpy.linalg.solve`` on one core."""
    rng = np.random.default_rng(0)
    matrix, rhs = rng.random((states, states)) + states * np.eye(states), rng.random(states)
    return lambda: np.linalg.solve(matrix, rhs)


def lu_seconds(states: int = 104) -> float:
    """Seconds of `lu_solve`."""
    return best_of(lu_solve(states), inner=300)


def store(name: str, results: dict[str, Any]) -> Path:
    """Write ``results`` with the command, versions and processor to ``results/name.json``, and print them."""
    from leaders.run_folder import processor  # here, so that a process whose memory is measured need not import it

    RESULTS.mkdir(exist_ok=True)
    module = Path(sys.argv[0]).stem
    record = {
        "command": " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]]),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return path


def store_table(name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows with the same keys to ``results/name.csv``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def plot_methods(
    name: str, rows: list[dict[str, Any]], problems: Sequence[str], curves: dict[str, str], ours: str, ylabel: str
) -> None:
    """Write ``results/name.png``: times of methods against states, a panel per problem.

    Args:
        name: of the picture.
        rows: with "problem", "states" and a time per method, None where it was not run.
        problems: of the panels.
        curves: the labels of the methods by the columns of their times.
        ours: the column that is drawn as a solid line.
        ylabel: what the times are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    panels = figure.subplots(1, len(problems), sharey=True)
    for axes, problem in zip(panels, problems, strict=True):
        chosen = [row for row in rows if row["problem"] == problem]
        for column, label in curves.items():
            points = [(row["states"], row[column]) for row in chosen if row[column] is not None]
            axes.loglog(*zip(*points, strict=True), "o-" if column == ours else "s--", label=label)
        axes.set(xlabel="states", title=problem)
        axes.grid(alpha=0.25)
    panels[0].set(ylabel=ylabel)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / f"{name}.png", dpi=130)
