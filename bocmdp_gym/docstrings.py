"""What a class's docstring says of its arguments, for command lines, signatures and pages that are made from it.

Two forms are read: the ``Args:`` section of Google style, an argument or a few (``a, b: text``) at the start of a line; and the
``## Arguments`` section of an environment's page, where they may also follow each other on a line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

#: A list of names between commas.
_NAMES = r"(?:{0})(?:, (?:{0}))*"


def summary(kind: Callable[..., Any]) -> str:
    """The first paragraph of a docstring on one line; "" without a docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


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
