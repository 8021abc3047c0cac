"""Settings of a run from names and plain values, as command lines and files hold them: checked against the settings' types."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bocmdp_gym.errors import OptionError, suggest
from bocmdp_gym.options import as_integer
from leaders.settings.environments import commands
from leaders.settings.modules import import_module, module_of, refuse_unnamed_modules
from leaders.settings.options import from_file, needs_json
from leaders.settings.run import RunSettings


def settings_from_values(environment: str, values: Mapping[str, Any]) -> RunSettings:
    """The settings of a run in ``environment`` (a name of `commands`), every one not named at its default.

    Raises:
        OptionError: an unknown environment or setting, a value of another type than the setting's, a setting without a
            default that is missing, or a module or file that cannot be read.
    """
    if values.get("module") is not None:
        import_module(values["module"])  # it may bring environments, estimators and followers of its own
    kinds = commands()
    if environment not in kinds:
        raise OptionError(f"unknown environment {environment!r}. {suggest(environment, kinds)}")
    kind = kinds[environment]
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


def settings_from_summary(summary: Any, module: str | None = None) -> RunSettings:
    """The settings of a run, from its summary.json.

    A summary may come from somebody else, so nothing that it alone names is imported, and no file read.

    Args:
        summary: as JSON.
        module: the module that the user named, which the run may need.

    Raises:
        OptionError: the summary is not of a run of this version, or it names a module that the user did not.
    """
    if not isinstance(summary, dict) or not {"x", "x0", "name", "settings"} <= summary.keys():
        raise OptionError('the summary lacks "x", "x0", "name" or "settings"; expected that of a finished run.')
    name, values = summary["name"], summary["settings"]
    if not isinstance(name, str) or not isinstance(values, dict):
        raise OptionError(
            f"the summary names the environment {name!r} with the settings {values!r}; expected a name and a table."
        )
    refuse_unnamed_modules(values, module, "the summary", f"--module {module_of(values)}")
    for setting, value in values.items():
        if isinstance(value, str) and value.startswith("@"):
            raise OptionError(f"the summary's {setting} is {value!r}, the name of a file; expected what was read from it.")
    try:
        return settings_from_values(name, values | ({} if module is None else {"module": module}))
    except OptionError as error:
        raise OptionError(f"the summary is not of a run of this version: {error}") from error


def _typed(kind: Any, value: Any, name: str) -> Any:
    """A value as the type ``kind`` has it."""
    if isinstance(value, str) and value.startswith("@") and from_file(kind):
        value = _text(Path(value[1:]), name)
    if isinstance(value, str) and needs_json(kind):
        value = _from_json(value, name)
    return _checked(kind, value, name)


def _text(path: Path, name: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no text"
        raise OptionError(f"{name} is to be read from the file {path}, and cannot be ({reason}).") from error


def _from_json(text: str, name: str) -> Any:
    if text in ("None", "none"):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(f"--{name.replace('_', '-')} is {text!r}, which is not JSON: {error}.") from error


def _checked(kind: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return tuple(_checked(Any, part, name) for part in value) if isinstance(value, (list, tuple)) else value
    if origin in (Union, types.UnionType):
        if type(value) in arguments:
            return value
        *others, last = (a for a in arguments if a is not type(None))
        for other in others:
            with suppress(OptionError):
                return _checked(other, value, name)
        return _checked(last, value, name)
    if origin is Literal:
        if value in arguments:
            return value
        raise OptionError(f"unknown {name.replace('_', ' ')} {value!r}. {suggest(value, arguments)}")
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(_checked(k, v, name) for k, v in zip(inner, value, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return dict(value)
    elif kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif kind is int and as_integer(value) is not None:  # 1e4 too
        return as_integer(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    wanted = "an object with names and values" if origin is dict else kind.__name__ if isinstance(kind, type) else str(kind)
    raise OptionError(f"{name} is {value!r}; expected {wanted}.")
