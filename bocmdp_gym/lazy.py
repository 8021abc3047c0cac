"""Packages whose names are imported when they are first used, so that importing a package costs next to nothing.

The names stand once, as imports for type checkers:

    if TYPE_CHECKING:
        from leaders.loop import optimize
    else:
        __getattr__, __dir__ = on_first_use(__name__)

Then ``leaders.optimize`` and ``from leaders import optimize`` import `leaders.loop`; so does ``leaders.loop`` itself.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def on_first_use(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package, which import what its block ``if TYPE_CHECKING`` imports.

    A name that is not there is looked for among the package's modules.

    Args:
        package: its name; its ``__init__`` is being imported.
    """
    module = sys.modules[package]
    where = _imports(module)

    def get(name: str) -> Any:
        try:
            found = getattr(importlib.import_module(where[name]), name) if name in where else _module(package, name)
        except ModuleNotFoundError as error:
            if name in where or error.name != f"{package}.{name}":
                raise  # something else is missing
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module) from None
        setattr(module, name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(module), *where})

    return get, names


def _module(package: str, name: str) -> ModuleType:
    full = f"{package}.{name}"
    if name.startswith("__"):  # what Python asks of any module
        raise ModuleNotFoundError(name=full)
    return importlib.import_module(full)


def _imports(module: ModuleType) -> dict[str, str]:
    """Where the names are that a package imports for type checkers."""
    body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
    blocks = [one.body for one in body if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING"]
    imports = [one for block in blocks for one in block if isinstance(one, ast.ImportFrom)]
    pairs = [(one.module, alias.name) for one in imports for alias in one.names]
    return {name: where for where, name in pairs if where is not None and where != module.__name__}
