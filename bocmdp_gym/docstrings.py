"""What a class's docstring says of its arguments, for command lines, signatures and pages that are made from it.

Two forms are read: the ``Args:`` section of Google style, an argument or a few (``a, b: text``) at the start of a line; and the
``## Arguments`` section of an environment's page, where they may also follow each other on a line.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable
from importlib.abc import InspectLoader
from typing import Any

#: A list of names between commas.
_NAMES = r"(?:{0})(?:, (?:{0}))*"


def summary(kind: Callable[..., Any]) -> str:
    """The first paragraph of a docstring on one line; "" without a docstring."""
    return _first_paragraph(inspect.getdoc(kind) or "")


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def source_summary(where: str) -> str:
    """The `summary` of what is at "module:name", without importing it (`_source_docstring`)."""
    return _first_paragraph(_source_docstring(where))


def source_argument_help(where: str) -> dict[str, str]:
    """The `argument_help` of what is at "module:name", in Google style, without importing it (`_source_docstring`)."""
    return {name: text for names, text in _google(_source_docstring(where)) or () for name in names}


def _source_docstring(where: str) -> str:
    """The docstring of a class or function in the source of its module, which is imported only if it is not there."""
    module, _, name = where.partition(":")
    found = importlib.util.find_spec(module)
    source = found.loader.get_source(module) if found is not None and isinstance(found.loader, InspectLoader) else None
    for one in ast.parse(source or "").body:
        if isinstance(one, (ast.ClassDef, ast.FunctionDef)) and one.name == name and (text := ast.get_docstring(one)):
            return text
    return inspect.getdoc(getattr(importlib.import_module(module), name)) or ""


def argument_groups(kind: Callable[..., Any]) -> list[tuple[tuple[str, ...], str]]:
    """The arguments that a docstring explains, in its order: names that are explained together, and their text on one line."""
    text = inspect.getdoc(kind) or ""
    if (google := _google(text)) is not None:
        return google
    page = re.search(r"^## Arguments\n(.*?)(?=^## |^\w+:\n|\Z)", text, re.M | re.S)
    return [] if page is None else _split(page[1], r"(?:^|\s+)", inspect.signature(kind).parameters)


def _google(text: str) -> list[tuple[tuple[str, ...], str]] | None:
    """As `argument_groups`, of a docstring in Google style; None if it has no such section."""
    section = re.search(r"^Args:\n((?:[ \t].*\n|\n)*)", text + "\n", re.M)
    return None if section is None else _split(inspect.cleandoc("\n" + section[1]), r"^", (r"\*{0,2}\w+",))


def argument_help(kind: Callable[..., Any]) -> dict[str, str]:
    """The text of every argument that a docstring explains, by name."""
    return {name: text for names, text in argument_groups(kind) for name in names}


def _split(section: str, start: str, names: Iterable[str]) -> list[tuple[tuple[str, ...], str]]:
    pieces = re.split(f"{start}({_NAMES.format('|'.join(names))}): ?", section, flags=re.M)
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return [(tuple(one.replace("*", "").split(", ")), " ".join(text.split())) for one, text in pairs]
