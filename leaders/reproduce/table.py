"""The table: which runs it needs, and what comes of their results."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bocmdp_gym.errors import OptionError
from bocmdp_gym.files import write_atomically
from leaders.reproduce.paper import (
    CELLS,
    GRID_SEEDS,
    LEARNING_RATES,
    SMOOTHINGS,
    TABLE_1,
    Cell,
)
from leaders.reproduce.runs import ALGORITHMS, task
from leaders.sweep_table import mean_and_error

#: Runs tasks and returns their results in the same order.
Runner = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]
#: The best rates: by algorithm, then by cell.
Rates = dict[str, dict[Cell, dict[str, float]]]


@dataclass(frozen=True)
class Dynamics:
    """How the walker moves: in the model that follower and evaluation use, and in HPGD's simulator where that differs."""

    slip_probability: float
    simulator_slip_probability: float | None = None

    @property
    def label(self) -> str:
        """What files and tables call it."""
        label = f"slip {self.slip_probability:.3g}"
        if self.simulator_slip_probability is not None:
            label += f", simulator {self.simulator_slip_probability:.3g}"
        return label


@dataclass(frozen=True)
class Entry:
    """One algorithm in one cell: the value of every seed, the rates, and all stored results."""

    algorithm: str
    cell: Cell
    rates: dict[str, float]
    values: tuple[float, ...]
    results: tuple[Mapping[str, Any], ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`; nan with a single seed."""
        error = mean_and_error(self.values)[1]
        return math.nan if error is None else error


def grid(algorithms: Sequence[str], dynamics: Dynamics, iterations: int, run: Runner, seeds: Sequence[int] = GRID_SEEDS) -> Rates:
    """The best of the paper's step sizes per algorithm and cell: the largest mean value over ``seeds``."""
    tasks, keys = [], []
    for algorithm in algorithms:
        for cell in CELLS:
            for rates in candidates(algorithm):
                for seed in seeds:
                    keys.append((algorithm, cell, tuple(rates.items())))
                    tasks.append(cell_task(algorithm, cell, seed, iterations, dynamics, rates))
    found: dict[Any, list[float]] = {}
    for key, result in zip(keys, run(tasks), strict=True):
        found.setdefault(key, []).append(result["value"])
    best: Rates = {}
    for (algorithm, cell, rates), values in found.items():
        known = best.setdefault(algorithm, {}).get(cell)
        if known is None or np.mean(values) > np.mean(found[algorithm, cell, tuple(known.items())]):
            best[algorithm][cell] = dict(rates)
    return best


def entries(
    algorithms: Sequence[str],
    dynamics: Dynamics,
    iterations: int,
    seeds: Sequence[int],
    rates: Rates,
    run: Runner,
    **options: Any,
) -> list[Entry]:
    """Run every cell; ``options`` go to `leaders.reproduce.runs.task`."""
    wanted = [(algorithm, cell) for algorithm in algorithms for cell in CELLS]
    tasks = [
        cell_task(algorithm, cell, seed, iterations, dynamics, rates[algorithm][cell], **options)
        for algorithm, cell in wanted
        for seed in seeds
    ]
    results = iter(run(tasks))
    made = []
    for algorithm, cell in wanted:
        own = tuple(next(results) for _ in seeds)
        made.append(Entry(algorithm, cell, rates[algorithm][cell], tuple(r["value"] for r in own), own))
    return made


def candidates(algorithm: str) -> Iterable[dict[str, float]]:
    """The settings the paper tries for an algorithm."""
    for rate in LEARNING_RATES:
        if algorithm == "zero-order":
            yield from ({"learning_rate": rate, "smoothing": c} for c in SMOOTHINGS)
        else:
            yield {"learning_rate": rate}


def cell_task(
    algorithm: str, cell: Cell, seed: int, iterations: int, dynamics: Dynamics, rates: Mapping[str, float], **options: Any
) -> dict[str, Any]:
    """A run of the table as a task; the simulator that differs is HPGD's alone."""
    simulator = dynamics.simulator_slip_probability if algorithm == "hpgd" else None
    return task(algorithm, cell, seed, iterations, dynamics.slip_probability, rates, simulator, **options)


def stored_rates(dynamics: Dynamics) -> Rates:
    """The best rates found by ``--grid``, as they come with the library.

    Raises:
        OptionError: none are stored for these dynamics.
    """
    stored = json.loads(files("leaders.reproduce").joinpath("rates.json").read_text())["rates"]
    if dynamics.label not in stored:
        raise OptionError(f"no step sizes are stored for {dynamics.label}, only for {'; '.join(stored)}; search with --grid.")
    return rates_from_json(stored[dynamics.label])


def rates_to_json(rates: Rates) -> dict[str, Any]:
    """Rates with cells written "lambda/beta"."""
    return {a: {f"{c.regularization}/{c.penalty_cost}": r for c, r in cells.items()} for a, cells in rates.items()}


def rates_from_json(stored: Mapping[str, Any]) -> Rates:
    """The inverse of `rates_to_json`."""
    return {a: {Cell(*map(float, name.split("/"))): r for name, r in cells.items()} for a, cells in stored.items()}


def markdown(
    found: Sequence[Entry], searched: Mapping[Cell, float] | None = None, known: Mapping[Cell, float] | None = None
) -> str:
    """The table in Markdown, the paper's numbers beside ours; then what random starts reach, and the best known."""
    algorithms = list(dict.fromkeys(entry.algorithm for entry in found))
    table = {(entry.algorithm, entry.cell): entry for entry in found}
    head = ["lambda", "beta"]
    for algorithm in algorithms:
        head += [ALGORITHMS[algorithm], "paper"]
    if searched is not None:
        head += ["random starts"]
    if known is not None:
        head += ["best known"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cell in CELLS:
        row = [f"{cell.regularization:g}", f"{cell.penalty_cost:g}"]
        for algorithm in algorithms:
            entry, published = table[algorithm, cell], TABLE_1[algorithm.removeprefix("literal-")][cell]
            row.append(f"{entry.mean:.3f}" + (f" ± {entry.standard_error:.3f}" if len(entry.values) > 1 else ""))
            row.append(f"{published.mean:.2f} ± {published.standard_error:.3f}")
        if searched is not None:
            row += [f"{searched[cell]:.4f}"]
        if known is not None:
            row += [f"{known[cell]:g}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def write_csv(found: Sequence[Entry], seeds: Sequence[int], path: Path) -> None:
    """One row per run."""
    text = io.StringIO()
    writer, measured = csv.writer(text), ("value", "last", "env_steps", "seconds")
    writer.writerow(["algorithm", "lambda", "beta", "learning_rate", "smoothing", "seed", *measured])
    for e in found:
        for seed, result in zip(seeds, e.results, strict=True):
            writer.writerow([
                e.algorithm, *e.cell, e.rates["learning_rate"], e.rates.get("smoothing", ""), seed,
                *(result[name] for name in measured),
            ])  # fmt: skip
    write_atomically(path, text.getvalue())
