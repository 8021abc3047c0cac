"""A run's settings as the command that has them."""

from __future__ import annotations

import json
import shlex
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from leaders.settings.options import needs_json
from leaders.settings.run import RunSettings, hyphenated


def command_of(settings: RunSettings, module: str = "leaders.train") -> str:
    """The command line of a run with these settings, without those that say where and how it is kept.

    Settings at their defaults are left out.
    """
    kinds, decisive = get_type_hints(type(settings)), settings.fingerprint()
    words = ["python", "-m", module, settings.name]
    for field in fields(settings):
        value = getattr(settings, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name in decisive and value != default:
            words += _words(f"--{hyphenated(field.name)}", kinds[field.name], value)
    return shlex.join(words)


def _words(option: str, kind: Any, value: Any) -> list[str]:
    """An option as the command line takes it."""
    if kind is bool:
        return [option if value else option.replace("--", "--no-", 1)]
    if value is not None and needs_json(kind):
        return [option, json.dumps(value)]
    return [option, *map(str, value if isinstance(value, tuple) else [value])]
