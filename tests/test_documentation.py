"""The Python on the pages a newcomer reads runs as it stands: every ``python`` block of a page, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.registries import restored

ROOT = Path(__file__).parents[1]


GUIDES = ("large_models", "populations", "recipes", "games", "tutorial", "wrappers", "extending")
PAGES = ["README.md", *(f"docs/{name}.md" for name in GUIDES)]


@pytest.mark.parametrize("page", PAGES)
def test_python_of_page_runs(page: str) -> None:
    text = (ROOT / page).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S))
    assert blocks
    namespace: dict[str, Any] = {"__name__": "page"}
    with restored():
        for block in blocks:
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], page, "exec"), namespace)  # errors then name the page's own line
