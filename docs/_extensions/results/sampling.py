"""What a step costs: the compiled sampler, and rollouts of Gymnasium's environments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("sampler")
def _sampler(r: dict[str, Any]) -> Iterable[str]:
    rows = [(o["what"], f"{o['size']:,}", f"{o['nanoseconds']:,.1f} ns", f"{o['steps_per_second']:,.0f}") for o in r["rows"]]
    yield from table(("what", "states or copies", "per step", "steps per second"), rows)


@stored("oracle_sampling")
def _oracle_sampling(r: dict[str, Any]) -> Iterable[str]:
    rows = [
        (
            f"{o['problem']}, {o['algorithm']}",
            *(f"{o[name]:.0f}" for name in ("bare_step", "alone", "at_once")),
            f"{o['times_faster']:.1f}",
            f"{o['dropped_share']:.0%}",
        )
        for o in r["rows"]
    ]
    yield from table(("problem", "bare step", "one after another", "at once", "times faster", "dropped"), rows)
