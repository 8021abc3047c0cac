from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from leaders.plots import save


@pytest.mark.parametrize(("name", "begin"), [("curve.png", b"\x89PNG"), ("curve.pdf", b"%PDF")])
def test_figures_are_what_their_names_say(name: str, begin: bytes, tmp_path: Path) -> None:
    save(Figure(figsize=(1, 1)), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begin)
