"""Road tolls: limits, cost, benefit and search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("road_tolls_limits")
def _road_limits(r: dict[str, Any]) -> Iterable[str]:
    known = r["deterministic"]
    rows = [
        (
            one["lambda"],
            f"{one['travel time']:,.0f}",
            f"{1e-5 * one['Beckmann']:.5f}",
            f"{one['largest relative difference of a flow']:.2%}",
            ""
            if one["travel time under marginal-cost tolls"] is None
            else f"{one['travel time under marginal-cost tolls']:,.0f}",
        )
        for one in r["rows"]
    ]
    rows.append(("0", f"{known['travel time']:,.0f}", f"{1e-5 * known['Beckmann']:.5f}", "", f"{known['system optimum']:,.0f}"))
    header = ("lambda, minutes", "travel time", "Beckmann, 1e5", "largest error of a flow", "under marginal-cost tolls")
    yield from table(header, rows)


@stored("road_tolls_cost")
def _road_cost(r: dict[str, Any]) -> Iterable[str]:
    names = ("construction", "cold", "equilibrium", "equilibrium and gradient")
    rows = [
        (one["network"], one["nodes"], one["links"], one["classes"], *(f"{one[name]:.3f} s" for name in names))
        for one in r["rows"]
    ]
    yield from table(("network", "nodes", "links", "destinations", "construction", "first equilibrium", *names[2:]), rows)


@stored("road_tolls_net_benefit")
def _road_benefit(r: dict[str, Any]) -> Iterable[str]:
    rows = [(name, f"{one['relative distance']:.1e}", one["gradients"]) for name, one in r["from"].items()]
    yield from table(("from", "relative distance to the optimum", "gradients"), rows)
    yield ""
    yield f"At marginal-cost tolls the largest entry of the gradient is {r['largest entry of the gradient there']:.1e}."


@stored("road_tolls_search")
def _road_search(r: dict[str, Any]) -> Iterable[str]:
    columns = ("without tolls", "hypergradient, best", "CMA-ES", "zero-order")
    rows = [
        (
            name,
            *(f"{one[column]:.3f}" for column in columns),
            f"{min(one['hypergradient, ten starts']):.3f}",
            one["equilibria"],
        )
        for name, one in r.items()
    ]
    yield from table(("minutes per driver", *columns, "hypergradient, worst start", "equilibria"), rows)
