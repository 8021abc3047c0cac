"""Games in which the leader acts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("leader_acts")
def _leader_acts(r: dict[str, Any]) -> Iterable[str]:
    def entries(game: dict[str, Any], name: str) -> tuple[str, ...]:
        found = (game["runs"][name][kind] for kind in ("first steps", "exact"))
        return tuple(f"{o['mean']:.2f} ± {o['standard_error']:.2f}" for o in found)

    rows = []
    for game in r["rows"]:
        rows.append((game["game"], "best known", *(f"{game['best'][kind]:.2f}" for kind in ("first steps", "exact"))))
        rows += [("", name, *entries(game, name)) for name in game["runs"]]
        if game is r["rows"][0]:
            for name, (mean, error) in r["published"].items():
                rows.append(("", f"{name}, published", f"{mean:.2f}" + ("" if error is None else f" ± {error:.2f}"), ""))
    yield from table(("game", "leader", "first 150 steps", "exact return"), rows)
    yield ""
    yield f"Discounted returns of the last x after {r['iterations']:,} updates, {r['seeds']} seeds, λ = {r['lambda']}."
