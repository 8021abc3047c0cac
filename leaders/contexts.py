"""The contexts of a problem, with their weights."""

from __future__ import annotations

from typing import Any


def every_context(core: Any) -> list[tuple[Any, float]] | None:
    """All contexts of positive probability, with their probabilities; None where they are not finitely many."""
    if core.context_probabilities is None:
        return None
    first = int(core.context_space.start)
    return [(first + i, float(p)) for i, p in enumerate(core.context_probabilities) if p > 0]
