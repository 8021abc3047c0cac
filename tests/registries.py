"""Tests register followers and estimators of their own; what was known before them is put back after them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import leaders
from followers.registry import FOLLOWERS
from leaders.gradients.registry import ESTIMATORS
from leaders.leaders import describe


@contextmanager
def restored() -> Iterator[None]:
    known = dict(FOLLOWERS), dict(ESTIMATORS)
    try:
        yield
    finally:
        for registry, before in zip((FOLLOWERS, ESTIMATORS), known, strict=True):
            registry.clear()  # type: ignore[attr-defined]
            registry.update(before)  # type: ignore[attr-defined]
        describe(leaders.HPGD)
