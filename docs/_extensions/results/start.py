"""What starting takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .common import stored, table


@stored("start")
def _start(r: dict[str, Any]) -> Iterable[str]:
    rows = [(f"`{name}`" if "import torch" in name or "python" in name else name, one) for name, one in r["rows"].items()]
    yield from table(
        ("process", "processor time", "peak memory"),
        [(name, f"{one['seconds']:.2f} s", f"{one['peak_memory_MB']:.0f} MB") for name, one in rows],
    )
    yield ""
    yield from table(("ratio", ""), [(name, f"{ratio:.2f}") for name, ratio in r["ratios"].items()])
