"""Every recipe of the documentation runs, is short, and has stored results; what the page says is refused is refused."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import recipes
from benchmarks.common import RESULTS

#: Lines of code, at most, without blank lines, comments and the docstring.
MOST_LINES = 25
#: Iterations of a try.
FEW = 1
#: Optional packages that recipes need, beyond those they import, and those whose tries take long.
NEEDED = {"lunar_lander": {"Box2D"}}
SLOW = {"blackjack", "highway", "lunar_lander"}


def lines_of_code(path: Path) -> int:
    module = ast.parse(path.read_text())
    documentation = {
        line
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(path.read_text().splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in documentation for i, line in lines)


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_is_short(name: str) -> None:
    assert lines_of_code(recipes.FOLDER / f"{name}.py") <= MOST_LINES


def test_every_recipe_has_a_page_with_its_picture_and_its_results() -> None:
    contents = (recipes.ROOT / "docs" / "recipes.md").read_text()
    stored = json.loads((RESULTS / "recipes.json").read_text())["results"]
    for name in recipes.names():
        assert f"\nrecipes/{name}\n" in contents
        page = (recipes.FOLDER / f"{name}.md").read_text()
        assert f"{name}.py" in page
        assert f"images/recipes/{name}.gif" in page
        assert f"includes/recipes_{name}.md" in page
        assert (recipes.PICTURES / f"{name}.gif").exists()
    assert list(stored) == recipes.names()


def imported(name: str) -> set[str]:
    """Packages that a recipe imports."""
    module = ast.parse((recipes.FOLDER / f"{name}.py").read_text())
    return {one.split(".")[0] for node in ast.walk(module) for one in _names(node)}


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (one.name for one in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_does_not_hide_what_it_imports(name: str) -> None:
    """A script finds its own folder first."""
    assert not imported(name) & {*recipes.names()}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in recipes.names()])
def test_recipe_runs(name: str) -> None:
    for package in imported(name) | NEEDED.get(name, set()):
        pytest.importorskip(package)
    row = recipes.attempt(name, seed=0, iterations=FEW, judged_steps=200)
    assert np.isfinite([row["before"], row["after"], *row["x"]]).all()
    assert row["env_steps"] > 0


@pytest.mark.parametrize("name", ["cliff_walking", "frozen_lake", "taxi"])
def test_tabular_recipe_gains_what_is_stored(name: str) -> None:
    stored = json.loads((RESULTS / "recipes.json").read_text())["results"][name]
    row = recipes.attempt(name, seed=0)
    gain = row["after"] - row["before"]
    assert row["exact"]
    assert gain == pytest.approx(stored["gain"]["mean"], rel=0.05)
    assert gain > 0.5


def test_summary_is_over_seeds() -> None:
    found = recipes.summary([{"before": 0.0, "after": 1.0}, {"before": 1.0, "after": 4.0}])
    assert found["gain"] == {"mean": 2.0, "standard_error": pytest.approx(1.0)}
    assert recipes.summary([{"before": 0.0, "after": 1.0}])["gain"]["standard_error"] is None
