"""Soft solves: against peers, with more states and contexts, and by which linear solver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("peers")
def _peers(r: dict[str, Any]) -> Iterable[str]:
    def seconds(o: dict[str, Any], name: str) -> str:
        return f"{o[f'{name}_seconds']:.3g} s ({o[f'{name}_processor_seconds']:.3g} s)"

    rows = [
        (
            o["problem"],
            f"{o['states']:,}",
            seconds(o, "soft"),
            f"{seconds(o, o['fastest_peer'])}, {o['fastest_peer'].replace('_', ' ')}",
            f"{o['ratio']:.2f}",
            f"{o['processor_ratio']:.2f}",
            f"{o['ratio_at_default']:.2f}",
            f"{o['lu']:,.0f}",
        )
        for o in r["rows"]
    ]
    header = (
        *("problem", "states", "soft solve", "best of DiscreteDP", "ratio", "ratio of processor time"),
        *("ratio at our default accuracy", "soft solve in LU"),
    )
    yield from table(header, rows)


@stored("scaling")
def _scaling(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            f"{o['states']:,}",
            what,
            f"{o['seconds']:.3g} s",
            f"{o['processor_seconds']:.3g} s",
            f"{o['peak_gigabytes']:.2f} GB",
            f"{o['finite_difference_error']:.1g}",
        )
        for what, sizes in (("rewards", r["states"]), ("rewards and P", r["moving"]))
        for o in sizes
    ]
    header = ("states", "of x", "wall time", "processor time", "peak memory", "error against finite differences")
    yield from table(header, rows)
    slopes = r["slopes"]
    yield ""
    yield (
        f"From a thousand states on, time grows like the number of states to the power {slopes['seconds']:.2f} (processor time: "
        f"{slopes['processor_seconds']:.2f})."
    )
    yield ""
    contexts = [
        (
            o["family"],
            f"{o['contexts']:,}",
            *(f"{o[f'{k}_seconds']:.3g} s ({o[f'{k}_processor_seconds']:.3g} s)" for k in ("cold", "warm")),
        )
        for o in r["contexts"]
    ]
    yield from table(("100 states", "contexts", "cold start", "warm start"), contexts)


@stored("linear_solvers")
def _linear_solvers(r: dict[str, Any]) -> Iterable[str]:
    names = [key.removesuffix(" seconds") for key in r["rows"][0] if key.endswith(" seconds")]

    def entry(o: dict[str, Any], name: str) -> str:
        time = o[f"{name} seconds"]
        return "" if time is None else f"{1e3 * time:.3g}"

    rows = [(o["problem"], f"{o['states']:,}", *(entry(o, n) for n in names), o["automatic"]) for o in r["rows"]]
    yield from table(("ms of processor time", "states", *names, "automatic choice"), rows)
