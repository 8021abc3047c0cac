"""A bonus for CartPole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("cartpole", "cartpole_first_attempt")
def _cartpole(r: dict[str, Any]) -> Iterable[str]:
    def returns(one: dict[str, Any]) -> str:
        each = one.get("leader_returns", [])
        return f"{one['leader_return']:.1f}" + (f" ({', '.join(f'{value:.1f}' for value in each)})" if len(each) > 1 else "")

    rows = [
        (
            o["seed"],
            ", ".join(f"{pay:.2f}" for pay in o["x"]),
            returns(o["no bonus"]),
            returns(o["bonus found"]),
            f"{o['bonus found']['closeness']:.1f}",
            f"{o['bonus found']['bonus_paid']:.1f}",
        )
        for o in r["runs"]
    ]
    header = ("seed", "x found, at -2, -1, 0, 1, 2", "no bonus", "with the bonus found", "closeness then", "bonus paid")
    yield from table(header, rows)
    yield ""
    budget = r["budget"]
    steps = budget["iterations"] * (budget["follower_steps"] + budget["env_steps"])
    yield (
        f"Mean over seeds: {r['leader_return, no bonus']:.1f} without and {r['leader_return, bonus found']:.1f} with the bonus, "
        f"an improvement of {r['mean improvement']:.1f} ± {r['standard error']:.1f} "
        f"({r['improvement in standard errors']:.1f} standard errors). λ = {r['regularization']}, {budget['iterations']} outer "
        f"iterations, {steps:,} steps in a run, {budget['fresh_steps']:,} training steps per fresh follower, "
        f"{r['CPU seconds'] / 60:.0f} CPU minutes."
    )


@stored("cartpole_first_order")
def _cartpole_first_order(r: dict[str, Any]) -> Iterable[str]:
    gain, error, theirs = r["mean improvement"], r["standard error"], r["HPGD, mean improvement on the same seeds"]
    rows = [
        ("FirstOrder", f"{gain:.1f} ± {error:.1f}", f"{r['steps']:,.0f}"),
        ("HPGD", f"{theirs:.1f} ± {r['HPGD, standard error']:.1f}", f"{r['HPGD, steps']:,.0f}"),
    ]
    yield from table(("leader", f"improvement, {len(r['seeds'])} seeds", "steps, training included"), rows)


@stored("leader_reward")
def _leader_reward(r: dict[str, Any]) -> Iterable[str]:
    times = r["microseconds per step"]
    rows = [(name, value, f"{value / times['bare']:.1f}") for name, value in times.items()]
    yield from table(("CartPole's step", "µs", "times the bare step"), rows)
