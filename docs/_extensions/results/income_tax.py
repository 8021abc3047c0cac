"""Optimal income taxes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("income_tax")
def _income_tax(r: dict[str, Any]) -> Iterable[str]:
    for objective, o in r["objectives"].items():
        yield f"**{objective.replace('_', ' ')}**"
        yield ""
        rows = [
            (
                name,
                f"{one['value']:.5f}",
                f"{one['Gini']:.3f}",
                f"{one['productivity']:,.0f}",
                f"{one['welfare']:.4f}",
                f"{one['rebate']:,.0f}",
                ", ".join(f"{100 * rate:.0f}" for rate in one["rates"]),
            )
            for name, one in o["schedules"].items()
        ]
        header = ("rates", "objective", "Gini of consumption", "mean income, USD", "welfare", "rebate, USD", "marginal rates, %")
        yield from table(header, rows)
        yield ""
        how = o["search"]
        found = sum(one > max(how["random starts"]) - 1e-3 for one in how["random starts"])
        yield f"{found} of {len(how['random starts'])} random starts end within 0.001 of the best of them."
        yield ""
