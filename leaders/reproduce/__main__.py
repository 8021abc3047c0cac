"""Run the paper's experiments again: ``python -m leaders.reproduce table1 --help``.

Every run is stored under OUT/tasks as soon as it is finished and is never run twice: start the same command again after an
interruption, or for more seeds, and it continues where it was. `figures` after `table1` draws from the stored runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bocmdp_gym.errors import BOCMDPError, OptionError
from bocmdp_gym.files import write_atomically
from bocmdp_gym.options import check_count
from leaders.plots import save
from leaders.reproduce import figures, table
from leaders.reproduce.escapes import anatomy
from leaders.reproduce.paper import BEST_KNOWN, CELLS, FIGURES, ITERATIONS, PLANNED_SLIP, SEEDS, SIMULATED_SLIP, TEXT_SLIP, Cell
from leaders.reproduce.runs import key, run
from leaders.reproduce.search import search, search_task
from leaders.reproduce.table import Dynamics, Entry, Rates
from leaders.run_folder import processor, versions
from leaders.settings.command_line import choose
from leaders.tasks import Function, run_tasks

#: A run has left the local optimum when its value is this much above that of exact ascent.
_ESCAPE_MARGIN = 0.05
#: Iterations relative to an escape at which the estimator's bias is measured.
_OFFSETS = (-2000, -500, -100, 0, 100, 500, 2000)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the experiments share."""

    out: Path = Path("runs/reproduce")
    """Where tasks and results go."""
    quick: bool = False
    """A first look: 3 seeds, 2,000 iterations."""
    workers: int | None = None
    """Processes at a time; one per core if not given."""
    seeds: int | None = None
    """Seeds 0, 1, ... per cell; 10 if not given."""
    iterations: int | None = None
    """Outer iterations per run; 10,000 if not given."""
    progress: bool = True
    """Show a progress bar."""

    def tasks(self, tasks: Sequence[Mapping[str, Any]], function: Function = run) -> list[Mapping[str, Any]]:
        """Run what is not stored yet; all results, in the tasks' order.

        Raises:
            OptionError: a task kept failing; the others are stored.
        """
        keyed = {key(task): task for task in tasks}
        found = run_tasks(keyed, function, self.out / "tasks", workers=self.workers, progress=self.progress)
        if found.failures:
            name, error = next(iter(found.failures.items()))
            raise OptionError(f"{len(found.failures)} of {len(keyed)} runs failed, first {name}: {error}; see {self.out}/tasks.")
        return [found.results[key(task)] for task in tasks]

    @property
    def run_seeds(self) -> Sequence[int]:
        """The seeds that are reported."""
        return range(check_count("seeds", self.seeds)) if self.seeds is not None else SEEDS[: 3 if self.quick else None]

    @property
    def run_iterations(self) -> int:
        """Outer iterations per run."""
        return (
            check_count("iterations", self.iterations) if self.iterations is not None else ITERATIONS // (5 if self.quick else 1)
        )

    def store(self, name: str, results: Mapping[str, Any]) -> None:
        """Write results with all that decides them."""
        record = {
            "command": _command(),
            "machine": f"{os.cpu_count()} x {processor()}",
            "versions": versions(),
            "seeds": list(self.run_seeds),
            "iterations": self.run_iterations,
            **results,
        }
        write_atomically(self.out / f"{name}.json", json.dumps(record, indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class Table1(Settings):
    """Table 1: nine cells, three algorithms, ten seeds, beside the paper's numbers and the best known."""

    grid: bool = False
    """Search the paper's step sizes first, over seeds that are not reported; without it, the stored result of that search."""
    literal_amd: bool = False
    """AMD by its own sweeps (two hours a core for all cells) instead of the gradient they converge to."""
    slip_probability: float = PLANNED_SLIP
    """Probability that a move goes another way than chosen, in the model; the published code's, the paper's text says 1/3."""
    simulator_slip_probability: float | None = None
    """The same in HPGD's simulator alone, 0.33 in the published code; like the model's if not given."""

    @property
    def dynamics(self) -> Dynamics:
        """How the walker moves."""
        return Dynamics(self.slip_probability, self.simulator_slip_probability)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The columns."""
        return ("hpgd", "literal-amd" if self.literal_amd else "amd", "zero-order")

    @property
    def name(self) -> str:
        """What the result files are called."""
        name = "table1-" + self.dynamics.label.replace(", ", "-").replace(" ", "-")
        return name + ("-literal" if self.literal_amd else "") + ("-quick" if self.quick else "")

    def rates(self) -> Rates:
        """The step sizes per algorithm and cell."""
        if not self.grid:
            rates = table.stored_rates(self.dynamics)
        else:
            rates = table.grid(("hpgd", "amd", "zero-order"), self.dynamics, self.run_iterations, self.tasks)
            stored = {"command": _command(), "iterations": self.run_iterations,
                      "rates": {self.dynamics.label: table.rates_to_json(rates)}}  # fmt: skip
            write_atomically(self.out / f"{self.name}-rates.json", json.dumps(stored, indent=2) + "\n")
        return rates | {"literal-amd": rates["amd"]}

    def entries(self) -> list[Entry]:
        """All runs of the table."""
        return table.entries(self.algorithms, self.dynamics, self.run_iterations, self.run_seeds, self.rates(), self.tasks)

    def searches(self) -> dict[Cell, float]:
        """The best return per cell from random starts."""
        return dict(zip(CELLS, (r["value"] for r in _searches(self, self.slip_probability)), strict=True))

    def main(self) -> None:
        """The table."""
        found = self.entries()
        searched = None if self.quick else self.searches()
        text = table.markdown(found, searched, BEST_KNOWN if self.slip_probability == PLANNED_SLIP else None)
        write_atomically(self.out / f"{self.name}.md", text)
        table.write_csv(found, self.run_seeds, self.out / f"{self.name}.csv")
        cells = [
            {"algorithm": e.algorithm, **e.cell._asdict(), **e.rates, "mean": e.mean, "standard_error": e.standard_error,
             "values": e.values}
            for e in found
        ]  # fmt: skip
        self.store(self.name, {"dynamics": self.dynamics.label, "cells": cells})
        print(f"{text}\nMean exact leader's return of the last tenth of {self.run_iterations:,} iterations over "
              f"{len(self.run_seeds)} seeds ± standard error, {self.dynamics.label}; see {self.out}/")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FiguresOf(Table1):
    """Figures 1-18: learning curves and penalty maps, as PNG and PDF, from the runs of table1 (those missing are run)."""

    def main(self) -> None:
        """The figures."""
        found, folder = self.entries(), self.out / self.name.replace("table1", "figures")
        folder.mkdir(parents=True, exist_ok=True)
        for cell in CELLS:
            own = [entry for entry in found if entry.cell == cell]
            best = BEST_KNOWN[cell] if self.slip_probability == PLANNED_SLIP else None
            numbers = FIGURES[cell]
            for number, figure in (
                (numbers.curves, figures.curves(cell, own, best)),
                (numbers.maps, figures.maps(cell, own, self.slip_probability)),
            ):
                for suffix in ("png", "pdf"):
                    save(figure, folder / f"figure{number:02d}.{suffix}")
        if not self.quick:
            best = _searches(self, self.slip_probability)[0]["x"]
            save(figures.before_and_after(CELLS[0], best, self.slip_probability), folder / "before_and_after.png")
        print(f"Figures {', '.join(str(n) for cell in CELLS for n in FIGURES[cell])} are in {folder}/")


@dataclass(frozen=True, kw_only=True)
class BestKnown(Settings):
    """The best leader's return per cell from random starts (`leaders.multistart`), beside the best known."""

    slip_probability: float = PLANNED_SLIP
    """Probability that a move goes another way than chosen."""
    search_seed: int = 0
    """Seed of the random starts."""

    def main(self) -> None:
        """The column."""
        found = _searches(self, self.slip_probability, self.search_seed)
        lines = ["| lambda | beta | random starts | best known | share | seconds |", "|---|---|---|---|---|---|"]
        for cell, result in zip(CELLS, found, strict=True):
            value, known = result["value"], BEST_KNOWN[cell]
            lines.append(
                f"| {cell.regularization:g} | {cell.penalty_cost:g} | {value:.4f} | {known:g} | {value / known:.4f} "
                f"| {result['seconds']:.0f} |"
            )
        write_atomically(self.out / "best-known.md", "\n".join(lines) + "\n")
        self.store(
            "best-known", {"search": search_task(CELLS[0], self.slip_probability, self.search_seed), "values": list(found)}
        )
        print("\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class DynamicsStudy(Settings):
    """Which dynamics made the table, and what lets HPGD leave local optima: its noise, its bias, or a simulator that differs."""

    cells: tuple[tuple[float, float], ...] = ((0.001, 1.0), (0.003, 3.0))
    """Cells (lambda, beta) whose escapes are taken apart."""
    estimates: int = 400
    """Estimates averaged per point and context."""

    def main(self) -> None:
        """HPGD under each dynamics, seeds that escape counted, and the estimator's bias around escapes."""
        studies = {
            "slip 0.44, as the published code plans": self.study(Dynamics(PLANNED_SLIP)),
            "slip 0.44, cut episodes continued": self.study(Dynamics(PLANNED_SLIP), bootstrap_truncated=True),
            "slip 0.44, simulator 0.33, as published": self.study(Dynamics(PLANNED_SLIP, SIMULATED_SLIP)),
            "slip 1/3, as the paper's text": self.study(Dynamics(TEXT_SLIP)),
        }
        opened = [row for rows in studies.values() for row in rows if "anatomy" in row]
        for row, result in zip(opened, self.tasks([row["anatomy"] for row in opened], anatomy), strict=True):
            row["anatomy"] = result
        text = f"{_escape_table(studies, len(self.run_seeds))}\n{_anatomy_table(studies)}"
        name = "dynamics" + ("-quick" if self.quick else "")
        write_atomically(self.out / f"{name}.md", text)
        self.store(name, {"studies": studies})
        print(text)

    def study(self, dynamics: Dynamics, **options: Any) -> list[dict[str, Any]]:
        """HPGD beside exact ascent under one dynamics, a row per cell; in ``cells`` with the task that opens an escape up."""
        seeds, iterations = self.run_seeds, self.run_iterations
        plain = Dynamics(dynamics.slip_probability)
        local = table.entries(("amd",), plain, iterations, seeds, table.stored_rates(plain), self.tasks)
        found = table.entries(("hpgd",), dynamics, iterations, seeds, table.stored_rates(dynamics), self.tasks, **options)
        rows = []
        for exact, entry in zip(local, found, strict=True):
            threshold = exact.mean + _ESCAPE_MARGIN
            escaped = [seed for seed, value in zip(seeds, entry.values, strict=True) if value > threshold]
            row = {**entry.cell._asdict(), "exact": exact.mean, "mean": entry.mean, "standard_error": entry.standard_error,
                   "values": entry.values, "escaped": escaped}  # fmt: skip
            if entry.cell in self.cells and escaped:
                task = table.cell_task("hpgd", entry.cell, escaped[0], iterations, dynamics, entry.rates, **options)
                row["anatomy"] = task | {"threshold": threshold, "estimates": self.estimates, "offsets": _OFFSETS}
            rows.append(row)
        return rows


def _escape_table(studies: Mapping[str, Sequence[Mapping[str, Any]]], n_seeds: int) -> str:
    lines = ["| dynamics | lambda | beta | exact ascent | HPGD | seeds that escape |", "|---|---|---|---|---|---|"]
    for label, rows in studies.items():
        for row in rows:
            lines.append(
                f"| {label} | {row['regularization']:g} | {row['penalty_cost']:g} | {row['exact']:.3f} "
                f"| {row['mean']:.3f} ± {row['standard_error']:.3f} | {len(row['escaped'])} of {n_seeds} |"
            )
    return "\n".join(lines) + "\n"


def _anatomy_table(studies: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = ["| dynamics | lambda | beta | iteration | F | gradient | bias | noise | cosine of the mean |", "|---" * 9 + "|"]
    for label, rows in studies.items():
        for row in rows:
            for at in row["anatomy"]["points"] if "anatomy" in row else ():
                lines.append(
                    f"| {label} | {row['regularization']:g} | {row['penalty_cost']:g} | {at['iteration']} "
                    f"| {at['leader_return']:.3f} | {at['gradient_norm']:.3g} | {at['bias']:.2f} ± {at['bias_of_chance']:.2f} "
                    f"| {at['noise']:.2f} | {at['cosine_of_mean']:.3f} |"
                )
    return "\n".join(lines) + "\n"


def _searches(settings: Settings, slip_probability: float, seed: int = 0) -> Sequence[Mapping[str, Any]]:
    return settings.tasks([search_task(cell, slip_probability, seed) for cell in CELLS], search)


def _command() -> str:
    return " ".join(["python -m leaders.reproduce", *sys.argv[1:]])


COMMANDS: dict[str, type[Any]] = {
    "table1": Table1,
    "figures": FiguresOf,
    "best-known": BestKnown,
    "dynamics": DynamicsStudy,
}


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, 2 for settings that cannot work, 130 after Ctrl-C."""
    settings: Any = choose(COMMANDS, "leaders.reproduce", __doc__, arguments)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        settings.main()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from here", file=sys.stderr)
        return 130
    except BOCMDPError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
