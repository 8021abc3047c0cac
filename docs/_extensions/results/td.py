"""The leader's Q learned by temporal differences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


def _plus_minus(o: dict[str, Any]) -> str:
    return f"{o['mean']:.3f} ± {o['standard_error']:.3f}"


@stored("td_table", "td_table_1000", "td_table_annealed")
def _td_table(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            o["lambda"],
            f"{o['beta']:g}",
            _plus_minus(o),
            f"{o['best_known']:g}",
            f"{o['share']:.0%}",
            f"{o['env_steps_per_update']:,.0f}",
        )
        for o in r["cells"].values()
    ]
    steps = f"{r['settings']['env_steps']:,}"
    header = ("λ", "β", f"td, {steps} steps", "best known", "share", "steps per update, last episode finished")
    yield from table(header, rows)


@stored("td_single_goal")
def _td_single_goal(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for lam, published in r["settings"]["published"].items():
        best = r["cells"].get(f"{lam}/random starts")
        for i, n in enumerate(r["settings"]["steps"]):
            o = r["cells"][f"{lam}/{n}"]
            theirs = [f"{values[i]:.3f}" for values in published.values()]
            beside = () if best is None else (f"{best:.3f}", f"{o['mean'] / best:.0%}")
            rows.append((lam, f"{n:,}", _plus_minus(o), *theirs, *beside))
    columns = [f"{name}, published" for name in next(iter(r["settings"]["published"].values()))]
    header = ("λ", "steps", "td", *columns, "random starts", "td's share of it")
    yield from table(header[: len(rows[0])], rows)


@stored("td_escapes")
def _td_escapes(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for cell, found in r["cells"].items():
        for kind, contexts in found["statistics"].items():
            for context, o in enumerate(contexts):
                size = o["gradient"]
                bias = f"{o['bias'] / size:.2f} ± {o['chance'] / size:.2f}"
                cosines = (f"{o['cosine']:.2f}", f"{o['clipped cosine']:.2f}")
                rows.append((cell, kind, context, f"{size:.3g}", bias, f"{o['noise'] / size:.3g}", *cosines))
    header = ("cell", "estimates", "context", "exact gradient", "bias", "noise", "cosine of the mean", "of the mean, clipped")
    yield from table(header, rows)
    yield ""
    seeds, cells = len(r["settings"]["seeds"]), r["cells"]
    rows = []
    for variant in next(iter(cells.values()))["runs"]:
        found = [cell["runs"][variant] for cell in cells.values()]
        rows.append((variant, *(f"{sum(o['values']) / seeds:.3f} ({o['escaped']} of {seeds})" for o in found)))
    columns = [f"{name}: {cell['exact ascent']:.3f}, then" for name, cell in cells.items()]
    yield from table(("ascent from there with", *columns), rows)
