"""The table of the recipes' returns before and after, from ``results/recipes.json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("recipes")
def _recipes(r: dict[str, Any]) -> Iterable[str]:
    """One line per recipe: means over seeds ± standard errors, and x of the first seed."""
    rows = []
    for name, one in r.items():
        runs = one["runs"]
        means = (_mean(one[what]) for what in ("before", "after", "gain"))
        x = ", ".join(f"{value:.2f}" for value in runs[0]["x"])
        seconds = sum(run["cpu_seconds"] for run in runs) / len(runs)
        rows.append((f"`{name}`", *means, len(runs), x, f"{seconds:.0f} s"))
    yield from table(("recipe", "before", "after", "gain", "seeds", "x after, seed 0", "CPU time per seed"), rows)


def _mean(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f}\u00a0±\u00a0{found['standard_error']:.3f}"
