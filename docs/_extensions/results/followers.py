"""Speed and rates of the tabular followers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("soft_q_learning")
def _soft_q_learning(r: dict[str, Any]) -> Iterable[str]:
    four_rooms = r["Four-Rooms, 104 states x 4 actions, ns per update"]
    kinds = list(next(iter(four_rooms.values())))
    rows = [(kind, *(f"{times[kind]:.1f}" for times in four_rooms.values())) for kind in kinds]
    yield from table(("ns per update on Four-Rooms", *four_rooms), rows)
    yield ""
    yield from table(("ns per update on random models", ""), ((k, f"{v:.1f}") for k, v in r["random, ns per update"].items()))


@stored("follower_rates")
def _follower_rates(r: dict[str, Any]) -> Iterable[str]:
    rows = []
    for problem, kinds in r["soft value iteration (E.4) and natural policy gradient (E.7)"].items():
        for kind, o in kinds.items():
            shown = [f"{o[k]:.3f}" if o[k] is not None else "too fast to fit" for k in ("Q", "policy", "bound")]
            rows.append((problem, kind, *shown))
    yield from table(("problem", "follower", "rate of Q", "rate of the policy", "proven bound"), rows)
    yield ""
    learnt = [
        (name, f"{o['exponent of T']:.2f}", f"{o['exponent of log T / T']:.2f}")
        for name, o in r["soft Q-learning (E.5)"].items()
        if isinstance(o, dict) and "exponent of T" in o
    ]
    yield from table(("soft Q-learning: squared policy gap", "exponent of T", "exponent of log T / T (proven: 1)"), learnt)
