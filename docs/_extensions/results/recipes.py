"""The recipes' returns before and after, from ``results/recipes.json``: a table, and a sentence for the page of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import PARTS, stored, table


@stored("recipes")
def _recipes(r: dict[str, Any]) -> Iterable[str]:
    """One line per recipe: means over seeds ± standard errors, and x of the first seed."""
    rows = []
    for name, one in r.items():
        runs = one["runs"]
        means = (_mean(one[what]) for what in ("before", "after", "gain"))
        x = ", ".join(f"{value:.2f}" for value in runs[0]["x"])
        seconds = sum(run["cpu_seconds"] for run in runs) / len(runs)
        rows.append((f"{{doc}}`{name} <recipes/{name}>`", *means, len(runs), x, f"{seconds:.0f} s"))
    yield from table(("recipe", "before", "after", "gain", "seeds", "x after, seed 0", "CPU time per seed"), rows)


def _sentences(r: dict[str, Any]) -> dict[str, str]:
    """The same of every recipe by itself, in a sentence."""
    return {
        name: f"The leader's return was {_mean(one['before'])}, and is {_mean(one['after'])}: a gain of {_mean(one['gain'])} "
        f"({len(one['runs'])} seeds)."
        for name, one in r.items()
    }


PARTS["recipes"] = _sentences


def _mean(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f}\u00a0±\u00a0{found['standard_error']:.3f}"
