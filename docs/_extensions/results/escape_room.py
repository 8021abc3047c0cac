"""Incentives for learners that leave a room."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("escape_room", "escape_room_first")
def _escape_room(r: dict[str, Any]) -> Iterable[str]:
    def entry(one: dict[str, float]) -> str:
        return f"{one['mean']:.2f} ± {one['standard_error']:.2f}"

    rooms = {name: room for name, room in r.items() if name != "budget"}
    names = ("unpaid escapes", "paid escapes", "unpaid leader_return", "paid leader_return")
    rows = [
        (name, "; ".join(str(tuple(run["x"])) for run in room["runs"]), *(entry(room[key]) for key in names))
        for name, room in rooms.items()
    ]
    heads = (
        "x found, per seed: lever, start, door",
        "escapes unpaid",
        "escapes at x",
        "leader's return unpaid",
        "leader's return at x",
    )
    yield from table(("room", *heads), rows)
    yield ""
    budget, seeds = r["budget"], len(next(iter(rooms.values()))["runs"])
    evaluations, steps = budget["evaluations"], 128 * budget["rounds"]
    yield (
        f"{seeds} seeds (± one standard error), {evaluations} evaluations in each; every learner trains {steps:,} steps per "
        "response."
    )
