"""Tax design: the model's accuracy, the leaders, the learner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("tax_design")
def _tax_design(r: dict[str, Any]) -> Iterable[str]:
    for lam, rows in r["convergence"].items():
        yield f"**λ = {lam}**, errors relative to the finest grid:"
        yield ""
        yield from table(
            ("grid points", "value", "gradient", "leader, played between points", "follower's loss there", "seconds"),
            [
                (
                    o["grid_size"],
                    f"{o['error_of_value']:.2%}",
                    f"{o['error_of_gradient']:.2%}",
                    f"{o['interpolation_leader']:.3%}",
                    f"{o['interpolation_follower']:.4%}",
                    f"{o['seconds']:.2f}",
                )
                for o in rows
            ],
        )
        yield ""
    best = [
        (
            lam,
            f"{o['leader_return_321']:.2f}",
            f"{o['leader_return_321_without_taxes']:.2f}",
            ", ".join(f"{100 * rate:.1f} %" for rate in o["rates"]),
            f"{min(o['from_starts']):.2f} to {max(o['from_starts']):.2f}",
        )
        for lam, o in r["optimum"].items()
    ]
    yield from table(("λ", "leader's return", "without taxes", "income tax, VAT 1 to 3", "from 10 starts, coarse grid"), best)


@stored("tax_design_leaders")
def _tax_leaders(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (lam, name, f"{max(o['mean']):.2f}", f"{o['mean'][-1]:.2f} ± {o['standard_error'][-1]:.2f}")
        for lam, leaders in r["leaders"].items()
        for name, o in leaders.items()
    ]
    yield from table(("λ", "leader", "best mean on the way", f"after {r['budget']:,} steps"), rows)


@stored("tax_design_stepping")
def _stepping(r: dict[str, Any]) -> Iterable[str]:
    rows = [(f"{o['copies']:,}", f"{o['native']:,.0f}", f"{o['sync']:,.0f}") for o in r["steps_per_second"]]
    yield from table(("copies", "native, steps per second", "sync"), rows)


@stored("tax_design_learner")
def _tax_learner(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            o["seed"],
            f"{o['share']:.1%}",
            f"{o['least']:.1%}",
            f"{o['env_steps']:,}",
            f"{o['follower_training_steps']:,}",
            f"{o['seconds']:.0f}",
        )
        for o in r["runs"]
    ]
    yield from table(("seed", "share", "least of the last fifth", "leader's steps", "follower's training steps", "seconds"), rows)
