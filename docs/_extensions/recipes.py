"""The table of the recipes' returns before and after, from ``results/recipes.json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def recipes(r: dict[str, Any]) -> Iterable[str]:
    """One line per recipe: means over seeds ± standard errors, and x of the first seed."""
    yield "| recipe | before | after | gain | seeds | x after, seed 0 | CPU time per seed |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in r.items():
        runs = one["runs"]
        means = (_mean(one[what]) for what in ("before", "after", "gain"))
        x = ", ".join(f"{value:.2f}" for value in runs[0]["x"])
        seconds = sum(run["cpu_seconds"] for run in runs) / len(runs)
        yield f"| `{name}` | {' | '.join(means)} | {len(runs)} | {x} | {seconds:.0f} s |"


def _mean(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f}\u00a0±\u00a0{found['standard_error']:.3f}"
