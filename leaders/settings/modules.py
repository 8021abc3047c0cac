"""Modules of the user's that settings have imported: they register environments, estimators and followers."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from bocmdp_gym.errors import OptionError


def module_of(values: Mapping[str, Any]) -> Any:
    """The module that settings have imported: their own, or the one in front of an environment's id; None if there is none."""
    identifier = values.get("id")
    before, colon, _ = identifier.partition(":") if isinstance(identifier, str) else ("", "", "")
    return values["module"] if values.get("module") is not None else before if colon else None


def refuse_unnamed_modules(values: Mapping[str, Any], module: str | None, where: str, fix: str) -> None:
    """Refuse settings from a file that have a module imported which the user did not name: importing runs its code.

    Args:
        values: the settings.
        module: the one that the user named.
        where: what the settings are from.
        fix: how the user names it.

    Raises:
        OptionError: they do.
    """
    for part in (values, {name: value for name, value in values.items() if name != "module"}):
        named = module_of(part)
        if named is not None and named != module:
            raise OptionError(
                f"{where} has the module {named!r} imported, which runs its code; if you trust it, name it yourself: {fix}."
            )


def import_module(name: Any) -> None:
    """Import a module that registers environments, estimators or followers.

    Raises:
        OptionError: it cannot be imported.
    """
    try:
        importlib.import_module(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise OptionError(f"cannot import --module {name}: {error}.") from error
