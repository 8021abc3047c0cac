"""How fast a run converges, and where annealing lambda leads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("convergence")
def _convergence(r: dict[str, Any]) -> Iterable[str]:
    rows = [(f"{o['T']:,}", f"{o['squared_norm']:.4f} ± {o['standard_error']:.4f}") for o in r["rate"]["rows"]]
    yield from table(("T", "mean squared gradient norm"), rows)
    yield ""
    yield f"The fitted exponent of T is {r['rate']['slope']:.2f}."
    yield ""
    floor = [
        ("optimum" if o["updates"] < 0 else f"{o['updates']:,}", f"{o['delta']:.2g}", f"{o['squared_norm']:.3g}")
        for o in r["floor"]
    ]
    yield from table(("updates of the follower", "delta", "squared gradient norm it ends with"), floor)


@stored("annealing")
def _annealing(r: dict[str, Any]) -> Iterable[str]:
    starts = [name for name in r["rows"][0] if isinstance(r["rows"][0][name], dict)]
    header = [f"{leader}, {'constant' if name == 'none' else f'from {name}'}" for leader in ("exact", "HPGD") for name in starts]
    rows = [
        (
            row["lambda"],
            f"{row['penalty_cost']:g}",
            *(f"{row[name]['exact']:.3f}" for name in starts),
            *(f"{row[name]['hpgd']:.3f} ± {row[name]['hpgd_error']:.3f}" for name in starts),
            f"{row['best_known']:.3f}",
        )
        for row in r["rows"]
    ]
    yield from table(("λ", "β", *header, "best known"), rows)
    yield ""
    yield f"Leader's return after {r['iterations']:,} iterations; HPGD: {r['seeds']} seeds."
