"""What the tables share: the mark that makes a function one, and how a table is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

#: From the "results" of a stored record to the lines of Markdown that show them.
Lines = Callable[[Any], Iterable[str]]
#: What shows ``benchmarks/results/NAME.json``, by name.
TABLES: dict[str, Lines] = {}
#: What shows parts of it by themselves, by name: from the "results" to the text for ``NAME_PART.md``, by part.
PARTS: dict[str, Callable[[Any], dict[str, str]]] = {}


def stored(*names: str) -> Callable[[Lines], Lines]:
    """Mark the function that shows the stored results of these names.

    Raises:
        ValueError: another function shows one of them.
    """

    def mark(lines: Lines) -> Lines:
        for name in names:
            if name in TABLES:
                raise ValueError(f"{name}.json is shown by {TABLES[name].__module__} and by {lines.__module__}; keep one.")
            TABLES[name] = lines
        return lines

    return mark


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterable[str]:
    """A Markdown table."""
    header = list(header)
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
