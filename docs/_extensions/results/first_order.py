"""The first-order leader: its weights, and what it tells of a learner."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("first_order_weights")
def _first_order_weights(r: dict[str, Any]) -> Iterable[str]:
    shown = [i for i, w in enumerate(r["weights"]) if i % 2 == 0 and 1e-5 <= w <= 0.11]
    rows = [
        (name, one["regularization"], side, *(f"{one[side][i]:.1e}" for i in shown))
        for name, one in r["models"].items()
        for side in ("two-sided", "one-sided")
    ]
    yield from table(("model", "λ", "", *(f"w = {r['weights'][i]:.0e}" for i in shown)), rows)
    sampled = r["sampled, Four-Rooms"]
    contexts = [name for name in sampled if name.startswith("context")]
    yield ""
    yield f"One estimate from {sampled['steps']:,} steps on Four-Rooms, {sampled['repeats']} of them; errors are relative:"
    yield ""
    rows = [
        (
            name,
            *(
                f"{one['root mean square error']:.2f} / {one['error of the mean']:.2f} / {one['mean cosine']:.2f}"
                for one in (sampled[context][name] for context in contexts)
            ),
            f"{1e3 * sampled[contexts[0]][name]['CPU seconds']:.1f} ms",
        )
        for name in sampled[contexts[0]]
    ]
    columns = (f"{context}: root mean square error / error of the mean / mean cosine" for context in contexts)
    yield from table(("estimator", *columns, "CPU time"), rows)


@stored("first_order_linear_program", "first_order_ppo", "first_order_dqn")
def _first_order_learner(r: dict[str, Any]) -> Iterable[str]:
    def entries(values: list[float], errors: list[float] | None) -> str:
        noise = [""] * len(values) if errors is None else [f" ± {error:.3f}" for error in errors]
        return ", ".join(f"{value:.3f}{error}" for value, error in zip(values, noise, strict=True))

    rows = [
        (
            one["context"],
            one["seeds"],
            entries(one["central differences"], one["their standard errors"]),
            entries(one["FirstOrder"], one["its standard errors"]),
            f"{one['cosine']:.3f}",
        )
        for one in r["contexts"]
    ]
    yield from table(("context", "seeds", "central differences, in five directions", "FirstOrder", "cosine"), rows)
