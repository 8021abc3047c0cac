"""Settings of a run from names and plain values, as files hold them: checked against the types the settings have."""

from __future__ import annotations

import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bocmdp_gym.errors import OptionError, suggest
from leaders.env_settings import ENVIRONMENTS
from leaders.settings import RunSettings


def settings_from_values(environment: str, values: Mapping[str, Any]) -> RunSettings:
    """The settings of a run in ``environment`` (a name of `ENVIRONMENTS`), every one not named at its default.

    Raises:
        OptionError: an unknown environment or setting, a value of another type than the setting's, or a setting without a
            default that is missing.
    """
    if environment not in ENVIRONMENTS:
        raise OptionError(f"unknown environment {environment!r}. {suggest(environment, ENVIRONMENTS)}")
    kind = ENVIRONMENTS[environment]
    known = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    given = {}
    for name, value in values.items():
        if name not in names:
            raise OptionError(f"{environment} has no setting {name!r}. {suggest(name, names)}")
        given[name] = _typed(known[name], value, name)
    try:
        return kind(**given)
    except TypeError as error:  # a field without a default
        raise OptionError(f"the settings of {environment} are not complete: {error}.") from error


def settings_from_summary(summary: Any) -> RunSettings:
    """The settings of a run, from its summary.json.

    Raises:
        OptionError: the summary is not of a run of this version.
    """
    if not isinstance(summary, dict) or not {"x", "x0", "name", "settings"} <= summary.keys():
        raise OptionError('the summary lacks "x", "x0", "name" or "settings"; expected that of a finished run.')
    name, values = summary["name"], summary["settings"]
    if not isinstance(name, str) or not isinstance(values, dict):
        raise OptionError(
            f"the summary names the environment {name!r} with the settings {values!r}; expected a name and a table."
        )
    try:
        return settings_from_values(name, values)
    except OptionError as error:
        raise OptionError(f"the summary is not of a run of this version: {error}") from error


def _typed(kind: Any, value: Any, name: str) -> Any:
    """A value as the type ``kind`` has it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        *others, last = (a for a in arguments if a is not type(None))
        for other in others:
            with suppress(OptionError):
                return _typed(other, value, name)
        return _typed(last, value, name)
    if origin is Literal:
        if value in arguments:
            return value
        raise OptionError(f"unknown {name.replace('_', ' ')} {value!r}. {suggest(value, arguments)}")
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(_typed(k, v, name) for k, v in zip(inner, value, strict=True))
    elif kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    wanted = kind.__name__ if isinstance(kind, type) and origin is None else str(kind)
    raise OptionError(f"{name} is {value!r}; expected {wanted}.")
