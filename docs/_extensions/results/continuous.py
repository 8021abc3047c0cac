"""Continuous states and actions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("building_control")
def _building_control(r: dict[str, Any]) -> Iterable[str]:
    best = r["optimum"]
    rows = [
        ("x = 0", f"{r['start']:.1f}", "", ""),
        *((f"{name}, published", f"{value:.1f}", "20,000,000", "") for name, value in reversed(r["published"].items())),
        *(
            (
                f"{o['leader']}, {o['seeds']} seeds",
                f"{o['leader_return']:.2f} ± {o['standard_error']:.2f}",
                f"{o['env_steps']:,.0f}",
                f"{o['cpu_seconds']:.0f}",
            )
            for o in r["rows"]
        ),
        (f"best of {best['starts']} exact ascents (the least: {best['least']:.3f})", f"{best['best']:.3f}", "", ""),
    ]
    yield from table(("leader", "F", "environment steps", "CPU s"), rows)
    yield ""
    answers = [
        (
            o["follower"],
            f"{o['training_steps']:,}",
            f"{o['follower_return']:.0f} ± {o['follower_return_error']:.0f}",
            f"{o['leader_return']:.0f} ± {o['leader_return_error']:.0f}",
        )
        for o in r["answers"]
    ]
    yield from table(("follower at x = 0", "training steps", "its return", "leader's return"), answers)


@stored("continuous_leaders")
def _continuous_leaders(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            o["problem"],
            o["leader"],
            f"{o['share']:.1%}" + ("" if o["standard_error"] is None else f" ± {o['standard_error']:.1%}"),
            f"{o['least']:.1%}",
            o["seeds"],
            f"{o['env_steps']:,.0f}",
            f"{o['training_steps']:,.0f}",
            f"{o['cpu_seconds']:.0f}",
        )
        for o in r["rows"]
    ]
    head = ("problem", "leader, follower", "share", "least", "seeds", "leader's steps", "follower's training steps", "CPU s")
    yield from table(head, rows)
