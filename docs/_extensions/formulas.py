"""Docstrings here are written to be read in an editor; this makes them reStructuredText before napoleon reads them.

An indented block between blank lines is a formula or code, and shown as it stands. Elsewhere the signs of mathematics (``|V|``,
``pi*``) are only signs.
"""

from __future__ import annotations

import ast
import re
from textwrap import dedent
from typing import Any

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example|Examples|Note|References):$")
_CODE_SPAN = re.compile(r"(``.+?``|`[^`]+`)")
#: What stands between asterisks: *so*. ``V* and pi*`` is not, nor is ``2 * 3 * 4``.
_EMPHASIS = re.compile(r"(?<![^\s(])(\*{1,2}\w[^*]*?[\w.]\*{1,2})(?=[\s:.,;)]|$)")
#: Columns of code that fit on a page; blocks of longer lines are set smaller.
COLUMNS = 100


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escaped(line: str) -> str:
    bullet = re.match(r"\s*[-*] ", line)
    start = bullet.end() if bullet else 0
    pieces = _CODE_SPAN.split(line[start:])
    pieces[::2] = [_without_signs(piece) for piece in pieces[::2]]
    for i in range(1, len(pieces), 2):
        if re.match(r"\w", pieces[i + 1]):
            pieces[i] += "\\ "  # the plural of `Estimate`
    return line[:start] + "".join(pieces)


def _without_signs(text: str) -> str:
    pieces = _EMPHASIS.split(text)
    pieces[::2] = [re.sub(r"(?<!\\)([*|])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _is_python(block: list[str]) -> bool:
    try:
        body = ast.parse(dedent("\n".join(block))).body
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call) and not isinstance(node.func, ast.BinOp) for node in ast.walk(ast.Module(body, [])))


def readable(lines: list[str]) -> list[str]:
    """The docstring ``lines`` as reStructuredText with Google sections."""
    out: list[str] = []
    section = False
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.strip() and _indent(line) == 0:
            section = bool(_SECTION.match(line))
        if not section and _indent(line) and (i == 0 or not lines[i - 1].strip()):
            end = i
            while end < len(lines) and (not lines[end].strip() or _indent(lines[end])):
                end += 1
            block = lines[i:end]
            while not block[-1].strip():
                block.pop()
            language = "python" if _is_python(block) else "text"
            wide = ["   :class: wide"] * (max(map(len, dedent("\n".join(block)).splitlines())) > COLUMNS)
            out += [f".. code-block:: {language}", *wide, "", *block, ""]
            i = end
            continue
        out.append(_escaped(line))
        i += 1
    return out


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = readable(lines)


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _process, priority=400)  # napoleon's is 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
