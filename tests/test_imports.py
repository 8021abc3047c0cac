"""Which module imports which: arrows point from leaders to followers to bocmdp_gym, no circle anywhere, and files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Each may import itself and those before it.
PACKAGES = ("bocmdp_gym", "followers", "leaders")
MOST_LINES = 600


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def _imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Names of all modules imported anywhere in the file: in functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                parents = above[: len(above) + is_package - node.level]
                base = ".".join([*parents, *([base] if base else [])])
            # `from package import name` reads the file of `name` where that is a module, and the package's own otherwise
            yield from (f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names)


GRAPH = {
    module: {name for name in _imported(ast.parse(path.read_text()), module, path.stem == "__init__") if name in FILES}
    for module, path in FILES.items()
}


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Circles of imports; each is cut where it closes before the next one is looked for."""
    graph, found = {module: set(imported) for module, imported in graph.items()}, []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1]  # each is imported by the next
            found.append(circle[::-1])
            graph[circle[1]].discard(circle[0])
        else:
            return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circles(package: str) -> None:
    own = {m: {n for n in imported if n.split(".")[0] == package} for m, imported in GRAPH.items() if m.split(".")[0] == package}
    circles = _circles(own)
    assert not circles, "\n".join(" imports ".join(circle) for circle in circles)


@pytest.mark.parametrize("module", FILES)
def test_arrows_point_down(module: str) -> None:
    allowed = PACKAGES[: PACKAGES.index(module.split(".")[0]) + 1]
    assert {name for name in GRAPH[module] if name.split(".")[0] not in allowed} == set()


@pytest.mark.parametrize("module", FILES)
def test_files_are_short(module: str) -> None:
    assert len(FILES[module].read_text().splitlines()) <= MOST_LINES


def test_circles_are_found() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    found = _circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}})
    assert sorted(map(sorted, map(set, found))) == [["a", "b", "c"], ["d", "e"]]


def test_imports_are_read_wherever_they_stand() -> None:
    text = """
from . import env
from .wrappers import context
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from bocmdp_gym.mdps import Weights
def f():
    import bocmdp_gym.options
    from bocmdp_gym import tabular, TabularBOCMDP
"""
    imported = set(_imported(ast.parse(text), "bocmdp_gym.checks", False)) & FILES.keys()
    assert imported == {f"bocmdp_gym.{name}" for name in ("env", "mdps", "options", "tabular", "wrappers.context")} | {
        "bocmdp_gym"
    }
