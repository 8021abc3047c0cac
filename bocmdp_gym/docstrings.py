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
    """The `summary` of a class or function, from the source of its module, which is imported only where that does not say it.

    Args:
        where: it is, as Gymnasium's entry points are written: "module:name".
    """
    module, _, name = where.partition(":")
    found = importlib.util.find_spec(module)
    source = found.loader.get_source(module) if found is not None and isinstance(found.loader, InspectLoader) else None
    for one in ast.parse(source or "").body:
        if isinstance(one, (ast.ClassDef, ast.FunctionDef)) and one.name == name and (text := ast.get_docstring(one)):
            return _first_paragraph(text)
    return summary(getattr(importlib.import_module(module), name))


def argument_groups(kind: Callable[..., Any]) -> list[tuple[tuple[str, ...], str]]:
    """The arguments that a docstring explains, in its order: names that are explained together, and their text on one line."""
    text = inspect.getdoc(kind) or ""
    google = re.search(r"^Args:\n((?:[ \t].*\n|\n)*)", text + "\n", re.M)
    if google is not None:
        return _split(inspect.cleandoc("\n" + google[1]), r"^", (r"\*{0,2}\w+",))
    page = re.search(r"^## Arguments\n(.*?)(?=^## |^\w+:\n|\Z)", text, re.M | re.S)
    return [] if page is None else _split(page[1], r"(?:^|\s+)", inspect.signature(kind).parameters)


def argument_help(kind: Callable[..., Any]) -> dict[str, str]:
    """The text of every argument that a docstring explains, by name."""
    return {name: text for names, text in argument_groups(kind) for name in names}


def _split(section: str, start: str, names: Iterable[str]) -> list[tuple[tuple[str, ...], str]]:
    pieces = re.split(f"{start}({_NAMES.format('|'.join(names))}): ?", section, flags=re.M)
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return [(tuple(one.replace("*", "").split(", ")), " ".join(text.split())) for one, text in pairs]
