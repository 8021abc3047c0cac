"""Populations whose classes learn or are answered in rounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("population_oracle_learning")
def _population_learning(r: dict[str, Any]) -> Iterable[str]:
    rounds = list(dict.fromkeys(one["rounds"] for one in r["rows"]))
    found: dict[tuple[str, Any], list[str]] = {}
    for one in r["rows"]:
        cell = f"{one['exploitability']:.2g} ({one['largest difference of a flow']:.2%})"
        found.setdefault((one["network"], one["steps per class and round"]), []).append(cell)
    rows = [(network, "exact" if steps is None else f"{steps:,}", *cells) for (network, steps), cells in found.items()]
    yield from table(("network", "steps per class and round", *(f"{n} rounds" for n in rounds)), rows)
    yield ""
    yield "Exploitability in minutes, and the largest difference of a flow from the exact equilibrium's, over the largest flow."


@stored("population_oracle_leading")
def _population_leading(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            name,
            f"{one['travel time']:.3f}",
            "" if one["exploitability"] is None else f"{one['exploitability']:.2g}",
            one["responses"],
            f"{one['seconds']:.0f} s",
        )
        for name, one in r["leaders"].items()
    ]
    header = ("leader", "minutes per driver at the equilibrium", "exploitability of the last response", "responses", "time")
    yield from table(header, [("no tolls", f"{r['without tolls']:.3f}", "", "", ""), *rows])


@stored("population_oracle_ppo")
def _population_ppo(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (one["rounds"], f"{one['steps']:,}", f"{one['exploitability']:.3g}", f"{one['largest difference of a flow']:.1%}")
        for one in r["rows"]
    ]
    yield from table(("rounds", "steps", "exploitability", "largest difference of a flow"), rows)
